"""MobileViT (arXiv 2110.02178), version 1, with the names of cvnets, github.com/apple/ml-cvnets.

`conv_1`, `layer_1_0`, ..., `layer_5_1`, `conv_1x1_exp`: `layer_3_1` is the second module of layer
3. In it, `local_rep_conv_3x3` is the n x n convolution whatever n is, and `global_rep_0` the first
transformer layer, whose queries, keys and values have a projection each. The head is
`output_projection`.

Capture: `model.apply(variables, x, mutable=['intermediates'])` also returns the attention weights
of each transformer layer, a tuple of one float32 [batch, pixels of a patch, heads, patches,
patches], at `layer_{i}_1/global_rep_{j}/attn/attention_weights`.

Running statistics are the collection 'batch_stats'. With train=True they are updated, so that it
must be mutable.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import FieldError
from vit_jax.models import fields as fields_lib
from vit_jax.models import layers
from vit_jax.models.backbone import AttentionMaps, Backbone, Features
from vit_jax.models.layers.resize import interpolate
from vit_jax.ranges import Count, Factor, Layers, NonNegative, Rate, Width

# (neck_hidden_sizes, hidden_sizes, expand_ratio), table 4 of arXiv 2110.02178.
SIZES = {
  'XXS': ((16, 16, 24, 48, 64, 80, 320), (64, 80, 96), 2.0),
  'XS': ((16, 32, 48, 64, 80, 96, 384), (96, 120, 144), 4.0),
  'S': ((16, 32, 64, 96, 128, 160, 640), (144, 192, 240), 4.0),
}
STRIDES = (2, 1, 2, 2, 2, 2)  # of images that are not small

NUM_RESIDUALS = (1, 3, 1, 1, 1)  # of layers 1 to 5; those from the third on have a block, too
_FIRST_BLOCK = 3
_MODULE = re.compile(r'layer_(\d)_(\d)/.*')


def unfold(x: jax.Array, side: int) -> jax.Array:
  """Gathers the pixels of equal place in all patches: [B, H, W, C] to [B, side**2, patches, C]."""
  batch, height, width, channels = x.shape
  rows, columns = height // side, width // side
  x = x.reshape(batch, rows, side, columns, side, channels).transpose(0, 2, 4, 1, 3, 5)
  return x.reshape(batch, side**2, rows * columns, channels)


def fold(x: jax.Array, side: int, size: tuple[int, int]) -> jax.Array:
  """Puts pixels back: the inverse of `unfold`, for maps of `size` (H, W)."""
  batch, channels = x.shape[0], x.shape[-1]
  rows, columns = size[0] // side, size[1] // side
  x = x.reshape(batch, side, side, rows, columns, channels).transpose(0, 3, 1, 4, 2, 5)
  return x.reshape(batch, *size, channels)


def resize_maps(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Interpolates [B, H, W, C] bilinearly, as PyTorch with align_corners=False, to `size`."""
  return interpolate(x, (1, 2), size)


def whole_patches(size: Sequence[int], side: int) -> tuple[int, int]:
  """Returns the (height, width) that maps are resized to: the next multiples of `side`."""
  height, width = (-(-length // side) * side for length in size)
  return height, width


class InvertedResidual(nn.Module):
  """MobileNetV2's block (arXiv 1801.04381): [B, H, W, C] to [B, H / stride, W / stride, filters].

  Attributes:
    filters: channels of the output.
    stride: of the depthwise convolution.
    expand_ratio: its channels over C.
    dtype, axis_name: as for `MobileViT`.
  """

  filters: int
  stride: int
  expand_ratio: float
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    conv = functools.partial(layers.ConvNorm, dtype=self.dtype, axis_name=self.axis_name)
    width = layers.make_divisible(round(x.shape[-1] * self.expand_ratio))
    y = conv(width, activation=nn.silu, name='exp_1x1')(x, train)  # [B, H, W, width]
    depthwise = conv(width, 3, self.stride, True, activation=nn.silu, name='conv_3x3')
    y = conv(self.filters, name='red_1x1')(depthwise(y, train), train)
    return x + y if y.shape == x.shape and self.stride == 1 else y


class TransformerLayer(nn.Module):
  """Attention and an MLP, each after a LayerNorm: [..., N, D] to the same.

  Attributes: as for `MobileViT`.
  """

  num_heads: int
  mlp_ratio: float
  dropout_rate: float
  attention_dropout_rate: float
  norm_epsilon: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    norm = functools.partial(nn.LayerNorm, self.norm_epsilon, self.dtype)
    dropout = nn.Dropout(self.dropout_rate)
    attend = layers.MultiHeadDotProductAttention(
      self.num_heads, self.dtype, self.attention_dropout_rate, name='attn'
    )
    x = x + dropout(attend(norm(name='norm1')(x), deterministic=deterministic), deterministic)
    mlp = layers.MlpBlock(
      mlp_dim=int(self.mlp_ratio * x.shape[-1]),
      dropout_rate=0.0,
      activation_fn=nn.silu,
      dtype=self.dtype,
      name='mlp',
    )
    return x + dropout(mlp(norm(name='norm2')(x), deterministic=deterministic), deterministic)


class MobileViTBlock(nn.Module):
  """Convolutions, a transformer over patches, and their fusion: [B, H, W, C] to the same.

  The transformer relates each pixel to those of the same place in the other patches; the n x n
  convolution before it has brought its neighbours' values to it. Maps that patches don't divide are
  resized for the transformer, and back after it.

  Attributes:
    hidden_size: width of the transformer.
    depth: number of its layers.
    num_heads, mlp_ratio, patch_size, conv_kernel_size, dropout_rate, attention_dropout_rate,
    norm_epsilon, dtype, axis_name: as for `MobileViT`.
  """

  hidden_size: int
  depth: int
  num_heads: int
  mlp_ratio: float
  patch_size: int
  conv_kernel_size: int
  dropout_rate: float
  attention_dropout_rate: float
  norm_epsilon: float
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    conv = functools.partial(
      layers.ConvNorm, activation=nn.silu, dtype=self.dtype, axis_name=self.axis_name
    )
    channels, size, side = x.shape[-1], x.shape[1:3], self.patch_size
    y = conv(channels, self.conv_kernel_size, name='local_rep_conv_3x3')(x, train)
    to_tokens = nn.Dense(
      self.hidden_size, use_bias=False, dtype=self.dtype, name='local_rep_conv_1x1'
    )
    y = to_tokens(y)  # [B, H, W, D]

    whole = whole_patches(size, side)
    y = unfold(resize_maps(y, whole), side)  # [B, pixels, patches, D]
    for i in range(self.depth):
      y = TransformerLayer(
        num_heads=self.num_heads,
        mlp_ratio=self.mlp_ratio,
        dropout_rate=self.dropout_rate,
        attention_dropout_rate=self.attention_dropout_rate,
        norm_epsilon=self.norm_epsilon,
        dtype=self.dtype,
        name=f'global_rep_{i}',
      )(y, not train)
    y = nn.LayerNorm(self.norm_epsilon, self.dtype, name='global_rep_norm')(y)
    y = resize_maps(fold(y, side, whole), size)  # [B, H, W, D]

    y = conv(channels, name='conv_proj')(y, train)  # [B, H, W, C]
    fusion = conv(channels, self.conv_kernel_size, name='fusion')
    return fusion(jnp.concatenate([x, y], axis=-1), train)


class MobileViT(Backbone, kw_only=True):
  """MobileViT: float images [B, H, W, C] to float32 logits [B, num_classes].

  Attributes:
    num_classes: number of logits; 0 or less leaves the head out and returns the mean over
      positions, [B, neck_hidden_sizes[6]], in `dtype`.
    neck_hidden_sizes: channels of the first convolution, of layers 1 to 5, and of the last
      convolution.
    hidden_sizes: widths of the transformers in layers 3 to 5.
    depths: their numbers of layers.
    num_heads: attention heads.
    mlp_ratio: hidden width of their MLPs over their width.
    expand_ratio: of the inverted residuals: channels within over those before.
    conv_kernel_size: n, side of the convolutions before and after the transformers, odd.
    patch_size: side of a patch in positions of a map.
    strides: of the first convolution and of layers 1 to 5, 1 or 2 each.
    dropout_rate: dropout of both branches of a transformer layer.
    attention_dropout_rate: dropout of the attention weights.
    classifier_dropout_rate: dropout of what the head reads.
    norm_epsilon: epsilon of every LayerNorm.
    dtype: dtype of the computation. Parameters, statistics of the normalisations, attention logits
      and softmax, and the logits are float32 in any case.
    axis_name: the mapped axis over which a batch is spread, where there is one, so that its
      statistics are those of the whole batch; only training needs it.

  Raises:
    FieldError: on construction, for options that don't fit each other.
  """

  num_classes: int
  neck_hidden_sizes: tuple[Width, ...] = SIZES['S'][0]
  hidden_sizes: tuple[Width, ...] = SIZES['S'][1]
  depths: tuple[Layers, ...] = (2, 4, 3)
  num_heads: Count = 4
  mlp_ratio: Factor = 2.0
  expand_ratio: Factor = 4.0
  conv_kernel_size: Count = 3
  patch_size: Count = 2
  strides: tuple[Count, ...] = STRIDES
  dropout_rate: Rate = 0.1
  attention_dropout_rate: Rate = 0.0
  classifier_dropout_rate: Rate = 0.1
  norm_epsilon: NonNegative = 1e-5
  dtype: Any = jnp.float32
  axis_name: str | None = None

  NAMED_SIZES: ClassVar[tuple[str, ...]] = tuple(SIZES)
  WEIGHT_FIELDS: ClassVar[tuple[str, ...]] = (
    'neck_hidden_sizes',
    'hidden_sizes',
    'depths',
    'num_heads',
    'mlp_ratio',
    'expand_ratio',
    'conv_kernel_size',
    'patch_size',
    'strides',
    'norm_epsilon',
  )
  FUNCTION_FIELDS: ClassVar[tuple[str, ...]] = (
    'num_heads',
    'patch_size',
    'strides',
    'norm_epsilon',
  )
  MAPS_OF: ClassVar[str] = 'layers'

  def __post_init__(self) -> None:
    fields_lib.check_ranges(self)
    _check_options(self)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, features: bool = False
  ) -> jax.Array | Features:
    """Classifies images, or returns their `Features`: a map of each of the five layers."""
    common = {'dtype': self.dtype, 'axis_name': self.axis_name}
    conv = functools.partial(layers.ConvNorm, activation=nn.silu, **common)
    first, *widths, last = self.neck_hidden_sizes
    x = conv(first, 3, self.strides[0], name='conv_1')(x, train)  # [B, H / 2, W / 2, first]
    maps = []
    for layer, (width, stride) in enumerate(zip(widths, self.strides[1:], strict=True), start=1):
      for i in range(NUM_RESIDUALS[layer - 1]):
        residual = InvertedResidual(
          width, stride if i == 0 else 1, self.expand_ratio, **common, name=f'layer_{layer}_{i}'
        )
        x = residual(x, train)
      if layer >= _FIRST_BLOCK:
        x = MobileViTBlock(
          hidden_size=self.hidden_sizes[layer - _FIRST_BLOCK],
          depth=self.depths[layer - _FIRST_BLOCK],
          num_heads=self.num_heads,
          mlp_ratio=self.mlp_ratio,
          patch_size=self.patch_size,
          conv_kernel_size=self.conv_kernel_size,
          dropout_rate=self.dropout_rate,
          attention_dropout_rate=self.attention_dropout_rate,
          norm_epsilon=self.norm_epsilon,
          **common,
          name=f'layer_{layer}_1',
        )(x, train)
      maps.append(x)  # [B, H / 2**layer, W / 2**layer, width]
    x = conv(last, name='conv_1x1_exp')(x, train).mean(axis=(1, 2))  # [B, last]
    if features:
      steps = [(self.stride(layer),) * 2 for layer in range(1, len(maps) + 1)]
      return Features(pooled=x, maps=tuple(maps), strides=tuple(steps))
    if self.num_classes <= 0:
      return x
    x = nn.Dropout(self.classifier_dropout_rate)(x, deterministic=not train)
    head = nn.Dense(
      self.num_classes,
      dtype=jnp.float32,
      kernel_init=nn.initializers.truncated_normal(0.02),
      name='output_projection',
    )
    return head(x)  # [B, num_classes]

  @nn.nowrap
  def stride(self, layer: int) -> int:
    """Returns the pixels from each element of a layer's maps, 1 to 5, to the next."""
    return math.prod(self.strides[: layer + 1])

  def summary(self) -> str:
    sizes = {entries[:2]: f'-{name}' for name, entries in SIZES.items()}
    size = sizes.get((self.neck_hidden_sizes, self.hidden_sizes), '')
    widths = '-'.join(map(str, self.hidden_sizes))
    return f'{type(self).__name__}{size}, transformers of widths {widths}'

  def layer_of(self, path: str) -> int:
    """The first convolution is layer 0; each inverted residual and MobileViT block is the next."""
    counts = [count + (layer >= _FIRST_BLOCK) for layer, count in enumerate(NUM_RESIDUALS, 1)]
    if module := _MODULE.fullmatch(path):
      return sum(counts[: int(module[1]) - 1]) + int(module[2]) + 1
    return 0 if path.startswith('conv_1/') else sum(counts) + 1

  # What there is to see.

  @property
  def num_attention_layers(self) -> int:
    return sum(self.depths)

  def attention_maps(
    self, intermediates: Mapping[str, Any], image_size: tuple[int, int], layer: int | None = None
  ) -> AttentionMaps:
    """Mean attention that each position of a layer's maps gets from those it is related to."""
    last = sum(self.depths) - 1
    layer = last if layer is None else layer
    block = next(b for b in range(len(self.depths)) if layer < sum(self.depths[: b + 1]))
    name = f'global_rep_{layer - sum(self.depths[:block])}'
    number = block + _FIRST_BLOCK
    weights = intermediates[f'layer_{number}_1'][name]['attn']['attention_weights']
    received = jnp.asarray(weights).mean(axis=-2).swapaxes(2, 3)  # [B, pixels, patches, heads]
    step = self.stride(number)
    size = tuple(-(-length // step) for length in image_size)
    maps = fold(received, self.patch_size, whole_patches(size, self.patch_size))
    maps = np.asarray(resize_maps(maps, size), np.float32).transpose(0, 3, 1, 2)
    source = f'pixels of equal place in all patches, in layer {layer} (0 to {last})'
    return AttentionMaps(maps, (step, step), (step, step), source)


def _check_options(model: MobileViT) -> None:
  """Raises FieldError for options that are unknown or don't fit each other."""
  for field, count in (
    ('neck_hidden_sizes', 7),
    ('hidden_sizes', 3),
    ('depths', 3),
    ('strides', 6),
  ):
    values = getattr(model, field)
    if len(values) != count:
      raise FieldError(field, f'{values} is not {count} numbers')
  if max(model.strides) > 2:
    raise FieldError('strides', f'{model.strides} has one that is not 1 or 2')
  for width in model.hidden_sizes:
    if width % model.num_heads:
      raise FieldError('num_heads', f'{model.num_heads} heads do not divide the width {width}')
  if model.conv_kernel_size % 2 == 0:
    raise FieldError('conv_kernel_size', f'{model.conv_kernel_size} is not odd')
