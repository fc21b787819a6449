"""Metrics on the host: sums, added up in float64 until they are printed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.run.ending import NonFiniteError
from vit_jax.tasks import Metric, Sums

# What the step reports besides the task's metrics; not a property of the training split.
_STEP_METRICS = ('learning_rate', 'grad_norm')


def values(
  metrics: Mapping[str, Metric],
  sums: Mapping[str, Sequence[Any]],
  class_names: Sequence[str] = (),
) -> dict[str, float]:
  """Turns sums, as arrays, into numbers; those of metrics that aren't listed are means.

  Metrics of each class are called NAME/CLASS by `class_names`, without which they are left out, as
  classes that don't occur are.
  """
  numbers = {}
  for name, arrays in sums.items():
    metric = metrics.get(name, Metric())
    if not metric.per_class:
      numbers[name] = float(metric.value(*arrays))
    elif class_names:
      pairs = zip(class_names, metric.value(*arrays), strict=True)
      numbers |= {f'{name}/{c}': float(value) for c, value in pairs if not np.isnan(value)}
  return numbers


def monitored(monitor: str, metrics: Mapping[str, Metric]) -> Metric:
  """Returns the metric that `config.monitor` names, val/NAME, test/NAME or knn/accuracy."""
  return metrics[monitor.removeprefix('val/').removeprefix('test/')]


class Window:
  """Training metrics since the last report, added up in float64."""

  def __init__(self, metrics: Mapping[str, Metric], totals: Mapping[str, Sequence[Any]]):
    """Starts with `totals`, as `to_json` gives them, of a task's `metrics`."""
    self._metrics = metrics
    self._totals = {name: [np.array(x, np.float64) for x in t] for name, t in totals.items()}

  def add(self, step: int, sums: Sums, n: int) -> None:
    """Adds the sums of the n steps that follow `step`.

    Args:
      step: steps done before.
      sums: arrays whose first n entries are those of the steps.
      n: how many steps.

    Raises:
      NonFiniteError: at the first loss or gradient norm that isn't finite.
    """
    sums = {name: [x[:n].astype(np.float64) for x in arrays] for name, arrays in sums.items()}
    for i in range(n):
      for name, what in (('loss', 'loss'), ('grad_norm', 'gradient norm')):
        if not all(np.isfinite(x[i]).all() for x in sums[name]):
          raise NonFiniteError(f'the {what} of step {step + i + 1} is not finite')
      for name, arrays in sums.items():
        totals = self._totals.get(name, [0.0] * len(arrays))
        self._totals[name] = [total + x[i] for total, x in zip(totals, arrays, strict=True)]

  def report(self) -> dict[str, float]:
    """Returns the numbers by the names that they have in metrics.jsonl; starts a new window."""
    numbers = values(self._metrics, self._totals)
    self._totals = {}
    return {n if n in _STEP_METRICS else f'train/{n}': value for n, value in numbers.items()}

  def to_json(self) -> dict[str, list[Any]]:
    """Returns what the constructor takes, for a resumed run to report the same numbers."""
    return {name: [np.asarray(x).tolist() for x in t] for name, t in self._totals.items()}
