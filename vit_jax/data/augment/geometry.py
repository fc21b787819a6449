"""Crops, shifts and flips: each is drawn once for an example and moves every entry of its record.

A record here is a dict of one example's entries that have a kind: image [H, W, C], video
[T, H, W, C], mask [H, W], box [4] and others, of any dtype.
"""

import chex
import jax

from vit_jax.data import kinds

Record = dict[str, jax.Array]


def random_crop(key: chex.PRNGKey, record: Record, padding: int) -> Record:
  """Pads pictures by `padding` on each side and cuts out a random window of the old size.

  As torchvision's RandomCrop(size, padding); images are padded with zeros, masks with void. The
  centre of a box stays in the window: one without it gives way to the nearest that has it.
  """
  offset = jax.random.randint(key, (2,), 0, 2 * padding + 1)
  move, size = kinds.Move(padding, offset), kinds.picture_size(record)
  for _, kind, value in kinds.entries(record):
    move = kind.limit(value, move, size)
  return {name: kind.move(value, move, size) for name, kind, value in kinds.entries(record)}


def random_shift(key: chex.PRNGKey, record: Record, pixels: int) -> Record:
  """Moves pictures by up to `pixels` along each axis, either way, filling as `random_crop` does.

  A move by (dy, dx) is the window of the padded image at `pixels` - (dy, dx), hence the same
  distribution as `random_crop`: recipes for photographs name the one, for digits the other.
  """
  return random_crop(key, record, pixels)


def random_flip(key: chex.PRNGKey, record: Record) -> Record:
  """Mirrors pictures, and what lies on them, left to right with probability 0.5."""
  flip = jax.random.bernoulli(key)
  return {name: kind.flip(value, flip) for name, kind, value in kinds.entries(record)}
