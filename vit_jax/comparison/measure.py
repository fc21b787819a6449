"""What a comparison measures: differences of logits, and speeds in turns."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.errors import UsageError

MOST_TURNS, _MOST_SECONDS = 10_000, 3_600

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


def compare_logits(batches: Iterable[Batch]) -> dict[str, Any]:
  """Returns how far two sides' logits are apart.

  Args:
    batches: (JAX's logits [B, K], PyTorch's, labels int [B] that are negative where there is none
      among the K), at least one.

  Returns:
    `largest_difference` and `mean_difference`, absolute; `mean` and `standard_deviation` of
    PyTorch's logits; `top_1_agreement`, from 0 to 1; `accuracy`, of `jax` and `pytorch`, or None
    where an image has no label.

  Raises:
    UsageError: a logit isn't finite.
  """
  images = []  # of each: what its logits add to the result
  for ours, theirs, labels in batches:
    ours, theirs = np.float64(ours), np.float64(theirs)
    _check_finite('JAX', ours, len(images))
    _check_finite('PyTorch', theirs, len(images))
    difference = np.abs(ours - theirs)
    top, their_top = ours.argmax(1), theirs.argmax(1)
    columns = (
      *(difference.max(1), difference.mean(1), theirs.mean(1), np.square(theirs).mean(1)),
      *(top == their_top, top == labels, their_top == labels, labels >= 0),
    )
    images += np.stack(columns, 1).tolist()
  images = np.asarray(images)
  _, difference, mean, square, same, *correct, labelled = images.mean(0).tolist()
  return {
    'largest_difference': float(images[:, 0].max()),
    'mean_difference': difference,
    'mean': mean,
    'standard_deviation': max(square - mean**2, 0.0) ** 0.5,
    'top_1_agreement': same,
    'accuracy': dict(zip(('jax', 'pytorch'), correct, strict=True)) if labelled == 1 else None,
  }


def _check_finite(side: str, logits: np.ndarray, before: int) -> None:
  wrong = np.flatnonzero(~np.isfinite(logits).all(1))
  if wrong.size:
    raise UsageError(f'{side}: the logits of image {before + wrong[0]} are not all finite')


def check_seconds(seconds: float) -> None:
  """Raises UsageError unless it is a length of a turn that turns come to an end with."""
  if not 0 < seconds <= _MOST_SECONDS:
    raise UsageError(f'--seconds: {seconds:g} is not over 0 and up to {_MOST_SECONDS:,}')


def in_turns(sides: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
  """Returns name -> the speeds that a side's function returned, turn by turn.

  Sides are called in turns, so that what else the machine does falls on all.
  """
  speeds = {name: [] for name in sides}
  for _ in range(turns):
    for name, call in sides.items():
      speeds[name].append(call())
  return speeds


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
  """Returns, turn by turn, how many times as fast one side is as the other."""
  return [a / b for a, b in zip(ours, theirs, strict=True)]


def compare_speeds(
  jax: Callable[[], float], pytorch: Callable[[], float], turns: int
) -> dict[str, dict[str, float]]:
  """Calls both, which return speeds, in turns.

  Returns:
    `median`, `low` and `high`, over the turns, of `jax`, of `pytorch` and of their `ratio`.
  """
  speeds = in_turns({'jax': jax, 'pytorch': pytorch}, turns)
  speeds['ratio'] = ratios(speeds['jax'], speeds['pytorch'])
  return {name: summary(values) for name, values in speeds.items()}


def summary(values: Sequence[float]) -> dict[str, float]:
  """Returns the `median`, `low` and `high` of some values."""
  return {'median': statistics.median(values), 'low': min(values), 'high': max(values)}
