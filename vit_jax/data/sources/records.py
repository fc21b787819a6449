"""Random access to records.

A record is a dict with an entry of one or more of the kinds in `vit_jax.data.kinds`, by name:
`image` uint8 [H, W, C] with C 1 or 3, or an `images.EncodedImage` that stands for it; `video` uint8
[T, H, W, C], or a `videos.Frames` that stands for it; `mask`, uint8 or int32 [H, W]; `box` float32
[4], round the one object that is marked in each image; `label`, an int or, multi-hot, float32
[num_classes]; `points` float32 [N, 3]; `parts` int32 [N], what each of these belongs to. All
records of a source have the same entries.
Sources pickle to little, so that worker processes can have them.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.data import kinds
from vit_jax.data.kinds import KINDS
from vit_jax.errors import UsageError

Record = dict[str, Any]

# Of a head for a model as large as ViT-L, 4 GiB of parameters.
MAX_CLASSES = 2**20
MAX_NAMES = 2**24  # bytes of a file that names classes


def check_num_classes(place: object, count: int) -> None:
  """Raises UsageError for more classes than a model is made for, or for none; `place` says them."""
  if not 0 < count <= MAX_CLASSES:
    raise UsageError(f'{place}: {count:,} classes, not 1 to {MAX_CLASSES:,}')


class Source(abc.ABC):
  """Records by index.

  Attributes:
    class_names: name of each label, or of each id in masks or parts; empty without these.
    image_shape: (height, width, channels) of the stored images or frames, None where they differ;
      () without images.
    num_frames: of the stored videos, None where they differ; 0 without videos.
    num_points: of the stored clouds, None where they differ; 0 without points.
    files: the file of each record, below a folder; () where records have none of their own.
  """

  class_names: tuple[str, ...] = ()
  image_shape: tuple[int | None, int | None, int] | tuple[()] = ()
  num_frames: int | None = 0
  num_points: int | None = 0
  files: Sequence[str] = ()

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @property
  def channels(self) -> int:
    """Of the stored images or frames; of points, which have none, the coordinates."""
    return self.image_shape[2] if self.image_shape else 3

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    """Yields records, one by one, which may be read from disk together.

    An image may be a file that stands for an array; `kinds.load` of a record gives arrays.
    """

  def labels(self) -> np.ndarray | None:
    """Returns the labels of all records, None where these have none.

    int32 [N] of records with one class each, float32 [N, K] of such with several. Sources that can
    read labels alone.
    """
    if 'label' not in self[0]:
      return None
    return KINDS['label'].stack([record['label'] for record in self.read(range(len(self)))])

  def __getitem__(self, index: int) -> Record:
    """Returns a record, whose image is decoded."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    return kinds.load(next(self.read([index])))


class ArraySource(Source):
  """Records from arrays in memory, each [N, ...], by the names of entries.

  Raises:
    UsageError: on construction, for labels of more classes than have a name.
  """

  def __init__(self, arrays: Mapping[str, np.ndarray], class_names: Sequence[str] = ()):
    self.class_names, self._arrays = tuple(class_names), dict(arrays)
    labels = np.asarray(arrays.get('label', ()))
    classes = labels.shape[1] if labels.ndim > 1 else labels.max(initial=-1) + 1
    if class_names and classes > len(class_names):
      raise UsageError(f'labels are of {classes} classes, and {len(class_names)} have a name')
    pictures = [arrays[name] for name in ('image', 'video') if name in arrays]
    self.image_shape = pictures[0].shape[-3:] if pictures else ()
    self.num_frames = arrays['video'].shape[1] if 'video' in arrays else 0
    self.num_points = arrays['points'].shape[1] if 'points' in arrays else 0

  def __len__(self) -> int:
    return len(next(iter(self._arrays.values())))

  def labels(self) -> np.ndarray | None:
    return KINDS['label'].stack(self._arrays['label']) if 'label' in self._arrays else None

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    for i in indices:
      yield {
        name: array[i] if array.ndim > 1 else array[i].item()
        for name, array in self._arrays.items()
      }
