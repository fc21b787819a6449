"""What is done to some images as a whole: grey, blurred, or solarised, each with a probability."""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from vit_jax.data.augment.color import grey

_REACH = 4  # standard deviations at which a Gaussian is cut off


def random_grayscale(key: chex.PRNGKey, image: jax.Array, probability: float) -> jax.Array:
  """Replaces the colours of image float32 [H, W, C] in [0, 1] by its brightness; C stays."""
  return jnp.where(jax.random.bernoulli(key, probability), grey(image), image)


def gaussian_blur(
  key: chex.PRNGKey, image: jax.Array, probability: float, sigma: Sequence[float] = (0.1, 2.0)
) -> jax.Array:
  """Blurs image float32 [H, W, C] by a Gaussian, its deviation in pixels uniform in `sigma`.

  Beyond its border the image goes on as it ends, as in Pillow's GaussianBlur, whose radius is the
  deviation, and which DINO uses (arXiv 2104.14294).
  """
  coin, strength = jax.random.split(key)
  deviation = jax.random.uniform(strength, (), minval=sigma[0], maxval=sigma[1])
  blurred = blur(image, deviation, math.ceil(_REACH * sigma[1]))
  return jnp.where(jax.random.bernoulli(coin, probability), blurred, image)


def blur(image: jax.Array, deviation: jax.typing.ArrayLike, reach: int) -> jax.Array:
  """Blurs image float [H, W, C] by a Gaussian that is cut off `reach` pixels from its middle."""
  offsets = jnp.arange(-reach, reach + 1)
  weights = jnp.exp(-0.5 * (offsets / deviation) ** 2)
  weights /= weights.sum()
  for axis in (0, 1):
    border = [(reach, reach) if i == axis else (0, 0) for i in range(image.ndim)]
    padded, side = jnp.pad(image, border, mode='edge'), image.shape[axis]
    moved = (jax.lax.slice_in_dim(padded, i, i + side, axis=axis) for i in range(len(offsets)))
    image = sum(weight * part for weight, part in zip(weights, moved, strict=True))
  return image


def solarize(
  key: chex.PRNGKey, image: jax.Array, probability: float, threshold: float = 0.5
) -> jax.Array:
  """Inverts the values above `threshold` of image float32 in [0, 1], as Pillow's solarize."""
  inverted = jnp.where(image < threshold, image, 1 - image)
  return jnp.where(jax.random.bernoulli(key, probability), inverted, image)
