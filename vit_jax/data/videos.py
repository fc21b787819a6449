"""Videos: files, and folders with an image for each frame, of which frames are decoded when wanted.

PyAV (FFmpeg) decodes files. Frames are counted in the order in which they are shown, and taken as
they are stored, whatever their times.
"""

import contextlib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vit_jax.data import decoding, images
from vit_jax.errors import UsageError
from vit_jax.regular_files import open_regular

SUFFIXES = (
  '.3gp',
  '.avi',
  '.flv',
  '.gif',
  '.m4v',
  '.mkv',
  '.mov',
  '.mp4',
  '.mpeg',
  '.mpg',
  '.ogv',
  '.ts',
  '.webm',
  '.wmv',
)
_FRAME_SUFFIXES = tuple(suffix for suffix in images.SUFFIXES if suffix not in SUFFIXES)


class Frames:
  """A video that stands for an array uint8 [T, H, W, C], and decodes frames when they are taken.

  Attributes:
    shape: of the array.
  """

  def __init__(self, shape: tuple[int, int, int, int]):
    self.shape = shape

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, indices: np.ndarray) -> np.ndarray:
    """Returns the frames of these indices, int [n], as uint8 [n, H, W, C].

    Raises:
      UnreadableFile: a frame can't be decoded, or so many are too large.
    """
    raise NotImplementedError

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return np.asarray(self[np.arange(len(self))], dtype)


class VideoFile(Frames):
  """The frames of a video file, upright, as its display matrix says.

  A frame that can't be decoded is left out, and the last one that can stands for those that are
  then missing at the end.
  """

  def __init__(self, path: Path, channels: int = 0):
    """Opens the file, counts its frames and decodes the first.

    Args:
      path: of the file.
      channels: 1, 3, or 0 for as many as are stored.

    Raises:
      UnreadableFile: it isn't a video, or it is damaged.
    """
    self._path = path
    with _open(path) as container:
      count = sum(packet.size > 0 for packet in _packets(container))
    with _open(path) as container:
      first = next(_decode(container), None)
      if first is None:
        raise UsageError('no frame of it can be decoded')
      self._channels = channels or (1 if first.format.name.startswith('gray') else 3)
      super().__init__((count, *self._pixels(first).shape))

  def __getitem__(self, indices: np.ndarray) -> np.ndarray:
    clip, last, places = Clip(len(indices)), None, {}
    for place, i in enumerate(np.asarray(indices).tolist()):
      places.setdefault(i, []).append(place)
    with _open(self._path) as container:
      for i, frame in enumerate(_decode(container)):
        last = frame
        if i in places:
          clip.put(self._pixels(frame), places.pop(i))
        if not places:
          break
      if last is None:
        raise UsageError('no frame of it can be decoded')
      for missing in places.values():
        clip.put(self._pixels(last), missing)
      return clip.frames

  def _pixels(self, frame) -> np.ndarray:
    """Returns a decoded frame as uint8 [H, W, C]."""
    pixels = frame.to_ndarray(format='gray' if self._channels == 1 else 'rgb24')
    pixels = pixels.reshape(*pixels.shape[:2], self._channels)
    return np.rot90(pixels, round(frame.rotation / 90))


class FrameFiles(Frames):
  """Image files, a frame each."""

  def __init__(self, files: Sequence[Path], channels: int = 0):
    """Decodes the first file.

    Args:
      files: in their order.
      channels: 1, 3, or 0 for as many as the first has.
    """
    self._files = list(files)
    first = images.decode_image(files[0], channels)
    self._channels = first.shape[-1]
    super().__init__((len(files), *first.shape))

  def __getitem__(self, indices: np.ndarray) -> np.ndarray:
    clip = Clip(len(indices))
    with decoding.reading(self._files[0].parent):
      for place, i in enumerate(indices.tolist()):
        clip.put(images.decode_image(self._files[i], self._channels), [place])
      return clip.frames


def open_video(path: Path, channels: int = 0) -> Frames:
  """Returns the video in a file, or in a folder with an image file for each frame.

  Args:
    path: of the file or folder.
    channels: 1, 3, or 0 for as many as are stored.

  Raises:
    UnreadableFile: it isn't a video, or it is damaged.
  """
  return FrameFiles(_frame_files(path), channels) if path.is_dir() else VideoFile(path, channels)


def probe_video(path: Path) -> tuple[int, int, int, int]:
  """Returns (frames, height, width, channels as stored); raises where it can't be decoded.

  Of frames, the first is decoded; of image files, their sizes are compared.
  """
  video = open_video(path)
  if path.is_dir():
    sizes = {images.probe_image(file)[:2] for file in _frame_files(path)}
    if len(sizes) > 1:
      raise decoding.UnreadableFile(path, 'its frames differ in size')
  return video.shape


def find_videos(path: str | Path) -> list[Path]:
  """Returns the videos in a folder and the folders below it, sorted; a video itself, as a list.

  Files count as videos by their `SUFFIXES`, folders by having an image file directly in them. Such
  a folder is one video, with all folders in it; hidden files and folders are left out.

  Raises:
    UsageError: there is no such path, or no video in it, or a folder has images and videos side by
      side, or can't be read.
  """
  path = Path(path)
  if not path.is_dir():
    if not path.exists():
      raise UsageError(f'{path}: no such video or folder')
    return [path]
  if not (found := list_below(path)):
    raise UsageError(
      f'{path}: no videos in this folder ({", ".join(SUFFIXES)}, or folders with an image for each '
      'frame)'
    )
  return sorted(found)


def list_below(folder: Path) -> list[Path]:
  """Returns the videos in a folder; see `find_videos`."""
  found = []
  for top, subfolders, names in os.walk(folder, onerror=images.refuse):
    subfolders[:] = [name for name in subfolders if name[0] != '.']
    files = [Path(top, n) for n in names if n[0] != '.' and n.lower().endswith(SUFFIXES)]
    if any(map(_is_frame, names)):
      if files:
        raise UsageError(f'{top}: has images and videos; a folder with images is one video')
      found.append(Path(top))
      subfolders.clear()
    else:
      found += files
  return found


def _is_frame(name: str) -> bool:
  return name[0] != '.' and name.lower().endswith(_FRAME_SUFFIXES)


def _frame_files(folder: Path) -> list[Path]:
  """Returns the image files of a folder, those with numbers in the order of these: 2 before 10."""

  def order(file):
    parts = re.split(r'(\d+)', file.name)
    return [(int(p), '') if p.isdecimal() else (-1, p) for p in parts]

  with decoding.reading(folder):
    files = sorted((file for file in folder.iterdir() if _is_frame(file.name)), key=order)
  if not files:
    raise decoding.UnreadableFile(folder, 'no image in it, to be a frame')
  return files


def _import_av():
  import av  # brings FFmpeg along, which only videos need

  av.logging.set_level(av.logging.PANIC)  # what is wrong is raised, and needn't be printed besides
  return av


@contextlib.contextmanager
def _open(path: Path):
  """Opens a video file; raises UnreadableFile for whatever is wrong with it, until it is closed."""
  # What a list names, which FFmpeg would play, isn't opened: `none` is no protocol.
  alone = {'protocol_whitelist': 'none'}
  with (
    decoding.reading(path),
    open_regular(path) as file,
    _import_av().open(file, options=alone) as container,
  ):
    yield container


def _packets(container):
  """Yields the encoded frames of the first video in a file, up to where the file breaks off."""
  if not container.streams.video:
    raise UsageError('no video in it')
  stream = container.streams.video[0]
  stream.thread_type = 'NONE'  # the callers have threads
  stream.codec_context.options = {'max_pixels': str(images.MOST_PIXELS)}
  with contextlib.suppress(_import_av().error.InvalidDataError):
    yield from container.demux(stream)


def _decode(container):
  """Yields the frames that can be decoded."""
  for packet in _packets(container):
    with contextlib.suppress(_import_av().error.InvalidDataError):
      yield from packet.decode()


class Clip:
  """Frames that are put together one by one, so that they are in memory once.

  Attributes:
    frames: uint8 [count, H, W, C], from the first that is put in on.
  """

  def __init__(self, count: int):
    self._count, self.frames = count, None

  def put(self, frame: np.ndarray, places: Sequence[int]) -> None:
    """Puts a frame in one place or more; UsageError if it is larger or smaller than others."""
    if self.frames is None:
      num_bytes = self._count * math.prod(frame.shape)
      decoding.check_size(num_bytes, f'{self._count:,} frames')
      decoding.take(num_bytes)
      self.frames = np.empty((self._count, *frame.shape), np.uint8)
    if frame.shape != self.frames.shape[1:]:
      raise UsageError('its frames differ in size')
    self.frames[places] = frame
