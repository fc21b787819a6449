"""The layers of a ViT: `Encoder1DBlock`, with scenic's module names and parameter tree."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import FieldError, check_choice
from vit_jax.models import layers

BLOCKS = ('pre', 'post', 'parallel', 'parallel_scaling')
MLPS = ('mlp', 'glu')


@dataclasses.dataclass(frozen=True)
class BlockOptions:
  """What layers are made of: the fields of `vit.ViT` of these names.

  Raises:
    FieldError: on construction, for options that are unknown or don't fit each other.
  """

  norm: str = 'layernorm'
  block: str = 'pre'
  layer_scale: float | None = None
  layer_scale_mlp: bool = True
  qkv_bias: bool | str = True
  use_bias: bool = True
  qk_norm: bool = False
  attention_norm: bool = False
  mlp: str = 'mlp'
  mlp_norm: bool = False
  differential: bool = False
  num_kv_heads: int | tuple[int, ...] | None = None
  rotary: Mapping[str, Any] | None = None
  relative_positions: Mapping[str, Any] | None = None
  window_size: int | None = None
  global_layers: tuple[int, ...] = ()

  def __post_init__(self) -> None:
    for field, allowed in (('norm', layers.NORMS), ('block', BLOCKS), ('mlp', MLPS)):
      check_choice(field, getattr(self, field), allowed)
    object.__setattr__(self, 'rotary', layers.resolve_rotary(self.rotary))
    relative = layers.resolve_relative_positions(self.relative_positions)
    object.__setattr__(self, 'relative_positions', relative)
    if isinstance(self.num_kv_heads, tuple) and len(self.num_kv_heads) == 1:
      object.__setattr__(self, 'num_kv_heads', self.num_kv_heads[0])
    for field, problem in self._problems():
      raise FieldError(field, problem)

  def _problems(self):
    """Yields (field, what is wrong with it)."""
    if self.qkv_bias != 'qv' and type(self.qkv_bias) is not bool:
      yield 'qkv_bias', f"{self.qkv_bias!r} is not True, False or 'qv'"
    if type(self.layer_scale) not in (int, float, type(None)):
      yield 'layer_scale', f'{self.layer_scale!r} is not a number'
    if self.layer_scale is not None and self.block == 'post':
      yield 'layer_scale', "set, but block is 'post', whose norms scale the branches"
    if self.layer_scale is None and not self.layer_scale_mlp:
      yield 'layer_scale_mlp', 'False, but there is no layer_scale'
    if not self.layer_scale_mlp and self.block == 'parallel_scaling':
      yield 'layer_scale_mlp', "False, but block is 'parallel_scaling', of a single branch"
    for field in ('num_kv_heads', 'rotary', 'relative_positions') if self.differential else ():
      if getattr(self, field) is not None:
        yield field, 'set, but attention is differential'
    if self.num_kv_heads is not None and self.rotary and self.rotary['type'] == 'mixed':
      yield 'num_kv_heads', "set, but rotary.type is 'mixed', which turns heads one by one"
    if self.window_size is None and self.global_layers:
      yield 'global_layers', f'{self.global_layers}, but there is no window_size'
    if self.window_size is not None and self.rotary:
      yield 'rotary', 'set, but window_size is, too'
    if self.window_size is not None and (self.relative_positions or {}).get('shared'):
      yield 'relative_positions.shared', 'True, but window_size is set'

  def of_layer(self, layer: int) -> 'BlockOptions':
    """Returns those of one layer, from 0, for which none is a sequence."""
    heads, is_global = self.num_kv_heads, layer in self.global_layers
    return dataclasses.replace(
      self,
      num_kv_heads=heads[layer] if isinstance(heads, tuple) else heads,
      window_size=None if is_global else self.window_size,
      global_layers=(),
    )

  @property
  def of_places(self) -> str | None:
    """The first option that needs the tokens' places."""
    fields = ('rotary', 'relative_positions', 'window_size')
    return next((field for field in fields if getattr(self, field) is not None), None)

  @property
  def differing(self) -> str | None:
    """The field, if there is one, by which layers have other parameters or do something else."""
    if isinstance(self.num_kv_heads, tuple) and len(set(self.num_kv_heads)) > 1:
      return 'num_kv_heads'
    return 'global_layers' if self.global_layers else None


class Encoder1DBlock(nn.Module):
  """One Transformer layer: [B, N, D] to [B, N, D].

  Attributes:
    mlp_dim: hidden width of the MLP.
    num_heads: number of attention heads.
    dtype: dtype of the computation; parameters are float32.
    dropout_rate: dropout of both branches.
    attention_dropout_rate: dropout of the attention weights.
    stochastic_depth: probability of dropping each branch of an example.
    norm_epsilon: epsilon of the norms.
    activation: name in `layers.ACTIVATIONS`.
    attention_fn: as for `layers.MultiHeadDotProductAttention`.
    options: what it is made of, `BlockOptions.of_layer`.
    layer: which one of the model it is, from 0.
    grid: (rows, columns) of the tokens after the first; for relative positions and windows.
  """

  mlp_dim: int
  num_heads: int
  dtype: Any = jnp.float32
  dropout_rate: float = 0.1
  attention_dropout_rate: float = 0.1
  stochastic_depth: float = 0.0
  norm_epsilon: float = 1e-6
  activation: str = 'gelu'
  attention_fn: Callable[..., jax.Array] = layers.dot_product_attention
  options: BlockOptions = BlockOptions()
  layer: int | jax.Array = 0
  grid: tuple[int, int] | None = None

  @nn.compact
  def __call__(
    self,
    inputs: jax.Array,
    deterministic: bool,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    rotation: Callable[[jax.Array], jax.Array] | None = None,
  ) -> jax.Array:
    """Other inputs of attention are those of `layers.MultiHeadDotProductAttention`."""
    options, relative = self.options, self.options.relative_positions
    if relative is not None and not relative['shared']:
      bias = self.position_bias(inputs)

    def attend(x):
      return self.attend(x, deterministic, bias=bias, mask=mask, rotation=rotation)

    def feed(x):
      return self.feed(x, deterministic)

    def branch(i, f, x):
      norm = self.norm_layer(name=f'LayerNorm_{i}')
      x = norm(f(x)) if options.block == 'post' else f(norm(x))
      if options.layer_scale is not None and (f is not feed or options.layer_scale_mlp):
        x = layers.LayerScale(options.layer_scale, name=f'LayerScale_{i}')(x)
      return layers.StochasticDepth(self.stochastic_depth)(x, deterministic)

    if options.block == 'parallel_scaling':
      return branch(0, lambda x: attend(x) + feed(x), inputs) + inputs
    if options.block == 'parallel':
      x = branch(0, attend, inputs) + branch(1, attend, inputs) + inputs
      return branch(2, feed, x) + branch(3, feed, x) + x
    x = branch(0, attend, inputs) + inputs
    return branch(1, feed, x) + x

  @nn.nowrap
  def position_bias(self, x: jax.Array) -> jax.Array | layers.DecomposedPositions:
    """Returns what this layer alone adds to the logits of attention over tokens [B, N, D]."""
    options, (_, count, width) = self.options, x.shape
    grid = self.grid if options.window_size is None else (options.window_size,) * 2
    module = layers.RelativePositions(
      options.relative_positions,
      num_heads=self.num_heads,
      head_dim=width // self.num_heads,
      name='relative_positions',
    )
    return module(grid, count - math.prod(self.grid))

  @nn.nowrap
  def attend(self, x: jax.Array, deterministic: bool, **inputs: Any) -> jax.Array:
    """Attention over tokens [B, N, D]; other inputs are those of its module."""
    options, kind = self.options, layers.MultiHeadDotProductAttention
    if options.differential:
      kind = functools.partial(layers.DifferentialAttention, layer=self.layer)
    attention = kind(
      num_heads=self.num_heads,
      dtype=self.dtype,
      dropout_rate=self.attention_dropout_rate,
      attention_fn=self.attention_fn,
      qkv_bias=options.qkv_bias,
      use_bias=options.use_bias,
      norm=self.norm_layer,
      qk_norm=options.qk_norm,
      attention_norm=options.attention_norm,
      num_kv_heads=options.num_kv_heads,
    )
    attend = functools.partial(attention, deterministic=deterministic, **inputs)
    if options.window_size is not None:
      attend = functools.partial(in_windows, attend, grid=self.grid, side=options.window_size)
    return nn.Dropout(self.dropout_rate)(attend(x), deterministic)

  @nn.nowrap
  def feed(self, x: jax.Array, deterministic: bool) -> jax.Array:
    """The MLP, at each of the tokens [B, N, D]."""
    options = self.options
    return layers.MlpBlock(
      mlp_dim=self.mlp_dim,
      dropout_rate=self.dropout_rate,
      activation_fn=layers.ACTIVATIONS[self.activation],
      dtype=self.dtype,
      gated=options.mlp == 'glu',
      use_bias=options.use_bias,
      norm=self.norm_layer if options.mlp_norm else None,
    )(x, deterministic=deterministic)

  @property
  def norm_layer(self) -> Callable[..., nn.Module]:
    """Makes norms, as `layers.norm_layer` does."""
    return layers.norm_layer(self.options.norm, self.norm_epsilon, self.dtype)


def in_windows(
  attend: Callable[[jax.Array], jax.Array], x: jax.Array, grid: tuple[int, int], side: int
) -> jax.Array:
  """Applies attention within windows of a grid, as Segment Anything (arXiv 2304.02643).

  Zeros fill up the last windows of rows and columns, and are attended to.

  Args:
    attend: maps [windows, side * side, D] to as many.
    x: [B, h * w, D].
    grid: (h, w).
    side: of a window, in tokens.
  """
  batch, count, width = x.shape
  padded = tuple(-(-length // side) * side for length in grid)
  more = [(0, new - old) for new, old in zip(padded, grid, strict=True)]
  x = jnp.pad(x.reshape(batch, *grid, width), [(0, 0), *more, (0, 0)])
  windows = layers.window_partition(x, (side, side))  # [B, windows, side * side, D]
  y = attend(windows.reshape(-1, *windows.shape[2:])).reshape(windows.shape)
  y = layers.window_reverse(y, (side, side), padded)[:, : grid[0], : grid[1]]
  return y.reshape(batch, count, width)
