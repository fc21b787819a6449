"""Rotary position embeddings of patches: queries and keys are turned by angles of their places.

RoFormer (arXiv 2104.09864) turns pairs of channels, so that products of queries and keys depend on
the distance of their tokens. On a grid, some pairs are turned by the row and some by the column:
EVA-02 (arXiv 2303.11331), RoPE-ViT (arXiv 2403.13298), Perception Encoder (arXiv 2504.13181),
DINOv3 (arXiv 2508.10104). RoPE-ViT's 'mixed' learns how far rows and columns turn each pair.
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
from vit_jax.models.layers.options import check_flag, check_grid, merge

TEMPERATURES = {'axial': 10_000.0, 'mixed': 10.0, 'dinov3': 100.0}

# A config's rotary embedding: none. What has no value is a placeholder of its type.
ROTARY = {
  'type': placeholder(str),
  'temperature': placeholder(float),
  'reference_grid': placeholder(tuple),
  'grid_offset': 0.0,
  'grid_indexing': 'ij',
  'rotate_half': False,
  'shift_coords': placeholder(float),
  'jitter_coords': placeholder(float),
  'rescale_coords': placeholder(float),
}
# Those that change nothing but training, and the least that each may be.
TRAINING_OPTIONS = {'shift_coords': 0, 'jitter_coords': 1, 'rescale_coords': 1}
_DEFAULTS = ConfigDict(ROTARY).to_dict()
_NOT_OF = {
  'reference_grid': ('mixed', 'dinov3'),
  'grid_offset': ('mixed',),
  'rotate_half': ('mixed',),
}


def resolve_rotary(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
  """Returns options with defaults for what they lack; None where they, or their type, are None.

  Args:
    options: a mapping of
      type: 'axial' turns by row and column, counted in patches. 'mixed' does, too, but learns how
        far; each layer and head has its own. 'dinov3' turns by the patch's centre in an image whose
        sides go from -1 to 1: a full turn from -1 to 0 for the highest frequency;
      temperature: how far frequencies reach down: their ratio is about this number. Of 'mixed' it
        is where learning starts. None: 10000 for 'axial', 10 for 'mixed', 100 for 'dinov3';
      reference_grid: (rows, columns) that each grid is stretched to, so that fine-tuning at another
        resolution meets the angles of the first; of 'axial' alone;
      grid_offset: added to the row and the column, in patches; not of 'mixed';
      grid_indexing: 'ij' turns the first half of the pairs by the row, 'xy' by the column;
      rotate_half: pairs are of channels i and i + d / 2, not 2 i and 2 i + 1; not of 'mixed';
      shift_coords: in training, rows and columns are shifted by up to so much each, uniformly, in
        their unit: patches, or half the image for 'dinov3';
      jitter_coords: in training, they are scaled by factors from 1 / jitter to jitter, log-uniform,
        rows by another than columns;
      rescale_coords: likewise, rows and columns by the same factor. None of the three: as they are.

  Raises:
    FieldError: an option is unknown or has a value that it can't have; it names `rotary.option`.
  """
  unset = f'not set; it is one of {", ".join(TEMPERATURES)}'
  given = merge('rotary', options, _DEFAULTS, 'type', unset)
  if given is None:
    return None
  kind = given['type']
  check_choice('rotary.type', kind, TEMPERATURES)
  for key, kinds in _NOT_OF.items():
    if kind in kinds and given[key] != _DEFAULTS[key]:
      raise FieldError(f'rotary.{key}', f"{given[key]!r}, but type '{kind}' has no such option")
  check_choice('rotary.grid_indexing', given['grid_indexing'], ('ij', 'xy'))
  check_flag('rotary.rotate_half', given['rotate_half'])
  if given['temperature'] is None:
    given['temperature'] = TEMPERATURES[kind]
  _check_number('temperature', given['temperature'], 1)
  _check_number('grid_offset', given['grid_offset'], -math.inf)
  for key, least in TRAINING_OPTIONS.items():
    if given[key] is not None:
      _check_number(key, given[key], least)
  if (grid := given['reference_grid']) is not None:
    given['reference_grid'] = check_grid('rotary.reference_grid', grid)
  return given


def _check_number(key: str, value: Any, least: float) -> None:
  if type(value) not in (int, float) or not math.isfinite(value) or value < least:
    lower = '' if least == -math.inf else f' of at least {least}'
    raise FieldError(f'rotary.{key}', f'{value!r} is not a number{lower}')


@struct.dataclass
class Rotation:
  """Turns queries and keys; made by `RotaryEmbedding`.

  Attributes:
    sin: float32 [tokens, 1, d / 2], of the angle of each pair; of 'mixed' [layers, tokens, heads,
      d / 2]. Tokens before the patches have sine 0 and cosine 1.
    cos: float32, likewise.
    rotate_half: which channels are pairs, as in `resolve_rotary`.
  """

  sin: jax.Array
  cos: jax.Array
  rotate_half: bool = struct.field(pytree_node=False, default=False)

  def of_layer(self, layer: int | jax.Array) -> 'Rotation':
    """Returns that of one layer, where layers differ."""
    if self.sin.ndim == 3:
      return self
    return self.replace(sin=self.sin[layer], cos=self.cos[layer])

  def __call__(self, x: jax.Array) -> jax.Array:
    """Turns [B, tokens, heads, d], in float32, and returns it in its own dtype."""
    pairs, axis = ((2, -1), -2) if self.rotate_half else ((-1, 2), -1)
    first, second = jnp.moveaxis(x.reshape(*x.shape[:-1], *pairs), axis, 0)  # [B, N, heads, d / 2]
    turned = (
      first * self.cos - second * self.sin,
      second * self.cos + first * self.sin,
    )
    return jnp.stack(turned, axis).reshape(x.shape).astype(x.dtype)


class RotaryEmbedding(nn.Module):
  """Makes the rotation of a grid. Of type 'mixed' it has a parameter.

  `freqs`, float32 [2, layers, heads, d / 2]: the angle of each pair for a step along the axis that
  `grid_indexing` puts first, and along the other. It starts as orthogonal directions, turned at
  random for each layer and head.

  Attributes:
    options: as of `resolve_rotary`, with a type.
    num_layers: of the model.
    num_heads: of each layer.
    head_dim: channels of a head, d, a multiple of 4.
  """

  options: Mapping[str, Any]
  num_layers: int
  num_heads: int
  head_dim: int

  @nn.compact
  def __call__(
    self, grid: tuple[int, int], num_prefix: int = 0, *, deterministic: bool = True
  ) -> Rotation:
    """Makes the rotation of tokens: `num_prefix`, which aren't turned, then those of a grid.

    Args:
      grid: (rows, columns), any size.
      num_prefix: class, distillation and register tokens.
      deterministic: don't shift, jitter or rescale; doing so draws from the stream 'dropout'.

    Raises:
      FieldError: heads have a width that is no multiple of 4.
    """
    if self.head_dim % 4:
      raise FieldError('rotary', f'heads have {self.head_dim} channels, no multiple of 4')
    options = resolve_rotary(self.options)
    key = None
    if any(options[name] is not None for name in TRAINING_OPTIONS) and not deterministic:
      key = self.make_rng('dropout')
    if options['type'] != 'mixed':
      sin, cos = tables(options, grid, self.head_dim, key)  # [N, d / 2]
      sin, cos = sin[:, None], cos[:, None]  # [N, 1, d / 2]
    else:
      shape = (self.num_layers, self.num_heads, self.head_dim)
      freqs = self.param('freqs', mixed_frequencies, shape, options['temperature'])
      places = _change(options, coordinates(options, grid), key)  # [N, 2]
      # Not a product of matrices, which might be rounded to 16 bits.
      first, second = (freqs[i, :, None] * places[:, i, None, None] for i in range(2))
      angles = first + second  # [layers, N, heads, d / 2]
      sin, cos = jnp.sin(angles), jnp.cos(angles)
    xp = np if isinstance(sin, np.ndarray) else jnp
    before = [(0, 0)] * sin.ndim
    before[-3] = (num_prefix, 0)
    sin, cos = xp.pad(sin, before), xp.pad(cos, before, constant_values=1)
    return Rotation(sin, cos, options['rotate_half'])


def tables(
  options: Mapping[str, Any],
  grid: tuple[int, int],
  head_dim: int,
  key: jax.Array | None = None,
) -> tuple[np.ndarray | jax.Array, np.ndarray | jax.Array]:
  """Returns the sine and the cosine of each pair's angle, of type 'axial' or 'dinov3'.

  Args:
    options: of `resolve_rotary`.
    grid: (rows, columns).
    head_dim: channels of a head, d.
    key: for the changes of training; None leaves them out.

  Returns:
    float32 [rows * columns, d / 2] each, rows after one another: the pairs that the first axis
    turns, then those of the second. NumPy's arrays without a key.
  """
  quarter = head_dim // 4
  exponents = np.arange(quarter, dtype=np.float32) / np.float32(quarter)
  frequencies = 1 / np.float32(options['temperature']) ** exponents  # [d / 4]
  if options['type'] == 'dinov3':
    frequencies = np.float32(2 * math.pi) * frequencies
  places = _change(options, coordinates(options, grid), key)  # [N, 2]
  angles = (places[:, :, None] * frequencies).reshape(len(places), -1)  # [N, d / 2]
  xp = np if key is None else jnp
  return xp.sin(angles), xp.cos(angles)


def coordinates(options: Mapping[str, Any], grid: tuple[int, int]) -> np.ndarray:
  """Returns float32 [rows * columns, 2]: each patch's place along the first and the second axis."""
  places = []
  for length, reference in zip(grid, options['reference_grid'] or grid, strict=True):
    steps = np.arange(length, dtype=np.float32) + np.float32(options['grid_offset'])
    if options['type'] == 'dinov3':
      steps = 2 * (steps + np.float32(0.5)) / np.float32(length) - 1
    places.append(steps * np.float32(reference / length))
  rows, columns = np.meshgrid(*places, indexing='ij')
  axes = (rows, columns) if options['grid_indexing'] == 'ij' else (columns, rows)
  return np.stack(axes, axis=-1).reshape(-1, 2)


def _change(options: Mapping[str, Any], places: np.ndarray, key: jax.Array | None):
  """Shifts, jitters and rescales places [N, 2], as DINOv3 does; not without a key."""
  if key is None:
    return places
  shift, jitter, rescale = jax.random.split(key, 3)

  def draw(key, shape, limit):
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)

  places = jnp.asarray(places)
  if options['shift_coords'] is not None:
    places += draw(shift, (2,), options['shift_coords'])
  if options['jitter_coords'] is not None:
    places *= jnp.exp(draw(jitter, (2,), math.log(options['jitter_coords'])))
  if options['rescale_coords'] is not None:
    places *= jnp.exp(draw(rescale, (), math.log(options['rescale_coords'])))
  return places


def mixed_frequencies(key: jax.Array, shape: tuple[int, int, int], temperature: float) -> jax.Array:
  """Returns what 'mixed' starts from (github.com/naver-ai/rope-vit): float32 [2, ..., d / 2].

  A pair's angles for a step along one axis and along the other are a vector, of the length that
  'axial' has for the pair. Those of the first half of the pairs have one direction, those of the
  second are at right angles to it; the direction is drawn.

  Args:
    key: for the directions.
    shape: (layers, heads, d).
    temperature: as of 'axial'.
  """
  layers, heads, head_dim = shape
  lengths = temperature ** -(jnp.arange(0, head_dim, 4) / head_dim)  # [d / 4]
  angle = jax.random.uniform(key, (layers, heads, 1), maxval=2 * math.pi)
  angles = jnp.repeat(jnp.concatenate([angle, angle + math.pi / 2], -1), head_dim // 4, -1)
  return jnp.tile(lengths, 2) * jnp.stack([jnp.cos(angles), jnp.sin(angles)])
