"""Moving digits: clips made from MNIST's images, whose class is the direction of motion.

The digit moves on a black ground and comes back on the other side where it leaves the picture. Its
place in each single frame is uniformly distributed whatever the direction, so that only the order
of the frames tells the class.
"""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from vit_jax.data import kinds
from vit_jax.data.sources import tfds
from vit_jax.data.sources.records import Record, Source
from vit_jax.errors import FieldError

# The options of the data set and their defaults.
OPTIONS = {
  'size': 64,  # of the picture, pixels a side
  'num_frames': 8,  # of each clip
  'speeds': (2, 4),  # the lowest and the highest, in pixels a frame along each axis that it moves
}
_MOST_BYTES = 2**30  # of a clip
# Class -> steps (down, right) from frame to frame.
_DIRECTIONS = {
  'right': (0, 1),
  'down right': (1, 1),
  'down': (1, 0),
  'down left': (1, -1),
  'left': (0, -1),
  'up left': (-1, -1),
  'up': (-1, 0),
  'up right': (-1, 1),
}


class MovingMnist(Source):
  """A clip for each digit: clip i is made from digit i, and its class is i modulo 8."""

  class_names = tuple(_DIRECTIONS)

  def __init__(self, digits: Source, size: int, num_frames: int, speeds: tuple[int, int]):
    self.image_shape, self.num_frames = (size, size, 1), num_frames
    self._digits, self._speeds = digits, speeds

  def __len__(self) -> int:
    return len(self._digits)

  def labels(self) -> np.ndarray:
    return np.arange(len(self), dtype=np.int32) % len(_DIRECTIONS)

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    for i, record in zip(indices, self._digits.read(indices), strict=True):
      yield self._move(i, kinds.load(record)['image'])

  def _move(self, i: int, digit: np.ndarray) -> Record:
    label, size = i % len(_DIRECTIONS), self.image_shape[0]
    # The same index has other draws in another split.
    rng = np.random.default_rng([i, zlib.crc32(digit.tobytes())])
    start = rng.integers(size, size=2)
    low, high = self._speeds
    step = rng.integers(low, high + 1) * np.array(_DIRECTIONS[self.class_names[label]])
    picture = np.zeros((size, size, 1), np.uint8)
    picture[: digit.shape[0], : digit.shape[1]] = digit
    places = (start + t * step for t in range(self.num_frames))
    video = np.stack([np.roll(picture, place, axis=(0, 1)) for place in places])
    return {'video': video, 'label': label}


def load(
  split: str, directory: str, size: int, num_frames: int, speeds: Sequence[int]
) -> MovingMnist:
  """Opens splits of moving digits, 60,000 to train and 10,000 to test.

  Args:
    split: of MNIST, in TFDS syntax; digits of 'test' are in no clip of 'train'.
    directory: where TFDS keeps MNIST, as for `sources.load_source`.
    size: as in `OPTIONS`, and likewise the others.

  Raises:
    FieldError: an option is out of range, or as for a TFDS data set.
  """
  if size < 28:
    raise FieldError('options.size', f'{size} is less than the 28 pixels of a digit')
  if num_frames < 1:
    raise FieldError('options.num_frames', f'{num_frames} is not a number from 1 on')
  if num_frames * size**2 > _MOST_BYTES:
    problem = f'{num_frames:,} of {size:,}x{size:,} pixels take more than {_MOST_BYTES >> 30} GiB'
    raise FieldError('options.num_frames', problem)
  speeds = tuple(speeds)
  whole = all(type(speed) is int for speed in speeds)
  if len(speeds) != 2 or not whole or not 1 <= speeds[0] <= speeds[1] < size / 2:
    raise FieldError(
      'options.speeds', f'{speeds} is not (lowest, highest), from 1 to less than half of {size}'
    )
  return MovingMnist(tfds.load_mnist(split, directory), size, num_frames, speeds)
