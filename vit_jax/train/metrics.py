"""Metrics on the host: sums, added up in float64 until they are printed."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax import requirements, user_code
from vit_jax.errors import FieldError, check_choice, field_prefix
from vit_jax.run.ending import NonFiniteError
from vit_jax.tasks import Metric, Sums, Task

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


def further(
  names: Sequence[str], monitor: str, task: Task, record: Mapping[str, Any]
) -> dict[str, Metric]:
  """Returns the metrics that `config.metrics` names, but for those that the task has anyway.

  They are functions of `probabilities` and `label`, as `Task.further_metrics` says. One of the
  user's own is called by the name of its function. It is tried on made-up predictions, which show
  whether it gives a number or one for each class.

  Args:
    names: of the task's metrics, further ones, or 'module:function'.
    monitor: `config.monitor`, whose metric is there even if it isn't among them.
    task: what is learnt.
    record: an example of the data.

  Raises:
    FieldError: of the field 'metrics': the task has no such metric, or none of whole splits; a
      function can't be found or called, or gives something else than numbers.
  """
  offered, found = task.further_metrics(record), {}
  watched = monitor.rpartition('/')[2]
  for name in dict.fromkeys([*names, *({watched} & offered.keys())]):
    if name in task.metrics:
      continue
    if not offered:
      raise FieldError('metrics', f'{name!r}, but the task has {", ".join(task.metrics)} alone')
    if not user_code.is_reference(name):
      check_choice('metrics', name, [*task.metrics, *offered])
      found[name] = offered[name]
      continue
    own = name.rpartition(':')[2]
    if own in {*task.metrics, *offered, *found}:
      raise FieldError('metrics', f'{name!r}: there is another metric {own!r}; rename yours')
    several = np.ndim(record['label']) > 0
    found[own] = _users(name, user_code.find(name, 'metrics'), task.num_classes, several)
  if found:
    requirements.need('sklearn')
  return found


def _users(name: str, function: Any, num_classes: int, several: bool) -> Metric:
  """Returns the metric of a user's function, tried once."""
  if not callable(function):
    raise FieldError('metrics', f'{name!r} is not a function')
  shapes = [(), (num_classes,)]

  def value(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    result = function(probabilities, labels)
    try:
      numbers = np.asarray(result)
    except ValueError:  # lists of several lengths
      numbers = np.asarray(None)
    if numbers.dtype.kind not in 'biuf' or numbers.shape not in shapes:
      wanted = ' or '.join(
        f'{math.prod(shape)} numbers' if shape else 'a number' for shape in shapes
      )
      shown = textwrap.shorten(repr(result), 60)
      raise FieldError('metrics', f'{name!r} returned {shown}, not {wanted}')
    return numbers

  shapes = [value(*_made_up(num_classes, several)).shape]
  return Metric(
    higher_is_better=getattr(function, 'higher_is_better', True),
    label=name.rpartition(':')[2].replace('_', ' '),
    value=value,
    per_class=shapes != [()],
  )


def _made_up(num_classes: int, several: bool) -> tuple[np.ndarray, np.ndarray]:
  """Returns probabilities and labels of two examples of each class."""
  rng, labels = np.random.default_rng(0), np.arange(2 * num_classes, dtype=np.int32) % num_classes
  probabilities = rng.random((len(labels), num_classes), np.float32)
  if several:
    return probabilities, np.eye(num_classes, dtype=np.float32)[labels]
  return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def of_split(
  task: Task,
  further: Mapping[str, Metric],
  found: tuple[Mapping[str, Sequence[Any]], Mapping[str, np.ndarray] | None],
  class_names: Sequence[str],
  needed: str,
) -> dict[str, float]:
  """Returns the metrics of a split, by the names of `values`.

  Args:
    task: whose metrics are computed from sums.
    further: what `further` gives, computed from rows. What isn't defined is left out, and so are
      all where probabilities aren't finite, which then shows in the loss.
    found: (sums, rows) of an evaluation.
    class_names: as for `values`.
    needed: the metric that is NaN where it isn't defined.
  """
  sums, rows = found
  numbers = values(task.metrics, sums, class_names)
  if further and np.isfinite(rows['probabilities']).all():
    judged = rows['probabilities'], rows['label']
    with field_prefix('config.'):
      more = values(further, dict.fromkeys(further, judged), class_names)
    numbers |= {name: v for name, v in more.items() if name == needed or not np.isnan(v)}
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

  def report(self, keep: bool = False) -> dict[str, float]:
    """Returns the numbers by the names that they have in metrics.jsonl.

    It starts a new window unless `keep`.
    """
    numbers = values(self._metrics, self._totals)
    if not keep:
      self._totals = {}
    return {n if n in _STEP_METRICS else f'train/{n}': value for n, value in numbers.items()}

  def to_json(self) -> dict[str, list[Any]]:
    """Returns what the constructor takes, for a resumed run to report the same numbers."""
    return {name: [np.asarray(x).tolist() for x in t] for name, t in self._totals.items()}
