"""The neck of Segment Anything's image encoder."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_EPSILON = 1e-6  # of github.com/facebookresearch/segment-anything, whatever the model's norms have


class Neck(nn.Module):
  """Two convolutions, each with a LayerNorm after it (arXiv 2304.02643): [B, h, w, D] to features.

  Attributes:
    features: channels of the result.
    dtype: dtype of the computation; parameters are float32.
  """

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for size in (1, 3):
      x = nn.Conv(self.features, (size, size), use_bias=False, dtype=self.dtype)(x)
      x = nn.LayerNorm(_EPSILON, self.dtype)(x)
    return x
