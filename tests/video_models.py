"""A small backbone of videos, for tests of what every such backbone goes through."""

import sys
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models import BACKBONES, Backbone
from vit_jax.models.backbone import Shape

SIZE = (8, 12)


class Motion(Backbone, kw_only=True):
  """Logits [B, num_classes] of which columns are bright after which others."""

  num_classes: int
  hidden_size: int = 8
  dtype: Any = jnp.float32

  INPUT: ClassVar[str] = 'video'

  @nn.compact
  def __call__(self, x, *, train=False):
    assert x.ndim == 5
    columns = x.mean(axis=(2, 4))  # [B, T, W]
    pairs = columns[:, 1:, :, None] * columns[:, :-1, None, :]  # [B, T - 1, W, W]
    pairs = pairs.reshape(*pairs.shape[:2], -1)  # [B, T - 1, W * W]
    x = nn.relu(nn.Dense(self.hidden_size, dtype=self.dtype, name='embedding')(pairs))
    x = x.reshape(len(x), -1)  # [B, (T - 1) D]
    return nn.Dense(self.num_classes, name='output_projection')(x).astype(jnp.float32)

  def variable_shapes(self, input_size: Shape | None, channels: int) -> dict[str, Shape]:
    return super().variable_shapes(input_size or (2, *SIZE), channels)


def register():
  """Makes it known as 'motion'."""
  sys.modules[f'vit_jax.models.{__name__}'] = sys.modules[__name__]
  BACKBONES['motion'] = (__name__, 'Motion')
