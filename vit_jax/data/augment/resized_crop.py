"""Random parts of a picture, resized: `crop='inception'` of the host, on the device."""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from vit_jax.data import kinds
from vit_jax.data.augment.geometry import Record

_ASPECT = (3 / 4, 4 / 3)  # width / height
_ATTEMPTS = 10


def random_resized_crop(
  key: chex.PRNGKey, record: Record, area: Sequence[float], size: Sequence[int] = ()
) -> Record:
  """Cuts a random part out of a picture and resizes it by Pillow's bicubic, with antialiasing.

  As torchvision's RandomResizedCrop and `crop='inception'`: the part has a share of the picture
  uniform in `area`, and width / height log-uniform from 3/4 to 4/3. After ten draws that don't fit
  it is the largest in the middle with an allowed aspect.

  Args:
    key: of the example.
    record: its pictures have one size. Images uint8 [H, W, C] come out uint8 [h, w, C]; masks and
      boxes can't follow.
    area: (low, high), 0 < low <= high <= 1.
    size: (h, w); () is that of the picture.
  """
  height, width = kinds.picture_size(record)
  box = draw_box(key, height, width, area)
  size = tuple(size) or (height, width)
  return {
    name: kind.map_images(lambda image: resize(image, box, size), value)
    for name, kind, value in kinds.entries(record)
  }


def draw_box(
  key: chex.PRNGKey, height: int, width: int, area: Sequence[float]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Draws (top, left, height, width), int32, of a part of a picture."""
  shape_key, place_key = jax.random.split(key)
  shares, aspects = jax.random.uniform(shape_key, (2, _ATTEMPTS))
  pixels = height * width * (area[0] + (area[1] - area[0]) * shares)
  low, high = map(math.log, _ASPECT)
  ratio = jnp.exp(low + (high - low) * aspects)
  heights = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)
  widths = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
  fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
  first = jnp.argmax(fits)
  middle = min(height, round(width / _ASPECT[0])), min(width, round(height * _ASPECT[1]))
  tall = jnp.where(fits.any(), heights[first], middle[0])
  wide = jnp.where(fits.any(), widths[first], middle[1])
  room = jnp.stack([height - tall, width - wide])
  drawn = jax.random.randint(place_key, (2,), 0, room + 1)
  top, left = jnp.where(fits.any(), drawn, room // 2)
  return top, left, tall, wide


def resize(
  image: jax.Array,
  box: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
  size: tuple[int, int],
) -> jax.Array:
  """Resizes the part (top, left, height, width) of image uint8 [H, W, C] to uint8 [h, w, C]."""
  chex.assert_type(image, jnp.uint8)
  top, left, tall, wide = box
  rows = _weights(image.shape[0], top, tall, size[0])  # [h, H]
  columns = _weights(image.shape[1], left, wide, size[1])  # [w, W]
  levels = image.astype(jnp.float32)
  # A float32 product rounded to TF32, as GPUs do, would be off by whole levels.
  resized = jnp.einsum('hH,wW,HWC->hwC', rows, columns, levels, precision=jax.lax.Precision.HIGHEST)
  return jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)


def _weights(stored: int, start: jax.Array, length: jax.Array, wanted: int) -> jax.Array:
  """Returns float32 [wanted, stored]: what each pixel from `start` on adds to each of the result.

  Pixels outside the part add nothing, as where it is cut out first.
  """
  scale = length / wanted
  centre = start + (jnp.arange(wanted) + 0.5) * scale
  pixel = jnp.arange(stored)
  distance = jnp.abs(pixel + 0.5 - centre[:, None]) / jnp.maximum(scale, 1)
  inside = (start <= pixel) & (pixel < start + length)
  weights = jnp.where(inside, _cubic(distance), 0)
  return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: jax.Array) -> jax.Array:
  """Keys' cubic kernel with a = -0.5, at distances x >= 0."""
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))
