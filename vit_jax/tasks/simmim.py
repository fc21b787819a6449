"""SimMIM (arXiv 2111.09886): pre-training without labels, by predicting hidden blocks of pixels."""

import dataclasses
import functools
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import FieldError, UsageError
from vit_jax.ranges import Share, Side
from vit_jax.tasks.task import Apply, Batch, Metric, Outputs, Sums, Task


def block_mask(key: jax.Array, size: tuple[int, int], block: int, ratio: float) -> jax.Array:
  """Draws which blocks of an image are hidden: bool [H, W].

  As github.com/microsoft/SimMIM, data/data_simmim.py, but for images that blocks don't divide: the
  blocks at their right and lower borders are cut off.

  Args:
    key: of the draw.
    size: (height, width) of the image in pixels.
    block: side of a block in pixels.
    ratio: the share of blocks that are hidden; their number is rounded up.
  """
  rows, columns = (-(-side // block) for side in size)
  count = math.ceil(rows * columns * ratio)
  hidden = jax.random.permutation(key, rows * columns) < count
  mask = hidden.reshape(rows, columns).repeat(block, axis=0).repeat(block, axis=1)
  return mask[: size[0], : size[1]]


@dataclasses.dataclass(frozen=True)
class SimMIM(Task):
  """Learns to predict the pixels of hidden blocks, by the L1 distance; it needs no labels.

  Outputs are `reconstruction` float32 [B, H, W, C], of pixels as they are normalised, and `mask`
  bool [B, H, W], the pixels that were hidden. Metrics are means over the values of hidden pixels of
  the whole batch: `loss`, their absolute errors; `mse`, their squared errors. The loss is that of
  github.com/microsoft/SimMIM, models/simmim.py, and of transformers, but that these add 1e-5 to the
  number of pixels.

  Attributes:
    mask_ratio: the share of blocks that are hidden, over 0 and below 1.
    mask_patch_size: side of a block in pixels, a multiple of the patches'.
  """

  mask_ratio: Share = 0.6
  mask_patch_size: Side = 32

  LEARNS_CLASSES: ClassVar[bool] = False
  HEADS: ClassVar[tuple[str, ...]] = ('simmim',)

  def check_model(self, model: nn.Module) -> None:
    patch = model.backbone.patch_size
    if any(self.mask_patch_size % side for side in patch):
      raise FieldError(
        'mask_patch_size', f'{self.mask_patch_size} is not a multiple of patches of {patch} pixels'
      )

  def outputs(
    self, apply: Apply, batch: Batch, rng: jax.Array, train: bool, teacher: Apply | None = None
  ) -> Outputs:
    """Runs the model on images with hidden blocks, which `rng` draws.

    Raises:
      FieldError: on tracing, for blocks that hide the whole image.
      UsageError: on tracing, for several views of an image.
    """
    del train, teacher
    if self.input not in batch:
      raise UsageError('several views are averaged, and pixels of one are not those of another')
    size = batch[self.input].shape[1:3]
    blocks = math.prod(-(-side // self.mask_patch_size) for side in size)
    if math.ceil(blocks * self.mask_ratio) == blocks:
      raise FieldError(
        'mask_patch_size',
        f'{self.mask_patch_size}, but mask_ratio={self.mask_ratio} hides all of the {blocks} that '
        f'images of {size} have',
      )
    draw = functools.partial(
      block_mask, size=size, block=self.mask_patch_size, ratio=self.mask_ratio
    )
    mask = jax.vmap(draw)(rng)
    return apply(batch[self.input], mask=mask) | {'mask': mask}

  @property
  def metrics(self) -> dict[str, Metric]:
    return {'loss': Metric(label='loss'), 'mse': Metric(label='mean squared error')}

  def loss(self, outputs: Outputs, batch: Batch, rng: jax.Array, train: bool) -> Sums:
    del rng, train
    counted = outputs['mask'] * batch['weight'][:, None, None]  # [B, H, W]
    errors = outputs['reconstruction'] - batch[self.input]
    count = counted.sum() * errors.shape[-1]
    values = {'loss': jnp.abs(errors), 'mse': jnp.square(errors)}
    return {name: ((x * counted[..., None]).sum(), count) for name, x in values.items()}
