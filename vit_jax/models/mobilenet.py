"""MobileNetV3-large and -small (arXiv 1905.02244), as torchvision builds them.

github.com/pytorch/vision, torchvision/models/mobilenetv3.py: its layers, padding, initialisation
and normalisation. `conv_stem` is its `features.0`, `block_0` its `features.1`, and so on;
`conv_last` is its last of `features`, `pre_logits` its `classifier.0` and `output_projection` its
`classifier.3`. In a block are `expand`, `depthwise`, `squeeze_excite` (`fc1`, `fc2`) and `project`.

Running statistics are the collection 'batch_stats'. With train=True they are updated, so that it
must be mutable.
"""

import functools
import re
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import FieldError
from vit_jax.models import fields as fields_lib
from vit_jax.models import layers
from vit_jax.models.backbone import Backbone, Features
from vit_jax.ranges import Count, Factor, Rate

# PyTorch's momentum of 0.01.
_norm = functools.partial(layers.BatchNorm, momentum=0.99, epsilon=1e-3)


class Block(NamedTuple):
  """A row of the paper's tables: an inverted residual.

  Attributes:
    kernel: side of the depthwise convolution.
    expanded: channels within.
    filters: channels of the output.
    squeezes: whether it has squeeze-and-excitation.
    hard_swish: whether the activation is hard swish, and else ReLU.
    stride: of the depthwise convolution.
  """

  kernel: int
  expanded: int
  filters: int
  squeezes: bool
  hard_swish: bool
  stride: int


# Tables 1 and 2 of arXiv 1905.02244.
LARGE = (
  Block(3, 16, 16, False, False, 1),
  Block(3, 64, 24, False, False, 2),
  Block(3, 72, 24, False, False, 1),
  Block(5, 72, 40, True, False, 2),
  Block(5, 120, 40, True, False, 1),
  Block(5, 120, 40, True, False, 1),
  Block(3, 240, 80, False, True, 2),
  Block(3, 200, 80, False, True, 1),
  Block(3, 184, 80, False, True, 1),
  Block(3, 184, 80, False, True, 1),
  Block(3, 480, 112, True, True, 1),
  Block(3, 672, 112, True, True, 1),
  Block(5, 672, 160, True, True, 2),
  Block(5, 960, 160, True, True, 1),
  Block(5, 960, 160, True, True, 1),
)
SMALL = (
  Block(3, 16, 16, True, False, 2),
  Block(3, 72, 24, False, False, 2),
  Block(3, 88, 24, False, False, 1),
  Block(5, 96, 40, True, True, 2),
  Block(5, 240, 40, True, True, 1),
  Block(5, 240, 40, True, True, 1),
  Block(5, 120, 48, True, True, 1),
  Block(5, 144, 48, True, True, 1),
  Block(5, 288, 96, True, True, 2),
  Block(5, 576, 96, True, True, 1),
  Block(5, 576, 96, True, True, 1),
)
STEM = 16  # channels of the first convolution
_LAST = 6  # of the last one's, over those before


class SqueezeExcite(nn.Module):
  """Scales channels by what their means tell (arXiv 1709.01507): [B, H, W, C] to the same.

  Attributes:
    width: channels of the hidden layer.
    dtype: dtype of the computation; parameters are float32.
  """

  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=layers.kaiming_normal)
    y = nn.relu(dense(self.width, name='fc1')(x.mean(axis=(1, 2))))
    y = nn.hard_sigmoid(dense(x.shape[-1], name='fc2')(y))  # [B, C]
    return x * y[:, None, None]


class InvertedResidual(nn.Module):
  """A `Block`: [B, H, W, C] to [B, H / stride, W / stride, filters].

  Attributes:
    block: its sizes.
    dtype, axis_name: as for `MobileNetV3`.
  """

  block: Block
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    block = self.block
    activation = nn.hard_swish if block.hard_swish else nn.relu
    conv = functools.partial(
      layers.ConvNorm, norm=_norm, dtype=self.dtype, axis_name=self.axis_name
    )
    y = x
    if block.expanded != x.shape[-1]:
      y = conv(block.expanded, activation=activation, name='expand')(y, train)
    depthwise = conv(
      block.expanded, block.kernel, block.stride, True, activation=activation, name='depthwise'
    )
    y = depthwise(y, train)  # [B, H / stride, W / stride, expanded]
    if block.squeezes:
      width = layers.make_divisible(block.expanded // 4)
      y = SqueezeExcite(width, self.dtype, name='squeeze_excite')(y)
    y = conv(block.filters, name='project')(y, train)
    return x + y if y.shape == x.shape and block.stride == 1 else y


class MobileNetV3(Backbone, kw_only=True):
  """MobileNetV3: float images [B, H, W, C] to float32 logits [B, num_classes].

  Attributes:
    num_classes: number of logits; 0 or less leaves the last layer out and returns what it would
      read, [B, pre_logits], in `dtype`.
    blocks: of which it is made.
    pre_logits: width of the layer before the last.
    width_multiplier: of all channels; they are rounded to multiples of 8.
    strides: of the first convolution and of the blocks whose stride is 2, 1 or 2 each; None: all 2.
    dropout_rate: dropout of what the last layer reads.
    dtype: dtype of the computation. Parameters, statistics of the normalisation and logits are
      float32 in any case.
    axis_name: the mapped axis over which a batch is spread, where there is one, so that its
      statistics are those of the whole batch; only training needs it.

  Raises:
    FieldError: on construction, for a field's value that the model can't have.
  """

  num_classes: int
  blocks: tuple[Block, ...]
  pre_logits: int
  width_multiplier: Factor = 1.0
  strides: tuple[Count, ...] | None = None
  dropout_rate: Rate = 0.2
  dtype: Any = jnp.float32
  axis_name: str | None = None

  NOT_CONFIG: ClassVar[tuple[str, ...]] = (*Backbone.NOT_CONFIG, 'blocks', 'pre_logits')
  WEIGHT_FIELDS: ClassVar[tuple[str, ...]] = ('width_multiplier', 'strides')
  FUNCTION_FIELDS: ClassVar[tuple[str, ...]] = ('strides',)
  MAPS_OF: ClassVar[str] = 'blocks'

  def __post_init__(self) -> None:
    fields_lib.check_ranges(self)
    count = 1 + sum(block.stride == 2 for block in self.blocks)
    if self.strides is not None and not (
      len(self.strides) == count and {1, 2}.issuperset(self.strides)
    ):
      raise FieldError('strides', f'{self.strides} is not {count} numbers that are 1 or 2')
    super().__post_init__()

  @nn.nowrap
  def scaled_blocks(self) -> tuple[Block, ...]:
    """Returns the blocks with their channels and strides in this model."""
    strides = iter((self.strides or (2,) * len(self.blocks))[1:])
    return tuple(
      block._replace(
        expanded=self.scale(block.expanded),
        filters=self.scale(block.filters),
        stride=next(strides) if block.stride == 2 else 1,
      )
      for block in self.blocks
    )

  @nn.nowrap
  def scale(self, channels: int) -> int:
    """Returns a number of channels of the paper's tables, in this model."""
    return layers.make_divisible(channels * self.width_multiplier)

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, features: bool = False
  ) -> jax.Array | Features:
    """Classifies images, or returns their `Features`: the last map of each size."""
    common = {'dtype': self.dtype, 'axis_name': self.axis_name}
    conv = functools.partial(layers.ConvNorm, norm=_norm, activation=nn.hard_swish, **common)
    first = 2 if self.strides is None else self.strides[0]
    x = conv(self.scale(STEM), 3, first, name='conv_stem')(x, train)  # [B, H / 2, W / 2, 16]
    stride, maps = first, {}
    for i, block in enumerate(self.scaled_blocks()):
      x = InvertedResidual(block, **common, name=f'block_{i}')(x, train)
      stride *= block.stride
      maps[stride] = x  # [B, H / stride, W / stride, filters]
    x = conv(_LAST * x.shape[-1], name='conv_last')(x, train).mean(axis=(1, 2))  # [B, 6 C]
    normal = nn.initializers.normal(0.01)
    dense = nn.Dense(
      self.scale(self.pre_logits), dtype=self.dtype, kernel_init=normal, name='pre_logits'
    )
    x = nn.hard_swish(dense(x))  # [B, pre_logits]
    if features:
      steps = tuple((step, step) for step in maps)
      return Features(pooled=x, maps=tuple(maps.values()), strides=steps)
    if self.num_classes <= 0:
      return x
    x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
    head = nn.Dense(
      self.num_classes, dtype=jnp.float32, kernel_init=normal, name='output_projection'
    )
    return head(x)  # [B, num_classes]

  def layer_of(self, path: str) -> int:
    """The first convolution is layer 0; each block is the next."""
    if block := re.match(r'block_(\d+)/', path):
      return int(block[1]) + 1
    return 0 if path.startswith('conv_stem/') else len(self.blocks) + 1


class MobileNetV3Large(MobileNetV3, kw_only=True):
  """MobileNetV3-large: see `MobileNetV3`."""

  blocks: tuple[Block, ...] = LARGE
  pre_logits: int = 1280


class MobileNetV3Small(MobileNetV3, kw_only=True):
  """MobileNetV3-small: see `MobileNetV3`."""

  blocks: tuple[Block, ...] = SMALL
  pre_logits: int = 1024
