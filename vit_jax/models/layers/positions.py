"""Position embeddings: learned and fixed ones, and learned ones on other grids."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import FieldError, UsageError
from vit_jax.models.layers.resize import resize_weights


class AddPositionEmbs(nn.Module):
  """Adds a learned embedding to each position of [B, N, D].

  Attributes:
    posemb_init: initialiser of `pos_embedding`, float32 [1, N, D].
    grid: (rows, columns) of the last of the N positions; None where they have none.
  """

  posemb_init: Callable[..., jax.Array] = nn.initializers.normal(stddev=0.02)
  grid: tuple[int, int] | None = None

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Parameters of a square grid are interpolated to another number of positions."""
    shape = (1, *inputs.shape[1:])
    if self.has_variable('params', 'pos_embedding'):
      stored = self.get_variable('params', 'pos_embedding')
      if self.grid is not None and stored.shape[1] != shape[1]:
        num_prefix = shape[1] - math.prod(self.grid)
        resized = interpolate_positions(stored, self.grid, num_prefix)
        return inputs + resized.astype(inputs.dtype)
    embedding = self.param('pos_embedding', self.posemb_init, shape)
    return inputs + embedding.astype(inputs.dtype)


def interpolate_positions(
  embeddings: jax.Array, grid: tuple[int, int], num_prefix: int
) -> jax.Array:
  """Interpolates the embeddings of a square grid, as facebookresearch/dino does for its crops.

  The result is that of PyTorch's bicubic `interpolate` by scale factors (rows + 0.1) / side and
  (columns + 0.1) / side, which DINO (arXiv 2104.14294) gives it lest a floating-point error costs a
  row: the corners of the grids don't quite coincide. A fixed linear map, so that it can be learned
  through. `resize_position_embeddings` is the one for fine-tuning at another size.

  Args:
    embeddings: float32 [1, num_prefix + side * side, D].
    grid: (rows, columns) of the result.
    num_prefix: embeddings before the grid, which are kept.

  Returns:
    float32 [1, num_prefix + rows * columns, D].

  Raises:
    UsageError: they are of no square grid.
  """
  count = embeddings.shape[1] - num_prefix
  side = math.isqrt(max(count, 0))
  if side * side != count:
    raise UsageError(
      f'pos_embedding: {count} positions, of no square grid, and images of {grid[0]}x{grid[1]} '
      'patches'
    )
  rows, columns = (_bicubic_matrix(side, length) for length in grid)
  prefix, cells = embeddings[0, :num_prefix], embeddings[0, num_prefix:].reshape(side, side, -1)
  highest = jax.lax.Precision.HIGHEST
  cells = jnp.einsum('hH,wW,HWD->hwD', rows, columns, cells, precision=highest)
  return jnp.concatenate([prefix, cells.reshape(math.prod(grid), -1)])[None]


def _bicubic_matrix(stored: int, wanted: int) -> np.ndarray:
  """Returns float32 [wanted, stored]: what each cell adds to each of the result, along one side.

  Cells beyond the ends are those at the ends; Keys' kernel with a = -0.75, without antialiasing.
  """
  centre = (np.arange(wanted) + 0.5) * stored / (wanted + 0.1) - 0.5
  first = np.floor(centre).astype(int) - 1
  matrix = np.zeros((wanted, stored))
  for tap in range(4):
    x = np.abs(centre - (first + tap))
    near = (1.25 * x - 2.25) * x * x + 1
    far = ((-0.75 * x + 3.75) * x - 6) * x + 3
    weight = np.where(x <= 1, near, far)
    np.add.at(matrix, (np.arange(wanted), (first + tap).clip(0, stored - 1)), weight)
  return matrix.astype(np.float32)


def resolve_grid(num_tokens: int, grid: tuple[int, int] | None) -> tuple[int, int]:
  """Returns (rows, columns) of `num_tokens` tokens: `grid` if given, else a square.

  Raises:
    ValueError: the tokens don't fill that grid.
  """
  height, width = grid or (int(num_tokens**0.5),) * 2
  if height * width != num_tokens:
    raise ValueError(f'{num_tokens} tokens do not fill a {height}x{width} grid; pass grid=(h, w)')
  return height, width


_MOST_BYTES = 2**31  # of a table, which is computed in each process


def _empty_table(*shape: int) -> np.ndarray:
  """Returns float32 of `shape`; FieldError for a fixed table so large that it fills the memory."""
  size = 4 * math.prod(shape)
  if size > _MOST_BYTES:
    raise FieldError(
      'positional_embedding', f'a table of {size:,} bytes, more than {_MOST_BYTES:,}'
    )
  return np.empty(shape, np.float32)


def sinusoidal_1d(length: int, channels: int, temperature: float = 10_000.0) -> np.ndarray:
  """Sines at even and cosines at odd channels (arXiv 1706.03762): float32 [length, channels].

  `channels` must be even. FieldError as `sinusoidal_2d`.
  """
  table = _empty_table(length, channels)
  omega = temperature ** -(np.arange(0, channels, 2) / channels)
  for i, f in enumerate((np.sin, np.cos)):
    table[:, i::2] = f(np.arange(length)[:, None] * omega)
  return table


def sinusoidal_2d(
  height: int, width: int, channels: int, temperature: float = 10_000.0
) -> np.ndarray:
  """Fixed position embedding of a grid (arXiv 2205.01580): float32 [height, width, channels].

  Four equal parts: sine and cosine of the column, then of the row. `channels` must be a multiple
  of four.

  Raises:
    FieldError: the table would fill the memory.
  """
  table = _empty_table(height, width, channels)
  omega = temperature ** -(np.arange(channels // 4) / (channels // 4))
  parts = iter(np.split(table, 4, axis=-1))
  for positions in (np.arange(width)[:, None], np.arange(height)[:, None, None]):
    for f in (np.sin, np.cos):
      next(parts)[:] = f(positions * omega)
  return table


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
  method: str = 'big_vision',
) -> np.ndarray:
  """Interpolates position embeddings. The same grid gives the same bits.

  Args:
    embeddings: float32 [1, num_prefix + rows * columns, D].
    old_grid: its (rows, columns).
    new_grid: (rows, columns) of the result. A single row or column takes the first there was.
    num_prefix: how many embeddings, the class token's, stand before the grid; they are kept.
    method: 'big_vision', linearly, the corners of one grid on those of the other; or 'timm', as its
      resample_abs_pos_embed, bicubic with antialiasing.

  Returns:
    float32 [1, num_prefix + new rows * new columns, D].
  """
  if tuple(old_grid) == tuple(new_grid):
    return embeddings
  prefix, grid = embeddings[:, :num_prefix], embeddings[0, num_prefix:]
  if method == 'timm':
    rows, columns = (
      resize_weights(np.arange(new), new, old, 'bicubic', antialias=True)
      for old, new in zip(old_grid, new_grid, strict=True)
    )
    grid = np.einsum('ih,jw,hwd->ijd', rows, columns, grid.reshape(*old_grid, -1), optimize=True)
    return np.concatenate([prefix, grid.reshape(1, math.prod(new_grid), -1)], axis=1)
  import scipy.ndimage  # takes a while, and few need it

  zoom = (new_grid[0] / old_grid[0], new_grid[1] / old_grid[1], 1)
  # The default mode takes the last row, where rounding puts it outside (8 to 26), for zeros.
  grid = scipy.ndimage.zoom(grid.reshape(*old_grid, -1), zoom, order=1, mode='nearest')
  return np.concatenate([prefix, grid.reshape(1, math.prod(new_grid), -1)], axis=1)
