"""Vision Transformer (arXiv 2010.11929), with scenic's module names and parameter tree.

Capture: `model.apply(variables, x, mutable=['intermediates'])` also returns the attention weights
of layer i, a tuple of one float32 [batch, heads, queries, keys], at
`Transformer/encoderblock_{i}/MultiHeadDotProductAttention_0/attention_weights`, and those of the
MAP head, [batch, heads, 1, keys], at `MAPHead_0/MultiHeadDotProductAttention_0/attention_weights`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import UsageError, check_choice
from vit_jax.models import layers

CLASSIFIERS = ('token', 'gap', 'gmp', 'gsp', 'map', 'none')
POSITIONAL_EMBEDDINGS = ('learned_1d', 'sinusoidal_1d', 'sinusoidal_2d', 'none')
PATCH_EMBEDDINGS = ('conv', 'linear')
_POOLING = {'gap': jnp.mean, 'gmp': jnp.max, 'gsp': jnp.sum}


class AddPositionEmbs(nn.Module):
  """Adds a learned embedding to each position of [B, N, D].

  Attributes:
    posemb_init: initialiser of `pos_embedding`, float32 [1, N, D].
  """

  posemb_init: Callable[..., jax.Array] = nn.initializers.normal(stddev=0.02)

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    embedding = self.param('pos_embedding', self.posemb_init, (1, *inputs.shape[1:]))
    return inputs + embedding.astype(inputs.dtype)


class MAPHead(nn.Module):
  """Multihead attention pooling: a learned probe attends to [B, N, D], giving [B, D].

  Follows arXiv 2106.04560.

  Attributes:
    mlp_dim: hidden width of the MLP; None means four times D.
    num_heads: number of attention heads.
    dtype: dtype of the computation; parameters are float32.
    norm_epsilon: epsilon of the LayerNorm.
    activation: name in `layers.ACTIVATIONS`.
  """

  mlp_dim: int | None = None
  num_heads: int = 12
  dtype: Any = jnp.float32
  norm_epsilon: float = 1e-6
  activation: str = 'gelu'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, _, width = x.shape
    probe = self.param('probe', nn.initializers.xavier_uniform(), (1, 1, width))
    probe = jnp.tile(probe.astype(self.dtype), [batch, 1, 1])
    attention = layers.MultiHeadAttention(num_heads=self.num_heads, dtype=self.dtype)
    x = attention(probe, x, sow_weights=True)

    y = nn.LayerNorm(self.norm_epsilon, self.dtype)(x)
    y = layers.MlpBlock(
      mlp_dim=self.mlp_dim,
      dropout_rate=0.0,
      activation_fn=layers.ACTIVATIONS[self.activation],
      dtype=self.dtype,
    )(y, deterministic=True)
    return (x + y)[:, 0]


class Encoder1DBlock(nn.Module):
  """One pre-norm Transformer layer: [B, N, D] to [B, N, D].

  Attributes:
    mlp_dim: hidden width of the MLP.
    num_heads: number of attention heads.
    dtype: dtype of the computation; parameters are float32.
    dropout_rate: dropout of both branches.
    attention_dropout_rate: dropout of the attention weights.
    stochastic_depth: probability of dropping each branch of an example.
    norm_epsilon: epsilon of the LayerNorms.
    activation: name in `layers.ACTIVATIONS`.
  """

  mlp_dim: int
  num_heads: int
  dtype: Any = jnp.float32
  dropout_rate: float = 0.1
  attention_dropout_rate: float = 0.1
  stochastic_depth: float = 0.0
  norm_epsilon: float = 1e-6
  activation: str = 'gelu'

  @nn.compact
  def __call__(self, inputs: jax.Array, deterministic: bool) -> jax.Array:
    x = nn.LayerNorm(self.norm_epsilon, self.dtype)(inputs)
    x = layers.MultiHeadAttention(
      num_heads=self.num_heads, dtype=self.dtype, dropout_rate=self.attention_dropout_rate
    )(x, deterministic=deterministic, sow_weights=True)
    x = nn.Dropout(self.dropout_rate)(x, deterministic)
    x = layers.StochasticDepth(self.stochastic_depth)(x, deterministic) + inputs

    y = nn.LayerNorm(self.norm_epsilon, self.dtype)(x)
    y = layers.MlpBlock(
      mlp_dim=self.mlp_dim,
      dropout_rate=self.dropout_rate,
      activation_fn=layers.ACTIVATIONS[self.activation],
      dtype=self.dtype,
    )(y, deterministic=deterministic)
    return layers.StochasticDepth(self.stochastic_depth)(y, deterministic) + x


class Encoder(nn.Module):
  """Position embeddings, `num_layers` blocks and a final norm: [B, N, D] to [B, N, D].

  Attributes:
    num_layers: number of blocks.
    mlp_dim: hidden width of the MLPs.
    num_heads: number of attention heads.
    positional_embedding: one of `POSITIONAL_EMBEDDINGS`.
    dropout_rate: dropout after the position embeddings and in the blocks.
    attention_dropout_rate: dropout of the attention weights.
    stochastic_depth: rate of the last block; grows linearly from 0 at the first.
    dtype: dtype of the computation; parameters are float32.
    has_cls_token: whether token 0 is a class token, which stands outside the grid.
    grid: (rows, columns) of the other tokens; None means a square.
    posemb_init_stddev: standard deviation of learned position embeddings at the start.
    norm_epsilon: epsilon of the LayerNorms.
    activation: name in `layers.ACTIVATIONS`.
    remat: recompute each block's activations in the backward pass instead of keeping them.
    final_norm: whether the tokens are normed after the last block.
  """

  num_layers: int
  mlp_dim: int
  num_heads: int
  positional_embedding: str = 'learned_1d'
  dropout_rate: float = 0.1
  attention_dropout_rate: float = 0.1
  stochastic_depth: float = 0.0
  dtype: Any = jnp.float32
  has_cls_token: bool = False
  grid: tuple[int, int] | None = None
  posemb_init_stddev: float = 0.02
  norm_epsilon: float = 1e-6
  activation: str = 'gelu'
  remat: bool = False
  final_norm: bool = True

  temporal_dimensions = 1  # frames per example; no attribute here, but one of EncoderMod

  @nn.compact
  def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
    x = self.add_positions(inputs)
    x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
    for layer in range(self.num_layers):
      x = self.apply_layer(x, layer, deterministic=not train)
    if not self.final_norm:
      return x
    return nn.LayerNorm(self.norm_epsilon, self.dtype, name='encoder_norm')(x)

  @nn.nowrap
  def apply_layer(self, x: jax.Array, layer: int, deterministic: bool) -> jax.Array:
    """Applies block `layer`; subclasses do more around it."""
    block = nn.remat(Encoder1DBlock, static_argnums=(2,)) if self.remat else Encoder1DBlock
    return block(
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      dtype=self.dtype,
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      stochastic_depth=layer / max(self.num_layers - 1, 1) * self.stochastic_depth,
      norm_epsilon=self.norm_epsilon,
      activation=self.activation,
      name=f'encoderblock_{layer}',
    )(x, deterministic)

  @nn.nowrap
  def add_positions(self, x: jax.Array) -> jax.Array:
    """Adds the chosen position embedding to tokens [B, N, D]."""
    kind = self.positional_embedding
    check_choice('config.model.positional_embedding', kind, POSITIONAL_EMBEDDINGS)
    if kind == 'learned_1d':
      init = nn.initializers.normal(self.posemb_init_stddev)
      x = AddPositionEmbs(init, name='posembed_input')(x)
    elif kind == 'sinusoidal_1d':
      x = x + layers.sinusoidal_1d(*x.shape[1:]).astype(x.dtype)
    elif kind == 'sinusoidal_2d':
      cls, x = self.split_cls(x)
      grid = layers.resolve_grid(x.shape[1] // self.temporal_dimensions, self.grid)
      frames = x.reshape(-1, *grid, x.shape[-1])
      x = layers.AddFixedSinCosPositionEmbedding()(frames).reshape(x.shape)
      x = jnp.concatenate([cls, x], axis=1)
    return x

  @nn.nowrap
  def split_cls(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits tokens into the class token [B, 1, D] (or [B, 0, D]) and those of the grid."""
    count = int(self.has_cls_token)
    return x[:, :count], x[:, count:]


class VisionTransformer(nn.Module, kw_only=True):
  """What `ViT` and `TokenLearnerViT` share: patches, Transformer, pooling, head.

  Maps images [B, H, W, C], float, to float32 logits [B, num_classes].

  Attributes:
    num_classes: number of logits; 0 or less leaves the head out and returns features in `dtype`.
    mlp_dim: hidden width of the MLPs.
    num_layers: number of Transformer layers.
    num_heads: number of attention heads; divides `hidden_size`.
    hidden_size: width of a token, D.
    positional_embedding: one of `POSITIONAL_EMBEDDINGS`.
    representation_size: width of a dense layer with tanh before the head; None leaves it out.
    dropout_rate: dropout of position embeddings and of both branches of each layer.
    attention_dropout_rate: dropout of the attention weights.
    stochastic_depth: drop rate of the last layer; grows linearly from 0 at the first.
    classifier: what the head reads: the class 'token', the mean ('gap'), maximum ('gmp') or sum
      ('gsp') of the tokens, attention pooling ('map'), or 'none', every token: [B, N, num_classes],
      or the features [B, N, D] without a head.
    dtype: dtype of the computation. Parameters, normalisation statistics, attention logits and
      softmax, and the logits are float32 in any case.
    stride: pixels from patch to patch, one number or (vertical, horizontal), at most the patch's;
      None means the patch size.
    patch_embedding: 'conv' or 'linear', the same function computed in two ways.
    posemb_init_stddev: standard deviation of learned position embeddings at the start.
    norm_epsilon: epsilon of every LayerNorm.
    activation: of the MLPs of the layers and the MAP head: a name in `layers.ACTIVATIONS`.
    remat: recompute the layers' activations in the backward pass, saving memory for time.
    class_token: whether there is a class token; None means where the classifier is 'token'. Every
      other classifier leaves it out of what it reads, as in models fine-tuned from MAE (arXiv
      2111.06377): it takes part in attention alone.
    fc_norm: norm the pooled vector (a LayerNorm `fc_norm`) instead of the tokens before
      (`Transformer/encoder_norm`), as timm's ViTs with an average do.

  Raises:
    UsageError: on construction, for options that don't fit each other; when called, for images
      that the patches don't tile.
  """

  num_classes: int
  mlp_dim: int
  num_layers: int
  num_heads: int
  hidden_size: int
  positional_embedding: str = 'learned_1d'
  representation_size: int | None = None
  dropout_rate: float = 0.1
  attention_dropout_rate: float = 0.1
  stochastic_depth: float = 0.0
  classifier: str = 'gap'
  dtype: Any = jnp.float32
  stride: int | tuple[int, int] | None = None
  patch_embedding: str = 'conv'
  posemb_init_stddev: float = 0.02
  norm_epsilon: float = 1e-6
  activation: str = 'gelu'
  remat: bool = False
  class_token: bool | None = None
  fc_norm: bool = False

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **attributes: Any) -> Self:
    """Builds the model from those entries of `config` that it has attributes for.

    None stands for the default.

    Raises:
      UsageError: an entry that has no default is missing or None.
    """
    given = {name: value for name, value in config.items() if value is not None} | attributes
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in ('name', 'parent')}
    for name, field in fields.items():
      if name not in given and field.default is dataclasses.MISSING:
        raise UsageError(f'config.model.{name}: not set, and nothing else says it')
    return cls(**{name: given[name] for name in fields.keys() & given.keys()})

  def __post_init__(self) -> None:
    _check_options(self)
    super().__post_init__()

  @property
  def patch_size(self) -> tuple[int, int]:
    """(height, width) of a patch in pixels."""
    raise NotImplementedError

  @property
  def patch_stride(self) -> tuple[int, int]:
    """(vertical, horizontal) step between patches in pixels."""
    if self.stride is None:
      return self.patch_size
    return layers.as_pair(self.stride)

  @property
  def has_class_token(self) -> bool:
    """Whether token 0 is a class token."""
    return self.classifier == 'token' if self.class_token is None else self.class_token

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    x = layers.PatchEmbedding(
      features=self.hidden_size,
      patch_size=self.patch_size,
      stride=self.patch_stride,
      method=self.patch_embedding,
      dtype=self.dtype,
      name='embedding',
    )(x)
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height * width, channels)
    if self.has_class_token:
      cls = self.param('cls', nn.initializers.zeros, (1, 1, channels))
      x = jnp.concatenate([jnp.tile(cls.astype(x.dtype), [batch, 1, 1]), x], axis=1)

    x = self.encoder((height, width))(x, train=train)

    x = self.pool(x)
    if self.fc_norm:
      x = nn.LayerNorm(self.norm_epsilon, self.dtype, name='fc_norm')(x)
    if self.representation_size is not None:
      x = nn.tanh(nn.Dense(self.representation_size, dtype=self.dtype, name='pre_logits')(x))
    if self.num_classes > 0:
      zeros = nn.initializers.zeros
      head = nn.Dense(
        self.num_classes, dtype=jnp.float32, kernel_init=zeros, name='output_projection'
      )
      x = head(x)
    return x

  @nn.nowrap
  def pool(self, x: jax.Array) -> jax.Array:
    """Reduces tokens [B, N, D] to what the head reads: [B, D], or all of them for 'none'."""
    if self.classifier == 'token':
      return x[:, 0]
    if self.has_class_token:
      x = x[:, 1:]
    if self.classifier == 'map':
      sizes = (self.mlp_dim, self.num_heads)
      return MAPHead(*sizes, self.dtype, self.norm_epsilon, self.activation)(x)
    return x if self.classifier == 'none' else _POOLING[self.classifier](x, axis=1)

  @nn.nowrap
  def encoder(self, grid: tuple[int, int]) -> Encoder:
    """Returns the Transformer, named so, over a `grid` of (rows, columns) patches."""
    raise NotImplementedError

  @nn.nowrap
  def encoder_attributes(self, grid: tuple[int, int]) -> dict[str, Any]:
    """Returns the attributes that every kind of encoder takes."""
    own = {field.name for field in dataclasses.fields(self)} - {'name', 'parent'}
    shared = own & {field.name for field in dataclasses.fields(Encoder)}
    return {name: getattr(self, name) for name in shared} | {
      'has_cls_token': self.has_class_token,
      'final_norm': not self.fc_norm,
      'grid': grid,
      'name': 'Transformer',
    }


class ViT(VisionTransformer, kw_only=True):
  """Vision Transformer (arXiv 2010.11929): float images [B, H, W, C] to logits [B, num_classes].

  Attributes, beside those of `VisionTransformer`:
    patches: {'size': (height, width)} in pixels.
  """

  patches: Mapping[str, Any]

  @property
  def patch_size(self) -> tuple[int, int]:
    return layers.as_pair(self.patches['size'])

  @nn.nowrap
  def encoder(self, grid: tuple[int, int]) -> Encoder:
    return Encoder(**self.encoder_attributes(grid))


def _check_options(model: VisionTransformer) -> None:
  """Raises UsageError for options that are unknown or don't fit each other."""
  for field, allowed in (
    ('classifier', CLASSIFIERS),
    ('positional_embedding', POSITIONAL_EMBEDDINGS),
    ('patch_embedding', PATCH_EMBEDDINGS),
    ('activation', layers.ACTIVATIONS),
  ):
    check_choice(f'config.model.{field}', getattr(model, field), allowed)
  if model.classifier == 'token' and not model.has_class_token:
    raise UsageError("config.model.class_token: False, but config.model.classifier is 'token'")
  if model.fc_norm and model.classifier in ('token', 'none'):
    raise UsageError(
      f'config.model.fc_norm: classifier {model.classifier!r} pools nothing, so that the norm of '
      'the tokens is the same; leave it False'
    )
  for field in ('hidden_size', 'mlp_dim', 'num_layers', 'num_heads'):
    if getattr(model, field) < 1:
      raise UsageError(f'config.model.{field}: {getattr(model, field)} is less than 1')
  if model.representation_size is not None and model.representation_size < 1:
    raise UsageError(
      f'config.model.representation_size: {model.representation_size} is less than 1'
    )
  if model.posemb_init_stddev < 0:
    raise UsageError(f'config.model.posemb_init_stddev: {model.posemb_init_stddev} is negative')
  for field in ('dropout_rate', 'attention_dropout_rate', 'stochastic_depth'):
    if not 0 <= getattr(model, field) < 1:
      raise UsageError(f'config.model.{field}: {getattr(model, field)} is not in [0, 1)')
  if model.hidden_size % model.num_heads:
    raise UsageError(
      f'config.model.num_heads: {model.num_heads} heads do not divide '
      f'config.model.hidden_size={model.hidden_size}'
    )
  multiple = {'sinusoidal_1d': 2, 'sinusoidal_2d': 4}.get(model.positional_embedding, 1)
  if model.hidden_size % multiple:
    raise UsageError(
      f'config.model.positional_embedding: {model.positional_embedding!r} needs '
      f'config.model.hidden_size to be a multiple of {multiple}, not {model.hidden_size}'
    )
  if len(model.patch_size) != 2 or min(model.patch_size) < 1:
    raise UsageError(f'config.model.patches.size: {model.patch_size} is not (height, width)')
  stride, patch = model.patch_stride, model.patch_size
  if len(stride) != 2 or not all(1 <= s <= p for s, p in zip(stride, patch, strict=True)):
    raise UsageError(f'config.model.stride: {model.stride} is not between 1 and the patch, {patch}')
