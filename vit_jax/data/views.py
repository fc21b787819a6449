"""Several views of each record: random crops of it, in one size or more, made on the host."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vit_jax.data import kinds
from vit_jax.data.preprocess import Preprocess
from vit_jax.data.sources.records import Record


@dataclass(frozen=True)
class Views:
  """Maps a record to views of it, in place of a `Preprocess`; as DINO's crops (arXiv:2104.14294).

      large = make_preprocess((224,), 3, 'inception', train=True, area=(0.4, 1.0))
      small = make_preprocess((96,), 3, 'inception', train=True, area=(0.05, 0.4))
      Views({'global': (large, 2), 'local': (small, 6)})

  gives 'image/global' uint8 [2, 224, 224, 3] and 'image/local' uint8 [6, 96, 96, 3]. Videos, masks
  and boxes have the same views, each by the geometry of its image; labels and points stay as they
  are. Each view draws from a stream of its own, spawned from the record's.

  Attributes:
    groups: name of a group -> (how its views are made, how many there are).
  """

  groups: Mapping[str, tuple[Preprocess, int]]

  @property
  def random(self) -> bool:
    """Whether any view draws from the record's stream."""
    return any(preprocess.random for preprocess, _ in self.groups.values())

  @property
  def resizes(self) -> bool:
    """Whether all pictures of a group come out in one size, whatever is stored."""
    return all(preprocess.resizes for preprocess, _ in self.groups.values())

  @property
  def takes_clips(self) -> bool:
    """Whether all videos of a group come out with one number of frames, whatever is stored."""
    return all(preprocess.takes_clips for preprocess, _ in self.groups.values())

  @property
  def takes_points(self) -> bool:
    """Whether all clouds come out with one number of points: views leave points alone."""
    return False

  def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
    spatial = {name: value for name, kind, value in kinds.entries(record) if kind.is_spatial}
    result = {name: value for name, value in record.items() if name not in spatial}
    num_views = sum(count for _, count in self.groups.values())
    streams = iter(rng.spawn(num_views) if self.random else [None] * num_views)
    for _, kind, value in kinds.entries(spatial):
      kind.keep_whole(value)
    for group, (preprocess, count) in self.groups.items():
      views = kinds.stack([preprocess(spatial, next(streams)) for _ in range(count)])
      result |= {f'{name}/{group}': value for name, value in views.items()}
    return result
