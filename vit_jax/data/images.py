"""Image files: where they are, and what is stored in them, upright, in 8 bits."""

import os
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from PIL import Image

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
  with Image.open(file, formats=_FORMATS) as image:
    mode = {0: _stored_mode(image), 1: 'L', 3: 'RGB'}[channels]
    if exif and (orientation := _orientation(image)) != 1:
      image = image.transpose(_UPRIGHT[orientation])
    if image.mode.startswith('I'):
      image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
      image = image.convert('RGBA')
      image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    array = np.asarray(image if image.mode == mode else image.convert(mode))
  return array if mode == 'RGB' else array[:, :, None]


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
    if _orientation(image) >= 5:  # turned by 90 degrees
      width, height = height, width
    # A JPEG decodes several times faster at an eighth of its size, and is read to its end.
    image.draft('L', (1, 1))
    image.load()
  return height, width, channels


def find_images(path: str | Path) -> list[Path]:
  """Returns the image files of a folder and the folders below it, sorted; a file itself, as a list.

  In folders, those are images that are named so; what is hidden is left out.

  Raises:
    UsageError: there is no such path, or no image in it, or a folder can't be read.
  """
  path = Path(path)
  if not path.is_dir():
    if not path.exists():
      raise UsageError(f'{path}: no such image or folder')
    return [path]
  found = []
  for folder, subfolders, names in os.walk(path, onerror=_refuse):
    subfolders[:] = [name for name in subfolders if name[0] != '.']
    files = [Path(folder, n) for n in names if n[0] != '.' and n.lower().endswith(SUFFIXES)]
    # A link to nothing is left in, to be reported; a pipe would be waited for.
    found += [file for file in files if file.is_file() or file.is_symlink()]
  if not found:
    raise UsageError(f'{path}: no images in this folder ({", ".join(SUFFIXES)})')
  return sorted(found)


def _refuse(error: OSError) -> NoReturn:
  raise UsageError(f'{error.filename}: cannot be read ({error.strerror})') from error
