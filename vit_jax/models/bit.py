"""BiT (arXiv 1912.11370): ResNet-v2 with group norm and weight standardization.

github.com/google-research/big_transfer. Modules have the names of its JAX models, as big_vision
(models/bit_paper.py) has them, but that the head is `output_projection`, as in all models here.
"""

import functools
import re
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import FieldError
from vit_jax.models import fields as fields_lib
from vit_jax.models import layers
from vit_jax.models.backbone import Backbone, Features, Fitted, Shape
from vit_jax.models.layers.standardized import StdConv
from vit_jax.ranges import Factor, Layers, Positive

# (depths, width_factor) of the models that are published.
SIZES = {
  'R50x1': ((3, 4, 6, 3), 1),
  'R50x3': ((3, 4, 6, 3), 3),
  'R101x1': ((3, 4, 23, 3), 1),
  'R101x3': ((3, 4, 23, 3), 3),
  'R152x2': ((3, 8, 36, 3), 2),
  'R152x4': ((3, 8, 36, 3), 4),
}
NUM_GROUPS = 32
ROOT_FILTERS = 64  # at a width factor of 1
NORM_EPSILON = 1e-5

_ROOT = 'root_block/conv_root/kernel'
_UNIT = re.compile(r'block(\d+)/unit(\d+)/.*')


def check_width(width_factor: float, field: str) -> int:
  """Returns how many filters the first convolution has: 64 times the width factor.

  Raises:
    FieldError: for `field`, where groups of channels don't divide them.
  """
  filters = ROOT_FILTERS * width_factor
  if filters < NUM_GROUPS or filters % NUM_GROUPS:
    raise FieldError(
      field,
      f'{width_factor!r} gives {filters:g} filters, which is no multiple of the {NUM_GROUPS} '
      'groups of a norm',
    )
  return int(filters)


class RootBlock(nn.Module):
  """Convolution 7x7 and maximum 3x3: [B, H, W, C] to [B, H / 4, W / 4, filters], rounded up.

  Attributes:
    filters: channels of the output.
    epsilon: of the convolution.
    dtype: dtype of the computation; parameters are float32.
  """

  filters: int
  epsilon: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = StdConv(
      self.filters,
      7,
      2,
      padding=((3, 3), (3, 3)),
      epsilon=self.epsilon,
      dtype=self.dtype,
      name='conv_root',
    )(x)
    # Zeros, and not the least of all numbers, which `max_pool` itself would put there.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))


class ResidualUnit(nn.Module):
  """Norms and convolutions 1x1, 3x3, 1x1 beside a shortcut: [B, H, W, C] to [B, h, w, 4 filters].

  h = H / stride, rounded up; w likewise. The shortcut is a convolution of the normed input where
  the shape changes.

  Attributes:
    filters: channels of the convolution 3x3.
    stride: of that convolution.
    epsilon: of the convolutions.
    dtype: dtype of the computation; parameters and statistics are float32.
  """

  filters: int
  stride: int
  epsilon: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    conv = functools.partial(StdConv, epsilon=self.epsilon, dtype=self.dtype)
    x = _norm_relu(inputs, 'gn1', self.dtype)
    shortcut = inputs
    if self.stride > 1 or inputs.shape[-1] != 4 * self.filters:
      shortcut = conv(4 * self.filters, 1, self.stride, name='conv_proj')(x)
    x = conv(self.filters, 1, name='conv1')(x)
    x = _norm_relu(x, 'gn2', self.dtype)
    x = conv(self.filters, 3, self.stride, padding=((1, 1), (1, 1)), name='conv2')(x)
    x = _norm_relu(x, 'gn3', self.dtype)
    x = conv(4 * self.filters, 1, name='conv3')(x)
    return x + shortcut


def _norm_relu(x: jax.Array, name: str, dtype: Any) -> jax.Array:
  return nn.relu(nn.GroupNorm(NUM_GROUPS, epsilon=NORM_EPSILON, dtype=dtype, name=name)(x))


class Stage(nn.Module):
  """Residual units, of which the first has the stride and the others have none.

  Attributes:
    depth: number of units.
    stride, filters, epsilon, dtype: as for `ResidualUnit`.
  """

  depth: int
  filters: int
  stride: int
  epsilon: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(self.depth):
      x = ResidualUnit(
        self.filters,
        1 if i else self.stride,
        self.epsilon,
        self.dtype,
        name=f'unit{i + 1:02d}',
      )(x)
    return x


class BiT(Backbone, kw_only=True):
  """BiT's ResNet-v2: float images [B, H, W, C] to float32 logits [B, num_classes].

  Attributes:
    num_classes: number of logits; 0 or less leaves the head out and returns the mean over
      positions in `dtype`, [B, 2048 * width_factor] with four stages.
    depths: number of residual units of each stage; from the second on, a stage halves the sides and
      doubles the channels.
    width_factor: of the channels: the first convolution has 64 times as many.
    weight_epsilon: added to the variance of a filter before it is divided by its root: 1e-10 in
      big_transfer, 1e-8 in timm and Hugging Face.
    dtype: dtype of the computation. Parameters, their standardization, statistics of the norms and
      logits are float32 in any case.

  Raises:
    FieldError: on construction, for options that don't fit each other.
  """

  num_classes: int
  depths: tuple[Layers, ...] = (3, 4, 6, 3)
  width_factor: Factor = 1.0
  weight_epsilon: Positive = 1e-10
  dtype: Any = jnp.float32

  NAMED_SIZES: ClassVar[tuple[str, ...]] = tuple(SIZES)
  WEIGHT_FIELDS: ClassVar[tuple[str, ...]] = ('depths', 'width_factor', 'weight_epsilon')
  FUNCTION_FIELDS: ClassVar[tuple[str, ...]] = ('weight_epsilon',)

  def __post_init__(self) -> None:
    fields_lib.check_ranges(self)
    if not self.depths:
      raise FieldError('depths', '() has no stage')
    check_width(self.width_factor, 'width_factor')
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, features: bool = False
  ) -> jax.Array | Features:
    """Classifies images, or returns their `Features`: a map of each stage, and their mean.

    The last map is normed, as the head reads it; those before are as the next stage reads them.
    Nothing differs in training.
    """
    del train
    filters = check_width(self.width_factor, 'width_factor')
    common = {'epsilon': self.weight_epsilon, 'dtype': self.dtype}
    x = RootBlock(filters, **common, name='root_block')(x)  # [B, H / 4, W / 4, F]
    maps = []
    for i, depth in enumerate(self.depths):
      stage = Stage(depth, filters * 2**i, 2 if i else 1, **common, name=f'block{i + 1}')
      x = stage(x)
      maps.append(x)  # [B, H / (4 * 2**i), W / (4 * 2**i), 4 F * 2**i]
    x = maps[-1] = _norm_relu(x, 'norm-pre-head', self.dtype)
    x = x.mean(axis=(1, 2))  # [B, 32 F]
    if features:
      strides = tuple((4 * 2**i,) * 2 for i in range(len(maps)))
      return Features(pooled=x, maps=tuple(maps), strides=strides)
    if self.num_classes <= 0:
      return x
    zeros = nn.initializers.zeros
    head = nn.Dense(
      self.num_classes, dtype=jnp.float32, kernel_init=zeros, name='output_projection'
    )
    return head(x)  # [B, num_classes]

  def summary(self) -> str:
    depths = '-'.join(map(str, self.depths))
    return f'BiT, {depths} units, {self.width_factor:g} times as wide as a ResNet'

  def layer_of(self, path: str) -> int:
    """The root is layer 0, each unit the next, as timm counts."""
    if unit := _UNIT.fullmatch(path):
      return sum(self.depths[: int(unit[1]) - 1]) + int(unit[2])
    return 0 if path.startswith('root_block/') else sum(self.depths) + 1

  def variable_shapes(self, image_size: tuple[int, int] | None, channels: int) -> dict[str, Shape]:
    # From the second on, a stage's units are all alike, and tracing dozens takes seconds.
    short = self.clone(depths=tuple(min(depth, 2) for depth in self.depths))
    shapes = super(BiT, short).variable_shapes(image_size, channels)
    copies = {
      name.replace('unit02', f'unit{unit:02d}'): shape
      for name, shape in shapes.items()
      if (found := _UNIT.fullmatch(name)) and found[2] == '02'
      for unit in range(3, self.depths[int(found[1]) - 1] + 1)
    }
    return shapes | copies

  def fit(self, arrays, shapes, old, new, path) -> Fitted:
    """Adapts the first convolution to grey or colour images; nothing else depends on images."""
    return fit_channels(arrays, _ROOT, new.channels)


def fit_channels(arrays, kernel: str, channels: int) -> Fitted:
  """Returns weights whose first convolution is for images of another number of channels.

  Args:
    arrays: path -> array of the weights.
    kernel: the path of the first convolution's, which may be left out.
    channels: of the images.
  """
  before = arrays[kernel].shape[2] if kernel in arrays else channels
  if before == channels:
    return Fitted(arrays, [], [])
  adapted = layers.adapt_channels(arrays[kernel], channels)
  note = f'first convolution: from {before} to {channels} channels'
  return Fitted(arrays | {kernel: adapted}, [], [note])
