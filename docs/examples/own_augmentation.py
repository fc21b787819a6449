"""Augmentation of one's own: --config.augment.own=own_augmentation:brighten."""

import jax


def brighten(key, record):
  """Multiplies an image's pixels, which are in [0, 1], by a factor from 0.8 to 1.2."""
  factor = jax.random.uniform(key, minval=0.8, maxval=1.2)
  return record | {'image': (record['image'] * factor).clip(0, 1)}
