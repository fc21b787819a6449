"""What is done to a record on the host: crop, resize, grey or colour. Pixels stay uint8."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vit_jax.data import kinds
from vit_jax.data.kinds import WHOLE, Geometry, Window
from vit_jax.data.sources.records import Record
from vit_jax.errors import FieldError, check_choice

CROPS = ('resize', 'central', 'inception')

_CROP_FRACTION = 224 / 256  # as big_vision and torchvision evaluate on ImageNet
_AREA = (0.08, 1.0)  # fraction of the image, as torchvision
_ASPECT = (3 / 4, 4 / 3)  # width / height
_ATTEMPTS = 10


@dataclass(frozen=True)
class Preprocess:
  """Maps a record to one whose pictures are of `image_size`; see `make_preprocess`.

  Masks and boxes move with the image or video that they lie on, by one geometry.

  Attributes:
    random: whether it draws from `rng`; if not, `rng` may be None.
  """

  image_size: tuple[int, int] | tuple[()]
  channels: int
  crop: str
  crop_fraction: float
  area: tuple[float, float]
  random: bool

  @property
  def resizes(self) -> bool:
    """Whether all pictures come out in one size, whatever is stored."""
    return bool(self.image_size)

  def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
    if not self.image_size and not self.channels:
      return record
    kinds.check(record)
    size = kinds.picture_size(record)
    if size is None:
      field = 'image_size' if self.image_size else 'channels'
      raise FieldError(field, f'{getattr(self, field)}, but the records have no pictures')
    geometry = self._draw(record, *size, rng) if self.random else self.geometry(*size)
    return kinds.fit(record, geometry, self.channels)

  def geometry(self, height: int, width: int) -> Geometry:
    """Returns what evaluation takes of a picture of this size.

    Sides are rounded down, the one that fits first, as in timm and torchvision; so is the offset,
    as in Hugging Face's processors.
    """
    if self.crop == 'resize':
      return Geometry(WHOLE, self.image_size or (height, width))
    new_height, new_width = self.image_size
    if new_height * width >= new_width * height:
      fitting = _floor(new_height / self.crop_fraction)
      resized = fitting, _floor(fitting * width / height)
    else:
      fitting = _floor(new_width / self.crop_fraction)
      resized = _floor(fitting * height / width), fitting
    top, left = (resized[0] - new_height) // 2, (resized[1] - new_width) // 2
    part = left, top, left + new_width, top + new_height
    return Geometry(_fractions(part, *resized), self.image_size, resized)

  def window(self, height: int, width: int) -> Window:
    """Returns the part of a picture of this size that evaluation takes."""
    return self.geometry(height, width).window

  def _draw(self, record: Record, height: int, width: int, rng: np.random.Generator) -> Geometry:
    """Draws a part that shows enough of objects; it is the whole after ten that don't."""
    for _ in range(_ATTEMPTS):
      window = _fractions(inception_box(height, width, rng, self.area), height, width)
      if kinds.shows_enough(record, window):
        return Geometry(window, self.image_size)
    return Geometry(WHOLE, self.image_size)


def _fractions(part: tuple[int, int, int, int], height: int, width: int) -> Window:
  left, top, right, bottom = part
  return left / width, top / height, right / width, bottom / height


def _floor(pixels: float) -> int:
  return math.floor(pixels + 1e-6)  # 224 / 0.875 is 256


def make_preprocess(
  image_size: Sequence[int],
  channels: int,
  crop: str,
  train: bool,
  crop_fraction: float | None = None,
  area: tuple[float, float] = _AREA,
) -> Preprocess:
  """Returns `preprocess(record, rng) -> record`, which crops and resizes all of a record alike.

  Images are resized by Pillow's bicubic with antialiasing, as timm does for vision transformers,
  masks to the nearest pixel.

  Args:
    image_size: (height, width), (side,) of a square, or () to leave images as they are stored.
    channels: 1 (ITU-R BT.601 luma), 3, or 0 to leave them as they are stored.
    crop: 'resize' takes the whole image, whatever its shape. 'central' takes the middle of the
      image resized to cover `image_size` / `crop_fraction`. 'inception' takes, to train,
      a random part (arXiv:1409.4842; of `area` and an aspect from 3/4 to 4/3, as torchvision's
      RandomResizedCrop) and, to evaluate, the same as 'central'. Where there is a box, the random
      part has at least half of it.
    train: whether it is for training.
    crop_fraction: of a side of the resized image, what 'central' keeps, over 0 and up to 1, timm's
      crop_pct; None is 224 of 256 pixels.
    area: (smallest, largest) fraction of the image that is a random part of 'inception'.

  Raises:
    FieldError: a wrong value, or a crop without an image size.
  """
  image_size = tuple(image_size)
  image_size = image_size * 2 if len(image_size) == 1 else image_size
  if image_size and (len(image_size) != 2 or min(image_size) < 1):
    raise FieldError(
      'image_size', f'{image_size} is not (height, width) in pixels, nor () as stored'
    )
  if channels not in (0, 1, 3):
    raise FieldError('channels', f'{channels} is not 1, 3 or 0, as stored')
  check_choice('crop', crop, CROPS)
  if crop != 'resize' and not image_size:
    raise FieldError('image_size', f'crop {crop!r} needs a (height, width)')
  if crop == 'resize' and crop_fraction is not None:
    raise FieldError('crop_fraction', "crop 'resize' takes the whole image")
  crop_fraction = _CROP_FRACTION if crop_fraction is None else crop_fraction
  if not 0 < crop_fraction <= 1:
    raise FieldError('crop_fraction', f'{crop_fraction} is not over 0 and up to 1')
  if not 0 < area[0] <= area[1] <= 1:
    raise FieldError('area', f'{area} is not (low, high), 0 < low <= high <= 1')
  return Preprocess(image_size, channels, crop, crop_fraction, area, train and crop == 'inception')


def inception_box(
  height: int, width: int, rng: np.random.Generator, area: tuple[float, float] = _AREA
) -> tuple[int, int, int, int]:
  """Draws a part of an image: (left, top, right, bottom) in pixels.

  After ten parts that don't fit, it is the largest in the middle with an allowed aspect.
  """
  for _ in range(_ATTEMPTS):
    pixels = height * width * rng.uniform(*area)
    aspect = math.exp(rng.uniform(*np.log(_ASPECT)))
    w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
    if 0 < w <= width and 0 < h <= height:
      left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
      return int(left), int(top), int(left) + w, int(top) + h
  w = min(width, round(height * _ASPECT[1]))
  h = min(height, round(width / _ASPECT[0]))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h
