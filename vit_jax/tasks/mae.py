"""Masked autoencoding (arXiv 2111.06377): the pixels of hidden patches, learned without labels."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from vit_jax.errors import UsageError
from vit_jax.ranges import Share
from vit_jax.tasks.task import Apply, Batch, Metric, Outputs, Sums, Task


def visible_patches(noise: jax.Array, mask_ratio: float) -> jax.Array:
  """Returns the int places [B, M] of the patches with the least noise [B, N].

  M is N times the share that isn't masked, rounded down, as in github.com/facebookresearch/mae.

  Raises:
    UsageError: all patches are masked, or none.
  """
  num_patches = noise.shape[-1]
  count = int(num_patches * (1 - mask_ratio))
  if not 0 < count < num_patches:
    raise UsageError(
      f'a mask ratio of {mask_ratio} leaves {count} of {num_patches} patches visible; some must be '
      'visible, and some hidden'
    )
  return jnp.argsort(noise, axis=-1)[:, :count]


@dataclasses.dataclass(frozen=True)
class MaskedAutoencoding(Task):
  """Learns to predict the pixels of patches that are hidden at random, in each image others.

  The `loss` of an image is the mean squared error of its hidden patches; `pixel_error` is their
  mean absolute error in pixels as the model takes them (1 is a standard deviation of the data).
  Which patches are hidden in evaluation follows from the seed and the image's place alone.

  Attributes:
    mask_ratio: share of the patches that are hidden, over 0 and below 1.
  """

  mask_ratio: Share = 0.75

  LEARNS_CLASSES: ClassVar[bool] = False
  HEADS: ClassVar[tuple[str, ...]] = ('mae',)

  @property
  def metrics(self) -> dict[str, Metric]:
    return {'loss': Metric(label='loss'), 'pixel_error': Metric(label='pixel error')}

  def outputs(
    self, apply: Apply, batch: Batch, rng: jax.Array, train: bool, teacher: Apply | None = None
  ) -> Outputs:
    if self.input not in batch:
      raise UsageError('several views are averaged, and patches of one are not those of another')

    def visible(num_patches: int) -> jax.Array:
      noise = jax.vmap(lambda key: jax.random.uniform(key, (num_patches,)))(rng)
      return visible_patches(noise, self.mask_ratio)

    return apply(batch[self.input], visible=visible)

  def loss(self, outputs: Outputs, batch: Batch, rng: jax.Array, train: bool) -> Sums:
    del rng, train
    mask, weight = outputs['mask'], batch['weight']
    error = outputs['prediction'] - outputs['target']  # [B, N, P]
    values = {
      'loss': jnp.square(error).mean(axis=-1),
      'pixel_error': (jnp.abs(error) * outputs['std']).mean(axis=-1),
    }
    per_image = {n: (v * mask).sum(axis=1) / mask.sum(axis=1) for n, v in values.items()}
    return {name: ((value * weight).sum(), weight.sum()) for name, value in per_image.items()}
