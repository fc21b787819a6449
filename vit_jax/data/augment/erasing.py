"""Random erasing, and the rectangles that it and cutmix draw."""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

_ATTEMPTS = 10


def random_erasing(
  key: chex.PRNGKey,
  image: jax.Array,
  probability: float,
  area: Sequence[float] = (0.02, 1 / 3),
  aspect: Sequence[float] = (0.3, 10 / 3),
) -> jax.Array:
  """Zeroes a random rectangle of image float [H, W, C] with `probability` (arXiv:1708.04896).

  `augment` calls it on normalised images, where zero is the channel mean. As in torchvision, the
  rectangle's fraction of the image is uniform in `area`, its height / width log-uniform in
  `aspect`, and it must fit: the first of ten draws that does is used, if any.
  """
  height, width, _ = image.shape
  shape_key, place_key, coin_key = jax.random.split(key, 3)
  areas, aspects = jax.random.uniform(shape_key, (2, _ATTEMPTS))
  pixels = height * width * (area[0] + (area[1] - area[0]) * areas)
  low, high = map(math.log, aspect)
  ratio = jnp.exp(low + (high - low) * aspects)
  heights = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
  widths = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)
  fits = (heights < height) & (widths < width)
  first = jnp.argmax(fits)
  tall, wide = heights[first], widths[first]
  room = jnp.stack([height - tall, width - wide])
  top, left = jax.random.randint(place_key, (2,), 0, room + 1)
  inside = rectangle(height, width, top, top + tall, left, left + wide)
  erase = jax.random.bernoulli(coin_key, probability) & fits.any()
  return jnp.where(inside & erase, 0, image)


def rectangle(
  height: int, width: int, top: jax.Array, bottom: jax.Array, left: jax.Array, right: jax.Array
) -> jax.Array:
  """Returns bool [H, W, 1], True inside a rectangle, whose edges may lie outside the image."""
  rows = jnp.arange(height)[:, None, None]
  columns = jnp.arange(width)[None, :, None]
  return (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)
