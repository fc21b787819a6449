"""Relative positions of patches."""

import numpy as np


def relative_position_index(window: tuple[int, int]) -> np.ndarray:
  """Returns the row of the bias table for each pair of positions in a window: int [N, N]."""
  rows, columns = (p.ravel() for p in np.mgrid[: window[0], : window[1]])
  down = rows[:, None] - rows + window[0] - 1
  right = columns[:, None] - columns + window[1] - 1
  return down * (2 * window[1] - 1) + right


def relative_coordinates(window: tuple[int, int], pretrained: int) -> np.ndarray:
  """Returns the differences of positions on Swin version 2's logarithmic scale: float32 [M, 2].

  1 is the farthest in a window of `pretrained`, or of this one where that is 0.
  """
  sides = (pretrained,) * 2 if pretrained else window
  axes = [
    np.arange(1 - w, w, dtype=np.float32) * 8 / max(side - 1, 1)
    for w, side in zip(window, sides, strict=True)
  ]
  table = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1).reshape(-1, 2)
  return (np.sign(table) * np.log2(np.abs(table) + 1) / np.log2(8)).astype(np.float32)
