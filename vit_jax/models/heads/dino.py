"""DINO's projection head (arXiv 2104.14294), and the centre of what the teacher's gives."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import UsageError
from vit_jax.models.heads.head import Head
from vit_jax.ranges import Layers, Rate, Width

_WEIGHTS = nn.initializers.normal(0.02)


class WeightNormDense(nn.Module):
  """A linear layer without bias whose columns have a length: [..., D] to float32 [..., features].

  Weight normalisation, arXiv 1602.07868, of float32 parameters `kernel` [D, features], of which the
  direction counts, and `magnitude` [features], the length.

  Attributes:
    features: width of the result.
    unit: whether all lengths stay 1; there is no `magnitude` then.
  """

  features: int
  unit: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # as PyTorch's Linear
    kernel = self.param('kernel', init, (x.shape[-1], self.features))
    kernel = kernel / jnp.linalg.norm(kernel, axis=0)
    if not self.unit:
      kernel = kernel * self.param('magnitude', nn.initializers.ones, (self.features,))
    return x.astype(jnp.float32) @ kernel


class DINOHead(Head, kw_only=True):
  """Projects the pooled features of images on `out_dim` prototypes.

  Maps images [B, H, W, C], float, to {'logits': float32 [B, out_dim], 'center': float32 [out_dim]}.
  The vector goes through an MLP with GELU, is scaled to length 1, and is compared with prototypes
  of length 1. The centre is a running mean of the teacher's logits, in `batch_stats`. Parameters
  are in `backbone`, `mlp_0` to `mlp_{num_layers - 1}` and `last_layer`. facebookresearch/dino has
  an option for batch normalisation in the MLP, off in the paper's ViTs, which isn't here: its
  teacher would need statistics of its own.

  Attributes, beside those of `Head`:
    out_dim: number of prototypes, K.
    hidden_size: hidden width of the MLP.
    bottleneck_size: width that the MLP ends with.
    num_layers: of the MLP.
    norm_last_layer: whether the prototypes keep their length of 1; learning it is better at times,
      and less stable.
    center_momentum: share of the centre that a batch leaves, in [0, 1).

  Raises:
    FieldError: on construction, for a number out of range.
    UsageError: when called, for a backbone that doesn't give one vector an image.
  """

  out_dim: Width = 65_536
  hidden_size: Width = 2048
  bottleneck_size: Width = 256
  num_layers: Layers = 3
  norm_last_layer: bool = True
  center_momentum: Rate = 0.9

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, teacher_logits: jax.Array | None = None
  ) -> dict[str, Any]:
    """Projects images.

    Args:
      x: float [B, H, W, C].
      train: turns on what only training does.
      teacher_logits: [M, out_dim] of this device's part of the batch; their mean over all devices
        moves the centre, after the one before is returned.
    """
    pooled = self.backbone.features(x, train=train).pooled  # [B, D]
    if pooled is None:
      raise UsageError('prototypes are compared with one vector, and the model pools no tokens')
    x = pooled
    for layer in range(self.num_layers):
      last = layer == self.num_layers - 1
      width = self.bottleneck_size if last else self.hidden_size
      x = nn.Dense(width, dtype=self.dtype, kernel_init=_WEIGHTS, name=f'mlp_{layer}')(x)
      x = x if last else nn.gelu(x, approximate=False)
    x = x.astype(jnp.float32)  # [B, bottleneck_size]
    x *= jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))
    logits = WeightNormDense(self.out_dim, self.norm_last_layer, name='last_layer')(x)
    running = self.variable('batch_stats', 'center', jnp.zeros, (self.out_dim,))
    center = running.value
    if teacher_logits is not None:
      mean = teacher_logits.mean(axis=0)
      if self.axis_name:
        mean = jax.lax.pmean(mean, self.axis_name)
      running.value = self.center_momentum * center + (1 - self.center_momentum) * mean
    return {'logits': logits, 'center': center}
