"""Interpolation of maps, as PyTorch's `interpolate` does it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

INTERPOLATIONS = ('bilinear', 'bicubic')


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


def resize_weights(
  index: Any,
  new: Any,
  old: int,
  method: str = 'bilinear',
  *,
  antialias: bool = False,
  align_corners: bool = False,
  xp: Any = np,
) -> Any:
  """Returns what cells along an axis add to those of another length: float32 [..., old].

  As PyTorch 2 interpolates, whose cubic kernel has a = -0.5 with antialiasing and -0.75 without,
  and whose cells beyond the ends are left out with it, those at the ends without.

  Args:
    index: of the wanted cells, from 0: whole numbers [...].
    new: the length that they are of; broadcasts to the index.
    old: the length of what is interpolated.
    method: one of `INTERPOLATIONS`.
    antialias: where the new length is smaller, average over as many cells as fall on one.
    align_corners: the centres of the first and the last cells stay there; else the ends do. Not
      with `antialias`.
    xp: `numpy`, or `jax.numpy` where index or length are traced.
  """
  # PyTorch's float32, since a centre between cells that differ shows its rounding.
  index, new = (xp.asarray(x, np.float32) for x in (index, new))
  scale = (old - 1) / xp.maximum(new - 1, 1) if align_corners else old / new
  centre = (index * scale if align_corners else (index + 0.5) * scale - 0.5)[..., None]
  cells = np.arange(old, dtype=np.float32)
  if antialias:
    distance = (cells - centre) / xp.maximum(scale, 1)[..., None]
    weights = _triangle(distance, xp) if method == 'bilinear' else _cubic(distance, -0.5, xp)
    return weights / weights.sum(-1, keepdims=True)
  if method == 'bilinear':
    return _triangle(cells - xp.clip(centre, 0, old - 1), xp)
  first = xp.floor(centre) - 1
  return sum(
    xp.where(cells == xp.clip(first + tap, 0, old - 1), _cubic(first + tap - centre, -0.75, xp), 0)
    for tap in range(4)
  )


def _triangle(x: Any, xp: Any) -> Any:
  return xp.maximum(1 - xp.abs(x), 0)


def _cubic(x: Any, a: float, xp: Any) -> Any:
  """Keys' kernel."""
  x = xp.abs(x)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
  return xp.where(x <= 1, near, xp.where(x < 2, far, 0))
