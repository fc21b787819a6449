"""ResNet-18 and -34 (arXiv 1512.03385), as torchvision builds them.

github.com/pytorch/vision, torchvision/models/resnet.py: its layers, padding, initialisation and
names, but that `layer1.0` is `layer1_0`, `downsample.0` and `.1` are `downsample_conv` and
`downsample_bn`, and `fc` is `output_projection`, as in all models here.

Running statistics are the collection 'batch_stats'. With train=True they are updated, so that it
must be mutable: `model.apply(variables, images, train=True, mutable=['batch_stats'])`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import UsageError
from vit_jax.models.token_learner import TokenLearnerViT
from vit_jax.models.vit import ViT

_FLAX = {'name', 'parent'}  # fields that every module has
_OF_VITS = {f.name for kind in (ViT, TokenLearnerViT) for f in dataclasses.fields(kind)} - _FLAX


class BatchNorm(nn.BatchNorm):
  """Flax's batch normalisation, whose running variance is PyTorch's.

  Both normalise by the variance of the n values that a channel has in the batch; PyTorch's running
  average takes n / (n - 1) times as much, the unbiased estimate, where Flax's takes it as it is.

  Attributes: those of flax.linen.BatchNorm; `momentum` 0.9 is PyTorch's 0.1.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Normalises the last axis by the statistics of the batch, or by the running ones."""
    if not train or self.is_initializing():
      return super().__call__(x, use_running_average=not train)
    devices = jax.lax.axis_size(self.axis_name) if self.axis_name else 1
    count = devices * x.size // x.shape[-1]
    if count < 2:
      raise UsageError(
        'config.batch_size: batch normalisation has a single value in each channel, 1 example of '
        '1x1; give more examples (to a micro-batch), or larger images'
      )
    before = self.get_variable('batch_stats', 'var')
    y = super().__call__(x, use_running_average=False)
    after = self.get_variable('batch_stats', 'var')
    share = after - self.momentum * before  # of this batch
    self.put_variable('batch_stats', 'var', after + share / (count - 1))
    return y


# XLA's own convolutions of maps up to this many pixels a side, and their gradients above all, take
# a CPU longer than a matrix product does: a hundred times, where the kernel is larger than the map.
_SMALL = 8


def _convolve(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  **options: Any,
) -> jax.Array:
  """Does what `jax.lax.conv_general_dilated` does, as one matrix product if that is faster.

  Args:
    x: [B, H, W, C].
    kernel: [h, w, C, filters].
    strides: of the two axes.
    padding: before and after each of them.
    **options: of `jax.lax.conv_general_dilated`, none of them another than Flax's default.
  """
  if jax.default_backend() != 'cpu' or max(x.shape[1:3]) > _SMALL:
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
  rows, columns = kernel.shape[:2]
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
  parts = [
    x[:, i : i + height : strides[0], j : j + width : strides[1]]
    for i in range(rows)
    for j in range(columns)
  ]
  return jnp.concatenate(parts, -1) @ kernel.reshape(-1, kernel.shape[-1])


_kaiming_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def _conv(filters: int, size: int, stride: int, **options: Any) -> nn.Conv:
  return nn.Conv(
    filters,
    (size, size),
    stride,
    padding=size // 2,
    use_bias=False,
    kernel_init=_kaiming_normal,
    conv_general_dilated=_convolve,
    **options,
  )


class BasicBlock(nn.Module):
  """Two 3x3 convolutions beside a shortcut: [B, H, W, C] to [B, H / stride, W / stride, filters].

  The shortcut is a 1x1 convolution where C is not `filters`. Sides are rounded up.

  Attributes:
    filters: channels of the output.
    stride: of the first convolution.
    dtype: dtype of the computation; parameters and statistics are float32.
    axis_name: as for `ResNet`.
  """

  filters: int
  stride: int = 1
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    conv = functools.partial(_conv, self.filters, dtype=self.dtype)
    norm = functools.partial(BatchNorm, dtype=self.dtype, axis_name=self.axis_name)
    y = conv(3, self.stride, name='conv1')(x)
    y = nn.relu(norm(name='bn1')(y, train))
    y = conv(3, 1, name='conv2')(y)
    y = norm(name='bn2')(y, train)
    if x.shape[-1] != self.filters:
      x = conv(1, self.stride, name='downsample_conv')(x)
      x = norm(name='downsample_bn')(x, train)
    return nn.relu(x + y)


def _uniform_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any, *, fan_in: int) -> jax.Array:
  return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)


class ResNet(nn.Module, kw_only=True):
  """ResNet of basic blocks: float images [B, H, W, C] to float32 logits [B, num_classes].

  Attributes:
    num_classes: number of logits; 0 or less leaves the head out and returns the mean over
      positions, [B, 8 * num_filters] with four stages, in `dtype`.
    stage_sizes: number of blocks of each stage; from the second on, a stage halves the sides and
      doubles the channels.
    num_filters: channels of the first stage.
    dtype: dtype of the computation. Parameters, statistics of the normalisation and logits are
      float32 in any case.
    axis_name: the mapped axis over which a batch is spread, where there is one, so that its
      statistics are those of the whole batch; only training needs it.

  Raises:
    UsageError: when called with train=True, for a batch of a single example whose last feature
      maps are a single position.
  """

  num_classes: int
  stage_sizes: tuple[int, ...]
  num_filters: int = 64
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **attributes: Any) -> Self:
    """Builds the model from those entries of `config` that it has attributes for.

    None stands for the default.

    Raises:
      UsageError: an entry that ViTs have an attribute for, and ResNets have not, isn't None.
    """
    given = {name: value for name, value in config.items() if value is not None} | attributes
    own = {field.name for field in dataclasses.fields(cls)} - _FLAX
    for name in sorted(given.keys() & _OF_VITS - own):
      raise UsageError(
        f'config.model.{name}: {given[name]!r}, but a ResNet has no such field; '
        'start from configs/resnet.py'
      )
    return cls(**{name: given[name] for name in own & given.keys()})

  def __post_init__(self) -> None:
    if self.num_filters < 1:
      raise UsageError(f'config.model.num_filters: {self.num_filters} is less than 1')
    super().__post_init__()

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    common = {'dtype': self.dtype, 'axis_name': self.axis_name}
    x = _conv(self.num_filters, 7, 2, dtype=self.dtype, name='conv1')(x)
    x = nn.relu(BatchNorm(**common, name='bn1')(x, train))
    x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for stage, num_blocks in enumerate(self.stage_sizes):
      for i in range(num_blocks):
        stride = 2 if stage > 0 and i == 0 else 1
        block = BasicBlock(
          self.num_filters * 2**stage, stride, **common, name=f'layer{stage + 1}_{i}'
        )
        x = block(x, train)
    x = x.mean(axis=(1, 2))
    if self.num_classes > 0:
      x = nn.Dense(
        self.num_classes,
        dtype=jnp.float32,
        kernel_init=nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'),
        bias_init=functools.partial(_uniform_bias, fan_in=x.shape[-1]),
        name='output_projection',
      )(x)
    return x


class ResNet18(ResNet, kw_only=True):
  """ResNet-18: see `ResNet`."""

  stage_sizes: tuple[int, ...] = (2, 2, 2, 2)


class ResNet34(ResNet, kw_only=True):
  """ResNet-34: see `ResNet`."""

  stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
