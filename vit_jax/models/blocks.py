"""The layers of a ViT: `Encoder1DBlock`, with scenic's module names and parameter tree."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import layers


class Encoder1DBlock(nn.Module):
  """One pre-norm Transformer layer: [B, N, D] to [B, N, D].

  Attributes:
    mlp_dim: hidden width of the MLP.
    num_heads: number of attention heads.
    dtype: dtype of the computation; parameters are float32.
    dropout_rate: dropout of both branches.
    attention_dropout_rate: dropout of the attention weights.
    stochastic_depth: probability of dropping each branch of an example.
    norm_epsilon: epsilon of the LayerNorms.
    activation: name in `layers.ACTIVATIONS`.
    attention_fn: as for `layers.MultiHeadDotProductAttention`.
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

  @nn.compact
  def __call__(
    self,
    inputs: jax.Array,
    deterministic: bool,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """`bias` and `mask` of attention are those of `layers.dot_product_attention`."""
    x = nn.LayerNorm(self.norm_epsilon, self.dtype)(inputs)
    x = layers.MultiHeadDotProductAttention(
      num_heads=self.num_heads,
      dtype=self.dtype,
      dropout_rate=self.attention_dropout_rate,
      attention_fn=self.attention_fn,
    )(x, bias=bias, mask=mask, deterministic=deterministic)
    x = nn.Dropout(self.dropout_rate)(x, deterministic)
    x = layers.StochasticDepth(self.stochastic_depth)(x, deterministic) + inputs

    y = nn.LayerNorm(self.norm_epsilon, self.dtype)(x)
    y = layers.MlpBlock(
      mlp_dim=self.mlp_dim,
      dropout_rate=self.dropout_rate,
      activation_fn=layers.ACTIVATIONS[self.activation],
      dtype=self.dtype,
    )(y, deterministic=deterministic)
    return layers.StochasticDepth(self.stochastic_depth)(y, deterministic) + x
