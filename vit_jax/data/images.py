"""Image files: where they are, and what is stored in them, upright, in 8 bits."""

import functools
import hashlib
import io
import logging
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from vit_jax.errors import UsageError

_FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'WEBP')
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
    """Reads a file, and of the image what its header says; arguments are `decode_image`'s."""
    is_open = hasattr(file, 'read')
    self._file = file.read() if is_open else Path(file).read_bytes()
    try:
      self._image = self._open()
    except UnidentifiedImageError:
      name = file if is_open else os.fspath(file)
      raise UnidentifiedImageError(f'cannot identify image file {name!r}') from None
    self._mode = {0: _stored_mode(self._image), 1: 'L', 3: 'RGB'}[channels]
    self._orientation = _orientation(self._image) if exif else 1
    width, height = self._image.size
    size = (width, height) if self._orientation in _TURNED else (height, width)
    self.shape = (*size, len(self._mode))

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return np.asarray(self.decoded, dtype).reshape(self.shape)

  @functools.cached_property
  def decoded(self) -> Image.Image:
    """The image upright, of mode L or RGB; what lies transparently in it, on white."""
    image = self._image
    if self._orientation != 1:
      image = image.transpose(_UPRIGHT[self._orientation])
    if image.mode.startswith('I'):
      image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
      image = image.convert('RGBA')
      image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    image.load()
    return image if image.mode == self._mode else image.convert(self._mode)

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
    is_plain = self._image.format == 'JPEG' and self._image.mode == self._mode
    is_inside = min(left, top) >= 0 and bottom <= self.shape[0] and right <= self.shape[1]
    if not is_plain or self._orientation != 1 or not is_inside:
      return 1
    most = min((bottom - top) // size[0], (right - left) // size[1])
    return max(scale for scale in (1, 2, 4, 8) if scale <= max(most, 1))

  def reduce(self, scale: int) -> Image.Image:
    """Returns the image decoded at 1 / `scale` of its size, 2, 4 or 8, rounded up.

    Each block of 8x8 pixels is decoded to fewer, from its lower frequencies alone.
    """
    image, (height, width) = self._open(), self.shape[:2]
    image.draft(None, (width // scale, height // scale))
    return image

  def _open(self) -> Image.Image:
    return Image.open(io.BytesIO(self._file), formats=_FORMATS)


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
    ValueError: it has neither, but colours.
  """
  with Image.open(file, formats=['PNG', 'BMP', 'GIF']) as image:
    if image.mode not in ('1', 'L', 'P'):
      raise ValueError(f'it is {image.mode}, neither grey of 8 bits nor with a palette')
    stored = image.tile[0][3]  # how the decoder reads the pixels
    return np.asarray(image).astype(np.uint8) // _SPREAD.get(stored, 1)


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
  """Returns (height, width, channels as stored); raises whatever decoding the image would."""
  with Image.open(path, formats=_FORMATS) as image:
    width, height = image.size
    channels = len(_stored_mode(image))
    if _orientation(image) in _TURNED:
      width, height = height, width
    # A JPEG decodes several times faster at an eighth of its size, and is read to its end.
    image.draft('L', (1, 1))
    image.load()
  return height, width, channels


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
    files = [Path(top, n) for n in names if n[0] != '.' and n.lower().endswith(suffixes)]
    # A link to nothing is left in, to be reported; a pipe would be waited for.
    found += [file for file in files if file.is_file() or file.is_symlink()]
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
    probe: returns the shape of what is in a file, and raises where it is damaged.
    unit: what that is.
  """
  del stamp

  def check(block):
    results = []
    for file in block:
      try:
        results.append((file, probe(root / file), None))
      except Exception as error:  # Pillow raises many types on damaged files
        results.append((file, None, error))
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
  damaged = [(file, error) for file, _, error in results if error]
  for file, error in damaged:
    _log.warning('%s cannot be decoded and is skipped: %s', root / file, error)
  if damaged:
    _log.warning('%d of %d %ss in %s are skipped', len(damaged), len(files), unit, root)
  good = [(file, shape) for file, shape, error in results if not error]
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
