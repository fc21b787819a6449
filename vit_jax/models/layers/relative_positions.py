"""Relative positions of patches: what attention adds to its logits for how far apart two are.

Three kinds: a table with an entry for each distance, as BEiT (arXiv 2106.08254) and Swin have; a
network that makes the table of the distances' logarithms, as Swin version 2 (arXiv 2111.09883) and
timm's vit_relpos models; and products of the query with vectors of the distances along each axis,
as MViTv2 (arXiv 2112.01526) and Segment Anything (arXiv 2304.02643).
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vit_jax.errors import FieldError, check_choice
from vit_jax.models.layers.options import check_flag, merge
from vit_jax.models.layers.resize import resize_weights

RELATIVE_TYPES = ('bias', 'mlp', 'decomposed')
RELATIVE_COORDINATES = ('cr', 'swin')

# A config's relative positions: none.
RELATIVE_POSITIONS = {
  'type': placeholder(str),
  'shared': False,
  'hidden_dim': 128,
  'coordinates': 'cr',
}
_DEFAULTS = ConfigDict(RELATIVE_POSITIONS).to_dict()
_OF_MLP = ('hidden_dim', 'coordinates')
_MOST_POSITIONS = 2**12  # whose pairs are 128 MiB of indices


def resolve_relative_positions(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
  """Returns options with defaults for what they lack; None where they, or their type, are None.

  Args:
    options: a mapping of
      type: 'bias', a table for each head. With a class token it has three more entries: for the
        token to a patch, a patch to the token, and the token to itself. 'mlp', a network that
        makes the table, and no bias for tokens before the patches. 'decomposed', products with
        the query, without such tokens;
      shared: whether all layers have the same; not of 'decomposed', where queries differ;
      hidden_dim: width of the network of 'mlp';
      coordinates: what it reads: 'cr', logarithms of distances in patches; 'swin', those of
        distances that are 1 across the grid, after which the bias is within (0, 16).

  Raises:
    FieldError: an option is unknown or has a value that it can't have; it names
      `relative_positions.option`.
  """
  unset = f'not set; it is one of {", ".join(RELATIVE_TYPES)}'
  given = merge('relative_positions', options, _DEFAULTS, 'type', unset)
  if given is None:
    return None
  kind = given['type']
  check_choice('relative_positions.type', kind, RELATIVE_TYPES)
  check_choice('relative_positions.coordinates', given['coordinates'], RELATIVE_COORDINATES)
  width, shared = given['hidden_dim'], given['shared']
  if type(width) is not int or width < 1:
    raise FieldError('relative_positions.hidden_dim', f'{width!r} is not a positive number')
  check_flag('relative_positions.shared', shared)
  for key in _OF_MLP if kind != 'mlp' else ():
    if given[key] != _DEFAULTS[key]:
      problem = f"{given[key]!r}, but type '{kind}' has no such option"
      raise FieldError(f'relative_positions.{key}', problem)
  if shared and kind == 'decomposed':
    raise FieldError('relative_positions.shared', "True, but type 'decomposed' reads the queries")
  return given


@struct.dataclass
class DecomposedPositions:
  """What a query adds to its logits: its products with the distance of rows and of columns.

  Attributes:
    rows: float32 [h, h, d], of each row of queries to each row of keys.
    columns: float32 [w, w, d].
  """

  rows: jax.Array
  columns: jax.Array

  def __call__(self, query: jax.Array) -> jax.Array:
    """Returns the bias, float32 [B..., heads, N, N], of queries [B..., N, heads, d].

    Queries are those before they are divided by the root of d; N is h * w.
    """
    height, width = len(self.rows), len(self.columns)
    *batch, count, heads, dim = query.shape
    query = query.reshape(*batch, height, width, heads, dim)
    float32 = {'preferred_element_type': jnp.float32}
    rows, columns = self.rows.astype(query.dtype), self.columns.astype(query.dtype)
    down = jnp.einsum('...ijnd,ikd->...nijk', query, rows, **float32)
    right = jnp.einsum('...ijnd,jkd->...nijk', query, columns, **float32)
    bias = down[..., :, None] + right[..., None, :]  # [B..., heads, h, w, h, w]
    return bias.reshape(*batch, heads, count, count)


class RelativePositions(nn.Module):
  """Gives what attention adds to its logits in a grid of patches.

  Parameters, all float32: of 'bias' `relative_position_bias_table` [(2 h - 1) (2 w - 1) + 3, heads]
  (without the 3 where there is no class token), in the order of rows, then columns, of the query's
  place less the key's. Of 'mlp' `Dense_0` and `Dense_1`, from (rows, columns) to heads; with
  'swin' coordinates Dense_1 has no bias. (timm drops some of the hidden units in training. Here
  they all stay.) Of 'decomposed' `rel_pos_h` [2 h - 1, d] and `rel_pos_w` [2 w - 1, d].

  Attributes:
    options: as of `resolve_relative_positions`, with a type.
    num_heads: of attention.
    head_dim: channels of a head, d.
  """

  options: Mapping[str, Any]
  num_heads: int
  head_dim: int

  @nn.compact
  def __call__(self, grid: tuple[int, int], num_prefix: int = 0) -> jax.Array | DecomposedPositions:
    """Returns the bias, float32 [heads, N, N], or what makes it of the query.

    Args:
      grid: (rows, columns) of the patches, or of those in a window.
      num_prefix: tokens before them, which N includes.

    Raises:
      FieldError: the type doesn't know so many tokens before the patches, or has parameters of
        another grid.
    """
    options = resolve_relative_positions(self.options)
    kind = options['type']
    check_prefix(kind, num_prefix)
    if kind == 'decomposed':
      names = ('rel_pos_h', 'rel_pos_w')
      return DecomposedPositions(*(self._distances(names[axis], grid, axis) for axis in range(2)))
    index = relative_position_index(grid)  # [h w, h w]
    if kind == 'mlp':
      bias = self._network(options, grid)[index].transpose(2, 0, 1)  # [heads, h w, h w]
      return jnp.pad(bias, ((0, 0), (num_prefix, 0), (num_prefix, 0)))
    size = math.prod(2 * side - 1 for side in grid)
    if num_prefix:
      index = np.pad(index, ((1, 0), (1, 0)))
      index[0], index[1:, 0], index[0, 0] = size, size + 1, size + 2
    shape = (size + 3 * num_prefix, self.num_heads)
    table = self._table('relative_position_bias_table', shape, grid)
    return table[index].transpose(2, 0, 1)

  @nn.nowrap
  def _distances(self, name: str, grid: tuple[int, int], axis: int) -> jax.Array:
    """Returns [length, length, d]: for each query along an axis the vectors of its distances."""
    length = grid[axis]
    vectors = self._table(name, (2 * length - 1, self.head_dim), grid)
    check_pairs(length)
    places = np.arange(length)
    return vectors[places[:, None] - places + length - 1]

  @nn.nowrap
  def _table(self, name: str, shape: tuple[int, int], grid: tuple[int, int]) -> jax.Array:
    """Returns a parameter of a grid, which has to be the one that it was made for."""
    if self.has_variable('params', name) and self.get_variable('params', name).shape != shape:
      rows, columns = grid
      problem = (
        f'{self.options["type"]!r}, whose parameters are of another grid than {rows}x{columns}'
      )
      raise FieldError('relative_positions.type', problem)
    return self.param(name, nn.initializers.zeros, shape)

  @nn.nowrap
  def _network(self, options: Mapping[str, Any], grid: tuple[int, int]) -> jax.Array:
    """Returns the table that the network makes: [(2 h - 1) (2 w - 1), heads]."""
    swin = options['coordinates'] == 'swin'
    coordinates = relative_coordinates(grid, 0) if swin else log_coordinates(grid)
    init = nn.initializers.truncated_normal(0.02)
    hidden = nn.relu(nn.Dense(options['hidden_dim'], kernel_init=init, name='Dense_0')(coordinates))
    table = nn.Dense(self.num_heads, use_bias=not swin, kernel_init=init, name='Dense_1')(hidden)
    return 16 * nn.sigmoid(table) if swin else table


def log_coordinates(grid: tuple[int, int]) -> np.ndarray:
  """Returns sign(x) log(1 + |x|) of all differences x of places: float32 [M, 2], rows first.

  As in github.com/ChristophReich1996/Swin-Transformer-V2.
  """
  axes = [np.arange(1 - side, side, dtype=np.float32) for side in grid]
  table = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1).reshape(-1, 2)
  return np.sign(table) * np.log1p(np.abs(table))


def check_prefix(kind: str, num_prefix: int) -> None:
  """Raises FieldError for a type that doesn't know so many tokens before the patches."""
  most = {'bias': 1, 'decomposed': 0}.get(kind, num_prefix)
  if num_prefix > most:
    problem = f"'{kind}', but {num_prefix} tokens stand before the patches, not {most}"
    raise FieldError('relative_positions.type', problem)


def check_pairs(positions: int, field: str = 'relative_positions') -> None:
  """Raises FieldError for so many positions that a table of all pairs would fill the memory.

  Args:
    positions: their number.
    field: that the error names.
  """
  if positions > _MOST_POSITIONS:
    raise FieldError(field, f'{positions} positions, more than {_MOST_POSITIONS}')


def relative_position_index(
  window: tuple[int, int], field: str = 'relative_positions'
) -> np.ndarray:
  """Returns the row of the bias table for each pair of positions in a window: int [N, N].

  Raises:
    FieldError: as `check_pairs`.
  """
  check_pairs(math.prod(window), field)
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


def resize_bias_table(
  table: np.ndarray,
  old_grid: tuple[int, int],
  new_grid: tuple[int, int],
  method: str = 'geometric',
) -> np.ndarray:
  """Interpolates a table of 'bias' linearly, between other places of its entries.

  The same grid gives the same bits.

  Args:
    table: float32 [(2 h - 1) (2 w - 1) + n, heads]; the n entries of a class token are kept.
    old_grid: its (h, w).
    new_grid: (h, w) of the result.
    method: 'geometric' places the old entries at distances whose steps grow by a constant factor,
      so that those of near patches keep their meaning, as BEiT's fine-tuning and timm do.
      'bilinear' spreads them evenly, as transformers does.

  Returns:
    float32 [(2 h - 1) (2 w - 1) + n, heads] of the new grid.
  """
  check_choice('method', method, _PLACINGS)
  if tuple(old_grid) == tuple(new_grid):
    return table
  old, new = ([2 * side - 1 for side in grid] for grid in (old_grid, new_grid))
  cells, extra = np.split(table, [math.prod(old)])
  down, right = (_PLACINGS[method](*sizes) for sizes in zip(old, new, strict=True))
  cells = np.einsum('ih,jw,hwn->ijn', down, right, cells.reshape(*old, -1), optimize=True)
  return np.concatenate([cells.reshape(math.prod(new), -1).astype(table.dtype), extra])


def resize_distances(vectors: np.ndarray, length: int) -> np.ndarray:
  """Interpolates `rel_pos_h` or `rel_pos_w` of 'decomposed' linearly, as Segment Anything does.

  Args:
    vectors: float32 [2 old length - 1, d].
    length: of the axis, in patches.

  Returns:
    float32 [2 length - 1, d]; the same bits where the length is the same.
  """
  if len(vectors) == 2 * length - 1:
    return vectors
  return (_evenly(len(vectors), 2 * length - 1) @ vectors).astype(vectors.dtype)


def _evenly(old: int, new: int) -> np.ndarray:
  """Returns [new, old]: linear interpolation of cells that divide the same length evenly."""
  return resize_weights(np.arange(new), new, old)


def _geometrically(old: int, new: int) -> np.ndarray:
  """Returns [new, old]: linear interpolation of old distances that are a geometric series' sums.

  The factor, from 1.01 to 1.5, makes the largest of them half of `new` where it can.
  """
  low, high = 1.01, 1.5
  while high - low > 1e-6:
    factor = (low + high) / 2
    if (factor ** (old // 2) - 1) / (factor - 1) > new // 2:
      high = factor
    else:
      low = factor
  reach = np.cumsum(factor ** np.arange(old // 2))
  places = np.concatenate([-reach[::-1], [0], reach])
  return _interpolation(places, np.arange(new) - new // 2)


def _interpolation(places: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """Returns float64 [wanted, places]: what each place adds to linear interpolation between them."""
  return np.stack([np.interp(wanted, places, row) for row in np.eye(len(places))], axis=1)


_PLACINGS = {'geometric': _geometrically, 'bilinear': _evenly}
