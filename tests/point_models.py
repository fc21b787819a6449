"""A small backbone of points, for tests of what every such backbone goes through."""

import sys
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models import BACKBONES, Backbone, Features


class Cloud(Backbone, kw_only=True):
  """Logits [B, num_classes] of points [B, N, 3], in the manner of PointNet (arXiv 1612.00593)."""

  num_classes: int
  hidden_size: int = 16
  dtype: Any = jnp.float32

  INPUT: ClassVar[str] = 'points'

  @nn.compact
  def __call__(self, x, *, train=False, features=False):
    assert x.ndim == 3
    assert x.shape[-1] == 3
    x = nn.relu(nn.Dense(self.hidden_size, dtype=self.dtype, name='embedding')(x))
    x = nn.relu(nn.Dense(self.hidden_size, dtype=self.dtype, name='layer')(x))  # [B, N, D]
    pooled = x.max(axis=1)  # [B, D]
    if features:
      return Features(pooled=pooled, tokens=x)
    return nn.Dense(self.num_classes, name='output_projection')(pooled).astype(jnp.float32)


def register():
  """Makes it known as 'cloud'."""
  sys.modules[f'vit_jax.models.{__name__}'] = sys.modules[__name__]
  BACKBONES['cloud'] = (__name__, 'Cloud')
