"""Random access to labelled images.

A record is {'image': uint8 [H, W, C], 'label': int or float32 [num_classes]} with C 1 or 3; a
vector of labels is multi-hot. Where one object is marked in each image, it has 'box' as well,
float32 [4]: centre x and y, width and height, in fractions of the image's sides. Sources pickle to
little, so that worker processes can have them.
"""

import abc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Record = dict[str, Any]


class Source(abc.ABC):
  """Records by index.

  Attributes:
    class_names: name of each label.
    image_shape: (height, width, channels) of the stored images; None where they differ.
  """

  class_names: tuple[str, ...]
  image_shape: tuple[int | None, int | None, int]

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    """Yields records, decoded one by one, which may be read from disk together."""

  def __getitem__(self, index: int) -> Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    return next(self.read([index]))


class ArraySource(Source):
  """Records from arrays in memory: images uint8 [N, H, W, C], labels int [N]."""

  def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]):
    self.class_names, self.image_shape = tuple(class_names), images.shape[1:]
    self._images, self._labels = images, labels

  def __len__(self) -> int:
    return len(self._images)

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    for i in indices:
      yield {'image': self._images[i], 'label': int(self._labels[i])}
