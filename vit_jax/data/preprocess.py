"""What is done to a record on the host: crop, resize, grey or colour. Pixels stay uint8."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vit_jax.data.boxes import Window, into_window, visible_share
from vit_jax.data.records import Record
from vit_jax.errors import UsageError, check_choice

CROPS = ('resize', 'central', 'inception')

_CROP_FRACTION = 224 / 256  # as big_vision and torchvision evaluate on ImageNet
_AREA = (0.08, 1.0)  # fraction of the image
_ASPECT = (3 / 4, 4 / 3)  # width / height
_ATTEMPTS = 10
_LEAST_VISIBLE = 0.5  # of the area of an object whose box is known
_WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Preprocess:
  """Maps a record to one whose `image` is uint8 [*image_size, channels]; see `make_preprocess`.

  A `box` is moved with the image, and ends at its border.

  Attributes:
    random: whether it draws from `rng`; if not, `rng` may be None.
  """

  image_size: tuple[int, int] | tuple[()]
  channels: int
  crop: str
  crop_fraction: float
  random: bool

  def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
    stored = record['image']
    if not self.image_size and self.channels in (0, stored.shape[2]):
      return record
    image = Image.fromarray(stored[:, :, 0] if stored.shape[2] == 1 else stored)
    if self.channels == 1:
      image = image.convert('L')
    image, window = self._resize(image, rng, record.get('box'))
    if self.channels == 3:
      image = image.convert('RGB')
    array = np.asarray(image)
    record = record | {'image': array[:, :, None] if array.ndim == 2 else array}
    if 'box' in record and window != _WHOLE:
      record['box'] = into_window(record['box'], window)
    return record

  def window(self, height: int, width: int) -> Window:
    """Returns the part of an image of this size that evaluation sees."""
    if self.crop == 'resize':
      return _WHOLE
    size, part = self._covering(height, width)
    return _fractions(part, *size)

  def _covering(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Returns (width, height) to resize an image to, and which part of it is kept, in pixels.

    Sides are rounded down, the one that fits first, as in timm and torchvision; so is the offset,
    as in Hugging Face's processors.
    """
    new_height, new_width = self.image_size
    if new_height * width >= new_width * height:
      fitting = _floor(new_height / self.crop_fraction)
      size = _floor(fitting * width / height), fitting
    else:
      fitting = _floor(new_width / self.crop_fraction)
      size = fitting, _floor(fitting * height / width)
    left, top = (size[0] - new_width) // 2, (size[1] - new_height) // 2
    return size, (left, top, left + new_width, top + new_height)

  def _resize(
    self, image: Image.Image, rng: np.random.Generator | None, box: np.ndarray | None
  ) -> tuple[Image.Image, Window]:
    """Returns (the image at its new size, the part of the old one that it is)."""
    if not self.image_size:
      return image, _WHOLE
    height, width = self.image_size
    if self.random:
      part = _inception_part(image.height, image.width, rng, box)
      window = _fractions(part, image.width, image.height)
      image = image.crop(part)
    elif self.crop != 'resize':
      size, part = self._covering(image.height, image.width)
      image = image.resize(size, Image.Resampling.BICUBIC)
      return image.crop(part), _fractions(part, *size)
    else:
      window = _WHOLE
    return image.resize((width, height), Image.Resampling.BICUBIC), window


def _fractions(part: tuple[int, int, int, int], width: int, height: int) -> Window:
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
) -> Preprocess:
  """Returns `preprocess(record, rng) -> record`, which changes `image`, and `box` with it.

  Resizing is Pillow's bicubic with antialiasing, as timm does for vision transformers.

  Args:
    image_size: (height, width), (side,) of a square, or () to leave images as they are stored.
    channels: 1 (ITU-R BT.601 luma), 3, or 0 to leave them as they are stored.
    crop: 'resize' takes the whole image, whatever its shape. 'central' takes the middle of the
      image resized to cover `image_size` / `crop_fraction`. 'inception' takes, to train,
      a random part (arXiv:1409.4842; 8 to 100 % of the area, aspect 3/4 to 4/3, as torchvision's
      RandomResizedCrop) and, to evaluate, the same as 'central'. Where there is a box, the random
      part has at least half of it.
    train: whether it is for training.
    crop_fraction: of a side of the resized image, what 'central' keeps, over 0 and up to 1, timm's
      crop_pct; None is 224 of 256 pixels.

  Raises:
    UsageError: a wrong value, or a crop without an image size.
  """
  image_size = tuple(image_size)
  image_size = image_size * 2 if len(image_size) == 1 else image_size
  if image_size and (len(image_size) != 2 or min(image_size) < 1):
    raise UsageError(
      f'config.data.image_size: {image_size} is not (height, width) in pixels, nor () as stored'
    )
  if channels not in (0, 1, 3):
    raise UsageError(f'config.data.channels: {channels} is not 1, 3 or 0, as stored')
  check_choice('config.data.crop', crop, CROPS)
  if crop != 'resize' and not image_size:
    raise UsageError(f'config.data.image_size: crop {crop!r} needs a (height, width)')
  if crop == 'resize' and crop_fraction is not None:
    raise UsageError("config.data.crop_fraction: crop 'resize' takes the whole image")
  crop_fraction = _CROP_FRACTION if crop_fraction is None else crop_fraction
  if not 0 < crop_fraction <= 1:
    raise UsageError(f'config.data.crop_fraction: {crop_fraction} is not over 0 and up to 1')
  return Preprocess(image_size, channels, crop, crop_fraction, train and crop == 'inception')


def inception_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
  """Draws a part of an image: (left, top, right, bottom) in pixels.

  After ten parts that don't fit, it is the largest in the middle with an allowed aspect.
  """
  for _ in range(_ATTEMPTS):
    area = height * width * rng.uniform(*_AREA)
    aspect = math.exp(rng.uniform(*np.log(_ASPECT)))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
      return int(left), int(top), int(left) + w, int(top) + h
  w = min(width, round(height * _ASPECT[1]))
  h = min(height, round(width / _ASPECT[0]))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def _inception_part(
  height: int, width: int, rng: np.random.Generator, box: np.ndarray | None
) -> tuple[int, int, int, int]:
  """Draws a part of an image that shows enough of an object, the whole after ten that don't."""
  for _ in range(_ATTEMPTS):
    part = inception_box(height, width, rng)
    if box is None or visible_share(box, _fractions(part, width, height)) >= _LEAST_VISIBLE:
      return part
  return 0, 0, width, height
