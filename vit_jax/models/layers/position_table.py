"""Learned positions of one grid, which models interpolate to the grid of each image.

timm's NaFlexViT and SigLIP 2 (arXiv 2502.14786) have one table for images of any size and aspect
ratio; NaViT (arXiv 2307.06304) has one for rows and one for columns.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vit_jax.errors import FieldError, check_choice
from vit_jax.models.layers.options import check_flag, check_grid, merge
from vit_jax.models.layers.resize import INTERPOLATIONS, resize_weights

# A config's position table: none.
POSITION_TABLE = {
  'grid': placeholder(tuple),
  'method': 'bicubic',
  'antialias': True,
  'align_corners': False,
  'keep_aspect': False,
  'factorized': False,
}
_DEFAULTS = ConfigDict(POSITION_TABLE).to_dict()


def resolve_position_table(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
  """Returns options with defaults for what they lack; None where they, or their grid, are None.

  Args:
    options: a mapping of
      grid: (rows, columns) of the parameters;
      method: 'bilinear' or 'bicubic', as PyTorch interpolates;
      antialias: whether it averages where an image has fewer patches;
      align_corners: whether the first and the last cells stay at the corners; not with `antialias`;
      keep_aspect: interpolate to a square of the longer side and cut off the rest, so that a step
        means the same along both axes;
      factorized: positions are sums of a row's and a column's.

  Raises:
    FieldError: an option is unknown or has a value that it can't have; it names
      `position_table.option`.
  """
  given = merge('position_table', options, _DEFAULTS, 'grid', 'not set')
  if given is None:
    return None
  given['grid'] = check_grid('position_table.grid', given['grid'])
  check_choice('position_table.method', given['method'], INTERPOLATIONS)
  for key in ('antialias', 'align_corners', 'keep_aspect', 'factorized'):
    check_flag(f'position_table.{key}', given[key])
  if given['antialias'] and given['align_corners']:
    raise FieldError('position_table.align_corners', 'True, but antialias is, too')
  return given


class PositionTable(nn.Module):
  """Gives the position embeddings of patches, whatever grid they are of.

  Parameters: `pos_embedding`, float32 [1, rows * columns, D]; factorized, `pos_embedding_rows`
  [1, rows, D] and `pos_embedding_columns` [1, columns, D].

  Attributes:
    options: as of `resolve_position_table`, with a grid.
    width: of an embedding, D.
    posemb_init: initialiser of the parameters.
  """

  options: Mapping[str, Any]
  width: int
  posemb_init: Callable[..., jax.Array] = nn.initializers.normal(stddev=0.02)

  @nn.compact
  def __call__(
    self, grid: tuple[int, int] | jax.Array, places: jax.Array | None = None
  ) -> jax.Array:
    """Returns the embeddings of all patches of a grid, or of some of several grids.

    Args:
      grid: (rows, columns); with `places`, of each image: int [B, 2].
      places: (row, column) of each patch: int [B, N, 2].

    Returns:
      float32 [rows * columns, D], row after row; with `places` [B, N, D].
    """
    options = resolve_position_table(self.options)
    if places is None:
      lengths = _lengths(options, np.array(grid), np)
      down, right = (_weights(options, i, np.arange(grid[i]), lengths[i], np) for i in range(2))
    else:
      lengths = _lengths(options, grid, jnp)
      down, right = (  # [B, N, rows of the table], [B, N, columns]
        _weights(options, i, places[..., i], lengths[:, None, i], jnp) for i in range(2)
      )
    multiply = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    rows, columns = options['grid']
    if options['factorized']:
      down = multiply('...h,hd->...d', down, self._parameter('pos_embedding_rows', rows))
      right = multiply('...w,wd->...d', right, self._parameter('pos_embedding_columns', columns))
      if places is not None:
        return down + right
      return (down[:, None] + right).reshape(-1, self.width)
    table = self._parameter('pos_embedding', rows * columns)
    if places is not None:
      both = (down[..., None] * right[..., None, :]).reshape(*places.shape[:2], -1)
      return multiply('bnk,kd->bnd', both, table)
    table = table.reshape(rows, columns, self.width)
    return multiply('hH,wW,HWd->hwd', down, right, table).reshape(-1, self.width)

  @nn.nowrap
  def _parameter(self, name: str, count: int) -> jax.Array:
    return self.param(name, self.posemb_init, (1, count, self.width))[0]


def _lengths(options: Mapping[str, Any], grid: Any, xp: Any) -> Any:
  """Returns the lengths that the axes of a table are interpolated to: [..., 2], as the grid."""
  if not options['keep_aspect']:
    return grid
  square = xp.broadcast_to(grid.max(-1, keepdims=True), grid.shape)
  if options['factorized']:
    return square
  same = (grid == np.array(options['grid'])).all(-1, keepdims=True)
  return xp.where(same, grid, square)


def _weights(options: Mapping[str, Any], axis: int, index: Any, length: Any, xp: Any) -> Any:
  return resize_weights(
    index,
    length,
    options['grid'][axis],
    options['method'],
    antialias=options['antialias'],
    align_corners=options['align_corners'],
    xp=xp,
  )
