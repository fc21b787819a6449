"""Metrics on the host: (sum, count) pairs, added up until they are printed."""

from typing import Any

import numpy as np

# What the step reports besides the task's metrics; not a property of the training split.
_STEP_METRICS = ('learning_rate', 'grad_norm')


class NonFiniteError(RuntimeError):
  """A loss or gradient norm that isn't finite; the message says at which step."""


def monitor_sign(monitor: str) -> int:
  """Returns 1 where a higher value of the monitored metric is better, -1 for losses."""
  return -1 if monitor.endswith('loss') else 1


def quotients(metrics: dict[str, tuple[Any, Any]]) -> dict[str, float]:
  """Turns (sum, count) pairs into numbers."""
  return {name: float(total / count) for name, (total, count) in metrics.items()}


class Window:
  """Training metrics since the last report, added up in float64."""

  def __init__(self, totals: dict[str, list[float]]):
    self._totals = {name: np.array(pair) for name, pair in totals.items()}

  def add(self, step: int, metrics: dict[str, tuple[Any, Any]], n: int) -> None:
    """Adds the metrics of the n steps that follow `step`.

    Args:
      step: steps done before.
      metrics: pairs of scalars, or of arrays whose first n entries are those of the steps.
      n: how many steps.

    Raises:
      NonFiniteError: at the first loss or gradient norm that isn't finite.
    """
    entries = {
      name: np.stack([np.atleast_1d(x)[:n] for x in pair], axis=-1).astype(np.float64)
      for name, pair in metrics.items()
    }
    for i in range(n):
      for name, what in (('loss', 'loss'), ('grad_norm', 'gradient norm')):
        if not np.isfinite(entries[name][i]).all():
          raise NonFiniteError(f'the {what} of step {step + i + 1} is not finite')
      for name, pairs in entries.items():
        self._totals[name] = self._totals.get(name, 0.0) + pairs[i]

  def report(self) -> dict[str, float]:
    """Returns the averages by the names that they have in metrics.jsonl; starts a new window."""
    values = quotients(self._totals)
    self._totals = {}
    return {n if n in _STEP_METRICS else f'train/{n}': value for n, value in values.items()}

  def to_json(self) -> dict[str, list[float]]:
    """Returns what the constructor takes, for a resumed run to report the same averages."""
    return {name: pair.tolist() for name, pair in self._totals.items()}
