"""Pillow's resizing by cykooz-resizer: the same filters in vector instructions, other rounding.

Both go over an image twice, along its rows and along its columns, and round to 8 bits in between.
Weights have 16 bits here and more in Pillow, so that a value may differ by a level after each time.
"""

import importlib.util
import math
import threading

import numpy as np
import PIL
from PIL import Image

from vit_jax.errors import FieldError

_FILTERS = {'bilinear': 'bilinear', 'bicubic': 'catmull_rom', 'lanczos': 'lanczos3'}
_REACH = 3  # pixels of the larger kind, of those that go in and come out, that a filter sees aside
_PILLOW = int(PIL.__version__.partition('.')[0])

_thread = threading.local()  # threads that share a resizer wait for one another


def check(interpolation: str) -> None:
  """Raises FieldError where `resize` lacks an interpolation, or the package isn't installed."""
  if interpolation not in _FILTERS:
    raise FieldError('resizing', f"'fast', but interpolation {interpolation!r} is exact only")
  if importlib.util.find_spec('cykooz_resizer') is None:
    raise FieldError(
      'resizing',
      "'fast', but cykooz-resizer is not installed; pip install cykooz-resizer "
      '(the extra resize of this package)',
    )


def resize(
  image: Image.Image,
  size: tuple[int, int],
  interpolation: str,
  box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
  """Returns what `image.resize(size, interpolation, box)` does, but for rounding.

  Args:
    image: of mode L or RGB.
    size: (width, height).
    interpolation: one that `check` lets pass.
    box: (left, top, right, bottom) of the part that is resized; None is the whole.

  Returns:
    uint8 [height, width] or [height, width, 3].
  """
  if image.size == size and not box:
    return np.asarray(image)
  import cykooz_resizer as package  # which not everybody has

  if not hasattr(_thread, 'resizer'):
    _thread.resizer = package.Resizer()
  pixel_type = package.PixelType.U8 if image.mode == 'L' else package.PixelType.U8x3
  algorithm = package.ResizeAlg.convolution(package.FilterType[_FILTERS[interpolation]])

  def resized(source, size, box):
    left, top, right, bottom = box
    is_whole = box == (0, 0, source.width, source.height)
    part = None if is_whole else package.CropBox(left, top, right - left, bottom - top)
    target = package.ImageData(*size, pixel_type)
    options = package.ResizeOptions(algorithm, use_alpha=False, crop_box=part)
    _thread.resizer.resize(source, target, options)
    return target

  rows_first = _rows_first(image.size, size)
  image, box = _seen(image, size, box or (0, 0, *image.size))
  pixels = package.ImageData(*image.size, pixel_type, image.tobytes())
  if rows_first:  # the package itself begins with columns
    left, top, right, bottom = box
    pixels = resized(pixels, (size[0], image.height), (left, 0, right, image.height))
    box = 0, top, size[0], bottom
  pixels = np.frombuffer(resized(pixels, size, box).get_buffer(), np.uint8)
  return pixels.reshape(*size[::-1], *(3,) * (image.mode == 'RGB'))


def _rows_first(stored: tuple[int, int], size: tuple[int, int]) -> bool:
  """Returns whether Pillow resizes rows before columns, of an image of a (width, height).

  What a filter overshoots is cut off in between, so the order shows at sharp edges.
  """
  fewer_columns, fewer_rows = stored[0] - size[0], stored[1] - size[1]
  return _PILLOW < 13 or fewer_rows <= max(2 * fewer_columns, 0)


def _seen(
  image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> tuple[Image.Image, tuple[float, float, float, float]]:
  """Returns what is seen of an image to resize the part `box`, and where in it that is."""
  left, top, right, bottom = box
  across, down = (
    math.ceil(_REACH * max(part / side, 1))
    for part, side in zip((right - left, bottom - top), size, strict=True)
  )
  x, y = max(math.floor(left) - across, 0), max(math.floor(top) - down, 0)
  end = min(math.ceil(right) + across, image.width), min(math.ceil(bottom) + down, image.height)
  if (x, y, *end) != (0, 0, *image.size):
    image = image.crop((x, y, *end))
  return image, (left - x, top - y, right - x, bottom - y)
