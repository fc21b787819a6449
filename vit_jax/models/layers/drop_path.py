"""Stochastic depth."""

import flax.linen as nn
import jax


class StochasticDepth(nn.Module):
  """Zeroes whole examples of a residual branch, each on its own draw (arXiv 1603.09382).

  Survivors are scaled by 1 / (1 - rate), so the mean over draws is the input.

  Attributes:
    rate: probability of dropping an example.
  """

  rate: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    return nn.Dropout(self.rate, broadcast_dims=range(1, x.ndim))(x, deterministic)
