"""ResNet-18, -34, -50, -101 and -152 (arXiv 1512.03385), as torchvision builds them.

github.com/pytorch/vision, torchvision/models/resnet.py: its layers, padding, initialisation and
names, but that `layer1.0` is `layer1_0`, `downsample.0` and `.1` are `downsample_conv` and
`downsample_bn`, and `fc` is `output_projection`, as in all models here.

Running statistics are the collection 'batch_stats'. With train=True they are updated, so that it
must be mutable: `model.apply(variables, images, train=True, mutable=['batch_stats'])`.
"""

import functools
import re
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import fields as fields_lib
from vit_jax.models import layers
from vit_jax.models.backbone import Backbone, Features
from vit_jax.models.layers import cpu
from vit_jax.ranges import Width

_EXPANSION = 4  # of a bottleneck's channels


def _conv(filters: int, size: int, stride: int, **options: Any) -> nn.Conv:
  return nn.Conv(
    filters,
    (size, size),
    stride,
    padding=size // 2,
    use_bias=False,
    kernel_init=layers.kaiming_normal,
    conv_general_dilated=cpu.convolve,
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
    norm = functools.partial(layers.BatchNorm, dtype=self.dtype, axis_name=self.axis_name)
    y = conv(3, self.stride, name='conv1')(x)
    y = nn.relu(norm(name='bn1')(y, train))
    y = conv(3, 1, name='conv2')(y)
    y = norm(name='bn2')(y, train)
    if x.shape[-1] != self.filters:
      x = conv(1, self.stride, name='downsample_conv')(x)
      x = norm(name='downsample_bn')(x, train)
    return nn.relu(x + y)


class Bottleneck(nn.Module):
  """A 3x3 convolution between two of 1x1, beside a shortcut: [B, H, W, C] to 4 * filters channels.

  The stride is that of the 3x3 convolution, as in torchvision; the paper's is that of the first.
  The shortcut is a 1x1 convolution where C is not 4 * `filters`. Sides are rounded up.

  Attributes:
    filters: channels of the 3x3 convolution.
    stride: of it.
    dtype, axis_name: as for `BasicBlock`.
  """

  filters: int
  stride: int = 1
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    conv = functools.partial(_conv, dtype=self.dtype)
    norm = functools.partial(layers.BatchNorm, dtype=self.dtype, axis_name=self.axis_name)
    width = _EXPANSION * self.filters
    y = conv(self.filters, 1, 1, name='conv1')(x)
    y = nn.relu(norm(name='bn1')(y, train))
    y = conv(self.filters, 3, self.stride, name='conv2')(y)
    y = nn.relu(norm(name='bn2')(y, train))
    y = conv(width, 1, 1, name='conv3')(y)
    y = norm(name='bn3')(y, train)  # [B, H / stride, W / stride, 4 * filters]
    if x.shape[-1] != width:
      x = conv(width, 1, self.stride, name='downsample_conv')(x)
      x = norm(name='downsample_bn')(x, train)
    return nn.relu(x + y)


def _uniform_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any, *, fan_in: int) -> jax.Array:
  return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)


class ResNet(Backbone, kw_only=True):
  """ResNet: float images [B, H, W, C] to float32 logits [B, num_classes].

  Attributes:
    num_classes: number of logits; 0 or less leaves the head out and returns the mean over
      positions, with four stages [B, 8 * num_filters], or of bottlenecks [B, 32 * num_filters], in
      `dtype`.
    stage_sizes: number of blocks of each stage; from the second on, a stage halves the sides and
      doubles the channels.
    bottleneck: blocks are `Bottleneck`s, and else `BasicBlock`s.
    num_filters: channels of the first convolution, and `filters` of the first stage.
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
  bottleneck: bool = False
  num_filters: Width = 64
  dtype: Any = jnp.float32
  axis_name: str | None = None

  NOT_CONFIG: ClassVar[tuple[str, ...]] = (*Backbone.NOT_CONFIG, 'stage_sizes', 'bottleneck')
  WEIGHT_FIELDS: ClassVar[tuple[str, ...]] = ('num_filters',)

  def __post_init__(self) -> None:
    fields_lib.check_ranges(self)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, features: bool = False
  ) -> jax.Array | Features:
    """Classifies images, or returns their `Features`: a map of each stage, and their mean."""
    common = {'dtype': self.dtype, 'axis_name': self.axis_name}
    x = _conv(self.num_filters, 7, 2, dtype=self.dtype, name='conv1')(x)
    x = nn.relu(layers.BatchNorm(**common, name='bn1')(x, train))  # [B, H / 2, W / 2, C]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))  # [B, H / 4, W / 4, C]
    maps, kind = [], Bottleneck if self.bottleneck else BasicBlock
    for stage, num_blocks in enumerate(self.stage_sizes):
      for i in range(num_blocks):
        stride = 2 if stage > 0 and i == 0 else 1
        block = kind(self.num_filters * 2**stage, stride, **common, name=f'layer{stage + 1}_{i}')
        x = block(x, train)
      maps.append(x)  # [B, H / (4 * 2**stage), W / (4 * 2**stage), D * 2**stage]
    x = x.mean(axis=(1, 2))  # [B, 8 * D]
    if features:
      strides = tuple((4 * 2**stage,) * 2 for stage in range(len(maps)))
      return Features(pooled=x, maps=tuple(maps), strides=strides)
    if self.num_classes <= 0:
      return x
    return nn.Dense(
      self.num_classes,
      dtype=jnp.float32,
      kernel_init=nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'),
      bias_init=functools.partial(_uniform_bias, fan_in=x.shape[-1]),
      name='output_projection',
    )(x)  # [B, num_classes]

  def layer_of(self, path: str) -> int:
    """The first convolution is layer 0, each block the next, as timm counts."""
    block = re.match(r'layer(\d+)_(\d+)/', path)
    if block:
      return sum(self.stage_sizes[: int(block[1]) - 1]) + int(block[2]) + 1
    return 0 if path.startswith(('conv1/', 'bn1/')) else sum(self.stage_sizes) + 1


class ResNet18(ResNet, kw_only=True):
  """ResNet-18: see `ResNet`."""

  stage_sizes: tuple[int, ...] = (2, 2, 2, 2)


class ResNet34(ResNet, kw_only=True):
  """ResNet-34: see `ResNet`."""

  stage_sizes: tuple[int, ...] = (3, 4, 6, 3)


class ResNet50(ResNet, kw_only=True):
  """ResNet-50: see `ResNet`."""

  stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
  bottleneck: bool = True


class ResNet101(ResNet, kw_only=True):
  """ResNet-101: see `ResNet`."""

  stage_sizes: tuple[int, ...] = (3, 4, 23, 3)
  bottleneck: bool = True


class ResNet152(ResNet, kw_only=True):
  """ResNet-152: see `ResNet`."""

  stage_sizes: tuple[int, ...] = (3, 8, 36, 3)
  bottleneck: bool = True
