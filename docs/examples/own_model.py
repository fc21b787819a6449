"""A model of one's own: --config.model.name=own_model:TinyNet."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models import Backbone, Features


class TinyNet(Backbone, kw_only=True):
  """Float images [B, H, W, C] to float32 logits [B, num_classes], through a map and its mean."""

  num_classes: int
  width: int = 16  # as --config.model.width
  dtype: Any = jnp.float32

  WEIGHT_FIELDS = ('width',)  # which fine-tuning takes from the weights

  @nn.compact
  def __call__(self, x, *, train=False, features=False):
    x = nn.Conv(self.width, (2, 2), strides=2, dtype=self.dtype)(x)  # [B, H / 2, W / 2, width]
    pooled = nn.gelu(x).mean(axis=(1, 2))
    if features:  # what other tasks' heads, k-NN and linear probes read
      return Features(pooled=pooled, maps=(x,), strides=((2, 2),))
    return nn.Dense(self.num_classes, name='output_projection')(pooled)
