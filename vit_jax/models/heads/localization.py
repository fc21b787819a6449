"""A class and a box from one feature vector of an image: two small networks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import UsageError
from vit_jax.models.heads.head import Head
from vit_jax.ranges import Rate, Width


class TwoLayers(nn.Module):
  """A linear layer, ReLU, dropout and another linear layer: [B, D] to float32 [B, num_outputs].

  Attributes:
    num_outputs: width of the second layer.
    hidden_size: width of the first.
    dropout_rate: dropout between the two.
    dtype: dtype of the first; parameters are float32.
  """

  num_outputs: int
  hidden_size: int
  dropout_rate: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    x = nn.relu(nn.Dense(self.hidden_size, dtype=self.dtype)(x))
    x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
    return nn.Dense(self.num_outputs, dtype=jnp.float32)(x)


class Localizer(Head, kw_only=True):
  """Classifies the one object of an image and finds its box.

  Maps images [B, H, W, C], float, to {'logits': float32 [B, num_classes], 'box': float32 [B, 4]},
  boxes being (cx, cy, width, height) in fractions of the image's sides. Parameters are in
  `backbone`, `class_head` and `box_head`.

  Attributes, beside those of `Head`:
    hidden_size: hidden width of both networks.
    dropout_rate: dropout in both.
    box_sigmoid: whether a sigmoid keeps the numbers of a box between 0 and 1.

  Raises:
    FieldError: on construction, for a size or a rate out of range.
    UsageError: when called, for a backbone that doesn't give one vector an image.
  """

  hidden_size: Width = 512
  dropout_rate: Rate = 0.2
  box_sigmoid: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
    pooled = self.backbone.features(x, train=train).pooled  # [B, D]
    if pooled is None:
      raise UsageError('class and box are read from one vector, and the model pools no tokens')
    sizes = {'hidden_size': self.hidden_size, 'dropout_rate': self.dropout_rate}
    class_head = TwoLayers(self.num_classes, **sizes, dtype=self.dtype, name='class_head')
    box_head = TwoLayers(4, **sizes, dtype=self.dtype, name='box_head')
    box = box_head(pooled, train=train)  # [B, 4]
    return {
      'logits': class_head(pooled, train=train),  # [B, num_classes]
      'box': nn.sigmoid(box) if self.box_sigmoid else box,
    }
