"""Convolution with weight standardization (arXiv 1903.10520)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers import cpu


def standardize(kernel: jax.Array, epsilon: float, of_deviation: bool = False) -> jax.Array:
  """Returns a kernel [h, w, C, filters] with a mean of 0 and a variance of 1 in each filter.

  Args:
    kernel: of a convolution.
    epsilon: added to the variance of a filter before the root is taken.
    of_deviation: add it to the standard deviation instead, as vision_transformer does.
  """
  kernel = kernel - kernel.mean(axis=(0, 1, 2))
  variance = jnp.square(kernel).mean(axis=(0, 1, 2))
  if of_deviation:
    return kernel / (jnp.sqrt(variance) + epsilon)
  return kernel / jnp.sqrt(variance + epsilon)


class StdConv(nn.Module):
  """A convolution without bias whose kernel is standardized: [B, H, W, C] to [B, h, w, features].

  Attributes:
    features: number of filters.
    size: side of the kernel.
    stride: of both axes.
    padding: 'SAME' as in TensorFlow, which depends on the size of the map, or (before, after) of
      each axis.
    epsilon, of_deviation: as for `standardize`.
    dtype: dtype of the computation; the parameter is float32, and standardized as such.
  """

  features: int
  size: int
  stride: int = 1
  padding: str | Sequence[tuple[int, int]] = 'SAME'
  epsilon: float = 1e-10
  of_deviation: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    sides, strides, padding = (self.size,) * 2, (self.stride,) * 2, self.padding
    shape = (*sides, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    kernel = standardize(kernel, self.epsilon, self.of_deviation)
    if isinstance(padding, str):
      padding = jax.lax.padtype_to_pads(x.shape[1:3], sides, strides, padding)
    return cpu.convolve(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      strides,
      padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
