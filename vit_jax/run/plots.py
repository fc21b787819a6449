"""The plots of a run directory."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from vit_jax.run.metrics import LABELS, Descriptions, describe

_COLUMNS = 4  # panels beside each other


def curves(
  history: Sequence[dict[str, Any]], title: str, descriptions: Descriptions | None = None
) -> Figure:
  """Draws metrics over steps, each label in a panel of its own.

  Args:
    history: lines of metrics.jsonl, with 'step' and keys like 'train/loss', 'test/accuracy' and,
      of evaluators, 'knn/accuracy'. Where there is 'val/accuracy', it is drawn, and not that of
      'test', which is known of the end alone.
    title: of the figure.
    descriptions: of the metrics, as results.json has them; None for runs that recorded none.
  """
  panels: dict[str, dict[str, tuple[str, str]]] = {}  # label -> name of a line -> (key, unit)
  keys = {key for line in history for key in line}
  judged = 'val' if any(key.startswith('val/') for key in keys) else 'test'
  for name in descriptions or LABELS:
    metric = describe(name, descriptions or {})
    for key in (name,) if '/' in name else (f'train/{name}', f'{judged}/{name}'):
      if key in keys and metric['label']:
        lines = panels.setdefault(metric['label'], {})
        lines[key.partition('/')[0]] = key, metric['unit']
  rows, columns = max(-(-len(panels) // _COLUMNS), 1), min(max(len(panels), 1), _COLUMNS)
  figure = Figure(figsize=(5 * columns, 3.6 * rows), layout='constrained')
  figure.suptitle(title, parse_math=False)  # names of folders may have dollars
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for axis in axes[max(len(panels), 1) :]:
    axis.remove()
  for axis, (label, lines) in zip(axes, panels.items(), strict=False):
    for name, (key, unit) in lines.items():
      points = [(line['step'], line[key]) for line in history if key in line]
      steps, values = zip(*points, strict=True)
      values = [value * (100 if unit == '%' else 1) for value in values]
      style = '-' if name == 'train' else 'o-'
      axis.plot(steps, values, style, label=name, markersize=3, linewidth=1.3)
    axis.set(xlabel='step', ylabel=label + (' (%)' if unit == '%' else ''))
    axis.grid(alpha=0.3)
    axis.legend()
  return figure
