"""Layer scale."""

import flax.linen as nn
import jax


class LayerScale(nn.Module):
  """Multiplies each channel of a residual branch by a parameter (arXiv 2103.17239).

  Attributes:
    init_value: of all of `gamma`, float32 [D].
  """

  init_value: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    gamma = self.param('gamma', nn.initializers.constant(self.init_value), x.shape[-1:])
    return x * gamma.astype(x.dtype)
