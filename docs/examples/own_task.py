"""A task of one's own: --config.task=own_task:Ordinal --config.loss.distance_weight=2."""

import dataclasses

import jax
import jax.numpy as jnp

from vit_jax.tasks import Metric
from vit_jax.tasks.classification import Classification


@dataclasses.dataclass(frozen=True)
class Ordinal(Classification):
  """Classes in an order: a guess costs the more, the farther it is from the label."""

  distance_weight: float = 1.0  # beside the cross-entropy

  @property
  def metrics(self):
    return super().metrics | {'distance': Metric(label='distance')}

  def loss(self, outputs, batch, rng, train):
    sums = super().loss(outputs, batch, rng, train)
    away = jnp.abs(jnp.arange(self.num_classes) - batch['label'][:, None])  # [B, num_classes]
    expected = (jax.nn.softmax(outputs['logits']) * away).sum(axis=-1)  # [B]
    total, count = sums['loss']
    distance = (expected * batch['weight']).sum()
    return sums | {
      'loss': (total + self.distance_weight * distance, count),
      'distance': (distance, count),
    }
