"""What is done to a record on the host: crop, resize, grey or colour. Pixels stay uint8."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vit_jax.data.sources import Record
from vit_jax.errors import UsageError, check_choice

CROPS = ('resize', 'central', 'inception')

_RESIZE_OVER_CROP = 256 / 224  # of evaluation on ImageNet, here for every size
_AREA = (0.08, 1.0)  # fraction of the image
_ASPECT = (3 / 4, 4 / 3)  # width / height
_ATTEMPTS = 10


@dataclass(frozen=True)
class Preprocess:
  """Maps a record to one whose `image` is uint8 [*image_size, channels]; see `make_preprocess`.

  Attributes:
    random: whether it draws from `rng`; if not, `rng` may be None.
  """

  image_size: tuple[int, int] | tuple[()]
  channels: int
  crop: str
  random: bool

  def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
    stored = record['image']
    if not self.image_size and self.channels in (0, stored.shape[2]):
      return record
    image = Image.fromarray(stored[:, :, 0] if stored.shape[2] == 1 else stored)
    if self.channels == 1:
      image = image.convert('L')
    image = self._resize(image, rng)
    if self.channels == 3:
      image = image.convert('RGB')
    array = np.asarray(image)
    return record | {'image': array[:, :, None] if array.ndim == 2 else array}

  def _resize(self, image: Image.Image, rng: np.random.Generator | None) -> Image.Image:
    if not self.image_size:
      return image
    height, width = self.image_size
    if self.random:
      image = image.crop(inception_box(image.height, image.width, rng))
    elif self.crop != 'resize':
      return _resize_and_crop(image, height, width)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def make_preprocess(image_size: Sequence[int], channels: int, crop: str, train: bool) -> Preprocess:
  """Returns `preprocess(record, rng) -> record`, which changes `image` alone.

  Resizing is Pillow's bicubic with antialiasing, as timm does for vision transformers.

  Args:
    image_size: (height, width), (side,) of a square, or () to leave images as they are stored.
    channels: 1 (ITU-R BT.601 luma), 3, or 0 to leave them as they are stored.
    crop: 'resize' takes the whole image, whatever its shape. 'central' takes the middle of the
      image resized to cover 256/224 of `image_size`, as big_vision. 'inception' takes, to train,
      a random part (arXiv:1409.4842; 8 to 100 % of the area, aspect 3/4 to 4/3, as torchvision's
      RandomResizedCrop) and, to evaluate, the same as 'central'.
    train: whether it is for training.

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
  return Preprocess(image_size, channels, crop, random=train and crop == 'inception')


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


def _resize_and_crop(image: Image.Image, height: int, width: int) -> Image.Image:
  scale = _RESIZE_OVER_CROP * max(height / image.height, width / image.width)
  size = round(image.width * scale), round(image.height * scale)
  image = image.resize(size, Image.Resampling.BICUBIC)
  left, top = (image.width - width) // 2, (image.height - height) // 2
  return image.crop((left, top, left + width, top + height))
