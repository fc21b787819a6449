"""The two-layer perceptron of a Transformer layer."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers import cpu

# What a model's `activation` can name. 'gelu' is Flax's: the tanh approximation.
ACTIVATIONS = {
  'gelu': nn.gelu,
  'gelu_exact': cpu.gelu_exact,
  'relu': nn.relu,
}


class MlpBlock(nn.Module):
  """Two dense layers with an activation between: [..., d] to [..., out_dim].

  Attributes:
    mlp_dim: width of the hidden layer; None means four times the input's.
    out_dim: width of the output; None means the input's.
    dropout_rate: dropout after each layer.
    activation_fn: elementwise function between the layers.
    dtype: dtype of the computation; parameters are float32.
  """

  mlp_dim: int | None = None
  out_dim: int | None = None
  dropout_rate: float = 0.1
  activation_fn: Callable[[jax.Array], jax.Array] = nn.gelu
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, inputs: jax.Array, *, deterministic: bool) -> jax.Array:
    dense = functools.partial(
      nn.Dense,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(stddev=1e-6),
    )
    x = self.activation_fn(dense(self.mlp_dim or 4 * inputs.shape[-1])(inputs))
    x = nn.Dropout(self.dropout_rate)(x, deterministic)
    x = dense(self.out_dim or inputs.shape[-1])(x)
    return nn.Dropout(self.dropout_rate)(x, deterministic)
