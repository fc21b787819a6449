"""Folders with a folder of OFF, PLY, XYZ or TXT files for each class; see `vit_jax.data.clouds`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vit_jax.data import clouds, images
from vit_jax.data.kinds import KINDS
from vit_jax.data.sources.folders import FolderSource, open_folder
from vit_jax.data.sources.records import Record


class PointFolderSource(FolderSource):
  """Records from files of points, all of which can be read."""

  plural = 'points'

  def __init__(self, *args: Any):
    super().__init__(*args)
    self.num_points, self.image_shape = self.image_shape[0], ()

  @classmethod
  def check(cls, root: Path, folders: Sequence[str]) -> images.Checked:
    tops = [root / folder for folder in folders]
    found = [path for top in tops for path in images.files_below(top, clouds.SUFFIXES)]
    stats = [os.lstat(path) for path in found]
    stamp = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    files = images.shuffle([os.path.relpath(path, root) for path in found])
    return images.check_files(root, files, stamp, clouds.probe_points, 'cloud')

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    for i in indices:
      points = KINDS['points'].decode
      yield {'points': points(self._root / self.files[i]), 'label': int(self._labels[i])}


def load(split: str, directory: str) -> PointFolderSource:
  """Opens splits of a folder of points: CLASS/chair.off, or CLASS/train/chair.off as ModelNet40.

  Arguments and errors are those of `folders.open_folder`.
  """
  return open_folder(PointFolderSource, split, directory)
