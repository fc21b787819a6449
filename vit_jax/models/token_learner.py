"""TokenLearner (arXiv 2106.11297), with scenic's module names and parameter tree.

Capture: beside the attention weights that `vit` describes, `mutable=['intermediates']` returns the
maps that weigh the tokens, a tuple of one float32 [batch, num_tokens, h * w], at
`Transformer/TokenLearnerModuleV11_{i}/token_maps` (`TokenLearnerModule_{i}` for version 1), and
those by which the fuser returns them, at `Transformer/TokenFuser_{i}/token_maps`. i counts the
tokenized layers from 0.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections.config_dict import placeholder

from vit_jax.errors import FieldError, check_choice
from vit_jax.models import layers, vit
from vit_jax.models.backbone import (
  Attention,
  AttentionMaps,
  Features,
  Shape,
  TokenMaps,
  trace_shapes,
)

TOKENIZERS = ('patch', 'dynamic')

_LEARNER = re.compile(r'TokenLearnerModule(?:V11)?_(\d+)')


class TokenLearnerModule(nn.Module):
  """Version 1: maps from four 3x3 convolutions and a sigmoid, then weighted pooling.

  Attributes:
    num_tokens: number of tokens to learn, S.
    use_sum_pooling: sum over positions; False takes the mean.
    grid: (h, w) of inputs that come flat; None means a square.
    dtype: dtype of the computation; parameters and maps are float32.
    norm_epsilon: epsilon of the LayerNorm.
  """

  num_tokens: int
  use_sum_pooling: bool = True
  grid: tuple[int, int] | None = None
  dtype: Any = jnp.float32
  norm_epsilon: float = 1e-6

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps [B, h, w, C] or [B, h * w, C] to [B, S, C]."""
    if inputs.ndim == 3:
      batch, positions, channels = inputs.shape
      inputs = inputs.reshape(batch, *layers.resolve_grid(positions, self.grid), channels)

    x = nn.LayerNorm(self.norm_epsilon, self.dtype)(inputs)
    for layer in range(4):
      x = nn.gelu(x) if layer else x
      x = nn.Conv(self.num_tokens, (3, 3), use_bias=False, dtype=self.dtype)(x)  # [B, h, w, S]
    maps = nn.sigmoid(x.astype(jnp.float32))
    return _pool(self, _flatten(maps).swapaxes(1, 2), _flatten(inputs), not self.use_sum_pooling)


class TokenLearnerModuleV11(nn.Module):
  """Version 1.1: maps from an MLP at each position and a softmax over positions.

  Attributes:
    num_tokens: number of tokens to learn, S.
    bottleneck_dim: hidden width of the MLP.
    dropout_rate: dropout in the MLP.
    dtype: dtype of the computation; parameters and maps are float32.
    norm_epsilon: epsilon of the LayerNorm.
  """

  num_tokens: int
  bottleneck_dim: int = 64
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  norm_epsilon: float = 1e-6

  @nn.compact
  def __call__(self, inputs: jax.Array, deterministic: bool = True) -> jax.Array:
    """Maps [B, h, w, C] or [B, h * w, C] to [B, S, C]."""
    inputs = _flatten(inputs)
    x = nn.LayerNorm(self.norm_epsilon, self.dtype)(inputs)
    x = layers.MlpBlock(
      mlp_dim=self.bottleneck_dim,
      out_dim=self.num_tokens,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
      name='token_masking',
    )(x, deterministic=deterministic)  # [B, h * w, S]
    maps = jax.nn.softmax(x.astype(jnp.float32), axis=1)
    return _pool(self, maps.swapaxes(1, 2), inputs)


def _flatten(x: jax.Array) -> jax.Array:
  """Merges the positions of [B, h, w, C] or [B, h * w, C]: [B, h * w, C]."""
  return x.reshape(x.shape[0], -1, x.shape[-1])


def _pool(module: nn.Module, maps: jax.Array, features: jax.Array, mean: bool = False) -> jax.Array:
  """Weighs features [B, N, C] by maps [B, S, N], which it sows: [B, S, C]."""
  module.sow('intermediates', 'token_maps', maps)
  if mean:
    maps = maps / maps.shape[-1]
  return jnp.einsum('bsn,bnc->bsc', maps.astype(features.dtype), features)


class TokenFuser(nn.Module):
  """Mixes the learned tokens and spreads them over the positions that they came from.

  Attributes:
    use_normalization: normalise the tokens before and after they are mixed.
    bottleneck_dim: hidden width of the MLP that makes the maps.
    dropout_rate: dropout in the MLP and of the output.
    dtype: dtype of the computation; parameters and maps are float32.
    norm_epsilon: epsilon of the LayerNorms.
  """

  use_normalization: bool = True
  bottleneck_dim: int = 64
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  norm_epsilon: float = 1e-6

  @nn.compact
  def __call__(
    self, inputs: jax.Array, original: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Maps tokens [B, S, C] and `original`, [B, h, w, C] or [B, h * w, C], to original's shape."""
    num_tokens = inputs.shape[1]
    if self.use_normalization:
      inputs = nn.LayerNorm(self.norm_epsilon, self.dtype, name='fuser_mix_norm1')(inputs)
    mix = nn.Dense(num_tokens, kernel_init=nn.initializers.zeros, dtype=self.dtype)
    inputs = mix(inputs.swapaxes(1, 2)).swapaxes(1, 2)  # mixes along S
    if self.use_normalization:
      inputs = nn.LayerNorm(self.norm_epsilon, self.dtype, name='fuser_mix_norm2')(inputs)

    x = nn.LayerNorm(self.norm_epsilon, self.dtype)(_flatten(original))
    x = layers.MlpBlock(
      mlp_dim=self.bottleneck_dim,
      out_dim=num_tokens,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
      name='token_masking',
    )(x, deterministic=deterministic)  # [B, h * w, S]
    maps = nn.sigmoid(x.astype(jnp.float32))
    self.sow('intermediates', 'token_maps', maps.swapaxes(1, 2))
    x = jnp.einsum('bns,bsc->bnc', maps.astype(inputs.dtype), inputs)
    return nn.Dropout(self.dropout_rate)(x, deterministic).reshape(original.shape)


class EncoderMod(vit.Encoder):
  """`vit.Encoder` that turns its tokens into a few learned ones before layer `tokenlearner_loc`.

  A class token passes by the tokenizer: [B, (1 +) t * h * w, D] to [B, (1 +) t * num_tokens, D].

  Attributes, beside those of `vit.Encoder`:
    tokenizer_type: 'dynamic' and 'video' learn tokens, 'patch' keeps those of the patches.
    temporal_dimensions: frames per example, t; each frame is tokenized by itself.
    num_tokens: number of tokens to learn per frame.
    tokenlearner_loc: index of the layer, from 0.
    use_v11: TokenLearner version 1.1 instead of 1.
  """

  tokenizer_type: str = 'patch'
  temporal_dimensions: int = 1
  num_tokens: int = 8
  tokenlearner_loc: int = 12
  use_v11: bool = True

  @nn.compact
  def __call__(
    self,
    inputs: jax.Array,
    *,
    train: bool = False,
    select_tokens: Callable[[jax.Array], jax.Array] | None = None,
    outputs: list[jax.Array] | None = None,
  ) -> jax.Array:
    """Encodes tokens; arguments are those of `vit.Encoder`."""
    x = self.add_positions(inputs, frames=self.temporal_dimensions)
    if select_tokens is not None:
      x = select_tokens(x)
    x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
    for layer in range(self.num_layers):
      if self.tokenizer_type != 'patch' and layer == self.tokenlearner_loc:
        cls, x = self.split_cls(x)
        x = self.merge_frames(self.learn_tokens(self.split_frames(x), not train))
        x = jnp.concatenate([cls, x], axis=1)  # [B, (1 +) t * num_tokens, D]
      x = self.block(layer)(x, not train)
      if outputs is not None:
        outputs.append(x)
    return self.norm(x)

  @nn.nowrap
  def learn_tokens(self, frames: jax.Array, deterministic: bool) -> jax.Array:
    """Maps the positions of each frame, [B * t, h * w, D], to [B * t, num_tokens, D]."""
    common = {'dtype': self.dtype, 'norm_epsilon': self.norm_epsilon}
    if self.use_v11:
      learner = TokenLearnerModuleV11(self.num_tokens, dropout_rate=self.dropout_rate, **common)
      return learner(frames, deterministic)
    return TokenLearnerModule(self.num_tokens, grid=self.grid, **common)(frames)

  @nn.nowrap
  def split_frames(self, x: jax.Array) -> jax.Array:
    """[B, t * n, D] to [B * t, n, D]."""
    batch, positions, width = x.shape
    t = self.temporal_dimensions
    return x.reshape(batch * t, positions // t, width)

  @nn.nowrap
  def merge_frames(self, x: jax.Array) -> jax.Array:
    """[B * t, n, D] to [B, t * n, D]."""
    frames, positions, width = x.shape
    t = self.temporal_dimensions
    return x.reshape(frames // t, t * positions, width)


class EncoderModFuser(EncoderMod):
  """`EncoderMod` whose every layer from `tokenlearner_loc` on works on learned tokens.

  After the layer a TokenFuser spreads its tokens back over all positions and adds them there, so
  the number of tokens stays as it was: [B, N, D] to [B, N, D].
  """

  @nn.compact
  def __call__(
    self,
    inputs: jax.Array,
    *,
    train: bool = False,
    select_tokens: Callable[[jax.Array], jax.Array] | None = None,
    outputs: list[jax.Array] | None = None,
  ) -> jax.Array:
    """Encodes tokens; arguments are those of `vit.Encoder`."""
    x = self.add_positions(inputs, frames=self.temporal_dimensions)
    if select_tokens is not None:
      x = select_tokens(x)
    x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
    for layer in range(self.num_layers):
      if self.tokenizer_type == 'patch' or layer < self.tokenlearner_loc:
        x = self.block(layer)(x, not train)
      else:
        x = self.fused_layer(x, layer, not train)
      if outputs is not None:
        outputs.append(x)
    return self.norm(x)

  @nn.nowrap
  def fused_layer(self, x: jax.Array, layer: int, deterministic: bool) -> jax.Array:
    """Applies block `layer` to learned tokens, and adds what comes out to all: [B, N, D]."""
    cls, x = self.split_cls(x)
    residual = self.split_frames(x)  # [B * t, n, D]
    tokens = self.merge_frames(self.learn_tokens(residual, deterministic))
    tokens = jnp.concatenate([cls, tokens], axis=1)  # [B, (1 +) t * num_tokens, D]
    cls, tokens = self.split_cls(self.block(layer)(tokens, deterministic))
    fuser = TokenFuser(
      dropout_rate=self.dropout_rate, dtype=self.dtype, norm_epsilon=self.norm_epsilon
    )
    x = fuser(self.split_frames(tokens), residual, deterministic) + residual
    return jnp.concatenate([cls, self.merge_frames(x)], axis=1)


class TokenLearnerViT(vit.ViT, kw_only=True):
  """ViT with TokenLearner: float images [B, H, W, C] to logits [B, num_classes].

  Attributes, beside those of `vit.ViT`:
    tokenizer: a dict of
      type: 'dynamic' learns tokens, 'patch' keeps those of the patches;
      num_tokens, tokenlearner_loc (None: the middle), use_v11 (True if absent): as for
        `EncoderMod`;
      use_tokenfuse: `EncoderModFuser` instead of `EncoderMod` (False if absent);
      patches: {'size': (height, width)} in pixels, where `patches` doesn't give it, as in scenic.
  """

  tokenizer: Mapping[str, Any]
  patches: Mapping[str, Any] | None = None

  CONFIG_DEFAULTS: ClassVar[Mapping[str, Any]] = {
    **vit.ViT.CONFIG_DEFAULTS,
    'tokenizer': {
      'type': 'dynamic',
      'num_tokens': 8,
      'tokenlearner_loc': placeholder(int),
      'use_tokenfuse': False,
      'use_v11': True,
    },
  }
  WEIGHT_FIELDS: ClassVar[tuple[str, ...]] = (*vit.ViT.WEIGHT_FIELDS, 'tokenizer')

  def __post_init__(self) -> None:
    _check_tokenizer(self.tokenizer, self.num_layers)
    super().__post_init__()

  @property
  def given_patch_size(self) -> Any:
    return (self.patches or self.tokenizer.get('patches') or {}).get('size')

  @property
  def tokenizer_layer(self) -> int | None:
    location = self.tokenizer['tokenlearner_loc']
    return self.num_layers // 2 if location is None else location

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool = False,
    features: bool = False,
    select_tokens: Callable[[jax.Array], jax.Array] | None = None,
    outputs: list[jax.Array] | None = None,
  ) -> jax.Array | Features:
    """Classifies images; arguments are those of `vit.ViT`."""
    x = layers.PatchEmbedding(
      features=self.hidden_size,
      patch_size=self.patch_size,
      stride=self.patch_stride,
      method=self.patch_embedding,
      dtype=self.dtype,
      name='embedding',
    )(x)  # [B, h, w, D]
    batch, *grid, width = x.shape
    x = x.reshape(batch, -1, width)  # [B, N, D]
    if self.has_class_token:
      cls = self.param('cls', nn.initializers.zeros, (1, 1, width))
      cls = jnp.tile(cls.astype(x.dtype), [batch, 1, 1])
      x = jnp.concatenate([cls, x], axis=1)  # [B, 1 + N, D]
    encoder = EncoderModFuser if self.tokenizer.get('use_tokenfuse') else EncoderMod
    tokens = encoder(
      num_layers=self.num_layers,
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      positional_embedding=self.positional_embedding,
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      stochastic_depth=self.stochastic_depth,
      dtype=self.dtype,
      has_cls_token=self.has_class_token,
      grid=tuple(grid),
      posemb_init_stddev=self.posemb_init_stddev,
      norm_epsilon=self.norm_epsilon,
      activation=self.activation,
      remat=self.remat,
      final_norm=not self.fc_norm,
      tokenizer_type=self.tokenizer['type'],
      num_tokens=self.tokenizer['num_tokens'],
      tokenlearner_loc=self.tokenizer_layer,
      use_v11=self.tokenizer.get('use_v11', True),
      name='Transformer',
    )(x, train=train, select_tokens=select_tokens, outputs=outputs)  # [B, (1 +) num_tokens, D]
    x = vit.pool(self, tokens)  # [B, D]
    if features:
      keeps_grid = select_tokens is None and (self._keeps_tokens or encoder is EncoderModFuser)
      return Features(
        pooled=None if self.classifier == 'none' else x,
        tokens=tokens,
        grid=tuple(grid) if keeps_grid else None,
        num_prefix=int(self.has_class_token),
      )
    return vit.classify(self, x)  # [B, num_classes]

  def variable_shapes(self, input_size: Shape | None, channels: int) -> dict[str, Shape]:
    return trace_shapes(self, input_size or self.patch_size, channels)

  @property
  def _keeps_tokens(self) -> bool:
    """Whether tokens are those of patches from the first layer to the last."""
    return self.tokenizer['type'] == 'patch'

  @property
  def num_attention_layers(self) -> int:
    return super().num_attention_layers if self._keeps_tokens else 0

  def attention(self, intermediates: Mapping[str, Any]) -> Attention | None:
    return super().attention(intermediates) if self._keeps_tokens else None

  def attention_maps(
    self, intermediates: Mapping[str, Any], image_size: tuple[int, int], layer: int | None = None
  ) -> AttentionMaps | None:
    if not self._keeps_tokens:
      return None
    return super().attention_maps(intermediates, image_size, layer)

  def token_maps(
    self, intermediates: Mapping[str, Any], image_size: tuple[int, int]
  ) -> list[TokenMaps]:
    """Which pixels each learned token is made of, layer by layer.

    Weights of version 1.1 are a softmax, and add up to 1 over the grid; those of version 1 are
    sigmoids, each in [0, 1].
    """
    if self._keeps_tokens:
      return []
    encoder = intermediates['Transformer']
    found = {int(match[1]): name for name in encoder if (match := _LEARNER.fullmatch(name))}
    maps = [np.asarray(encoder[found[i]]['token_maps']) for i in sorted(found)]
    grid, first = self.grid(image_size), self.tokenizer_layer
    return [
      TokenMaps(m.reshape(*m.shape[:2], *grid), f'TokenLearner before layer {first + i}')
      for i, m in enumerate(maps)
    ]


def _check_tokenizer(tokenizer: Mapping[str, Any], num_layers: int) -> None:
  for entry in ('type', 'num_tokens', 'tokenlearner_loc'):
    if entry not in tokenizer:
      raise FieldError(f'tokenizer.{entry}', 'not set, and nothing else gives it')
  if tokenizer['type'] == 'video':
    raise FieldError('tokenizer.type', f"'video' needs clips; for images choose {TOKENIZERS}")
  check_choice('tokenizer.type', tokenizer['type'], TOKENIZERS)
  if tokenizer['num_tokens'] < 1:
    raise FieldError('tokenizer.num_tokens', f'{tokenizer["num_tokens"]} is less than 1')
  location = tokenizer['tokenlearner_loc']
  if tokenizer['type'] == 'dynamic' and location is not None and not 0 <= location < num_layers:
    raise FieldError(
      'tokenizer.tokenlearner_loc',
      f'{location} is not a layer; num_layers={num_layers} allows 0 to {num_layers - 1}',
    )
