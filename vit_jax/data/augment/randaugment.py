"""RandAugment (arXiv:1909.13719) in JAX, on 8-bit images, fast when mapped over a batch.

Mapping a switch over a batch computes all its branches for every image. Here the 14 operations
are therefore three steps that every image takes, with the parameters of its own operation: an
affine warp (one gather), a blend with a degenerate image, and a table of 256 grey levels.
"""

import math

import chex
import jax
import jax.numpy as jnp

MAX_MAGNITUDE = 30

OPERATIONS = (
  'identity',
  'shear_x',
  'shear_y',
  'translate_x',
  'translate_y',
  'rotate',
  'brightness',
  'color',
  'contrast',
  'sharpness',
  'posterize',
  'solarize',
  'autocontrast',
  'equalize',
)


def rand_augment(key: chex.PRNGKey, image: jax.Array, num_ops: int, magnitude: float) -> jax.Array:
  """Applies `num_ops` random operations, one after the other, to image uint8 [H, W, C], C 1 or 3.

  The operations and their strengths are torchvision's RandAugment: `magnitude` runs from 0 to 30
  (torchvision's default is 9) and means at 30 a shear of 0.3, a translation by 150/331 of the
  side, a rotation by 30 degrees, an enhancement factor of 1 +- 0.9, 4 bits of posterisation or a
  solarisation threshold of 0. Signs are random; warps take the nearest pixel and fill with zeros.
  """

  def step(image, key):
    which, direction = jax.random.split(key)
    operation = jax.random.randint(which, (), 0, len(OPERATIONS))
    sign = jax.random.rademacher(direction, (), jnp.float32)
    return apply_operation(image, operation, magnitude, sign), None

  # A scan, not a loop: XLA would fuse the operations and compute the first many times over.
  return jax.lax.scan(step, image, jax.random.split(key, num_ops))[0]


def apply_operation(
  image: jax.Array,
  operation: jax.typing.ArrayLike,
  magnitude: float,
  sign: jax.typing.ArrayLike,
) -> jax.Array:
  """Applies OPERATIONS[operation] to image uint8 [H, W, C]; `sign` is 1 or -1, where it has one.

  Up to rounding the results are those of Pillow's Image.transform, ImageEnhance and ImageOps.
  """
  chex.assert_type(image, jnp.uint8)
  level = magnitude / MAX_MAGNITUDE
  image = _warp(image, operation, level * sign).astype(jnp.int32)
  image = _enhance(image, operation, 1 + 0.9 * level * sign)
  return _remap(image, operation, level).astype(jnp.uint8)


def _is(operation, name):
  return operation == OPERATIONS.index(name)


def _only(operation, name, value):
  """Returns the value if this is the operation, 0 if not."""
  return jnp.where(_is(operation, name), value, 0)


def _warp(image, operation, level):
  """Shears about the top left corner, translates, or rotates about the centre."""
  height, width, channels = image.shape
  # Where pixel centres come from, in pixels; at most one of the terms isn't zero.
  y, x = jnp.arange(height)[:, None] + 0.5, jnp.arange(width)[None, :] + 0.5
  dy, dx = y - height / 2, x - width / 2
  angle = _only(operation, 'rotate', math.radians(30) * level)
  sin, less = jnp.sin(angle), jnp.cos(angle) - 1
  reach = 150 / 331 * level
  from_x = x + less * dx - sin * dy + _only(operation, 'shear_x', 0.3 * level) * y
  from_y = y + less * dy + sin * dx + _only(operation, 'shear_y', 0.3 * level) * x
  from_x -= _only(operation, 'translate_x', jnp.trunc(reach * width))
  from_y -= _only(operation, 'translate_y', jnp.trunc(reach * height))
  column, row = jnp.floor(from_x).astype(jnp.int32), jnp.floor(from_y).astype(jnp.int32)
  inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
  source = jnp.where(inside, row * width + column, 0)
  return jnp.where(inside[..., None], image.reshape(-1, channels)[source], 0)


def _enhance(image, operation, factor):
  """Blends levels int32 [H, W, C] with the degenerate image of one of Pillow's ImageEnhance."""
  grey = _grey(image)
  degenerate = jnp.where(_is(operation, 'sharpness'), _smooth(image), 0)
  degenerate = jnp.where(_is(operation, 'color'), grey, degenerate)
  degenerate = jnp.where(_is(operation, 'contrast'), jnp.floor(grey.mean() + 0.5), degenerate)
  first, last = OPERATIONS.index('brightness'), OPERATIONS.index('sharpness')
  factor = jnp.where((first <= operation) & (operation <= last), factor, 1)
  return jnp.clip(degenerate + factor * (image - degenerate), 0, 255).astype(jnp.int32)


def _remap(image, operation, level):
  """Maps levels int32 [H, W, C] to levels: posterize, solarize, autocontrast or equalize."""
  shift = round(4 * level)
  low, high = image.min((0, 1)), image.max((0, 1))
  stretched = jnp.where(high > low, (image - low) * 255 // jnp.maximum(high - low, 1), image)
  mapped = {
    'posterize': image >> shift << shift,
    'solarize': jnp.where(image < 255 * (1 - level), image, 255 - image),
    'autocontrast': stretched,
    'equalize': _equalize(image),
  }
  for name, result in mapped.items():
    image = jnp.where(_is(operation, name), result, image)
  return image


def _equalize(image):
  """Flattens the histogram of each channel, by Pillow's integer formula.

  That leaves alone an image with fewer than 255 pixels off its brightest level.
  """
  channels = image.shape[-1]
  flat = image.reshape(-1, channels)
  channel = jnp.arange(channels)
  histogram = jnp.zeros((channels, 256), jnp.int32).at[channel, flat].add(1)
  step = (len(flat) - histogram[channel, flat.max(0)]) // 255
  below = jnp.cumsum(histogram, axis=1) - histogram
  divisor = jnp.maximum(step, 1)[:, None]
  table = jnp.minimum((below + divisor // 2) // divisor, 255)
  return jnp.where(step > 0, table[channel, flat], flat).reshape(image.shape)


def _grey(image):
  """Returns the brightness [H, W, 1] of levels int32 [H, W, C], by Pillow's integer formula."""
  if image.shape[-1] == 1:
    return image
  weighted = image * jnp.array((19595, 38470, 7471))
  return (weighted.sum(-1, keepdims=True) + (1 << 15)) >> 16


def _smooth(image):
  """Applies Pillow's ImageFilter.SMOOTH: ones round a 5, over 13; the border stays."""
  rows = image[:-2] + image[1:-1] + image[2:]
  total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image[1:-1, 1:-1]
  return image.at[1:-1, 1:-1].set((total + 6) // 13)
