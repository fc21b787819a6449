"""The two-layer perceptron of a Transformer layer."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers import cpu, devices

# What a model's `activation` can name. 'gelu' is Flax's: the tanh approximation.
ACTIVATIONS = {
  'gelu': nn.gelu,
  'gelu_exact': cpu.gelu_exact,
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),  # OpenAI's CLIP
  'relu': nn.relu,
  'silu': nn.silu,
}


def activate(
  function: Callable[..., jax.Array], *inputs: jax.Array, deterministic: bool
) -> jax.Array:
  """Returns function(*inputs), of an elementwise function; on a GPU, training takes less memory.

  Its gradient there keeps what goes in and computes the rest again: GELU then keeps one array in
  place of two, which cuBLAS writes along with the product before. ReLU's needs but a mask.

  Args:
    function: such as a value of `ACTIVATIONS`.
    *inputs: of one shape.
    deterministic: whether it isn't training.
  """
  if function is not nn.relu and not deterministic and devices.at_hand('cuda'):
    function = jax.checkpoint(function)
  return function(*inputs)


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
      dot_general=cpu.dot_general,
      use_bias=self.use_bias,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(stddev=1e-6),
    )
    hidden = self.mlp_dim or 4 * inputs.shape[-1]
    xs = [dense(hidden)(inputs)]
    function = self.activation_fn
    if self.gated:
      xs.append(dense(hidden, name='gate')(inputs))
      function = self._activate_gated
    x = activate(function, *xs, deterministic=deterministic)
    x = nn.Dropout(self.dropout_rate)(x, deterministic)
    if self.norm is not None:
      x = self.norm(name='norm')(x)
    x = dense(self.out_dim or inputs.shape[-1])(x)
    return nn.Dropout(self.dropout_rate)(x, deterministic)

  @nn.nowrap
  def _activate_gated(self, x: jax.Array, gate: jax.Array) -> jax.Array:
    return self.activation_fn(gate) * x
