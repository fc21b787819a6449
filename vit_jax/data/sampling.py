"""How often the classes of the training split are drawn."""

import functools

import numpy as np

from vit_jax.data.sources.records import Source
from vit_jax.errors import FieldError, check_choice

# config.data.sampling -> the power of its number of examples that a class is drawn in proportion to
# (arXiv 1910.09217).
SAMPLING = {'uniform': 1.0, 'sqrt': 0.5, 'balanced': 0.0}


class ClassSampler:
  """Draws the examples of an epoch, as many as there are, with classes as often as asked.

  A class is drawn as often as its share of the epoch says, rounded up or down. Of its examples,
  some are drawn once more than the others, at random; none, or all, where there is no remainder.
  """

  def __init__(self, labels: np.ndarray, power: float):
    """Takes the class of each example, int [N], and a value of `SAMPLING`."""
    counts = np.bincount(labels)
    order = np.argsort(labels, kind='stable')
    self._members = [m for m in np.split(order, np.cumsum(counts)[:-1]) if len(m)]
    shares = counts[counts > 0] ** power
    self._bounds = np.cumsum(shares / shares.sum())[:-1]
    self._num_examples = len(labels)

  def draw(self, rng: np.random.Generator) -> np.ndarray:
    """Returns the examples of an epoch in their order, int64 [N]."""
    # Points at equal distances, all moved by the same part of it: so a class has N times its share
    # on average, and always to within one.
    points = (np.arange(self._num_examples) + rng.random()) / self._num_examples
    classes = np.searchsorted(self._bounds, points, side='right')
    drawn = []
    for members, count in zip(self._members, np.bincount(classes), strict=True):
      rounds, rest = divmod(count, len(members))
      drawn += [np.tile(members, rounds), rng.permutation(members)[:rest]]
    return rng.permutation(np.concatenate(drawn))


def make_sampler(sampling: str, source: Source) -> ClassSampler | None:
  """Returns what draws the examples of an epoch; None where each is drawn once.

  Raises:
    FieldError: of `sampling`: an unknown value, or examples that aren't of one class each.
  """
  check_choice('sampling', sampling, SAMPLING)
  return None if sampling == 'uniform' else _read_sampler(sampling, source)


@functools.lru_cache(maxsize=2)  # asked for once to check the configuration, and once to train
def _read_sampler(sampling: str, source: Source) -> ClassSampler:
  labels = source.labels()
  if labels is None or labels.ndim > 1:
    has = 'have no labels' if labels is None else 'may have several'
    raise FieldError('sampling', f'{sampling!r} needs one class of each example, and these {has}')
  return ClassSampler(labels, SAMPLING[sampling])
