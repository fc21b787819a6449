"""Descriptions of metrics (unit, direction, label), and their values as text."""

import re
import types
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import MAX_NAME, printable

# By name: `unit` ('%' of a share of 1, or ''), `higher_is_better`, and `label`, that of its panel
# among the curves or ''; see `vit_jax.tasks.Metric`.
Descriptions = Mapping[str, Mapping[str, Any]]

_NONE: Descriptions = types.MappingProxyType({})
# The metrics that runs of earlier versions have in their curves.
LABELS = {'loss': 'loss', 'accuracy': 'accuracy', 'iou': 'mean IoU of boxes'}


def describe(name: str, descriptions: Descriptions) -> Mapping[str, Any]:
  """Returns the description of a metric.

  Args:
    name: of the metric, as 'accuracy' or, in metrics.jsonl, 'test/accuracy' or 'val/accuracy'; of
      one of each class 'test/iou/CLASS'; of an evaluator 'knn/accuracy'.
    descriptions: of a run; empty where it recorded none, as runs of earlier versions.
  """
  name = _split(name, descriptions)[0]
  if name in descriptions:
    return descriptions[name]
  is_share = name.endswith('accuracy') or re.fullmatch(r'iou\d+', name)
  return {
    'unit': '%' if is_share else '',
    'higher_is_better': not name.endswith('loss'),
    'label': LABELS.get(name, ''),
  }


def _split(name: str, descriptions: Descriptions) -> tuple[str, str]:
  """Returns (metric, class or '') of a name such as 'test/accuracy' or 'test/iou/CLASS'."""
  if name in descriptions:
    return name, ''
  metric, _, class_name = re.sub(r'^(train|val|test)/', '', name).partition('/')
  return metric, class_name


def format_value(name: str, value: float, descriptions: Descriptions = _NONE) -> str:
  """Returns '98.10 %' for shares, four digits of other metrics."""
  if describe(name, descriptions)['unit'] == '%':
    return f'{100 * value:.2f} %'
  return f'{value:,.0f}' if value >= 1000 else f'{value:.4g}'


def format_values(values: Mapping[str, float], descriptions: Descriptions = _NONE) -> str:
  """Returns 'loss 0.123  accuracy 98.10 %' for a line of text, without metrics of each class."""
  shown = {name: value for name, value in values.items() if not _split(name, descriptions)[1]}
  return '  '.join(_format(name, name, value, descriptions) for name, value in shown.items())


def format_classes(
  values: Mapping[str, float], descriptions: Descriptions = _NONE
) -> dict[str, str]:
  """Returns, for each metric of each class, its name and 'cat 98.10 %  dog 97.52 %'."""
  parts = {}
  for name, value in values.items():
    metric, class_name = _split(name, descriptions)
    if class_name:
      text = _format(class_name, name, value, descriptions)
      parts.setdefault(printable(metric, MAX_NAME), []).append(text)
  return {metric: '  '.join(texts) for metric, texts in parts.items()}


def _format(shown: str, name: str, value: float, descriptions: Descriptions) -> str:
  return f'{printable(shown, MAX_NAME)} {format_value(name, value, descriptions)}'
