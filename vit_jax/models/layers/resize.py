"""Bilinear interpolation of maps."""

import jax
import jax.numpy as jnp


def interpolate(maps: jax.Array, axes: tuple[int, int], size: tuple[int, int]) -> jax.Array:
  """Returns maps whose `axes` have the lengths `size`, as PyTorch with align_corners=False.

  It is what jax.image.resize does without antialiasing, for maps of which the number may be unknown
  while this is traced.
  """
  new = {axis: n for axis, n in zip(axes, size, strict=True) if maps.shape[axis] != n}
  shape = [new.get(axis, length) for axis, length in enumerate(maps.shape)]
  scale = jnp.float32([length / maps.shape[axis] for axis, length in new.items()])
  return jax.image.scale_and_translate(
    maps, shape, tuple(new), scale, jnp.zeros(len(new)), 'linear', antialias=False
  )
