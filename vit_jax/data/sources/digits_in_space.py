"""Digits in space: points drawn from the strokes of MNIST's images, which are bent.

A picture's points lie on a sheet that is flat up to the middle and bends towards the viewer above
it: at the height y, from -1 to 1, z is `depth` times the square of y where y is positive. A flat
digit would be its mirror image when seen from behind, and a 6 that is turned round would be a 9.
Of the bent sheet no rotation but the identity gives the same sheet: the bend tells what is up, and
what is in front. So a digit is the same object however it is turned, and two that differ stay so.
"""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from vit_jax.data import kinds
from vit_jax.data.sources import tfds
from vit_jax.data.sources.records import Record, Source
from vit_jax.errors import FieldError, UsageError

# The options of the data set and their defaults.
OPTIONS = {
  'num_points': 256,  # of each cloud
  'depth': 1.0,  # how far the top is bent, in halves of the picture's side
  'thickness': 0.1,  # of the stroke, likewise
  'digits': 1,  # in a cloud; of several, each point's part is the digit that it belongs to
}
_MOST_POINTS = 2**23  # of a cloud, as in files
_SPACING = 2.0  # from each of several digits to the next, in halves of the picture's side


class DigitsInSpace(Source):
  """A cloud for each digit: `points`, and the `label`, or of several digits the `parts`.

  Cloud i begins with digit i; the others are drawn from the same split, and stand in a row to its
  right.
  """

  def __init__(self, source: Source, num_points: int, depth: float, thickness: float, digits: int):
    self.class_names, self.num_points = source.class_names, num_points
    self._source, self._digits = source, digits
    self._depth, self._thickness = depth, thickness

  def __len__(self) -> int:
    return len(self._source)

  def labels(self) -> np.ndarray | None:
    return self._source.labels() if self._digits == 1 else None

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    for i, first in zip(indices, self._digits_of(indices), strict=True):
      # The same index has other draws in another split.
      rng = np.random.default_rng([i, zlib.crc32(first['image'].tobytes())])
      if self._digits == 1:
        yield {'points': self._draw(first, self.num_points, rng), 'label': first['label']}
      else:
        others = rng.integers(len(self), size=self._digits - 1).tolist()
        yield self._draw_all([first, *self._digits_of(others)], rng)

  def _digits_of(self, indices: Sequence[int]) -> Iterator[Record]:
    return map(kinds.load, self._source.read(indices))

  def _draw_all(self, records: Sequence[Record], rng: np.random.Generator) -> Record:
    counts = np.diff(np.arange(self._digits + 1) * self.num_points // self._digits)
    clouds = [self._draw(r, n, rng) for r, n in zip(records, counts, strict=True)]
    offsets = np.float32([_SPACING, 0, 0]) * np.arange(self._digits)[:, None]
    points = np.concatenate([c + offset for c, offset in zip(clouds, offsets, strict=True)])
    parts = np.repeat(np.int32([record['label'] for record in records]), counts)
    return {'points': np.float32(points), 'parts': parts}

  def _draw(self, record: Record, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws points of a digit, float32 [count, 3]; more where the stroke is brighter."""
    picture = record['image'][..., 0]
    ink = np.cumsum(picture, dtype=np.int64)
    if not ink[-1]:
      raise UsageError('mnist: an image is blank, so that no points can be drawn from it')
    pixels = np.searchsorted(ink, rng.integers(ink[-1], size=count), side='right')
    rows, columns = np.divmod(pixels, picture.shape[1])
    across, up, out = rng.uniform(size=(3, count))
    x = 2 * (columns + across) / picture.shape[1] - 1
    y = 1 - 2 * (rows + up) / picture.shape[0]
    z = self._depth * np.maximum(y, 0) ** 2 + self._thickness * (out - 0.5)
    return np.float32(np.stack([x, y, z], axis=1))


def load(
  split: str, directory: str, num_points: int, depth: float, thickness: float, digits: int
) -> DigitsInSpace:
  """Opens splits of digits in space, 60,000 to train and 10,000 to test.

  Args:
    split: of MNIST, in TFDS syntax; digits of 'test' are in no cloud of 'train'.
    directory: where TFDS keeps MNIST, as for `sources.load_source`.
    num_points: as in `OPTIONS`, and likewise the others.

  Raises:
    FieldError: an option is out of range, or as for a TFDS data set.
  """
  if not 1 <= num_points <= _MOST_POINTS:
    raise FieldError('options.num_points', f'{num_points} is not from 1 to {_MOST_POINTS:,}')
  if not 1 <= digits <= num_points:
    raise FieldError('options.digits', f'{digits} is not from 1 to {num_points}, one a point')
  for field, value in (('depth', depth), ('thickness', thickness)):
    if not 0 <= value < np.inf:
      raise FieldError(f'options.{field}', f'{value} is not a number from 0 on')
  source = tfds.load_mnist(split, directory)
  return DigitsInSpace(source, num_points, depth, thickness, digits)
