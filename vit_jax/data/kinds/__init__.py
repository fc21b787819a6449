"""Kinds of data by the names of a record's entries, and what is done to all entries of a record.

A view of an entry is named after both: 'image/global' holds images of the group of views 'global',
with an axis of its own for the views in front. The group that `views_of` names has the views whose
outputs are averaged in evaluation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.data.kinds.box import Box
from vit_jax.data.kinds.kind import WHOLE, Geometry, Kind, Move, Size, Window
from vit_jax.data.kinds.label import Label
from vit_jax.data.kinds.parts import Parts
from vit_jax.data.kinds.pictures import VOID, Image, Mask, Video
from vit_jax.data.kinds.points import Points
from vit_jax.errors import UsageError, nearest

__all__ = [
  'KINDS',
  'VOID',
  'WHOLE',
  'Geometry',
  'Kind',
  'Move',
  'Size',
  'Window',
  'check',
  'entries',
  'example',
  'fit',
  'kind_of',
  'load',
  'normalize',
  'num_frames',
  'num_points',
  'picture_size',
  'restore',
  'shows_enough',
  'stack',
  'take_frames',
  'take_points',
  'views_of',
]

KINDS: dict[str, Kind] = {
  'image': Image(),
  'video': Video(),
  'mask': Mask(),
  'box': Box(),
  'label': Label(),
  'points': Points(),
  'parts': Parts(),
}


def kind_of(name: str) -> Kind:
  """Returns the kind of an entry of records.

  Raises:
    UsageError: there is none of this name.
  """
  kind = _find(name)
  if kind is None:
    raise UsageError(f'a record has {name!r}, not one of {", ".join(KINDS)}{nearest(name, KINDS)}')
  return kind


def _find(name: str) -> Kind | None:
  return KINDS.get(name) or KINDS.get(name.partition('/')[0])


def entries(record: Mapping[str, Any]) -> list[tuple[str, Kind, Any]]:
  """Returns (name, kind, value) of each entry that has a kind; others are left alone."""
  return [(name, kind, value) for name, value in record.items() if (kind := _find(name))]


def views_of(name: str) -> str:
  """Returns the name under which a record has the views of an entry that evaluation averages."""
  return f'{name}/evaluation'


def example(record: Mapping[str, Any], name: str) -> np.ndarray:
  """Returns an entry of a record, or the first of its views for evaluation."""
  return record[name] if name in record else record[views_of(name)][0]


def load(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the record with arrays in place of image files that stand for them."""
  return dict(record) | {name: kind.load(value) for name, kind, value in entries(record)}


def num_frames(record: Mapping[str, Any]) -> int | None:
  """Returns how many frames the videos of a record have, None where there are none."""
  counts = (kind.num_frames(value) for _, kind, value in entries(record))
  return next((count for count in counts if count is not None), None)


def take_frames(record: Mapping[str, Any], indices: np.ndarray) -> dict[str, Any]:
  """Returns the record with some of the frames of its videos; see `Kind.take_frames`."""
  return dict(record) | {
    name: kind.take_frames(value, indices) for name, kind, value in entries(record)
  }


def num_points(record: Mapping[str, Any]) -> int | None:
  """Returns how many points the clouds of a record have, None where there are none."""
  counts = (kind.num_points(value) for _, kind, value in entries(record))
  return next((count for count in counts if count is not None), None)


def take_points(record: Mapping[str, Any], indices: np.ndarray) -> dict[str, Any]:
  """Returns the record with some of the points of its clouds; see `Kind.take_points`."""
  return dict(record) | {
    name: kind.take_points(value, indices) for name, kind, value in entries(record)
  }


def picture_size(record: Mapping[str, Any]) -> Size | None:
  """Returns the (height, width) of the pictures of a record, None where there are none."""
  for _, kind, value in entries(record):
    if size := kind.size(value):
      return size
  return None


def check(record: Mapping[str, Any]) -> None:
  """Raises UsageError unless each entry is of its kind, and they agree in size.

  All pictures are of one size, and all that belongs to points is for as many of them.

  Views, which are made of what was checked, aren't looked at.
  """
  sizes, counts = {}, {}
  for name, kind, value in entries(record):
    if '/' in name:
      continue
    kind.check(name, value)
    if size := kind.size(value):
      sizes[name] = size
    if count := kind.num_points(value):
      counts[name] = count
  if len(set(counts.values())) > 1:
    listed = ', '.join(f'{name} {count}' for name, count in counts.items())
    raise UsageError(f'the points of a record differ in number: {listed}')
  if len(set(sizes.values())) > 1:
    listed = ', '.join(f'{name} {height}x{width}' for name, (height, width) in sizes.items())
    raise UsageError(f'the pictures of a record differ in size: {listed}')


def fit(record: Mapping[str, Any], geometry: Geometry, channels: int = 0) -> dict[str, Any]:
  """Returns the record with what `geometry` takes of each entry, images in `channels`; see Kind."""
  return dict(record) | {
    name: kind.fit(value, geometry, channels) for name, kind, value in entries(record)
  }


def shows_enough(record: Mapping[str, Any], window: Window) -> bool:
  """Returns whether enough of every entry lies in a random window to learn from."""
  return all(kind.shows_enough(value, window) for _, kind, value in entries(record))


def restore(prediction: Mapping[str, Any], window: Window, size: Size) -> dict[str, Any]:
  """Returns predictions for a window of a picture as predictions for the whole, of `size`.

  Entries without a kind, such as probabilities, stay as they are.
  """
  return dict(prediction) | {
    name: kind.restore(value, window, size) for name, kind, value in entries(prediction)
  }


def stack(records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Returns arrays of n records, which have the same entries, with a leading axis n.

  image uint8 [n, H, W, C], video uint8 [n, T, H, W, C], mask uint8 or int32 [n, H, W], box float32
  [n, 4], label int32 [n] or float32 [n, num_classes], points float32 [n, N, 3], parts int32 [n, N].

  Raises:
    UsageError: an entry without a kind, or, in the first record, not of its kind.
  """
  check(records[0])
  return {name: kind_of(name).stack([r[name] for r in records]) for name in records[0]}


def normalize(
  batch: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
  """Returns a batch, or its views, as models and losses take it; see `Kind.normalize`."""
  return dict(batch) | {
    name: kind.normalize(value, mean, std) for name, kind, value in entries(batch)
  }
