"""Mixing of the images and labels of a batch in pairs: mixup and cutmix."""

import chex
import jax
import jax.numpy as jnp

from vit_jax.data.augment.erasing import rectangle
from vit_jax.errors import FieldError


def mixup(
  keys: chex.PRNGKey, images: jax.Array, labels: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
  """Blends each image and label with its neighbour's by lambda ~ Beta(alpha, alpha).

  arXiv:1710.09412. The partner of slot i is slot i ^ 1: in a shuffled batch a random pairing, and
  one that doesn't depend on how many devices share the batch. The two share one lambda, from the
  key of the even slot.

  Args:
    keys: [B].
    images: float32 [B, H, W, C], or of videos [B, T, H, W, C].
    labels: float32 [B, K], one-hot or multi-label.
    alpha: above 0.

  Returns:
    Images and labels of the same shapes.

  Raises:
    FieldError: B is odd.
  """
  even, partner = _pairs(len(images))
  weight = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys[even])
  return (
    _weigh(weight, images, images[partner]),
    _weigh(weight, labels, labels[partner]),
  )


def cutmix(
  keys: chex.PRNGKey, images: jax.Array, labels: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
  """Pastes a rectangle of its neighbour into each image; labels blend by area (arXiv:1905.04899).

  The rectangle has the image's aspect and a fraction 1 - lambda of its area, lambda ~ Beta(alpha,
  alpha), round a uniform centre; what lies outside the image is cut off, and labels are weighted by
  the area that is left. Pairs, arguments, returns and errors are those of `mixup`.
  """
  even, partner = _pairs(len(images))
  height, width = images.shape[-3:-1]
  pasted = jax.vmap(lambda key: _cutmix_mask(key, height, width, alpha))(keys[even])
  weight = 1 - pasted.mean((1, 2, 3))
  pasted = pasted.reshape(-1, *(1,) * (images.ndim - 4), height, width, 1)  # alike in all frames
  return (
    jnp.where(pasted, images[partner], images),
    _weigh(weight, labels, labels[partner]),
  )


def mixup_or_cutmix(
  keys: chex.PRNGKey,
  images: jax.Array,
  labels: jax.Array,
  mixup_alpha: float,
  cutmix_alpha: float,
) -> tuple[jax.Array, jax.Array]:
  """Applies to each pair mixup or cutmix, with probability 0.5 each, as timm's switch_prob."""
  even, _ = _pairs(len(images))
  choices, keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  cut = jax.vmap(jax.random.bernoulli)(choices[even])
  blended = mixup(keys, images, labels, mixup_alpha)
  pasted = cutmix(keys, images, labels, cutmix_alpha)
  return tuple(jnp.where(_like(cut, a), b, a) for a, b in zip(blended, pasted, strict=True))


def _cutmix_mask(key, height, width, alpha):
  """Draws the rectangle that cutmix pastes, bool [H, W, 1]."""
  beta_key, row_key, column_key = jax.random.split(key, 3)
  half = 0.5 * jnp.sqrt(1 - jax.random.beta(beta_key, alpha, alpha))
  row = jax.random.randint(row_key, (), 0, height)
  column = jax.random.randint(column_key, (), 0, width)
  tall, wide = (half * height).astype(jnp.int32), (half * width).astype(jnp.int32)
  return rectangle(height, width, row - tall, row + tall, column - wide, column + wide)


def _pairs(size):
  """Returns for each slot the even slot of its pair and its partner, or raises FieldError."""
  if size % 2:
    raise FieldError(
      'batch_size',
      f'{size} images per device is odd; mixup and cutmix mix pairs, so the batch must be a '
      'multiple of twice the number of devices',
    )
  slots = jnp.arange(size)
  return slots & ~1, slots ^ 1


def _like(values, array):
  """Returns values [B] with singleton axes to the rank of array [B, ...]."""
  return values.reshape(-1, *(1,) * (array.ndim - 1))


def _weigh(weight, first, second):
  """Returns weight * first + (1 - weight) * second, weight being per example."""
  weight = _like(weight, first)
  return weight * first + (1 - weight) * second
