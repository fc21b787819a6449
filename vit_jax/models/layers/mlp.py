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
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),  # OpenAI's CLIP
  'relu': nn.relu,
  'silu': nn.silu,
}


class MlpBlock(nn.Module):
  """Two dense layers with an activation between: [..., d] to [..., out_dim].

  With a gate (arXiv 2002.05202) the hidden layer is activation(gate(x)) * Dense_0(x), `gate` being
  a third dense layer.

  Attributes:
    mlp_dim: width of the hidden layer; None means four times the input's.
    out_dim: width of the output; None means the input's.
    dropout_rate: dropout after each layer.
    activation_fn: elementwise function between the layers.
    dtype: dtype of the computation; parameters are float32.
    gated: whether there is a gate.
    use_bias: whether the layers have a bias.
    norm: makes the norm of the hidden layer, as `norm_layer` does; None leaves it out.
  """

  mlp_dim: int | None = None
  out_dim: int | None = None
  dropout_rate: float = 0.1
  activation_fn: Callable[[jax.Array], jax.Array] = nn.gelu
  dtype: Any = jnp.float32
  gated: bool = False
  use_bias: bool = True
  norm: Callable[..., nn.Module] | None = None

  @nn.compact
  def __call__(self, inputs: jax.Array, *, deterministic: bool) -> jax.Array:
    dense = functools.partial(
      nn.Dense,
      use_bias=self.use_bias,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(stddev=1e-6),
    )
    hidden = self.mlp_dim or 4 * inputs.shape[-1]
    x = dense(hidden)(inputs)
    if self.gated:
      x = self.activation_fn(dense(hidden, name='gate')(inputs)) * x
    else:
      x = self.activation_fn(x)
    x = nn.Dropout(self.dropout_rate)(x, deterministic)
    if self.norm is not None:
      x = self.norm(name='norm')(x)
    x = dense(self.out_dim or inputs.shape[-1])(x)
    return nn.Dropout(self.dropout_rate)(x, deterministic)
