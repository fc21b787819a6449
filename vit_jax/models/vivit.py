"""ViViT (arXiv 2103.15691), with scenic's attributes, module names and parameter trees.

`ViViT` is the paper's model 1, 3 or 4, by its `attention_config`; `SpaceTimeViViT` is its model 2.

Capture: `model.apply(variables, x, mutable=['intermediates'])` also returns the attention weights
of each layer, tuples of one float32 array, under `Transformer/encoderblock_{i}`. For clips of t
frames of n tokens, and N = t * n or one more:

- model 1: `MultiHeadDotProductAttention_0/attention_weights` [B, heads, N, N];
- model 3: `MultiHeadDotProductAttention_time/attention_weights` [B * n, heads, t, t], and
  `..._space/attention_weights` [B * t, heads, n, n];
- model 4: `MultiHeadDotProductAttention_0/attention_weights_time` [B, n, heads / 2, t, t], and
  `..._space` [B, t, heads / 2, n, n];
- model 2: as model 1, of N = n or one more under `SpatialTransformer`, with B * t in place of B,
  and of N = t or one more under `TemporalTransformer`.

With a tokenizer there are maps as in `vit`, of the frames one by one; `num_frames` is t.
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
from ml_collections.config_dict import placeholder

from vit_jax.errors import FieldError, UsageError, check_choice, nearest
from vit_jax.models import fields as fields_lib
from vit_jax.models import layers, vit
from vit_jax.models import variables as variables_lib
from vit_jax.models.backbone import (
  AttentionMaps,
  Backbone,
  Features,
  Fitted,
  Layout,
  Positions,
  Shape,
  TokenMaps,
  trace_shapes,
)
from vit_jax.ranges import Count, Entries, Layers, NonNegative, Positive, Rate, Width

CLASSIFIERS = ('token', '0', 'gap', 'gmp', 'gsp')
TEMPORAL_ENCODINGS = ('3d_conv', 'temporal_sampling')
FACTORIZED_SELF_ATTENTION = 'factorized_self_attention_block'
FACTORIZED_DOT_PRODUCT = 'factorized_dot_product_attention'
ATTENTION_TYPES = ('spacetime', FACTORIZED_SELF_ATTENTION, FACTORIZED_DOT_PRODUCT)
ATTENTION_ORDERS = ('time_space', 'space_time')

_POOLING = {'gap': jnp.mean, 'gmp': jnp.max, 'gsp': jnp.sum}
_KERNEL = 'embedding/kernel'
_POSITIONS = 'posembed_input/pos_embedding'
_BLOCK = re.compile(r'(Spatial|Temporal|)Transformer/encoderblock_(\d+)/(.*)')
# Modules of a block of an image model -> those of `EncoderFactorizedSelfAttentionBlock`.
_FACTORIZED_NAMES = {
  'LayerNorm_0': 'LayerNorm_space',
  'MultiHeadDotProductAttention_0': 'MultiHeadDotProductAttention_space',
  'LayerNorm_1': 'LayerNorm_mlp',
  'MlpBlock_0': 'MlpBlock',
}


def central_frame_initializer() -> Callable[..., jax.Array]:
  """Returns an initialiser of tubelet kernels that see nothing but a tubelet's central frame."""

  def init(key: jax.Array, shape: Shape, dtype: Any = jnp.float32) -> jax.Array:
    kernel = nn.initializers.lecun_normal()(key, shape, dtype)
    return jnp.zeros_like(kernel).at[len(kernel) // 2].set(kernel[len(kernel) // 2])

  return init


def average_frame_initializer() -> Callable[..., jax.Array]:
  """Returns an initialiser of tubelet kernels that see the sum of a tubelet's frames."""

  def init(key: jax.Array, shape: Shape, dtype: Any = jnp.float32) -> jax.Array:
    kernel = nn.initializers.lecun_normal()(key, shape, dtype)
    return jnp.broadcast_to(kernel[:1], shape)

  return init


KERNEL_INITIALIZERS = {
  'central_frame_initializer': central_frame_initializer(),
  'average_frame_initializer': average_frame_initializer(),
  'lecun_normal': nn.initializers.lecun_normal(),
}


def sample_frames(num_frames: int, count: int) -> np.ndarray:
  """Returns the indices of `count` frames, as far from each other as from a clip's ends.

  A clip of no more frames gives all that it has. As scenic's common_lib/video_utils.py.
  """
  if count >= num_frames:
    return np.arange(num_frames)
  step = num_frames / (count + 1)
  return np.round(step * np.arange(1, count + 1)).astype(int)


class TubeletEmbedding(nn.Module):
  """Projects tubelets of clips: [B, T, H, W, C] to [B, t, h, w, features].

  The parameters are those of a convolution: `kernel`, [frames, height, width, C, features], or
  [height, width, C, features] of a single frame, and `bias`.

  Attributes:
    features: width of a token.
    patch_size: (height, width) of a tubelet in pixels.
    frames: of a tubelet; None embeds each frame by itself.
    kernel_init: initialiser of the kernel.
    dtype: dtype of the computation; parameters are float32.

  Raises:
    FieldError: tubelets don't tile the clip exactly.
  """

  features: int
  patch_size: tuple[int, int]
  frames: int | None = None
  kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, clips: jax.Array) -> jax.Array:
    batch, *size, channels = clips.shape
    tubelet = (self.frames or 1, *self.patch_size)
    if any(whole % part for whole, part in zip(size, tubelet, strict=True)):
      raise FieldError(
        'patches.size',
        f'{_text(tubelet)} (frames, height, width) does not divide clips of {_text(size)}',
      )
    shape = (*tubelet[self.frames is None :], channels, self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    clips, kernel, bias = (a.astype(self.dtype) for a in (clips, kernel, bias))
    t, h, w = (whole // part for whole, part in zip(size, tubelet, strict=True))
    x = clips.reshape(batch, t, tubelet[0], h, tubelet[1], w, tubelet[2], channels)
    kernel = kernel.reshape(*tubelet, channels, self.features)
    # A matrix product: on a CPU that is far faster than a convolution over three axes.
    return jnp.einsum('btfhpwqc,fpqcd->bthwd', x, kernel) + bias


def factorized_dot_product_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  frames: int,
  bias: jax.Array | None = None,
  mask: jax.Array | None = None,
  dropout_rng: jax.Array | None = None,
  **options: Any,
) -> jax.Array:
  """Attends with the first half of the heads over time, with the others over space.

  Args:
    query: [B, frames * n, heads, d]; so are `key` and `value`.
    key: see `query`.
    value: see `query`.
    frames: of a clip.
    bias: None.
    mask: None.
    dropout_rng: key for dropout of the weights.
    **options: as for `layers.dot_product_attention`.

  Raises:
    ValueError: for a bias or a mask, which would have to be two.
  """
  if bias is not None or mask is not None:
    raise ValueError('factorised attention takes neither bias nor mask')
  batch, count, heads, width = query.shape
  inputs = [
    x.reshape(batch, frames, count // frames, heads, width) for x in (query, key, value)
  ]  # [B, t, n, heads, d]
  keys = (None, None) if dropout_rng is None else jax.random.split(dropout_rng)
  time = layers.dot_product_attention(
    *(x[..., : heads // 2, :].swapaxes(1, 2) for x in inputs),
    dropout_rng=keys[0],
    name='attention_weights_time',
    **options,
  ).swapaxes(1, 2)  # [B, t, n, heads / 2, d]
  space = layers.dot_product_attention(
    *(x[..., heads // 2 :, :] for x in inputs),
    dropout_rng=keys[1],
    name='attention_weights_space',
    **options,
  )
  return jnp.concatenate([time, space], axis=-2).reshape(query.shape)


class EncoderFactorizedSelfAttentionBlock(nn.Module):
  """A layer that attends over time and over space, one after the other: [B, t * n, D] to the same.

  Attributes, beside those of `vit.Encoder1DBlock`:
    temporal_dims: frames of a clip, t.
    attention_order: one of `ATTENTION_ORDERS`.
    attention_out_init: initialiser of the kernel of each attention's `out`.
  """

  mlp_dim: int
  num_heads: int
  temporal_dims: int
  attention_order: str = 'time_space'
  attention_out_init: Callable[..., jax.Array] = nn.initializers.xavier_uniform()
  dtype: Any = jnp.float32
  dropout_rate: float = 0.1
  attention_dropout_rate: float = 0.1
  stochastic_depth: float = 0.0
  norm_epsilon: float = 1e-6
  activation: str = 'gelu'

  @nn.compact
  def __call__(self, inputs: jax.Array, deterministic: bool) -> jax.Array:
    batch, count, width = inputs.shape
    x = inputs.reshape(batch, self.temporal_dims, -1, width)  # [B, t, n, D]
    for axis in self.attention_order.split('_'):
      x = x + self._attend(x, axis, deterministic)
    x = x.reshape(batch, count, width)
    y = nn.LayerNorm(self.norm_epsilon, self.dtype, name='LayerNorm_mlp')(x)
    y = layers.MlpBlock(
      mlp_dim=self.mlp_dim,
      dropout_rate=self.dropout_rate,
      activation_fn=layers.ACTIVATIONS[self.activation],
      dtype=self.dtype,
      name='MlpBlock',
    )(y, deterministic=deterministic)
    return layers.StochasticDepth(self.stochastic_depth)(y, deterministic) + x

  @nn.nowrap
  def _attend(self, x: jax.Array, axis: str, deterministic: bool) -> jax.Array:
    """Returns what attention over 'time' or 'space' adds to [B, t, n, D]."""
    swap = axis == 'time'
    x = x.swapaxes(1, 2) if swap else x  # attention is along the second axis but one
    *outer, length, width = x.shape
    y = nn.LayerNorm(self.norm_epsilon, self.dtype, name=f'LayerNorm_{axis}')(x)
    y = layers.MultiHeadDotProductAttention(
      num_heads=self.num_heads,
      dtype=self.dtype,
      dropout_rate=self.attention_dropout_rate,
      out_kernel_init=self.attention_out_init,
      name=f'MultiHeadDotProductAttention_{axis}',
    )(y.reshape(-1, length, width), deterministic=deterministic)
    y = nn.Dropout(self.dropout_rate)(y, deterministic).reshape(*outer, length, width)
    y = y.swapaxes(1, 2) if swap else y
    return layers.StochasticDepth(self.stochastic_depth)(y, deterministic)


class Encoder(vit.Encoder):
  """`vit.Encoder` for tokens of `frames` frames, frame by frame: [B, t * n, D] to the same.

  Attributes, beside those of `vit.Encoder`:
    attention_config: as of `ViViT`; None attends over all tokens at once.
  """

  attention_config: Entries | None = None

  @nn.nowrap
  def block(self, layer: int) -> nn.Module:
    config = self.attention_config or {}
    if config.get('type') == FACTORIZED_SELF_ATTENTION:
      method = config.get('attention_kernel_init_method') or 'xavier'
      return super().block(
        layer,
        EncoderFactorizedSelfAttentionBlock,
        temporal_dims=self.frames,
        attention_order=_attention_order(config),
        attention_out_init=_OUT_INITIALIZERS[method],
      )
    if config.get('type') == FACTORIZED_DOT_PRODUCT:
      attention = functools.partial(factorized_dot_product_attention, frames=self.frames)
      return super().block(layer, attention_fn=attention)
    return super().block(layer)


# scenic's 'zero' zeroes the kernels of query, key and value, too, so that no gradient reaches any
# of them. The outputs at the start are the same.
_OUT_INITIALIZERS = {
  'xavier': nn.initializers.xavier_uniform(),
  'zero': nn.initializers.zeros,
}


class VideoTransformer(Backbone, kw_only=True):
  """What `ViViT` and `SpaceTimeViViT` share: clips [B, T, H, W, C], float, to logits.

  Attributes:
    num_classes: number of logits; 0 or less leaves the head out and returns features in `dtype`.
    hidden_size: width of a token, D.
    patches: {'size': (height, width, frames)} of a tubelet, or (height, width) of a patch of the
      frames that are sampled.
    temporal_encoding_config: a dict of
      method: '3d_conv' embeds tubelets, 'temporal_sampling' patches of some frames;
      n_sampled_frames: how many, for the latter; evenly spaced;
      kernel_init_method: of tubelets: 'central_frame_initializer' (their central frame alone),
        'average_frame_initializer' (all frames alike), or 'lecun_normal' (at random; None, too).
        The first two say, too, what becomes of an image model's patch kernel.
    representation_size: width of a dense layer with tanh before the head; None leaves it out.
    dropout_rate: dropout of position embeddings and of the branches of each layer.
    attention_dropout_rate: dropout of the attention weights.
    stochastic_droplayer_rate: drop rate of the last layer; grows linearly from 0 at the first.
    classifier: what the head reads: the class 'token', the first token of a model without one
      ('0'), or the mean ('gap'), maximum ('gmp') or sum ('gsp') of the tokens.
    return_prelogits: return what the head would read, in place of logits.
    dtype: dtype of the computation. Parameters, normalisation statistics, attention logits and
      softmax, and the logits are float32 in any case.
    posemb_init_stddev: standard deviation of position embeddings at the start.
    norm_epsilon: epsilon of every LayerNorm.
    activation: of the MLPs: a name in `layers.ACTIVATIONS`.
    remat: recompute the layers' activations in the backward pass, saving memory for time.
    remat_policy: as of `vit.ViT`.
    scan: as of `vit.ViT`.
    tokenizer: as of `vit.ViT`, with the type 'video' in place of 'dynamic': each frame is tokenized
      by itself, and num_tokens are learned of each.

  Raises:
    FieldError: on construction, for options that don't fit each other; when called, for clips that
      the tubelets don't tile.
  """

  num_classes: int
  hidden_size: Width
  patches: Entries
  temporal_encoding_config: Entries
  attention_config: Entries
  representation_size: Width | None = None
  dropout_rate: Rate = 0.1
  attention_dropout_rate: Rate = 0.1
  stochastic_droplayer_rate: Rate = 0.0
  classifier: str = 'gap'
  return_prelogits: bool = False
  dtype: Any = jnp.float32
  posemb_init_stddev: NonNegative = 0.02
  norm_epsilon: NonNegative = 1e-6
  activation: str = 'gelu'
  remat: bool = False
  remat_policy: str | None = None
  scan: bool = False
  tokenizer: Entries | None = None

  INPUT: ClassVar[str] = 'video'
  NOT_CONFIG: ClassVar[tuple[str, ...]] = (*Backbone.NOT_CONFIG, 'return_prelogits')
  CONFIG_DEFAULTS: ClassVar[Mapping[str, Any]] = {
    'hidden_size': 192,
    'patches': {'size': (16, 16, 2)},
    'temporal_encoding_config': {
      'method': '3d_conv',
      'n_sampled_frames': placeholder(int),
      'kernel_init_method': 'central_frame_initializer',
    },
    'dropout_rate': 0.0,
    'attention_dropout_rate': 0.0,
    'tokenizer': vit.TOKENIZER,
  }
  NO_DECAY: ClassVar[str] = r'(^|/)(bias|scale|pos_embedding|cls\w*)$'
  WEIGHT_FIELDS: ClassVar[tuple[str, ...]] = (
    'hidden_size',
    'patches',
    'temporal_encoding_config',
    'attention_config',
    'classifier',
    'norm_epsilon',
    'activation',
    'tokenizer',
  )
  FUNCTION_FIELDS: ClassVar[tuple[str, ...]] = ('activation', 'norm_epsilon')

  def __post_init__(self) -> None:
    fields_lib.check_ranges(self)
    _check_options(self)
    super().__post_init__()

  @property
  def encoders(self) -> dict[str, int]:
    """Name in the parameters -> number of layers of each encoder, in the order of the call."""
    raise NotImplementedError

  @property
  def patch_size(self) -> tuple[int, int]:
    """(height, width) of a tubelet or a patch in pixels."""
    return tuple(self.patches['size'][:2])

  @property
  def tubelet_frames(self) -> int | None:
    """Frames of a tubelet; None where frames are embedded one by one."""
    return self.patches['size'][2] if len(self.patches['size']) == 3 else None

  @property
  def has_class_token(self) -> bool:
    """Whether token 0 is a class token."""
    return self.classifier == 'token'

  @property
  def learns_tokens(self) -> bool:
    """Whether there are other tokens than those of the tubelets, in some layers."""
    return layers.learns_tokens(self.tokenizer)

  @nn.nowrap
  def grid(self, input_size: Sequence[int]) -> tuple[int, int, int]:
    """Returns (frames, rows, columns) of the tokens of clips of (frames, height, width)."""
    frames, *image = input_size
    if self.tubelet_frames:
      count = frames // self.tubelet_frames
    else:
      count = min(frames, self.temporal_encoding_config['n_sampled_frames'])
    return count, *layers.patch_grid(image, self.patch_size, self.patch_size)

  @nn.nowrap
  def embed(self, x: jax.Array) -> jax.Array:
    """Embeds clips [B, T, H, W, C]: [B, t, h, w, D]."""
    config = self.temporal_encoding_config
    if not self.tubelet_frames:
      x = x[:, sample_frames(x.shape[1], config['n_sampled_frames'])]
    init = KERNEL_INITIALIZERS[config.get('kernel_init_method') or 'lecun_normal']
    x = TubeletEmbedding(
      features=self.hidden_size,
      patch_size=self.patch_size,
      frames=self.tubelet_frames,
      kernel_init=init if self.tubelet_frames else nn.initializers.lecun_normal(),
      dtype=self.dtype,
      name='embedding',
    )(x)
    self.sow('intermediates', 'num_frames', np.int32(x.shape[1]))
    return x

  @nn.nowrap
  def encode(
    self, x: jax.Array, name: str, *, cls: str, train: bool, outputs: Any = None, **attributes: Any
  ) -> jax.Array:
    """Encodes tokens [B, N, D] after a class token, if there is one.

    Args:
      x: the tokens.
      name: of the encoder in the parameters.
      cls: of the class token, likewise.
      train: turns on dropout and stochastic depth.
      outputs: as for `vit.Encoder`.
      **attributes: more of `Encoder`.
    """
    if self.has_class_token:
      token = self.param(cls, nn.initializers.zeros, (1, 1, x.shape[-1]))
      token = jnp.tile(token.astype(x.dtype), [x.shape[0], 1, 1])
      x = jnp.concatenate([token, x], axis=1)  # [B, 1 + N, D]
    return Encoder(
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      stochastic_depth=self.stochastic_droplayer_rate,
      dtype=self.dtype,
      has_cls_token=self.has_class_token,
      posemb_init_stddev=self.posemb_init_stddev,
      norm_epsilon=self.norm_epsilon,
      activation=self.activation,
      remat=self.remat,
      remat_policy=self.remat_policy,
      scan=self.scan,
      name=name,
      **attributes,
    )(x, train=train, outputs=outputs)

  @nn.nowrap
  def pool(self, tokens: jax.Array) -> jax.Array:
    """Reduces tokens [B, N, D] to what is read of them: [B, D]."""
    if self.classifier in _POOLING:
      return _POOLING[self.classifier](tokens, axis=1)
    return tokens[:, 0]

  @nn.nowrap
  def head(self, x: jax.Array, features: bool) -> jax.Array:
    """Returns float32 logits of pooled tokens [B, D], or what the last layer of the head reads."""
    if self.representation_size is not None:
      x = nn.tanh(nn.Dense(self.representation_size, dtype=self.dtype, name='pre_logits')(x))
    return x if features or self.return_prelogits else vit.classify(self, x)

  # What the project asks.

  def layer_of(self, path: str) -> int | None:
    """As `vit.ViT.layer_of`; what leads from one encoder to the next is of the layer before."""
    before, names = 0, list(self.encoders)
    if path.startswith(('embedding/', 'cls/')):
      return 0
    for name in names:
      if path == f'cls_{name}' or path.startswith(f'{name}/posembed_input/'):
        return before
      if path.startswith(f'{name}/'):
        block = re.match(r'\w+/encoderblock_(\d+)/', path)
        number = int(block[1]) + 1 if block else self.encoders[name]
        return before + number + (not block and name == names[-1])
      before += self.encoders[name]
    return before + 1

  def variable_shapes(self, input_size: Shape | None, channels: int) -> dict[str, Shape]:
    size = input_size or (self.tubelet_frames or 1, *self.patch_size)
    if self.learns_tokens:
      return trace_shapes(self, size, channels)
    # Layers are all alike, and tracing dozens takes seconds.
    shapes = trace_shapes(self.with_layers(1), size, channels)
    copies = {}
    for encoder, depth in self.encoders.items():
      first = f'{encoder}/encoderblock_0/'
      block = {n.removeprefix(first): s for n, s in shapes.items() if n.startswith(first)}
      for layer in range(1, depth):
        copies |= {f'{encoder}/encoderblock_{layer}/{name}': s for name, s in block.items()}
    return shapes | copies

  @nn.nowrap
  def with_layers(self, count: int) -> 'VideoTransformer':
    """Returns a copy whose encoders have so many layers."""
    raise NotImplementedError

  @classmethod
  def complete(cls, fields: dict[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Takes the size of an image model's patch for that of a tubelet, which gets two frames."""
    if len((theirs.get('patches') or {}).get('size') or ()) == 2:
      default = cls.CONFIG_DEFAULTS['patches']['size']
      method = (fields['temporal_encoding_config'] or {}).get('method')
      frames = default[2:] if method in (None, '3d_conv') else ()
      theirs = {**theirs, 'patches': {'size': (*theirs['patches']['size'], *frames)}}
    completed = super().complete(fields, theirs)
    for field, default in fields_lib.plain(fields_lib.defaults(cls)).items():
      if isinstance(completed.get(field), Mapping) and isinstance(default, Mapping):
        completed[field] = {
          name: default.get(name) if value is None else value
          for name, value in completed[field].items()
        }
    return completed

  # Weights of other models, of images too.

  def fit(self, arrays, shapes, old, new, path) -> Fitted:
    """As scenic's projects/vivit/model_utils.py, and for grids that need not be square.

    Position embeddings are interpolated in space and in time, and the kernel is resampled. Of an
    image model, the position embeddings are repeated for each frame, and the patch kernel is
    spread over a tubelet's frames as `temporal_encoding_config.kernel_init_method` says: all of it
    on the central frame, or its share on each (arXiv 2103.15691, section 3.4). Attention over time
    of factorised layers begins as a copy of that over space; where
    `attention_config.attention_kernel_init_method` is 'zero', it adds nothing at first, as in the
    paper. A temporal transformer starts anew.
    """
    source, notes = old.backbone, []
    self.check_source(source)
    of_images = isinstance(source, vit.ViT)
    if of_images:
      source.check_plain(path, head=False)
    if of_images and source.patch_stride != source.patch_size:
      raise UsageError(f'{path}: overlapping patches (stride {source.stride}) make no tubelets')
    arrays = self.rename(dict(arrays), source, notes)
    if _KERNEL in arrays:
      arrays[_KERNEL] = self._fit_kernel(arrays[_KERNEL], new.channels, notes)
    grid, had = self.grid(new.input_size), source.has_class_token
    old_grid = (None, *source.grid(old.image_size)) if of_images else source.grid(old.input_size)
    for name, axes in self.position_axes.items():
      if name not in arrays:
        continue
      count = arrays[name].shape[1] - had
      if count != math.prod(old_grid[axis] or 1 for axis in axes):
        raise UsageError(f'{path}: {count} position embeddings do not fit its images')
      arrays[name] = self._fit_positions(
        arrays[name], [old_grid[i] for i in axes], [grid[i] for i in axes], had, notes
      )
    return Fitted(arrays, self._differing(arrays, shapes, source), notes)

  @nn.nowrap
  def check_source(self, source: Backbone) -> None:
    """Raises FieldError for a model whose weights can't become this one's."""

  @property
  def position_axes(self) -> dict[str, tuple[int, ...]]:
    """Path of position embeddings -> the axes of `grid` that they are of."""
    raise NotImplementedError

  @nn.nowrap
  def rename(
    self, arrays: dict[str, np.ndarray], source: Backbone, notes: list[str]
  ) -> dict[str, np.ndarray]:
    """Returns the source's weights by the names here."""
    raise NotImplementedError

  def _fit_kernel(self, kernel: np.ndarray, channels: int, notes: list[str]) -> np.ndarray:
    """Returns a patch or tubelet kernel for this model's tubelets."""
    if kernel.shape[:-1] == (*self.patches['size'][2:], *self.patch_size, channels):
      return kernel
    old = kernel.shape
    frames = kernel if kernel.ndim == 5 else kernel[None]
    frames = np.stack(
      [
        layers.resample_patch_kernel(layers.adapt_channels(frame, channels), self.patch_size)
        for frame in frames
      ]
    )  # [frames, height, width, C, D]
    if not self.tubelet_frames:
      kernel = frames.sum(axis=0)  # which on a still clip is the same
    elif kernel.ndim == 5:
      kernel = _fit_frames(frames, self.tubelet_frames)
    else:
      kernel = self._inflate(frames)
    notes.append(f'embedding: from {_text(old[:-1])} to {_text(kernel.shape[:-1])}')
    return kernel

  def _inflate(self, kernel: np.ndarray) -> np.ndarray:
    """Returns an image's patch kernel, [1, height, width, C, D], as one of tubelets."""
    frames = self.tubelet_frames
    method = self.temporal_encoding_config.get('kernel_init_method')
    if method == 'average_frame_initializer':
      return np.repeat(kernel / np.float32(frames), frames, axis=0)
    if method == 'central_frame_initializer':
      return np.concatenate([kernel if i == frames // 2 else 0 * kernel for i in range(frames)])
    raise FieldError(
      'temporal_encoding_config.kernel_init_method',
      f'{method!r} does not say what becomes of the kernel of an image model; '
      "choose 'central_frame_initializer' or 'average_frame_initializer'",
    )

  def _fit_positions(
    self,
    positions: np.ndarray,
    old: Sequence[int | None],
    new: Sequence[int],
    had: bool,
    notes: list[str],
  ) -> np.ndarray:
    """Returns position embeddings [1, (1 +) N, D] of a grid as those of another.

    Args:
      positions: of the source.
      old: its grid: (frames,), (rows, columns) or (frames, rows, columns); no frames of an image.
      new: the grid here.
      had: whether the first is a class token's.
      notes: gets a line for each change.
    """
    if tuple(old) == tuple(new) and had == self.has_class_token:
      return positions
    prefix, x = positions[:, :had], positions[:, had:]
    width = x.shape[-1]
    if len(new) > 1:
      x = np.concatenate(
        [
          layers.resize_position_embeddings(frame, tuple(old[-2:]), tuple(new[-2:]))
          for frame in x.reshape(-1, 1, math.prod(old[-2:]), width)
        ]
      )  # [frames, rows * columns, D]
    if len(new) != 2:
      x = x.reshape(1, old[0] or 1, -1)  # [1, frames, (rows * columns *) D]
      x = layers.resize_position_embeddings(x, (x.shape[1], 1), (new[0], 1))
    x = x.reshape(1, -1, width)
    if tuple(old) != tuple(new):
      notes.append(f'position embeddings: from {_text([n or 1 for n in old])} to {_text(new)}')
    if self.has_class_token and not had:
      notes.append('position of the class token: zeros')
      prefix = np.zeros_like(positions[:, :1])
    elif had and not self.has_class_token:
      notes.append('position of the class token: left out')
      prefix = prefix[:, :0]
    return np.concatenate([prefix, x], axis=1)

  def _differing(self, arrays, shapes, source: Backbone) -> list[str]:
    """Returns the modules that may differ between two models, and do."""
    theirs = {name: array.shape for name, array in arrays.items()}
    learner = re.compile(r'\w+/Token(Learner|Fuser)\w*')
    learners = {m[0] for name in {*theirs, *shapes} if (m := learner.match(name))}
    optional = ['cls', *(f'cls_{name}' for name in self.encoders), 'MAPHead_0', 'pre_logits']
    new_encoders = [n for n in self.encoders if not any(t.startswith(f'{n}/') for t in theirs)]

    def parts(tree, module):
      return {n: s for n, s in tree.items() if f'{n}/'.startswith(f'{module}/')}

    same_layer = source.tokenizer_layer == self.tokenizer_layer
    return [
      *new_encoders,
      *(m for m in optional if parts(theirs, m) != parts(shapes, m)),
      *(m for m in sorted(learners) if not same_layer or parts(theirs, m) != parts(shapes, m)),
    ]

  @property
  def tokenizer_layer(self) -> int | None:
    """As of `vit.ViT`."""
    depth = next(iter(self.encoders.values()))
    return layers.tokenizer_layer(self.tokenizer, depth) if self.learns_tokens else None

  # What there is to see, of the middle frame of a clip.

  def layout(self, image_size: tuple[int, int]) -> Layout:
    return Layout(
      grid=layers.patch_grid(image_size, self.patch_size, self.patch_size),
      patch=self.patch_size,
      stride=self.patch_size,
      num_prefix=int(self.has_class_token),
    )

  @property
  def num_attention_layers(self) -> int:
    return 0 if self.learns_tokens else next(iter(self.encoders.values()))

  def attention_maps(
    self, intermediates: Mapping[str, Any], image_size: tuple[int, int], layer: int | None = None
  ) -> AttentionMaps | None:
    """What the class token pays to each patch of the middle frame, or the mean token does.

    Of model 2 it is the spatial transformer's; of models 3 and 4, attention over space.
    """
    if self.learns_tokens:
      return None
    encoder, depth = next(iter(self.encoders.items()))
    layer = depth - 1 if layer is None else layer
    frames = int(intermediates['num_frames'])
    weights = np.asarray(self.space_attention(intermediates[encoder][f'encoderblock_{layer}']))
    received = weights[..., 0, 1:] if self.has_class_token else weights.mean(axis=-2)
    heads, grid = received.shape[-2], self.layout(image_size).grid
    if received.shape[-1] == math.prod(grid):  # of each frame: [B (* t) (, t), heads, h * w]
      maps = received.reshape(-1, frames, heads, *grid)[:, frames // 2]
    else:  # [B, heads, t * h * w]
      maps = received.reshape(-1, heads, frames, *grid)[:, :, frames // 2]
    reader = 'class token' if self.has_class_token else 'mean token'
    source = f'{reader} in layer {layer} (0 to {depth - 1}), to the middle frame'
    return AttentionMaps(maps, self.patch_size, self.patch_size, source)

  @nn.nowrap
  def space_attention(self, block: Mapping[str, Any]) -> Any:
    """Returns the weights of attention over space that a block captured."""
    return block['MultiHeadDotProductAttention_0']['attention_weights']

  def token_maps(
    self, intermediates: Mapping[str, Any], image_size: tuple[int, int]
  ) -> list[TokenMaps]:
    if not self.learns_tokens:
      return []
    grid, frames = self.layout(image_size).grid, int(intermediates['num_frames'])
    return [
      TokenMaps(
        m.reshape(-1, frames, m.shape[1], *grid)[:, frames // 2],
        f'TokenLearner before layer {self.tokenizer_layer + i}, in the middle frame',
      )
      for i, m in enumerate(vit.learned_maps(intermediates[next(iter(self.encoders))]))
    ]

  def patch_kernel(self, params: Mapping[str, Any]) -> np.ndarray:
    """Tubelets' filters have their frames side by side."""
    kernel = np.asarray(params['embedding']['kernel'])
    return kernel if kernel.ndim == 4 else np.concatenate(list(kernel), axis=1)

  def positions(self, params: Mapping[str, Any], image_size: tuple[int, int]) -> Positions:
    path = next(iter(self.position_axes))
    embeddings = np.asarray(variables_lib.flatten({'params': params})[path])[0]
    grid = self.layout(image_size).grid
    frames = embeddings[int(self.has_class_token) :].reshape(-1, *grid, self.hidden_size)
    of_frame = '' if len(frames) == 1 else ', those of the middle frame'
    return Positions(f'learned{of_frame}', frames[len(frames) // 2])


class ViViT(VideoTransformer, kw_only=True):
  """ViViT's models 1, 3 and 4 (arXiv 2103.15691): clips [B, T, H, W, C], float, to logits.

  Attributes, beside those of `VideoTransformer`:
    mlp_dim: hidden width of the MLPs.
    num_layers: number of layers.
    num_heads: number of attention heads; divides `hidden_size`.
    attention_config: a dict of
      type: 'spacetime' attends over all tokens at once (model 1), 'factorized_self_attention_block'
        over time and over space in each layer (model 3), 'factorized_dot_product_attention' over
        time with half of the heads and over space with the others (model 4); models 3 and 4 have
        no class token;
      attention_order: of model 3, one of `ATTENTION_ORDERS` ('time_space' if absent);
      attention_kernel_init_method: of model 3: 'xavier', or 'zero', with which attention adds
        nothing at the start ('xavier' if absent).
    fc_norm_epsilon: norm what is read of the tokens, a LayerNorm `fc_norm` with this epsilon, in
      place of the tokens after the last layer, as VideoMAE's classifiers do (arXiv 2203.12602);
      None: the tokens.
    return_preclassifier: return all tokens, [B, N, D], in place of logits.

  Raises:
    FieldError: on construction, for options that don't fit each other.
  """

  mlp_dim: Width
  num_layers: Layers
  num_heads: Count
  fc_norm_epsilon: Positive | None = None
  return_preclassifier: bool = False

  NOT_CONFIG: ClassVar[tuple[str, ...]] = (*VideoTransformer.NOT_CONFIG, 'return_preclassifier')
  CONFIG_DEFAULTS: ClassVar[Mapping[str, Any]] = {
    **VideoTransformer.CONFIG_DEFAULTS,
    'mlp_dim': 768,
    'num_layers': 12,
    'num_heads': 3,
    'attention_config': {
      'type': 'spacetime',
      'attention_order': 'time_space',
      'attention_kernel_init_method': 'xavier',
    },
  }
  WEIGHT_FIELDS: ClassVar[tuple[str, ...]] = (
    *VideoTransformer.WEIGHT_FIELDS,
    'mlp_dim',
    'num_layers',
    'num_heads',
    'fc_norm_epsilon',
  )
  FUNCTION_FIELDS: ClassVar[tuple[str, ...]] = (*VideoTransformer.FUNCTION_FIELDS, 'num_heads')
  HEAD_READS: ClassVar[tuple[str, ...]] = ('pre_logits', 'fc_norm')

  def __post_init__(self) -> None:
    _check_attention(self)
    super().__post_init__()

  @property
  def attention_type(self) -> str:
    """Over what layers attend."""
    return self.attention_config.get('type') or 'spacetime'

  @property
  def encoders(self) -> dict[str, int]:
    return {'Transformer': self.num_layers}

  @nn.nowrap
  def with_layers(self, count: int) -> 'ViViT':
    return self.clone(num_layers=count)

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool = False,
    features: bool = False,
    outputs: list[jax.Array] | None = None,
  ) -> jax.Array | Features:
    """Classifies clips.

    Args:
      x: float [B, T, H, W, C].
      train: turns on dropout and stochastic depth.
      features: return `Features` in place of logits.
      outputs: as for `vit.Encoder`.
    """
    x = self.embed(x)  # [B, t, h, w, D]
    batch, frames, *grid, width = x.shape
    tokens = self.encode(
      x.reshape(batch, -1, width),
      'Transformer',
      cls='cls',
      train=train,
      outputs=outputs,
      num_layers=self.num_layers,
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      frames=frames,
      grid=tuple(grid),
      attention_config=self.attention_config,
      tokenizer=self.tokenizer,
      final_norm=self.fc_norm_epsilon is None,
    )  # [B, (1 +) t * h * w, D]
    if self.return_preclassifier:
      return tokens
    x = self.pool(tokens)  # [B, D]
    if self.fc_norm_epsilon is not None:
      x = nn.LayerNorm(self.fc_norm_epsilon, self.dtype, name='fc_norm')(x)
    x = self.head(x, features)  # [B, num_classes]
    if features:
      return Features(pooled=x, tokens=tokens, num_prefix=int(self.has_class_token))
    return x

  def features(self, x: jax.Array, *, train: bool = False, layers: Sequence[int] = ()) -> Features:
    outputs = [] if layers else None
    found = self(x, train=train, features=True, outputs=outputs)
    return found.replace(layers=tuple(outputs[layer] for layer in layers))

  def summary(self) -> str:
    return (
      f'ViViT ({self.attention_type}), {self.num_layers} layers of width {self.hidden_size}, '
      f'{self.num_heads} heads, {_text(self.patches["size"])} patches'
    )

  @nn.nowrap
  def space_attention(self, block: Mapping[str, Any]) -> Any:
    if self.attention_type == FACTORIZED_SELF_ATTENTION:
      return block['MultiHeadDotProductAttention_space']['attention_weights']
    if self.attention_type == FACTORIZED_DOT_PRODUCT:
      return block['MultiHeadDotProductAttention_0']['attention_weights_space']
    return super().space_attention(block)

  @classmethod
  def takes_weights_of(cls, other: type[Backbone]) -> bool:
    return vit.ViT.takes_weights_of(other) or issubclass(other, ViViT)

  @nn.nowrap
  def check_source(self, source: Backbone) -> None:
    theirs = getattr(source, 'attention_type', None)
    if FACTORIZED_SELF_ATTENTION == theirs != self.attention_type:
      raise FieldError(
        'attention_config.type', f'{self.attention_type!r}, but the weights are for {theirs!r}'
      )
    if theirs == FACTORIZED_SELF_ATTENTION:
      ours, theirs = (_attention_order(model.attention_config) for model in (self, source))
      if ours != theirs:
        raise FieldError(
          'attention_config.attention_order', f'{ours!r}, but the weights are for {theirs!r}'
        )

  @property
  def position_axes(self) -> dict[str, tuple[int, ...]]:
    return {f'Transformer/{_POSITIONS}': (0, 1, 2)}

  @nn.nowrap
  def rename(
    self, arrays: dict[str, np.ndarray], source: Backbone, notes: list[str]
  ) -> dict[str, np.ndarray]:
    theirs = getattr(source, 'attention_type', 'spacetime')
    if theirs == self.attention_type:
      return arrays
    notes.append(f'attention: from {theirs} to {self.attention_type}')
    if self.attention_type == FACTORIZED_DOT_PRODUCT or theirs == FACTORIZED_DOT_PRODUCT:
      return arrays
    return self._factorize(arrays, notes)

  def _factorize(self, arrays: dict[str, np.ndarray], notes: list[str]) -> dict[str, np.ndarray]:
    """Returns the weights of plain blocks as those of blocks with attention over time, too."""
    starts_at_zero = self.attention_config.get('attention_kernel_init_method') == 'zero'
    begins = 'adds nothing' if starts_at_zero else 'as over space'
    notes.append(f'attention over time: {begins} at first')
    renamed = {}
    for name, array in arrays.items():
      if not (match := _BLOCK.fullmatch(name)):
        renamed[name] = array
        continue
      module, _, leaf = match[3].partition('/')
      block = name.removesuffix(match[3])
      module = _FACTORIZED_NAMES[module]
      renamed[f'{block}{module}/{leaf}'] = array
      over_time = f'{block}{module.replace("_space", "_time")}/{leaf}'
      if module == 'LayerNorm_space':
        renamed[over_time] = np.full_like(array, leaf == 'scale')
      elif module.endswith('_space'):
        renamed[over_time] = array * 0 if starts_at_zero and leaf.startswith('out/') else array
    return renamed


class SpaceTimeViViT(VideoTransformer, kw_only=True):
  """ViViT's model 2, the factorised encoder (arXiv 2103.15691): clips [B, T, H, W, C] to logits.

  One transformer encodes each frame by itself, a second one what is read of the frames.

  Attributes, beside those of `VideoTransformer`:
    spatial_mlp_dim: hidden width of the MLPs, of the first.
    spatial_num_layers: number of layers, likewise.
    spatial_num_heads: number of attention heads, likewise.
    temporal_mlp_dim: of the second.
    temporal_num_layers: likewise.
    temporal_num_heads: likewise.
    attention_config: a dict of
      type: 'factorized_encoder';
      spatial_only_baseline: take the mean over frames in place of the second (False if absent).
  """

  spatial_mlp_dim: Width
  spatial_num_layers: Layers
  spatial_num_heads: Count
  temporal_mlp_dim: Width
  temporal_num_layers: Layers
  temporal_num_heads: Count

  CONFIG_DEFAULTS: ClassVar[Mapping[str, Any]] = {
    **VideoTransformer.CONFIG_DEFAULTS,
    'spatial_mlp_dim': 768,
    'spatial_num_layers': 12,
    'spatial_num_heads': 3,
    'temporal_mlp_dim': 768,
    'temporal_num_layers': 4,
    'temporal_num_heads': 3,
    'attention_config': {'type': 'factorized_encoder', 'spatial_only_baseline': False},
  }
  _SIZES: ClassVar[tuple[str, ...]] = tuple(
    f'{part}_{size}'
    for part in ('spatial', 'temporal')
    for size in ('mlp_dim', 'num_layers', 'num_heads')
  )
  WEIGHT_FIELDS: ClassVar[tuple[str, ...]] = (*VideoTransformer.WEIGHT_FIELDS, *_SIZES)
  FUNCTION_FIELDS: ClassVar[tuple[str, ...]] = (
    *VideoTransformer.FUNCTION_FIELDS,
    'spatial_num_heads',
    'temporal_num_heads',
  )
  HEAD_READS: ClassVar[tuple[str, ...]] = ('pre_logits', 'TemporalTransformer')

  def __post_init__(self) -> None:
    entries = ('type', 'spatial_only_baseline')
    _check_entries('attention_config', self.attention_config, entries)
    kind = self.attention_config.get('type') or 'factorized_encoder'
    check_choice('attention_config.type', kind, ('factorized_encoder',))
    super().__post_init__()

  @property
  def is_spatial_only(self) -> bool:
    """Whether the mean over frames stands for the temporal transformer."""
    return bool(self.attention_config.get('spatial_only_baseline'))

  @property
  def encoders(self) -> dict[str, int]:
    temporal = {} if self.is_spatial_only else {'TemporalTransformer': self.temporal_num_layers}
    return {'SpatialTransformer': self.spatial_num_layers, **temporal}

  @nn.nowrap
  def with_layers(self, count: int) -> 'SpaceTimeViViT':
    return self.clone(spatial_num_layers=count, temporal_num_layers=count)

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, features: bool = False
  ) -> jax.Array | Features:
    """Classifies clips; arguments are those of `ViViT`."""
    x = self.embed(x)  # [B, t, h, w, D]
    batch, frames, *grid, width = x.shape
    tokens = self.encode(
      x.reshape(batch * frames, -1, width),
      'SpatialTransformer',
      cls='cls_SpatialTransformer',
      train=train,
      num_layers=self.spatial_num_layers,
      mlp_dim=self.spatial_mlp_dim,
      num_heads=self.spatial_num_heads,
      grid=tuple(grid),
      tokenizer=self.tokenizer,
    )  # [B * t, (1 +) h * w, D]
    tokens = self.pool(tokens).reshape(batch, frames, width)  # [B, t, D]
    if self.is_spatial_only:
      x, num_prefix = tokens.mean(axis=1), 0
    else:
      tokens = self.encode(
        tokens,
        'TemporalTransformer',
        cls='cls_TemporalTransformer',
        train=train,
        num_layers=self.temporal_num_layers,
        mlp_dim=self.temporal_mlp_dim,
        num_heads=self.temporal_num_heads,
      )  # [B, (1 +) t, D]
      x, num_prefix = self.pool(tokens), int(self.has_class_token)
    x = self.head(x, features)  # [B, num_classes]
    return Features(pooled=x, tokens=tokens, num_prefix=num_prefix) if features else x

  def features(self, x: jax.Array, *, train: bool = False, layers: Sequence[int] = ()) -> Features:
    """Its tokens are those of the frames.

    Raises:
      UsageError: layers are asked for; tokens of the two transformers aren't the same ones.
    """
    if layers:
      raise UsageError("the factorised encoder's layers have no tokens in common to return")
    return self(x, train=train, features=True)

  def summary(self) -> str:
    depths = ' + '.join(map(str, self.encoders.values()))
    return (
      f'ViViT (factorized_encoder), {depths} layers of width {self.hidden_size}, '
      f'{_text(self.patches["size"])} patches'
    )

  @classmethod
  def takes_weights_of(cls, other: type[Backbone]) -> bool:
    return vit.ViT.takes_weights_of(other) or issubclass(other, SpaceTimeViViT)

  @classmethod
  def complete(cls, fields: dict[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    sizes = ('mlp_dim', 'num_layers', 'num_heads')  # of an image model
    spatial = {f'spatial_{name}': theirs[name] for name in sizes if name in theirs}
    return super().complete(fields, {**theirs, **spatial})

  @property
  def position_axes(self) -> dict[str, tuple[int, ...]]:
    return {
      f'SpatialTransformer/{_POSITIONS}': (1, 2),
      f'TemporalTransformer/{_POSITIONS}': (0,),
    }

  @nn.nowrap
  def rename(
    self, arrays: dict[str, np.ndarray], source: Backbone, notes: list[str]
  ) -> dict[str, np.ndarray]:
    return {
      re.sub(r'^(cls$|Transformer/)', _spatial_name, name): array for name, array in arrays.items()
    }


def _spatial_name(match: re.Match) -> str:
  return {'cls': 'cls_SpatialTransformer'}.get(match[0], 'SpatialTransformer/')


def _attention_order(config: Mapping[str, Any]) -> str:
  return config.get('attention_order') or 'time_space'


def _fit_frames(kernel: np.ndarray, count: int) -> np.ndarray:
  """Returns a tubelet kernel, float32 [frames, ...], for so many frames.

  It is the least-squares solution v of B^T v = w, with B the matrix of linear interpolation between
  frames, so that halved or with more frames it computes the same of a still clip.
  """
  frames = len(kernel)
  if frames == count:
    return kernel
  weights = layers.resize_weights(np.arange(count), count, frames).astype(np.float64)
  return np.einsum('ij,j...->i...', np.linalg.pinv(weights.T), kernel).astype(np.float32)


def _text(size: Sequence[int]) -> str:
  return 'x'.join(map(str, size))


def _check_options(model: VideoTransformer) -> None:
  """Raises FieldError for options, of either model, that are unknown or don't fit each other."""
  check_choice('classifier', model.classifier, CLASSIFIERS)
  check_choice('activation', model.activation, layers.ACTIVATIONS)
  layers.check_remat(model.remat, model.remat_policy)
  encoding = model.temporal_encoding_config
  entries = ('method', 'n_sampled_frames', 'kernel_init_method')
  _check_entries('temporal_encoding_config', encoding, entries)
  check_choice('temporal_encoding_config.method', encoding.get('method'), TEMPORAL_ENCODINGS)
  samples = encoding['method'] == 'temporal_sampling'
  if (method := encoding.get('kernel_init_method')) is not None:
    check_choice('temporal_encoding_config.kernel_init_method', method, KERNEL_INITIALIZERS)
  count = encoding.get('n_sampled_frames')
  if samples and (type(count) is not int or count < 1):
    raise FieldError(
      'temporal_encoding_config.n_sampled_frames', f'{count!r} is not a number from 1 on'
    )
  size, axes = model.patches.get('size'), '(height, width' + (')' if samples else ', frames)')
  sides = size if isinstance(size, list | tuple) else ()
  if len(sides) != 3 - samples or not all(type(side) is int and side > 0 for side in sides):
    raise FieldError('patches.size', f'{size!r} is not {axes}, as {encoding["method"]!r} has it')
  for encoder, depth in model.encoders.items():
    prefix = encoder.removesuffix('Transformer').lower()
    _check_sizes(model, f'{prefix}_' if prefix else '')
    if encoder == next(iter(model.encoders)):
      layers.check_tokenizer(model.tokenizer, depth, 'video')


def _check_sizes(model: VideoTransformer, prefix: str) -> None:
  heads = getattr(model, f'{prefix}num_heads')
  if model.hidden_size % heads:
    raise FieldError(
      f'{prefix}num_heads', f'{heads} heads do not divide hidden_size={model.hidden_size}'
    )


def _check_attention(model: ViViT) -> None:
  """Raises FieldError for an attention_config of no use to model 1, 3 or 4."""
  config, kind = model.attention_config, model.attention_type
  check_choice('attention_config.type', kind, ATTENTION_TYPES)
  entries = ('type', 'attention_order', 'attention_kernel_init_method')
  _check_entries('attention_config', config, entries)
  for entry, allowed in (
    ('attention_order', ATTENTION_ORDERS),
    ('attention_kernel_init_method', _OUT_INITIALIZERS),
  ):
    if config.get(entry) is not None:
      check_choice(f'attention_config.{entry}', config[entry], allowed)
  if kind != 'spacetime' and model.classifier in ('token', '0'):
    raise FieldError(
      'classifier', f'{model.classifier!r}, but {kind} has no class token; choose gap, gmp or gsp'
    )
  if kind == FACTORIZED_DOT_PRODUCT and model.num_heads % 2:
    raise FieldError('num_heads', f'{model.num_heads} heads are not half for time, half for space')


def _check_entries(field: str, config: Mapping[str, Any], known: Sequence[str]) -> None:
  """Raises FieldError for an entry of a dict that is set and isn't known."""
  for name in config:
    if name not in known and config[name] is not None:
      raise FieldError(f'{field}.{name}', f'{config[name]!r}: there is none{nearest(name, known)}')
