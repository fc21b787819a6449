"""Folders with a folder of videos for each class: video files, or folders of frames."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vit_jax.data import images, videos
from vit_jax.data.kinds import KINDS
from vit_jax.data.sources.folders import FolderSource, open_folder
from vit_jax.data.sources.records import Record
from vit_jax.errors import FieldError


class VideoFolderSource(FolderSource):
  """Records from videos, all of which begin to decode; a frame is decoded when it is taken."""

  plural = 'videos'

  def __init__(self, *args: Any):
    super().__init__(*args)
    self.num_frames, self.image_shape = self.image_shape[0], self.image_shape[1:]

  @classmethod
  def check(cls, root: Path, folders: Sequence[str]) -> images.Checked:
    found = [path for folder in folders for path in videos.list_below(root / folder)]
    if classes := [path for path in found if os.path.relpath(path, root) in folders]:
      raise FieldError(
        'dir', f'{classes[0]} has images in it; a video of frames is a folder in that of its class'
      )
    stats = [os.lstat(path) for path in found]
    stamp = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    files = images.shuffle([os.path.relpath(path, root) for path in found])
    return images.check_files(root, files, stamp, videos.probe_video, 'video')

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    for i in indices:
      video = KINDS['video'].decode(self._root / self.files[i], self.image_shape[2])
      yield {'video': video, 'label': int(self._labels[i])}


def load(split: str, directory: str) -> VideoFolderSource:
  """Opens splits of a folder of videos: CLASS/clip.mp4, or CLASS/clip/0.png, 1.png and so on.

  Arguments and errors are those of `folders.open_folder`; a folder of a class has no images itself.
  """
  return open_folder(VideoFolderSource, split, directory)
