"""A class and a box from one feature vector of an image: two heads on any model."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import UsageError


class Head(nn.Module):
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


class Localizer(nn.Module):
  """Classifies the one object of an image and finds its box.

  Maps images [B, H, W, C], float, to {'logits': float32 [B, num_classes], 'box': float32 [B, 4]},
  boxes being (cx, cy, width, height) in fractions of the image's sides. Parameters are in
  `backbone`, `class_head` and `box_head`.

  Attributes:
    backbone: any model that maps images to features [B, D].
    num_classes: number of logits.
    hidden_size: hidden width of both heads.
    dropout_rate: dropout in both heads.
    box_sigmoid: whether a sigmoid keeps the numbers of a box between 0 and 1.
    dtype: dtype of the heads' hidden layers; logits and boxes are float32 in any case.

  Raises:
    UsageError: on construction, for a size or a rate out of range; when called, for a backbone that
      doesn't give one vector an image.
  """

  backbone: nn.Module
  num_classes: int
  hidden_size: int = 512
  dropout_rate: float = 0.2
  box_sigmoid: bool = True
  dtype: Any = jnp.float32

  def __post_init__(self) -> None:
    if self.hidden_size < 1:
      raise UsageError(f'config.model.head.hidden_size: {self.hidden_size} is less than 1')
    if not 0 <= self.dropout_rate < 1:
      raise UsageError(f'config.model.head.dropout_rate: {self.dropout_rate} is not in [0, 1)')
    super().__post_init__()

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
    features = self.backbone(x, train=train)
    if features.ndim != 2:
      raise UsageError(
        f'config.model.classifier: features of shape {features.shape[1:]} an image, and class and '
        'box are read from one vector'
      )
    options = (self.hidden_size, self.dropout_rate, self.dtype)
    logits = Head(self.num_classes, *options, name='class_head')(features, train=train)
    box = Head(4, *options, name='box_head')(features, train=train)
    return {'logits': logits, 'box': nn.sigmoid(box) if self.box_sigmoid else box}
