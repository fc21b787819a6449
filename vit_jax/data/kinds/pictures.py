"""Kinds with pixels or cells: images, videos, masks."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image as pillow

from vit_jax.data import fast_resizing, images, videos
from vit_jax.data.kinds.kind import Geometry, Kind, Move, Size, Window

_MOST_RESIZED = 2**26  # pixels of an image that is resized to be cut
VOID = 255  # the id of what no class is given for, in masks of any dtype


class _Picture(Kind):
  """A grid of pixels or cells; `rows` is the axis of their rows, from the end."""

  is_spatial = True
  rows: int
  fill = 0  # outside the picture

  def size(self, value: np.ndarray) -> Size:
    return value.shape[self.rows], value.shape[self.rows + 1]

  def move(self, value: jax.Array, move: Move, size: Size) -> jax.Array:
    del size
    first = value.ndim + self.rows
    border, start = [(0, 0)] * value.ndim, [0] * value.ndim
    border[first : first + 2] = [(move.padding, move.padding)] * 2
    start[first : first + 2] = move.offset
    padded = jnp.pad(value, border, constant_values=self.fill)
    return jax.lax.dynamic_slice(padded, start, value.shape)

  def flip(self, value: jax.Array, flip: jax.Array) -> jax.Array:
    return jnp.where(flip, jnp.flip(value, self.rows + 1), value)


class Image(_Picture):
  """uint8 [H, W, 1 or 3]; normalised, float32."""

  form, plural = 'uint8 [height, width, 1 or 3]', 'images'
  has_pixels = True
  rows = -3

  def is_valid(self, value: np.ndarray | images.EncodedImage) -> bool:
    return value.dtype == np.uint8 and value.ndim == 3 and value.shape[-1] in (1, 3)

  def check(self, name: str, value: Any) -> None:
    if not isinstance(value, images.EncodedImage):  # which needn't be decoded for it
      super().check(name, value)

  def find_files(self, path: str | Path) -> list[Path]:
    return images.find_images(path)

  def decode(self, file: Path | BinaryIO, channels: int = 0) -> np.ndarray:
    return images.decode_image(file, channels)

  def picture(self, value: np.ndarray) -> np.ndarray:
    return value

  def load(self, value: np.ndarray | images.EncodedImage) -> np.ndarray:
    return np.asarray(value)

  def keep_whole(self, value: np.ndarray | images.EncodedImage) -> None:
    if isinstance(value, images.EncodedImage):
      value.keep_whole()

  def fit(self, value: np.ndarray, geometry: Geometry, channels: int = 0) -> np.ndarray:
    """Resizes by one of Pillow's interpolations, with antialiasing."""
    if channels in (0, value.shape[-1]) and not geometry.changes(value.shape[:2]):
      return np.asarray(value)
    image = _resize(value, geometry, is_grey=channels == 1)
    if channels == 3 and value.shape[-1] == 1:
      image = (pillow.fromarray(image) if geometry.fast else image).convert('RGB')
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array

  def map_images(self, function: Callable[[jax.Array], jax.Array], value: jax.Array) -> jax.Array:
    return function(value)

  def normalize(self, value: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns (value - mean) / std, float32, of images [..., C], uint8 or float in [0, 1]."""
    return (as_fractions(value) - jnp.float32(mean)) / jnp.float32(std)


class Video(Image):
  """uint8 [T, H, W, 1 or 3]; every frame is cropped, flipped and coloured alike.

  In a source's records, it may be what stands for such an array, but decodes a frame only when it
  is asked for; see `vit_jax.data.videos`.
  """

  form, plural = 'uint8 [frames, height, width, 1 or 3]', 'videos'

  def is_valid(self, value: np.ndarray) -> bool:
    return value.ndim == 4 and len(value) > 0 and super().is_valid(value[0])

  def num_frames(self, value: np.ndarray) -> int:
    return len(value)

  def take_frames(self, value: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return value[indices]

  def picture(self, value: np.ndarray) -> np.ndarray:
    return value[len(value) // 2]

  def load(self, value: np.ndarray) -> np.ndarray:
    return value

  def find_files(self, path: str | Path) -> list[Path]:
    return videos.find_videos(path)

  def decode(self, file: Path, channels: int = 0) -> videos.Frames:
    return videos.open_video(file, channels)

  def fit(self, value: np.ndarray, geometry: Geometry, channels: int = 0) -> np.ndarray:
    return np.stack([super(Video, self).fit(frame, geometry, channels) for frame in value])

  def map_images(self, function: Callable[[jax.Array], jax.Array], value: jax.Array) -> jax.Array:
    return jax.vmap(function)(value)


class Mask(_Picture):
  """Class ids [H, W], uint8, or int32 where there are more; normalised, int32.

  Ids are never blended: a resized mask has at each pixel the id of the nearest one. `VOID` marks
  pixels of no class, and is what lies outside the picture.
  """

  form, plural = 'uint8 or int32 [height, width]', 'masks'
  cannot_follow = ('resized_crop.area', 'rand_augment.num_ops', 'mixup_alpha', 'cutmix_alpha')
  rows = -2
  fill = VOID

  def is_valid(self, value: np.ndarray) -> bool:
    return value.dtype in (np.uint8, np.int32) and value.ndim == 2

  def decode(self, file: Path | BinaryIO, channels: int = 0) -> np.ndarray:
    del channels
    return images.decode_mask(file)

  def fit(self, value: np.ndarray, geometry: Geometry, channels: int = 0) -> np.ndarray:
    del channels
    if not geometry.changes(value.shape):
      return value
    left, top, right, bottom = geometry.window
    rows, row_inside = _nearest(value.shape[0], top, bottom, geometry.size[0])
    columns, column_inside = _nearest(value.shape[1], left, right, geometry.size[1])
    inside = row_inside[:, None] & column_inside
    return np.where(inside, value[rows[:, None], columns], value.dtype.type(VOID))

  def restore(self, value: np.ndarray, window: Window, size: Size) -> np.ndarray:
    """Returns a mask [h, w] of a window as one of the whole picture, void outside the window."""
    left, top, right, bottom = window
    width, height = right - left, bottom - top
    whole = -left / width, -top / height, (1 - left) / width, (1 - top) / height
    return self.fit(value, Geometry(whole, tuple(size)))

  def normalize(self, value: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    del mean, std
    return value.astype(jnp.int32)


def as_fractions(images: jax.Array) -> jax.Array:
  """Returns images, uint8 or float in [0, 1], as float32 in [0, 1]."""
  if images.dtype == jnp.uint8:
    return images.astype(jnp.float32) / 255
  return images.astype(jnp.float32)


def _resize(
  value: np.ndarray | images.EncodedImage, geometry: Geometry, is_grey: bool
) -> pillow.Image | np.ndarray:
  """Cuts out and resizes, or resizes and cuts out, as `geometry` says; in grey where asked.

  What is resized fast is an array, [H, W] or [H, W, 3].
  """
  height, width = value.shape[:2]
  first, size = geometry.part((height, width)), geometry.size
  if geometry.resized:
    first, size = (0, 0, width, height), geometry.resized
  is_encoded = isinstance(value, images.EncodedImage)
  scale = value.max_scale(first, size) if is_encoded and geometry.reduced else 1
  box, is_whole = None, first == (0, 0, width, height)
  if scale > 1:  # the part then needn't end at whole pixels
    # Of each pixel that comes out, interpolations see three times as much as it stands for at most.
    seen = first[3] + 3 * -(-(first[3] - first[1]) // size[0])
    image, box = value.reduce(scale, seen), tuple(side / scale for side in first)
  elif is_encoded:
    image = value.decoded if is_whole else value.crop(first)
  else:
    image = _from_array(value)
    image = image if is_whole else image.crop(first)
  if is_grey:
    image = image.convert('L')
  if geometry.resized:
    part = geometry.part(size)
    if math.prod(size) > max(_MOST_RESIZED, height * width) and _is_inside(part, size):
      # Of a strip, most is never seen. What is seen is the same but for Pillow's rounding.
      left, top, right, bottom = box or (0, 0, *image.size)
      across, down = (right - left) / size[1], (bottom - top) / size[0]
      box = left + across * part[0], top + down * part[1]
      box = *box, left + across * part[2], top + down * part[3]
    else:
      image, box = _resample(image, size, geometry, box), None
      image = pillow.fromarray(image) if geometry.fast else image
      image = image if part == (0, 0, *image.size) else _cut(image, part, geometry.fill)
  return _resample(image, geometry.size, geometry, box)


def _resample(
  image: pillow.Image, size: Size, geometry: Geometry, box: tuple[float, ...] | None
) -> pillow.Image | np.ndarray:
  """Resizes `box` of an image, None of which is the whole, as `_resize` says."""
  size = size[::-1]
  if geometry.fast:
    return fast_resizing.resize(image, size, geometry.interpolation, box)
  if image.size == size and not box:
    return image
  return image.resize(size, pillow.Resampling[geometry.interpolation.upper()], box)


def _is_inside(part: tuple[int, int, int, int], size: Size) -> bool:
  left, top, right, bottom = part
  return min(left, top) >= 0 and bottom <= size[0] and right <= size[1]


def _cut(
  image: pillow.Image, part: tuple[int, int, int, int], fill: tuple[int, ...]
) -> pillow.Image:
  """Returns (left, top, right, bottom) of an image, `fill` where it lies outside; () is zeros."""
  if not fill:
    return image.crop(part)
  left, top, right, bottom = part
  mode = 'L' if len(fill) == 1 else 'RGB'
  colour = fill if len(fill) > 1 else fill[0]
  ground = pillow.new(mode, (right - left, bottom - top), colour)
  ground.paste(image.convert(mode), (-left, -top))
  return ground


def _from_array(value: np.ndarray) -> pillow.Image:
  return pillow.fromarray(value[:, :, 0] if value.shape[-1] == 1 else value)


def _nearest(stored: int, low: float, high: float, wanted: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns for each of `wanted` pixels from `low` to `high`, in fractions of a side of `stored`
  pixels, the index of the pixel that its centre lies in, and whether there is one.
  """
  centres = (low + (np.arange(wanted) + 0.5) / wanted * (high - low)) * stored
  # A centre that lies on the edge of two pixels, but for rounding, is in the second.
  index = np.floor(centres + 1e-6).astype(int)
  return index.clip(0, stored - 1), (index >= 0) & (index < stored)
