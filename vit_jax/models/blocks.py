"""The layers of a ViT: `Encoder1DBlock`, with scenic's module names and parameter tree."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import FieldError, check_choice
from vit_jax.models import layers

BLOCKS = ('pre', 'post')
MLPS = ('mlp', 'glu')


@dataclasses.dataclass(frozen=True)
class BlockOptions:
  """What a layer is made of: fields of `vit.ViT` of these names, which has their meaning.

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

  def __post_init__(self) -> None:
    for field, allowed in (('norm', layers.NORMS), ('block', BLOCKS), ('mlp', MLPS)):
      check_choice(field, getattr(self, field), allowed)
    if self.qkv_bias not in (True, False, 'qv'):
      raise FieldError('qkv_bias', f"{self.qkv_bias!r} is not True, False or 'qv'")
    if self.layer_scale is not None and self.block == 'post':
      raise FieldError('layer_scale', "set, but block is 'post', whose norms scale the branches")
    if self.layer_scale is None and not self.layer_scale_mlp:
      raise FieldError('layer_scale_mlp', 'False, but there is no layer_scale')


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
    options: what it is made of.
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

  @nn.compact
  def __call__(
    self,
    inputs: jax.Array,
    deterministic: bool,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """`bias` and `mask` of attention are those of `layers.dot_product_attention`."""
    attend = functools.partial(self.attend, bias=bias, mask=mask, deterministic=deterministic)
    feed = functools.partial(self.feed, deterministic=deterministic)
    x = self.branch(0, attend, inputs, deterministic) + inputs
    return self.branch(1, feed, x, deterministic) + x

  @nn.nowrap
  def branch(
    self, index: int, f: Callable[[jax.Array], jax.Array], x: jax.Array, deterministic: bool
  ) -> jax.Array:
    """Returns what a residual branch adds to tokens [B, N, D].

    Args:
      index: 0 of attention, 1 of the MLP.
      f: one of them.
      x: the tokens.
      deterministic: turns stochastic depth off.
    """
    options, norm = self.options, self.norm_layer(name=f'LayerNorm_{index}')
    x = norm(f(x)) if options.block == 'post' else f(norm(x))
    if options.layer_scale is not None and (index == 0 or options.layer_scale_mlp):
      x = layers.LayerScale(options.layer_scale, name=f'LayerScale_{index}')(x)
    return layers.StochasticDepth(self.stochastic_depth)(x, deterministic)

  @nn.nowrap
  def attend(self, x: jax.Array, *, deterministic: bool, **inputs: jax.Array | None) -> jax.Array:
    """Attention over tokens [B, N, D]; the other inputs are those of its module."""
    options = self.options
    x = layers.MultiHeadDotProductAttention(
      num_heads=self.num_heads,
      dtype=self.dtype,
      dropout_rate=self.attention_dropout_rate,
      attention_fn=self.attention_fn,
      qkv_bias=options.qkv_bias,
      use_bias=options.use_bias,
      norm=self.norm_layer,
      qk_norm=options.qk_norm,
      attention_norm=options.attention_norm,
    )(x, deterministic=deterministic, **inputs)
    return nn.Dropout(self.dropout_rate)(x, deterministic)

  @nn.nowrap
  def feed(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
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
