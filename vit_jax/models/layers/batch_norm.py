"""Batch normalisation (arXiv 1502.03167) with PyTorch's running statistics."""

import flax.linen as nn
import jax

from vit_jax.errors import UsageError


class BatchNorm(nn.BatchNorm):
  """Flax's batch normalisation, whose running variance is PyTorch's.

  Both normalise by the variance of the n values that a channel has in the batch; PyTorch's running
  average takes n / (n - 1) times as much, the unbiased estimate, where Flax's takes it as it is.

  Attributes: those of flax.linen.BatchNorm; `momentum` 0.9 is PyTorch's 0.1.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Normalises the last axis by the statistics of the batch, or by the running ones."""
    if not train or self.is_initializing():
      return super().__call__(x, use_running_average=not train)
    devices = jax.lax.axis_size(self.axis_name) if self.axis_name else 1
    count = devices * x.size // x.shape[-1]
    if count < 2:
      raise UsageError(
        'batch normalisation has a single value in each channel, 1 example of 1x1; give a larger '
        'batch (or micro-batch), or larger images'
      )
    before = self.get_variable('batch_stats', 'var')
    y = super().__call__(x, use_running_average=False)
    after = self.get_variable('batch_stats', 'var')
    share = after - self.momentum * before  # of this batch
    self.put_variable('batch_stats', 'var', after + share / (count - 1))
    return y
