"""Boxes, [..., 4]: centre x and y, width and height, in fractions of the image's sides."""

from typing import Any

import numpy as np

# (left, top, right, bottom) in fractions of an image.
Window = tuple[Any, Any, Any, Any]


def into_window(box: Any, window: Window, xp: Any = np) -> Any:
  """Returns `box` in fractions of a window of its image, without what lies outside.

  An object that is outside leaves a box without area on the window's border.

  Args:
    box: float32 [4].
    window: may reach beyond the image.
    xp: NumPy or jax.numpy, whichever the arrays are of.
  """
  left, top, right, bottom = window
  start, size = xp.stack([left, top]), xp.stack([right - left, bottom - top])
  half = box[2:] / 2
  low, high = (xp.clip((edge - start) / size, 0, 1) for edge in (box[:2] - half, box[:2] + half))
  return xp.concatenate([(low + high) / 2, high - low]).astype(box.dtype)


def out_of_window(box: np.ndarray, window: Window) -> np.ndarray:
  """Returns boxes [..., 4] of a window in fractions of the image; the inverse of `into_window`."""
  left, top, right, bottom = window
  size = np.array([right - left, bottom - top])
  centre, extent = box[..., :2] * size + (left, top), box[..., 2:] * size
  return np.concatenate([centre, extent], axis=-1).astype(box.dtype)


def visible_share(box: np.ndarray, window: Window) -> float:
  """Returns which fraction of the area of `box`, not an empty one, lies in a window."""
  left, top, right, bottom = window
  inside = into_window(box, window)
  shown = inside[2] * inside[3] * (right - left) * (bottom - top)
  return float(shown / (box[2] * box[3]))
