"""Position embeddings: learned and fixed ones, and learned ones on other grids."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
import scipy.ndimage


class AddPositionEmbs(nn.Module):
  """Adds a learned embedding to each position of [B, N, D].

  Attributes:
    posemb_init: initialiser of `pos_embedding`, float32 [1, N, D].
  """

  posemb_init: Callable[..., jax.Array] = nn.initializers.normal(stddev=0.02)

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    embedding = self.param('pos_embedding', self.posemb_init, (1, *inputs.shape[1:]))
    return inputs + embedding.astype(inputs.dtype)


def resolve_grid(num_tokens: int, grid: tuple[int, int] | None) -> tuple[int, int]:
  """Returns (rows, columns) of `num_tokens` tokens: `grid` if given, else a square.

  Raises:
    ValueError: the tokens don't fill that grid.
  """
  height, width = grid or (int(num_tokens**0.5),) * 2
  if height * width != num_tokens:
    raise ValueError(f'{num_tokens} tokens do not fill a {height}x{width} grid; pass grid=(h, w)')
  return height, width


def sinusoidal_1d(length: int, channels: int, temperature: float = 10_000.0) -> np.ndarray:
  """Sines at even and cosines at odd channels (arXiv 1706.03762): float32 [length, channels].

  `channels` must be even.
  """
  omega = temperature ** -(np.arange(0, channels, 2) / channels)
  angles = np.arange(length)[:, None] * omega
  return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, channels).astype(np.float32)


def sinusoidal_2d(
  height: int, width: int, channels: int, temperature: float = 10_000.0
) -> np.ndarray:
  """Fixed position embedding of a grid (arXiv 2205.01580): float32 [height, width, channels].

  Four equal parts: sine and cosine of the column, then of the row. `channels` must be a multiple
  of four.
  """
  omega = temperature ** -(np.arange(channels // 4) / (channels // 4))
  rows, columns = np.mgrid[:height, :width][..., None]
  parts = [f(position * omega) for position in (columns, rows) for f in (np.sin, np.cos)]
  return np.concatenate(parts, axis=-1).astype(np.float32)


class AddFixedSinCosPositionEmbedding(nn.Module):
  """Adds `sinusoidal_2d` to a grid of tokens [B, h, w, channels]; has no parameters.

  Attributes:
    temperature: what wavelengths over 2 pi, in tokens, rise towards.
  """

  temperature: float = 10_000.0

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    embedding = sinusoidal_2d(*inputs.shape[1:], self.temperature)
    return inputs + embedding.astype(inputs.dtype)


def resize_position_embeddings(
  embeddings: np.ndarray,
  old_grid: tuple[int, int],
  new_grid: tuple[int, int],
  num_prefix: int = 0,
) -> np.ndarray:
  """Interpolates position embeddings linearly, the corners of one grid on those of the other.

  The same grid gives the same bits.

  Args:
    embeddings: float32 [1, num_prefix + rows * columns, D].
    old_grid: its (rows, columns).
    new_grid: (rows, columns) of the result. A single row or column takes the first there was.
    num_prefix: how many embeddings, the class token's, stand before the grid; they are kept.

  Returns:
    float32 [1, num_prefix + new rows * new columns, D].
  """
  if tuple(old_grid) == tuple(new_grid):
    return embeddings
  prefix, grid = embeddings[:, :num_prefix], embeddings[0, num_prefix:]
  zoom = (new_grid[0] / old_grid[0], new_grid[1] / old_grid[1], 1)
  # The default mode takes the last row, where rounding puts it outside (8 to 26), for zeros.
  grid = scipy.ndimage.zoom(grid.reshape(*old_grid, -1), zoom, order=1, mode='nearest')
  return np.concatenate([prefix, grid.reshape(1, math.prod(new_grid), -1)], axis=1)
