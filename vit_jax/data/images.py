"""Image files: where they are, and what is stored in them, upright, in 8 bits."""

import contextlib
import functools
import hashlib
import io
import logging
import math
import os
import struct
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from vit_jax.data import decoding
from vit_jax.errors import UsageError

_FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'WebP')
SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.webp')
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}

MOST_PIXELS = 2**31 // 12  # of a frame of a video; Pillow allows as many of an image
_MOST_OF_A_SIDE = 2**20  # pixels: what resizes them needs up to 48 bytes for each

_SCAN = b'\xff\xda'  # begins a scan of a progressive JPEG: a few bytes that go over all its pixels
_MOST_SCANS = 256  # files have about ten
_FRAMES = (0xFFC0, 0xFFC1, 0xFFC2)  # markers in front of a JPEG's size
# Where scans of a progressive JPEG are missing, libjpeg smooths each block of at most 32 rows by
# the two below it.
_SMOOTHED = 64

_TURNED = (5, 6, 7, 8)  # orientations that swap height and width

_SPREAD = {'L;2': 85, 'L;4': 17}  # by which Pillow multiplies grey of 2 and of 4 bits in PNG

_log = logging.getLogger(__name__)


class EncodedImage:
  """An image file that stands for an array uint8 [H, W, C], and is decoded when that is needed.

  Attributes:
    shape: of the array.
  """

  dtype, ndim = np.dtype(np.uint8), 3

  def __init__(self, file: str | Path | BinaryIO, channels: int = 0, exif: bool = True):
    """Reads a file, and of the image what its header says; arguments are `decode_image`'s.

    Raises:
      UnreadableFile: it is no image, or one that is too large to be decoded.
    """
    is_open = hasattr(file, 'read')
    self._name = getattr(file, 'name', 'an image') if is_open else file
    with decoding.reading(self._name):
      self._file = file.read() if is_open else decoding.read_file(file)
      self._mode = {0: _stored_mode(self._image), 1: 'L', 3: 'RGB'}[channels]
      self._orientation = _orientation(self._image) if exif else 1
      width, height = self._image.size
    size = (width, height) if self._orientation in _TURNED else (height, width)
    self.shape = (*size, len(self._mode))
    self._is_whole = False

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return np.asarray(self.decoded, dtype).reshape(self.shape)

  @functools.cached_property
  def _image(self) -> Image.Image:
    """The image as it is stored, of which no pixel may be decoded yet."""
    image = _open(self._file)
    if image.format == 'PNG':  # which is decoded to ask for EXIF, that may stand behind the pixels
      self._take(image)
    return image

  @functools.cached_property
  def decoded(self) -> Image.Image:
    """The image upright, of mode L or RGB; what lies transparently in it, on white.

    Raises:
      UnreadableFile: it is damaged.
    """
    with decoding.reading(self._name):
      if self._image.format != 'PNG':
        self._take(self._image)
      return _convert(self._image, self._orientation, self._mode)

  @property
  def _is_plain(self) -> bool:
    """Whether it is a JPEG that needs neither be turned nor converted."""
    image = self._image
    return image.format == 'JPEG' and image.mode == self._mode and self._orientation == 1

  def keep_whole(self) -> None:
    """Has `crop` decode the whole image, once, since several parts are going to be taken."""
    self._is_whole = True

  def crop(self, part: tuple[int, int, int, int]) -> Image.Image:
    """Returns what `decoded.crop(part)` does; of a JPEG, rows below the part aren't decoded.

    Args:
      part: (left, top, right, bottom) in pixels.

    Raises:
      UnreadableFile: it is damaged.
    """
    if not self._is_whole and 'decoded' not in self.__dict__ and self._is_plain:
      with decoding.reading(self._name):
        image = self.__dict__.pop('_image')  # which can be decoded no second time
        _leave_out(image, self._file, part[3])
        self._take(image)
        # In what is skipped, damage may be an error that it isn't where the pixels are decoded.
        with contextlib.suppress(OSError):
          return image.crop(part)
    return self.decoded.crop(part)

  def probe(self) -> None:
    """Decodes as little as shows that `decoded` can be, after which that isn't available.

    Raises:
      UnreadableFile: it can't.
    """
    with decoding.reading(self._name):
      # A JPEG decodes several times faster at an eighth of its size, and is read to its end.
      self._image.draft('L', (1, 1))
      if self._image.format != 'PNG':
        self._take(self._image)
      self._image.load()
      if self._image.has_transparency_data:  # which may not be what its mode can have
        _convert(self._image.crop((0, 0, 1, 1)), self._orientation, self._mode)

  def max_scale(self, part: tuple[int, int, int, int], size: tuple[int, int]) -> int:
    """Returns the largest of 1, 2, 4, 8 by which a part can be reduced, and has at least `size`.

    Args:
      part: (left, top, right, bottom) in pixels.
      size: (height, width).

    Returns:
      1 too where `reduce` isn't for this image: it is for a JPEG that needs neither be turned nor
      converted; or where the part reaches beyond the image.
    """
    left, top, right, bottom = part
    is_inside = min(left, top) >= 0 and bottom <= self.shape[0] and right <= self.shape[1]
    if not self._is_plain or not is_inside:
      return 1
    most = min((bottom - top) // size[0], (right - left) // size[1])
    return max(scale for scale in (1, 2, 4, 8) if scale <= max(most, 1))

  def reduce(self, scale: int, bottom: int) -> Image.Image:
    """Returns the image decoded at 1 / `scale` of its size, 2, 4 or 8, rounded up.

    Each block of 8x8 pixels is decoded to fewer, from its lower frequencies alone. Rows of the file
    from `bottom` on needn't be decoded.
    """
    with decoding.reading(self._name):
      image, (height, width) = _open(self._file), self.shape[:2]
      _leave_out(image, self._file, bottom + scale)
      image.draft(None, (width // scale, height // scale))
      self._take(image)
      try:
        image.load()
      except OSError:
        if bottom >= height:
          raise
        return self.reduce(scale, height)  # as in `crop`
    return image

  def _take(self, image: Image.Image) -> None:
    """Takes the memory to decode an image, which may be a reduced one."""
    # Of a progressive one, all that belongs to its pixels is kept until the last is decoded.
    size = self.shape[:2] if image.info.get('progressive') else image.size
    decoding.take(math.prod(size) * _bytes_per_pixel(image), self._give_up)

  def _give_up(self) -> None:
    for name in ('_image', 'decoded'):
      self.__dict__.pop(name, None)


def decode_image(file: str | Path | BinaryIO, channels: int = 0, exif: bool = True) -> np.ndarray:
  """Decodes the first frame of a BMP, GIF, JPEG, PNG or WebP file.

  Transparent images are laid on white; of 16 bits the high 8 are kept.

  Args:
    file: path or open binary file.
    channels: 1 (ITU-R BT.601 luma), 3, or 0: 1 for grey images and 3 for others.
    exif: turn the image upright, as its EXIF orientation says.

  Returns:
    uint8 [height, width, channels].
  """
  return np.asarray(EncodedImage(file, channels, exif))


def decode_mask(file: Path | BinaryIO) -> np.ndarray:
  """Decodes a mask: uint8 [height, width], grey values or indices of the palette.

  Raises:
    UnreadableFile: it has neither, but colours, or it is damaged.
  """
  is_open = hasattr(file, 'read')
  with decoding.reading(getattr(file, 'name', 'a mask') if is_open else file):
    image = _open(file.read() if is_open else decoding.read_file(file), ('BMP', 'GIF', 'PNG'))
    if image.mode not in ('1', 'L', 'P'):
      raise UsageError(f'it is {image.mode}, neither grey of 8 bits nor with a palette')
    decoding.take(math.prod(image.size) * _bytes_per_pixel(image))
    stored = image.tile[0][3]  # how the decoder reads the pixels
    return np.asarray(image).astype(np.uint8) // _SPREAD.get(stored, 1)


def _open(file: bytes, formats: Sequence[str] = _FORMATS) -> Image.Image:
  """Returns an image of which no pixel is decoded yet.

  Raises:
    Exception: many types; it is none of these formats, or too large to be decoded.
  """
  try:
    image = Image.open(io.BytesIO(file), formats=formats)
  except UnidentifiedImageError as e:
    raise UsageError(f'not an image in {", ".join(formats[:-1])} or {formats[-1]}') from e
  if max(image.size) > _MOST_OF_A_SIDE:
    size = '{}x{} pixels'.format(*image.size)
    raise UsageError(f'{size}; a side may have {_MOST_OF_A_SIDE:,}')
  if image.info.get('progressive') and (count := file.count(_SCAN)) > _MOST_SCANS:
    raise UsageError(f'{count:,} scans of its pixels; {_MOST_SCANS} are decoded')
  return image


def _leave_out(image: Image.Image, file: bytes, bottom: int) -> None:
  """Has a JPEG, of which nothing is decoded yet, decoded to a row `bottom`, where that can be.

  Its header then says that it ends there; what is stored of the rest is skipped, unread.
  """
  width, height = image.size
  rows = max(bottom, 0) + 2  # colours may be stored at half of the size, and see the next row
  if image.info.get('progressive'):
    rows += _SMOOTHED
  at = _height_at(file, image.size) if rows < height else None
  if at is not None:
    image.fp.seek(at)
    image.fp.write(rows.to_bytes(2, 'big'))
    decoder, _, offset, arguments = image.tile[0]
    image.tile = [(decoder, (0, 0, width, rows), offset, arguments)]


def _height_at(file: bytes, size: tuple[int, int]) -> int | None:
  """Returns where in a JPEG its height is, of a (width, height); None where it isn't found."""
  at = 2
  while at + 9 <= len(file):
    marker, length = struct.unpack_from('>HH', file, at)
    if marker in _FRAMES:
      height, width = struct.unpack_from('>HH', file, at + 5)
      return at + 5 if (width, height) == size else None
    # Fill bytes; the pixels, or a marker without a length.
    if not 0xFFC0 < marker < 0xFFFF or 0xFFD0 <= marker <= 0xFFDA:
      return None
    at += 2 + length
  return None


def _bytes_per_pixel(image: Image.Image) -> int:
  """Returns how many bytes are taken at once to decode an image, convert and crop it."""
  return 12 + 4 * image.has_transparency_data + 12 * (image.format == 'WEBP')


def _convert(image: Image.Image, orientation: int, mode: str) -> Image.Image:
  """Returns an image as `EncodedImage.decoded` has it."""
  if orientation != 1:
    image = image.transpose(_UPRIGHT[orientation])
  if image.mode.startswith('I'):
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert('RGBA')
    image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
  image.load()
  return image if image.mode == mode else image.convert(mode)


def _stored_mode(image: Image.Image) -> str:
  return 'L' if image.mode[0] in '1LI' else 'RGB'


def _orientation(image: Image.Image) -> int:
  """Returns the EXIF orientation, 1 (upright) where there is none or EXIF is damaged."""
  try:
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    return orientation if orientation in _UPRIGHT else 1
  except Exception:  # Pillow's parser raises many types; the pixels may be fine all the same
    return 1


def probe_image(path: Path) -> tuple[int, int, int]:
  """Returns (height, width, channels as stored).

  Raises:
    UnreadableFile: whenever decoding the image would.
  """
  image = EncodedImage(path)
  image.probe()
  return image.shape


def find_images(path: str | Path) -> list[Path]:
  """Returns the image files of a folder and the folders below it, sorted; a file itself, as a list.

  In folders, files count as images by their `SUFFIXES`; hidden files and folders are left out.

  Raises:
    UsageError: there is no such path, or no image in it, or a folder can't be read.
  """
  path = Path(path)
  if not path.is_dir():
    if not path.exists():
      raise UsageError(f'{path}: no such image or folder')
    return [path]
  if not (found := files_below(path, SUFFIXES)):
    raise UsageError(f'{path}: no images in this folder ({", ".join(SUFFIXES)})')
  return sorted(found)


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
  """Returns the files in a folder, however deep, whose names end with one of `suffixes`.

  Files and folders that begin with a dot are left out.
  """
  found = []
  for top, subfolders, names in os.walk(folder, onerror=refuse):
    subfolders[:] = [name for name in subfolders if name[0] != '.']
    found += [Path(top, n) for n in names if n[0] != '.' and n.lower().endswith(suffixes)]
  return found


def refuse(error: OSError) -> NoReturn:
  """Raises UsageError for a folder that can't be read."""
  raise UsageError(f'{error.filename}: cannot be read ({error.strerror})') from error


def list_images(root: Path, folders: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, int]]:
  """Returns (paths of the image files in folders, by suffix; a stamp that changes with the files).

  Folders and paths are relative to root; folders below the folders count as well.

  The order is shuffled, so that a slice of a split has all classes, and follows from each path
  alone, so that it stays when files come and go.
  """
  files, size, newest = [], 0, 0
  for top in folders:
    for folder, subfolders, names in os.walk(root / top):
      subfolders[:] = [f for f in subfolders if f[0] != '.']
      for file in names:
        if file[0] != '.' and file.lower().endswith(SUFFIXES):
          path = os.path.join(folder, file)
          stat = os.stat(path) if os.path.exists(path) else os.lstat(path)
          size, newest = size + stat.st_size, max(newest, stat.st_mtime_ns)
          files.append(os.path.relpath(path, root))
  return shuffle(files), (size, newest)


def shuffle(files: Sequence[str]) -> tuple[str, ...]:
  """Returns paths in an order that follows from each of them alone."""
  return tuple(
    sorted(files, key=lambda f: (hashlib.blake2b(os.fsencode(f), digest_size=8).digest(), f))
  )


class Checked(NamedTuple):
  """Files that decode, their shapes, and those that don't.

  Shapes are (height, width, channels) of images, (frames, height, width, channels) of videos.
  """

  files: list[str]
  shapes: set[tuple[int, ...]]
  skipped: list[str]


def check_images(root: Path, files: tuple[str, ...], stamp: tuple[int, int]) -> Checked:
  """Decodes every file once, to find those that can't be, and warns about them."""
  return check_files(root, files, stamp, probe_image, 'image')


@functools.lru_cache(maxsize=4)  # splits are loaded one by one, often from the same files
def check_files(
  root: Path,
  files: tuple[str, ...],
  stamp: tuple[int, int],
  probe: Callable[[Path], tuple[int, ...]],
  unit: str,
) -> Checked:
  """Probes every file once, to find those that can't be decoded, and warns about them.

  Args:
    root: the folder that the paths are below.
    files: the paths.
    stamp: changes with the files, so that changed ones aren't taken for checked ones.
    probe: returns the shape of what is in a file, and raises UnreadableFile where it is damaged.
    unit: what that is.
  """
  del stamp

  def check(block):
    results = []
    for file in block:
      try:
        with decoding.turn():
          results.append((file, probe(root / file), None))
      except decoding.UnreadableFile as error:
        results.append((file, None, error.reason))
    return results

  blocks = [files[i : i + 64] for i in range(0, len(files), 64)]
  results, bar = (
    [],
    tqdm(total=len(files), desc=f'Checking {unit}s', unit=unit, delay=2, disable=None, leave=False),
  )
  with bar, ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool:
    for block in pool.map(check, blocks):
      results += block
      bar.update(len(block))
  damaged = [(file, reason) for file, shape, reason in results if shape is None]
  for file, reason in damaged:
    _log.warning('%s cannot be decoded and is skipped: %s', root / file, reason)
  if damaged:
    _log.warning('%d of %d %ss in %s are skipped', len(damaged), len(files), unit, root)
  good = [(file, shape) for file, shape, _ in results if shape is not None]
  return Checked([f for f, _ in good], {s for _, s in good}, [f for f, _ in damaged])


def common_shape(shapes: Collection[tuple[int, ...]], train: Checked) -> tuple[int | None, ...]:
  """Returns (height, width, channels): None where images differ, colour where one of train is.

  Of videos (frames, height, width, channels), likewise.
  """
  sizes = {shape[-3:-1] for shape in shapes}
  size = sizes.pop() if len(sizes) == 1 else (None, None)
  lengths = {shape[:-3] for shape in shapes}
  length = lengths.pop() if len(lengths) == 1 else (None,)
  return *length, *size, max(channels for *_, channels in train.shapes)
