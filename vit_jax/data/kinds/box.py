"""Boxes, [..., 4]: centre x and y, width and height, in fractions of the picture's sides."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.kinds.kind import WHOLE, Geometry, Kind, Move, Size, Window

_LEAST_VISIBLE = 0.5  # of an object's area, in a random window


class Box(Kind):
  """float32 [4]: the box round one object. It ends at the border of what is taken of a picture."""

  form, plural = 'float32 [4]', 'boxes'
  is_spatial = True
  cannot_follow = ('resized_crop.area', 'rand_augment.num_ops', 'mixup_alpha', 'cutmix_alpha')

  def is_valid(self, value: np.ndarray) -> bool:
    return value.dtype == np.float32 and value.shape == (4,)

  def fit(self, value: np.ndarray, geometry: Geometry, channels: int = 0) -> np.ndarray:
    del channels
    return value if geometry.window == WHOLE else into_window(value, geometry.window)

  def shows_enough(self, value: np.ndarray, window: Window) -> bool:
    return visible_share(value, window) >= _LEAST_VISIBLE

  def restore(self, value: np.ndarray, window: Window, size: Size) -> np.ndarray:
    del size
    return out_of_window(value, window)

  def limit(self, value: jax.Array, move: Move, size: Size) -> Move:
    """Keeps the box's centre in the window."""
    sides = jnp.array(size)
    centre = value[1::-1] * sides + move.padding
    offset = jnp.clip(move.offset, jnp.ceil(centre) - sides, jnp.floor(centre))
    return move._replace(offset=offset.astype(move.offset.dtype))

  def move(self, value: jax.Array, move: Move, size: Size) -> jax.Array:
    top, left = (move.offset - move.padding) / jnp.array(size)
    return into_window(value, (left, top, left + 1, top + 1), xp=jnp)

  def flip(self, value: jax.Array, flip: jax.Array) -> jax.Array:
    return jnp.where(flip, value.at[0].set(1 - value[0]), value)


def into_window(box: Any, window: Window, xp: Any = np) -> Any:
  """Returns `box` in fractions of a window of its picture, without what lies outside.

  An object that is outside leaves a box without area on the window's border.

  Args:
    box: float32 [4].
    window: may reach beyond the picture.
    xp: NumPy or jax.numpy, whichever the arrays are of.
  """
  left, top, right, bottom = window
  start, size = xp.stack([left, top]), xp.stack([right - left, bottom - top])
  half = box[2:] / 2
  low, high = (xp.clip((edge - start) / size, 0, 1) for edge in (box[:2] - half, box[:2] + half))
  return xp.concatenate([(low + high) / 2, high - low]).astype(box.dtype)


def out_of_window(box: np.ndarray, window: Window) -> np.ndarray:
  """Returns boxes [..., 4] of a window in fractions of the picture: what undoes `into_window`."""
  left, top, right, bottom = window
  size = np.array([right - left, bottom - top])
  centre, extent = box[..., :2] * size + (left, top), box[..., 2:] * size
  return np.concatenate([centre, extent], axis=-1).astype(box.dtype)


def visible_share(box: np.ndarray, window: Window) -> float:
  """Returns which fraction of the area of `box`, not an empty one, lies in a window."""
  left, top, right, bottom = window
  inside = into_window(box, window)
  visible = inside[2] * inside[3] * (right - left) * (bottom - top)
  return float(visible / (box[2] * box[3]))
