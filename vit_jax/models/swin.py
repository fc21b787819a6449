"""Swin Transformer (arXiv 2103.14030) and version 2 (arXiv 2111.09883), with Microsoft's names.

github.com/microsoft/Swin-Transformer: `layers_0/blocks_1/norm1`, `layers_0/downsample`, ...; but
queries, keys and values have a projection each, and the head is `output_projection`.

Capture: `model.apply(variables, x, mutable=['intermediates'])` also returns the attention weights
of each block, a tuple of one float32 [batch, windows, heads, queries, keys], at
`layers_{i}/blocks_{j}/attn/attention_weights`.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import FieldError, check_choice
from vit_jax.models import fields as fields_lib
from vit_jax.models import layers
from vit_jax.models.backbone import (
  AttentionMaps,
  Backbone,
  Features,
  Fitted,
  Layout,
  Positions,
  Shape,
)
from vit_jax.models.layers import cpu
from vit_jax.ranges import Count, Entries, Factor, Layers, NonNegative, Number, Rate, Width

WINDOWINGS = ('microsoft', 'timm')

_MASKED = -100.0  # added to logits between places that a shift has brought together
_MOST_SCALE = math.log(100)  # of cosine attention
_BIAS_WIDTH = 512  # hidden width of the network that gives version 2's position bias
_BLOCK = re.compile(r'layers_(\d+)/(?:blocks_(\d+)|downsample)/.*')
_normal = nn.initializers.truncated_normal(0.02)

# (embed_dim, depths, num_heads), table 7 of arXiv 2103.14030, appendix.
SIZES = {
  'T': (96, (2, 2, 6, 2), (3, 6, 12, 24)),
  'S': (96, (2, 2, 18, 2), (3, 6, 12, 24)),
  'B': (128, (2, 2, 18, 2), (4, 8, 16, 32)),
  'L': (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


def shift_bias(
  size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> np.ndarray:
  """Returns what is added to the logits of shifted windows: float32 [windows, 1, N, N], 0 or -100.

  A cyclic shift brings positions from opposite sides of the map into one window; the bias keeps
  them from attending to each other.
  """
  regions = np.zeros((1, *size, 1))
  for axis in range(2):
    position = np.arange(size[axis])
    part = (position >= size[axis] - window[axis]) * 1 + (position >= size[axis] - shift[axis])
    part = part if shift[axis] else np.zeros_like(part)
    regions = 3 * regions + part.reshape((1, -1, 1, 1) if axis == 0 else (1, 1, -1, 1))
  regions = np.asarray(layers.window_partition(regions, window))[0, :, :, 0]  # [windows, N]
  apart = regions[:, :, None] != regions[:, None, :]
  return np.where(apart, _MASKED, 0).astype(np.float32)[:, None]


class WindowAttention(nn.Module):
  """Attention within windows, with a bias by relative position: [B, windows, N, C] to the same.

  Attributes:
    num_heads: number of attention heads.
    window: (height, width); N positions.
    qkv_bias: whether queries, keys and values have a bias (keys not in version 2).
    version: 1: products, and a table of biases. 2: cosines with a learned scale, and biases from a
      network of the relative position.
    pretrained_window: of version 2: the side of the window that the network was trained with; 0 is
      this one.
    dropout_rate: dropout of the output.
    attention_dropout_rate: dropout of the attention weights.
    dtype: dtype of the computation; parameters, biases and logits are float32.
  """

  num_heads: int
  window: tuple[int, int]
  qkv_bias: bool = True
  version: int = 1
  pretrained_window: int = 0
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, shifted: np.ndarray | None, deterministic: bool) -> jax.Array:
    """`shifted`, from `shift_bias`, is added to the logits."""
    width = x.shape[-1]
    to_heads = functools.partial(
      nn.DenseGeneral,
      (self.num_heads, width // self.num_heads),
      dot_general=cpu.dot_general,
      dtype=self.dtype,
      kernel_init=_normal,
    )
    query = to_heads(use_bias=self.qkv_bias, name='query')(x)  # [B, windows, N, heads, d]
    key = to_heads(use_bias=self.qkv_bias and self.version == 1, name='key')(x)
    value = to_heads(use_bias=self.qkv_bias, name='value')(x)
    if self.version == 2:
      ten = nn.initializers.constant(math.log(10))
      scale = self.param('logit_scale', ten, (self.num_heads, 1, 1))
      scale = jnp.exp(jnp.minimum(scale, _MOST_SCALE))[:, :, 0]  # [heads, 1]
      # The product divides by sqrt(d), which a cosine isn't.
      query = (_normalize(query) * scale * query.shape[-1] ** 0.5).astype(self.dtype)
      key = _normalize(key).astype(self.dtype)
    bias = self.position_bias()  # [heads, N, N]
    if shifted is not None:
      bias = bias + shifted  # [windows, heads, N, N]
    drops = self.attention_dropout_rate > 0 and not deterministic
    x = layers.dot_product_attention(
      query,
      key,
      value,
      bias=bias,
      dropout_rng=self.make_rng('dropout') if drops else None,
      dropout_rate=self.attention_dropout_rate,
      deterministic=deterministic,
      module=self,
    )
    dense = nn.DenseGeneral(
      width,
      axis=(-2, -1),
      dot_general=cpu.dot_general,
      dtype=self.dtype,
      kernel_init=_normal,
      name='proj',
    )
    return nn.Dropout(self.dropout_rate)(dense(x), deterministic)  # [B, windows, N, C]

  @nn.nowrap
  def position_bias(self) -> jax.Array:
    """Returns float32 [heads, N, N]."""
    index = layers.relative_position_index(self.window, 'window_size')
    if self.version == 2:
      coordinates = layers.relative_coordinates(self.window, self.pretrained_window)
      hidden = nn.relu(nn.Dense(_BIAS_WIDTH, kernel_init=_normal, name='cpb_mlp_0')(coordinates))
      table = nn.Dense(self.num_heads, use_bias=False, kernel_init=_normal, name='cpb_mlp_2')
      return 16 * nn.sigmoid(table(hidden)[index]).transpose(2, 0, 1)
    shape = (math.prod(2 * side - 1 for side in self.window), self.num_heads)
    table = self.param('relative_position_bias_table', _normal, shape)
    return table[index].transpose(2, 0, 1)


def _normalize(x: jax.Array) -> jax.Array:
  """Returns float32 vectors of unit length, along the last axis."""
  x = x.astype(jnp.float32)
  # Keys of padding are zero, where a root has no derivative.
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))


class SwinBlock(nn.Module):
  """Attention in windows, shifted or not, and an MLP: [B, H, W, C] to the same.

  Attributes:
    num_heads: number of attention heads.
    window: (height, width) of a window.
    shift: (vertical, horizontal) positions by which windows are shifted.
    mlp_ratio: hidden width of the MLP over C.
    qkv_bias, version, pretrained_window, attention_dropout_rate: as for `WindowAttention`.
    pad_first: pad to whole windows before the shift, as Microsoft, or after it, as timm.
    dropout_rate: dropout of both branches.
    stochastic_depth: probability of dropping each branch of an example.
    norm_epsilon: epsilon of the LayerNorms; before the branches in version 1, after them in 2.
    activation: name in `layers.ACTIVATIONS`.
    dtype: dtype of the computation; parameters are float32.
  """

  num_heads: int
  window: tuple[int, int]
  shift: tuple[int, int]
  mlp_ratio: float = 4.0
  qkv_bias: bool = True
  version: int = 1
  pretrained_window: int = 0
  pad_first: bool = True
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  stochastic_depth: float = 0.0
  norm_epsilon: float = 1e-5
  activation: str = 'gelu_exact'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, inputs: jax.Array, deterministic: bool) -> jax.Array:
    norm1, norm2 = (
      nn.LayerNorm(self.norm_epsilon, self.dtype, name=name) for name in ('norm1', 'norm2')
    )
    drop_path = layers.StochasticDepth(self.stochastic_depth)
    x = inputs if self.version == 2 else norm1(inputs)
    x = self.attend(x, deterministic)
    x = norm1(x) if self.version == 2 else x
    x = inputs + drop_path(x, deterministic)  # [B, H, W, C]

    y = x if self.version == 2 else norm2(x)
    width = y.shape[-1]
    dense = functools.partial(
      nn.Dense, dot_general=cpu.dot_general, dtype=self.dtype, kernel_init=_normal
    )
    y = dense(int(self.mlp_ratio * width), name='mlp_fc1')(y)
    y = layers.activate(layers.ACTIVATIONS[self.activation], y, deterministic=deterministic)
    y = nn.Dropout(self.dropout_rate)(y, deterministic)
    y = nn.Dropout(self.dropout_rate)(dense(width, name='mlp_fc2')(y), deterministic)
    y = norm2(y) if self.version == 2 else y
    return x + drop_path(y, deterministic)

  @nn.nowrap
  def attend(self, x: jax.Array, deterministic: bool) -> jax.Array:
    """Attends within windows: [B, H, W, C] to the same."""
    _, height, width, _ = x.shape
    shifts = any(self.shift)
    padding = padding_to((height, width), self.window)
    size = height + padding[0], width + padding[1]
    if self.pad_first:
      x = _pad(x, padding)
    if shifts:
      x = jnp.roll(x, (-self.shift[0], -self.shift[1]), axis=(1, 2))
    if not self.pad_first:
      x = _pad(x, padding)
    shifted = shift_bias(size, self.window, self.shift) if shifts else None
    x = layers.window_partition(x, self.window)  # [B, windows, N, C]
    x = WindowAttention(
      num_heads=self.num_heads,
      window=self.window,
      qkv_bias=self.qkv_bias,
      version=self.version,
      pretrained_window=self.pretrained_window,
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      dtype=self.dtype,
      name='attn',
    )(x, shifted, deterministic)
    x = layers.window_reverse(x, self.window, size)  # [B, H + padding, W + padding, C]
    if not self.pad_first:
      x = x[:, :height, :width]
    if shifts:
      x = jnp.roll(x, self.shift, axis=(1, 2))
    return x[:, :height, :width]


def padding_to(size: Sequence[int], multiple: Sequence[int]) -> tuple[int, int]:
  """Returns what (height, width) lack to be multiples."""
  down, right = (-side % step for side, step in zip(size, multiple, strict=True))
  return down, right


def _pad(x: jax.Array, padding: tuple[int, int]) -> jax.Array:
  """Adds rows and columns of zeros below and to the right of [B, H, W, C]."""
  return jnp.pad(x, ((0, 0), (0, padding[0]), (0, padding[1]), (0, 0)))


class PatchMerging(nn.Module):
  """Joins 2x2 neighbours: [B, H, W, C] to [B, H / 2, W / 2, 2 C], sides rounded up.

  Attributes:
    version: the LayerNorm is before the projection in version 1, after it in 2.
    norm_epsilon: epsilon of the LayerNorm.
    dtype: dtype of the computation; parameters are float32.
  """

  version: int = 1
  norm_epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    x = _pad(x, padding_to(x.shape[1:3], (2, 2)))
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
    x = x.reshape(batch, height // 2, width // 2, 4 * channels)
    norm = nn.LayerNorm(self.norm_epsilon, self.dtype, name='norm')
    reduction = nn.Dense(
      2 * channels,
      use_bias=False,
      dot_general=cpu.dot_general,
      dtype=self.dtype,
      kernel_init=_normal,
      name='reduction',
    )
    return norm(reduction(x)) if self.version == 2 else reduction(norm(x))


class Stage(nn.Module):
  """Blocks on maps of one size, every second with shifted windows, and the merging after them.

  Attributes:
    depth: number of blocks.
    num_heads: number of attention heads.
    window: (height, width) of a window.
    shift: (vertical, horizontal) shift of every second block.
    stochastic_depth: rate of each block.
    merges: whether 2x2 neighbours are joined at the end.
    mlp_ratio, qkv_bias, version, pretrained_window, pad_first, dropout_rate,
    attention_dropout_rate, norm_epsilon, activation, dtype: as for `SwinBlock`.
    remat: recompute the blocks' activations in the backward pass.
    remat_policy: as of `vit.ViT`.
  """

  depth: int
  num_heads: int
  window: tuple[int, int]
  shift: tuple[int, int]
  stochastic_depth: tuple[float, ...]
  merges: bool
  mlp_ratio: float = 4.0
  qkv_bias: bool = True
  version: int = 1
  pretrained_window: int = 0
  pad_first: bool = True
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  norm_epsilon: float = 1e-5
  activation: str = 'gelu_exact'
  dtype: Any = jnp.float32
  remat: bool = False
  remat_policy: str | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, deterministic: bool, outputs: list[jax.Array] | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Returns (the maps before merging, those after it); `outputs` takes those after each block."""
    kind = SwinBlock
    if self.remat:
      kind = nn.remat(kind, policy=layers.remat_policy(self.remat_policy), static_argnums=(2,))
    for i in range(self.depth):
      x = kind(
        num_heads=self.num_heads,
        window=self.window,
        shift=self.shift if i % 2 else (0, 0),
        mlp_ratio=self.mlp_ratio,
        qkv_bias=self.qkv_bias,
        version=self.version,
        pretrained_window=self.pretrained_window,
        pad_first=self.pad_first,
        dropout_rate=self.dropout_rate,
        attention_dropout_rate=self.attention_dropout_rate,
        stochastic_depth=self.stochastic_depth[i],
        norm_epsilon=self.norm_epsilon,
        activation=self.activation,
        dtype=self.dtype,
        name=f'blocks_{i}',
      )(x, deterministic)  # [B, H, W, C]
      if outputs is not None:
        outputs.append(x)
    if not self.merges:
      return x, x
    merging = PatchMerging(self.version, self.norm_epsilon, self.dtype, name='downsample')
    return x, merging(x)  # [B, H / 2, W / 2, 2 C]


class Swin(Backbone, kw_only=True):
  """Swin Transformer: float images [B, H, W, C] to float32 logits [B, num_classes].

  Attributes:
    num_classes: number of logits; 0 or less leaves the head out and returns features in `dtype`.
    patches: {'size': (height, width)} in pixels; images are padded to whole patches.
    embed_dim: channels of the first stage; each stage has twice those of the one before.
    depths: number of blocks of each stage.
    num_heads: attention heads of each stage.
    window_size: side of a window in positions, or (height, width) where `windowing` is 'timm'.
    mlp_ratio: hidden width of the MLPs over the channels.
    qkv_bias: whether queries, keys and values have a bias.
    absolute_positions: add learned position embeddings to the patches.
    dropout_rate: dropout of the patches and of both branches of each block.
    attention_dropout_rate: dropout of the attention weights.
    stochastic_depth: drop rate of the last block; grows linearly from 0 at the first.
    norm_epsilon: epsilon of every LayerNorm.
    activation: of the MLPs: a name in `layers.ACTIVATIONS`.
    version: 2 has cosine attention, a continuous position bias and norms after the branches.
    pretrained_window_sizes: of version 2: side of the window that each stage was trained with
      before; None: the same as now.
    windowing: where windows don't divide a map or are as large as it. 'microsoft' (and Hugging
      Face): a map whose shorter side isn't longer than the window isn't shifted, and its windows
      have that side; maps are padded before they are shifted. 'timm': each axis by itself; maps are
      padded after they are shifted. Elsewhere the two are the same.
    remat: recompute the blocks' activations in the backward pass, saving memory for time.
    remat_policy: as of `vit.ViT`.
    dtype: dtype of the computation. Parameters, normalisation statistics, attention logits and
      softmax, and the logits are float32 in any case.

  Raises:
    FieldError: on construction, for options that don't fit each other.
  """

  num_classes: int
  embed_dim: Width = 96
  depths: tuple[Layers, ...] = (2, 2, 6, 2)
  num_heads: tuple[Count, ...] = (3, 6, 12, 24)
  window_size: Count | tuple[Count, ...] = 7
  patches: Entries | None = None
  mlp_ratio: Factor = 4.0
  qkv_bias: bool = True
  absolute_positions: bool = False
  dropout_rate: Rate = 0.0
  attention_dropout_rate: Rate = 0.0
  stochastic_depth: Rate = 0.1
  norm_epsilon: NonNegative = 1e-5
  activation: str = 'gelu_exact'
  version: int = 1
  pretrained_window_sizes: tuple[Number, ...] | None = None
  windowing: str = 'microsoft'
  remat: bool = False
  remat_policy: str | None = None
  dtype: Any = jnp.float32

  # A tuple may be given for a window that isn't square.
  CONFIG_DEFAULTS: ClassVar[Mapping[str, Any]] = {
    'patches': {'size': (4, 4)},
    'window_size': (7,),
  }
  NO_DECAY: ClassVar[str] = (
    r'(^|/)(bias|scale|relative_position_bias_table|absolute_pos_embed|logit_scale)$|cpb_mlp'
  )
  NAMED_SIZES: ClassVar[tuple[str, ...]] = tuple(SIZES)
  WEIGHT_FIELDS: ClassVar[tuple[str, ...]] = (
    'embed_dim',
    'depths',
    'num_heads',
    'window_size',
    'patches',
    'mlp_ratio',
    'qkv_bias',
    'absolute_positions',
    'norm_epsilon',
    'activation',
    'version',
    'pretrained_window_sizes',
    'windowing',
  )
  FUNCTION_FIELDS: ClassVar[tuple[str, ...]] = (
    'activation',
    'norm_epsilon',
    'num_heads',
    'version',
  )
  PATCH_HOOKS: ClassVar[tuple[str, ...]] = ('map_patches',)

  def __post_init__(self) -> None:
    fields_lib.check_ranges(self)
    _check_options(self)
    super().__post_init__()

  @property
  def patch_size(self) -> tuple[int, int]:
    """(height, width) of a patch in pixels."""
    return (4, 4) if self.patches is None else layers.as_pair(self.patches['size'])

  @nn.nowrap
  def grid(self, image_size: Sequence[int], stage: int = 0) -> tuple[int, int]:
    """Returns (rows, columns) of the maps of a stage, of images of (height, width) pixels."""
    sides = zip(image_size, self.patch_size, strict=True)
    rows, columns = (-(-side // (patch * 2**stage)) for side, patch in sides)
    return rows, columns

  @nn.nowrap
  def window_and_shift(self, grid: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the (height, width) of windows on maps of (rows, columns), and their shift."""
    window = layers.as_pair(self.window_size)
    if self.windowing == 'timm':
      pairs = list(zip(grid, window, strict=True))
      window = tuple(min(side, w) for side, w in pairs)
      return window, tuple(0 if side <= w else w // 2 for side, w in pairs)
    side = min(*grid, window[0])
    return (side, side), (0, 0) if min(grid) <= window[0] else (side // 2, side // 2)

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool = False,
    features: bool = False,
    map_patches: Callable[[jax.Array], jax.Array] | None = None,
    outputs: list[jax.Array] | None = None,
  ) -> jax.Array | Features:
    """Classifies images.

    Args:
      x: float [B, H, W, C].
      train: turns on dropout and stochastic depth.
      features: return `Features` in place of logits: the maps of each stage before merging.
      map_patches: as in `Backbone.PATCH_HOOKS`.
      outputs: a list that takes the maps after each block.
    """
    norm = functools.partial(nn.LayerNorm, self.norm_epsilon, self.dtype)
    x = _pad(x, padding_to(x.shape[1:3], self.patch_size))
    patches = nn.Conv(
      self.embed_dim,
      self.patch_size,
      self.patch_size,
      padding='VALID',
      dtype=self.dtype,
      name='patch_embed_proj',
    )
    x = norm(name='patch_embed_norm')(patches(x))  # [B, h, w, C]
    if map_patches is not None:
      x = map_patches(x)
    if self.absolute_positions:
      shape = (1, x.shape[1] * x.shape[2], self.embed_dim)
      positions = self.param('absolute_pos_embed', _normal, shape)
      x = x + positions.reshape(1, *x.shape[1:]).astype(x.dtype)
    x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)

    rates = np.linspace(0, self.stochastic_depth, sum(self.depths)).tolist()
    maps = []
    for stage, depth in enumerate(self.depths):
      first = sum(self.depths[:stage])
      window, shift = self.window_and_shift(x.shape[1:3])
      before, x = Stage(
        depth=depth,
        num_heads=self.num_heads[stage],
        window=window,
        shift=shift,
        stochastic_depth=tuple(rates[first : first + depth]),
        merges=stage < len(self.depths) - 1,
        mlp_ratio=self.mlp_ratio,
        qkv_bias=self.qkv_bias,
        version=self.version,
        pretrained_window=(self.pretrained_window_sizes or (0,) * len(self.depths))[stage],
        pad_first=self.windowing == 'microsoft',
        dropout_rate=self.dropout_rate,
        attention_dropout_rate=self.attention_dropout_rate,
        norm_epsilon=self.norm_epsilon,
        activation=self.activation,
        dtype=self.dtype,
        remat=self.remat,
        remat_policy=self.remat_policy,
        name=f'layers_{stage}',
      )(x, not train, outputs)
      maps.append(before)  # [B, h / 2**stage, w / 2**stage, C * 2**stage]
    normed = norm(name='norm')(x)  # [B, h / 8, w / 8, 8 C]
    x = normed.mean(axis=(1, 2))  # [B, 8 C]
    if features:
      steps = [tuple(side * 2**stage for side in self.patch_size) for stage in range(len(maps))]
      return Features(pooled=x, maps=tuple(maps), normed=normed, strides=tuple(steps))
    if self.num_classes <= 0:
      return x
    head = nn.Dense(
      self.num_classes, dtype=jnp.float32, kernel_init=_normal, name='output_projection'
    )
    return head(x)  # [B, num_classes]

  def features(
    self,
    x: jax.Array,
    *,
    train: bool = False,
    layers: Sequence[int] = (),
    **hooks: Callable[[jax.Array], jax.Array],
  ) -> Features:
    """As of `Backbone`; layers are blocks, counted over all stages, flattened to tokens."""
    outputs = [] if layers else None
    found = self(x, train=train, features=True, outputs=outputs, **hooks)
    kept = [outputs[layer] for layer in layers]
    return found.replace(layers=tuple(y.reshape(len(y), -1, y.shape[-1]) for y in kept))

  def summary(self) -> str:
    size = 'x'.join(map(str, dict.fromkeys(layers.as_pair(self.window_size))))
    return (
      f'{type(self).__name__} v{self.version}, {"-".join(map(str, self.depths))} blocks from width '
      f'{self.embed_dim}, windows of {size}, {"x".join(map(str, self.patch_size))} patches'
    )

  def layer_of(self, path: str) -> int:
    """As github.com/microsoft/Swin-Transformer counts: a merging is of the block before it."""
    if block := _BLOCK.fullmatch(path):
      stage = int(block[1])
      last = self.depths[stage] - 1
      return sum(self.depths[:stage]) + (last if block[2] is None else int(block[2])) + 1
    return 0 if path.startswith(('patch_embed', 'absolute_pos')) else sum(self.depths) + 1

  def variable_shapes(self, input_size: Shape | None, channels: int) -> dict[str, Shape]:
    if input_size is None:  # large enough for whole windows in each stage
      pairs = zip(self.patch_size, layers.as_pair(self.window_size), strict=True)
      input_size = tuple(patch * window * 2 ** (len(self.depths) - 1) for patch, window in pairs)
    return super().variable_shapes(input_size, channels)

  # Weights of other Swin Transformers.

  @classmethod
  def complete(cls, fields: dict[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    completed = super().complete(fields, theirs)
    window, depths = theirs.get('window_size'), theirs.get('depths')
    if completed['version'] != 2 or window is None:
      return completed
    before, after = layers.as_pair(window), layers.as_pair(completed['window_size'])
    if before != after:
      # Positions keep the scale that they were learned on.
      before = theirs.get('pretrained_window_sizes') or (max(before),) * len(depths)
      completed['pretrained_window_sizes'] = fields['pretrained_window_sizes'] or before
    return completed

  def fit(self, arrays, shapes, old, new, path) -> Fitted:
    """As github.com/microsoft/Swin-Transformer (utils.load_pretrained): bicubic interpolation.

    Tables of position biases go to the new windows, absolute positions to the new grid, the patch
    kernel to grey or colour images and to another patch (arXiv 2212.08013).
    """
    arrays, notes = dict(arrays), []
    kernel = arrays.get('patch_embed_proj/kernel')
    if kernel is not None:
      fitted = layers.adapt_channels(kernel, new.channels)
      fitted = layers.resample_patch_kernel(fitted, self.patch_size)
      if fitted.shape != kernel.shape:
        notes.append(f'patch kernel: from {_text(kernel.shape[:3])} to {_text(fitted.shape[:3])}')
      arrays['patch_embed_proj/kernel'] = fitted
    name = 'absolute_pos_embed'
    if name in arrays.keys() & shapes.keys():
      before = old.backbone.old_grid(old.image_size, arrays[name].shape[1], path)
      after = self.grid(new.image_size)
      if before != after:
        table = resize_bicubic(arrays[name][0].reshape(*before, -1), after)
        arrays[name] = table.reshape(shapes[name])
        notes.append(f'position embeddings: resized from {_text(before)} to {_text(after)}')
    for stage in range(len(self.depths)):
      self._fit_biases(arrays, stage, old, new, path, notes)
    self._check_windows(old, new, path)
    return Fitted(arrays, [], notes)

  def _fit_biases(self, arrays, stage, old, new, path, notes) -> None:
    """Resizes the tables of position biases of a stage to this model's windows."""
    names = [n for n in arrays if re.fullmatch(rf'layers_{stage}/.*bias_table', n)]
    if not names:
      return
    before = old.backbone.old_window(old.image_size, stage, len(arrays[names[0]]), path)
    after = self.window_and_shift(self.grid(new.image_size, stage))[0]
    if before == after:
      return
    sizes = [tuple(2 * side - 1 for side in window) for window in (before, after)]
    for name in names:
      table = resize_bicubic(arrays[name].reshape(*sizes[0], -1), sizes[1])
      arrays[name] = table.reshape(-1, table.shape[-1])
    notes.append(
      f'position biases of stage {stage}: resized from windows of {_text(before)} to {_text(after)}'
    )

  @nn.nowrap
  def old_grid(
    self, image_size: tuple[int, int] | None, count: int, path: object
  ) -> tuple[int, int]:
    """Returns (rows, columns) of `count` patches of weights; a square where images aren't known."""
    side = math.isqrt(count)
    grid = (side, side) if image_size is None else self.grid(image_size)
    if math.prod(grid) != count:
      raise FieldError('image_size', f'{path} has {count} patches; give HEIGHT,WIDTH of its images')
    return grid

  @nn.nowrap
  def old_window(
    self, image_size: tuple[int, int] | None, stage: int, rows: int, path: object
  ) -> tuple[int, int]:
    """Returns the window of weights whose table of biases has so many rows."""
    side = (math.isqrt(rows) + 1) // 2
    window = (side, side)
    if image_size is not None:
      window = self.window_and_shift(self.grid(image_size, stage))[0]
    if math.prod(2 * side - 1 for side in window) != rows:
      raise FieldError(
        'image_size',
        f'{path} has {rows} position biases in stage {stage}; give HEIGHT,WIDTH of its images',
      )
    return window

  def _check_windows(self, old, new, path) -> None:
    """Raises FieldError where windows or the scale of positions differ from the weights'."""
    theirs = old.backbone
    for stage in range(len(self.depths)):
      grid = self.grid(new.image_size, stage)
      window, shift = self.window_and_shift(grid)
      if theirs.windowing != self.windowing and (
        any(padding_to(grid, window))
        or self.clone(windowing=theirs.windowing).window_and_shift(grid) != (window, shift)
      ):
        raise FieldError(
          'windowing',
          f'{self.windowing!r}, but {path} has weights for {theirs.windowing!r}, which pads or '
          f'shifts maps of {_text(grid)} otherwise',
        )
    if self.version == 2 and old.image_size is not None:
      scales = theirs.position_scales(old.image_size), self.position_scales(new.image_size)
      if scales[0] != scales[1]:
        sides = tuple(max(scale) for scale in scales[0])
        raise FieldError(
          'pretrained_window_sizes',
          f'{self.pretrained_window_sizes}, but {path} learned positions in windows of {sides}; '
          'give these',
        )

  @nn.nowrap
  def position_scales(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns the window, of each stage, whose farthest positions version 2 counts as 1."""
    stages = range(len(self.depths))
    sizes = self.pretrained_window_sizes or (0,) * len(self.depths)
    windows = [self.window_and_shift(self.grid(image_size, stage))[0] for stage in stages]
    return [(size, size) if size else w for size, w in zip(sizes, windows, strict=True)]

  # What there is to see.

  def layout(self, image_size: tuple[int, int]) -> Layout:
    return Layout(self.grid(image_size), self.patch_size, self.patch_size, 0)

  @property
  def num_attention_layers(self) -> int:
    return sum(self.depths)

  def attention_maps(
    self, intermediates: Mapping[str, Any], image_size: tuple[int, int], layer: int | None = None
  ) -> AttentionMaps:
    """Mean attention that each position gets from its window, placed where the window lies."""
    last = sum(self.depths) - 1
    layer = last if layer is None else layer
    stage = next(s for s in range(len(self.depths)) if layer < sum(self.depths[: s + 1]))
    block = layer - sum(self.depths[:stage])
    weights = intermediates[f'layers_{stage}'][f'blocks_{block}']['attn']['attention_weights']
    received = jnp.asarray(weights).mean(axis=-2).swapaxes(2, 3)  # [B, windows, N, heads]
    rows, columns = self.grid(image_size, stage)
    window, shift = self.window_and_shift((rows, columns))
    padding = padding_to((rows, columns), window)
    maps = layers.window_reverse(received, window, (rows + padding[0], columns + padding[1]))
    if self.windowing == 'timm':
      maps = maps[:, :rows, :columns]
    if block % 2:
      maps = jnp.roll(maps, shift, axis=(1, 2))
    maps = np.asarray(maps[:, :rows, :columns]).transpose(0, 3, 1, 2)
    step = tuple(side * 2**stage for side in self.patch_size)
    return AttentionMaps(maps, step, step, f'windows in block {layer} (0 to {last})')

  def patch_kernel(self, params: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(params['patch_embed_proj']['kernel'])

  def positions(self, params: Mapping[str, Any], image_size: tuple[int, int]) -> Positions | None:
    if not self.absolute_positions:
      return None
    table = np.asarray(params['absolute_pos_embed'])[0]
    return Positions('learned', table.reshape(*self.grid(image_size), -1))


def resize_bicubic(table: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes [h, w, C] to `size`, float32, as PyTorch's bicubic (a = -0.75, pixel centres)."""
  vertical, horizontal = (
    _cubic_matrix(old, new) for old, new in zip(table.shape[:2], size, strict=True)
  )
  resized = np.einsum('ih,jw,hwc->ijc', vertical, horizontal, table, optimize=True)
  return resized.astype(np.float32)


def _cubic_matrix(old: int, new: int) -> np.ndarray:
  """Returns the float64 [new, old] matrix of cubic interpolation along one axis."""
  matrix, a = np.zeros((new, old)), -0.75
  position = (np.arange(new) + 0.5) * old / new - 0.5
  first = np.floor(position).astype(int)
  for offset in range(-1, 3):
    distance = np.abs(position - first - offset)
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    weight = np.where(distance <= 1, near, far)
    np.add.at(matrix, (np.arange(new), np.clip(first + offset, 0, old - 1)), weight)
  return matrix


def _text(size: Sequence[int]) -> str:
  return 'x'.join(map(str, size))


def _check_options(model: Swin) -> None:
  """Raises FieldError for options that are unknown or don't fit each other."""
  check_choice('activation', model.activation, layers.ACTIVATIONS)
  check_choice('windowing', model.windowing, WINDOWINGS)
  layers.check_remat(model.remat, model.remat_policy)
  if model.version not in (1, 2):
    raise FieldError('version', f'{model.version} is not 1 or 2')
  if not model.depths:
    raise FieldError('depths', '() has no stage')
  if len(model.num_heads) != len(model.depths):
    raise FieldError('num_heads', f'{model.num_heads} is not one for each of depths={model.depths}')
  for stage, heads in enumerate(model.num_heads):
    channels = model.embed_dim * 2**stage
    if channels % heads:
      raise FieldError(
        'num_heads', f'{heads} heads do not divide the {channels} channels of stage {stage}'
      )
  window, patch = layers.as_pair(model.window_size), model.patch_size
  if len(window) != 2:
    raise FieldError('window_size', f'{model.window_size} is not a side, or (height, width)')
  if model.windowing == 'microsoft' and window[0] != window[1]:
    raise FieldError('window_size', f"{window} is not square, which only windowing='timm' allows")
  if len(patch) != 2 or min(patch) < 1:
    raise FieldError('patches.size', f'{patch} is not (height, width)')
  sizes = model.pretrained_window_sizes
  if sizes is not None and (model.version == 1 or len(sizes) != len(model.depths)):
    raise FieldError(
      'pretrained_window_sizes', f'{sizes} is not a side for each stage of a model of version 2'
    )
