"""Stochastic depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class StochasticDepth(nn.Module):
  """Zeroes whole examples of a residual branch, each on its own draw (arXiv 1603.09382).

  Survivors are scaled by 1 / (1 - rate), so the mean over draws is the input.

  Attributes:
    rate: probability of dropping an example; a number, or an array of one that a loop varies.
  """

  rate: float | jax.Array = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    if deterministic:
      return x
    if isinstance(self.rate, jax.Array):  # nn.Dropout takes numbers alone
      shape = (x.shape[0], *[1] * (x.ndim - 1))
      keep = jax.random.bernoulli(self.make_rng('dropout'), 1 - self.rate, shape)
      return jnp.where(keep, x / (1 - self.rate).astype(x.dtype), 0)
    return nn.Dropout(self.rate, broadcast_dims=range(1, x.ndim))(x, deterministic=False)
