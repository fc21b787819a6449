"""Colours of one image: jitter of brightness, contrast, saturation and hue."""

import chex
import jax
import jax.numpy as jnp

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow and torchvision


def color_jitter(
  key: chex.PRNGKey,
  image: jax.Array,
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
  probability: float = 1.0,
) -> jax.Array:
  """Changes the colours of image float32 [H, W, C] in [0, 1], C 1 or 3, to the same.

  Ranges are torchvision's ColorJitter: factors from [max(0, 1 - x), 1 + x] and a hue rotation from
  [-hue, hue] turns, hue at most 0.5. The order is always brightness, contrast, saturation, hue,
  where torchvision draws it. Grey images have neither saturation nor hue: those leave them alone.
  An image is left as it is but with `probability`.
  """
  keys, original = jax.random.split(key, 4), image
  if brightness:
    image = _blend(image, jnp.zeros_like(image), _factor(keys[0], brightness))
  if contrast:
    image = _blend(image, grey(image).mean(), _factor(keys[1], contrast))
  if saturation:
    image = _blend(image, grey(image), _factor(keys[2], saturation))
  if hue and image.shape[-1] == 3:
    image = rotate_hue(image, jax.random.uniform(keys[3], (), minval=-hue, maxval=hue))
  if probability < 1:
    coin = jax.random.bernoulli(jax.random.fold_in(key, 4), probability)
    image = jnp.where(coin, image, original)
  return image


def rotate_hue(image: jax.Array, turns: jax.typing.ArrayLike) -> jax.Array:
  """Rotates the HSV hue of RGB image float32 [..., 3] in [0, 1] by `turns` of the colour circle."""
  red, green, blue = jnp.moveaxis(image, -1, 0)
  value = image.max(-1)
  chroma = value - image.min(-1)
  divisor = jnp.where(chroma == 0, 1, chroma)
  # Not `value == red`: XLA may compute a channel twice, rounded apart, and then none equals it.
  sextant = jnp.where(
    (red >= green) & (red >= blue),
    (green - blue) / divisor,
    jnp.where(green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
  )
  # Each channel is the same trapezoid of the hue: full, then none, a third of a turn apart.
  k = jnp.mod(sextant[..., None] + 6 * turns + jnp.float32((5, 3, 1)), 6)
  return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def _factor(key, strength):
  """Draws a blending factor with torchvision's range."""
  return jax.random.uniform(key, (), minval=max(0.0, 1 - strength), maxval=1 + strength)


def _blend(image, other, factor):
  """Returns the image for factor 1, `other` for 0, and beyond the image above 1."""
  return jnp.clip(other + factor * (image - other), 0, 1)


def grey(image):
  """Returns the brightness of each pixel of image float [H, W, 1 or 3], [H, W, 1]."""
  if image.shape[-1] == 1:
    return image
  # A sum, not a matrix product: those are rounded to TF32 on GPUs.
  return (image * jnp.float32(_LUMA)).sum(-1, keepdims=True)
