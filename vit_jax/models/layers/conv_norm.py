"""A convolution, the batch normalisation after it, and an activation."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers import cpu
from vit_jax.models.layers.batch_norm import BatchNorm

# PyTorch's, by fan-out, which of a depthwise convolution is k * k * C here and there.
kaiming_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def make_divisible(channels: float, divisor: int = 8) -> int:
  """Rounds a number of channels to a multiple, at most 10 % down (github.com/tensorflow/models)."""
  rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
  return rounded + divisor if rounded < 0.9 * channels else rounded


class ConvNorm(nn.Module):
  """Convolves, normalises and activates: [B, H, W, C] to [B, H / stride, W / stride, filters].

  Sides are rounded up.

  Attributes:
    filters: channels of the output.
    size: side of the kernel, odd.
    stride: of the convolution.
    depthwise: each channel has a filter of its own; C is `filters`.
    activation: elementwise function; None for none.
    norm: the normalisation, `BatchNorm` with what it takes besides `dtype` and `axis_name`.
    dtype: dtype of the computation; parameters and statistics are float32.
    axis_name: the mapped axis over which a batch is spread, where there is one.
  """

  filters: int
  size: int = 1
  stride: int = 1
  depthwise: bool = False
  activation: Callable[[jax.Array], jax.Array] | None = None
  norm: Callable[..., nn.Module] = BatchNorm
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = nn.Conv(
      self.filters,
      (self.size, self.size),
      self.stride,
      padding=self.size // 2,
      feature_group_count=self.filters if self.depthwise else 1,
      use_bias=False,
      kernel_init=kaiming_normal,
      conv_general_dilated=cpu.convolve,
      dtype=self.dtype,
      name='conv',
    )(x)
    x = self.norm(dtype=self.dtype, axis_name=self.axis_name, name='norm')(x, train)
    return x if self.activation is None else self.activation(x)
