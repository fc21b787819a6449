"""TokenLearner (arXiv 2106.11297), with scenic's module names and parameter tree.

Capture: beside the attention weights that `vit` describes, `mutable=['intermediates']` returns the
maps that weigh the tokens, a tuple of one float32 [batch, num_tokens, h * w], at
`Transformer/TokenLearnerModuleV11_{i}/token_maps` (`TokenLearnerModule_{i}` for version 1), and
those by which the fuser returns them, at `Transformer/TokenFuser_{i}/token_maps`. i counts the
tokenized layers from 0.
"""

from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import UsageError, check_choice
from vit_jax.models import layers, vit

TOKENIZERS = ('patch', 'dynamic')


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

  @nn.nowrap
  def apply_layer(self, x: jax.Array, layer: int, deterministic: bool) -> jax.Array:
    if self.tokenizer_type != 'patch' and layer == self.tokenlearner_loc:
      cls, x = self.split_cls(x)
      x = self.merge_frames(self.learn_tokens(self.split_frames(x), deterministic))
      x = jnp.concatenate([cls, x], axis=1)
    return super().apply_layer(x, layer, deterministic)

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

  @nn.nowrap
  def apply_layer(self, x: jax.Array, layer: int, deterministic: bool) -> jax.Array:
    if self.tokenizer_type == 'patch' or layer < self.tokenlearner_loc:
      return vit.Encoder.apply_layer(self, x, layer, deterministic)
    cls, x = self.split_cls(x)
    residual = self.split_frames(x)
    tokens = self.merge_frames(self.learn_tokens(residual, deterministic))
    tokens = jnp.concatenate([cls, tokens], axis=1)
    cls, tokens = self.split_cls(vit.Encoder.apply_layer(self, tokens, layer, deterministic))
    fuser = TokenFuser(
      dropout_rate=self.dropout_rate, dtype=self.dtype, norm_epsilon=self.norm_epsilon
    )
    x = fuser(self.split_frames(tokens), residual, deterministic) + residual
    return jnp.concatenate([cls, self.merge_frames(x)], axis=1)


class TokenLearnerViT(vit.VisionTransformer, kw_only=True):
  """ViT with TokenLearner: float images [B, H, W, C] to logits [B, num_classes].

  Attributes, beside those of `vit.VisionTransformer`:
    tokenizer: a dict of
      type: 'dynamic' learns tokens, 'patch' keeps those of the patches;
      patches: {'size': (height, width)} in pixels;
      num_tokens, tokenlearner_loc, use_v11 (True if absent): as for `EncoderMod`;
      use_tokenfuse: `EncoderModFuser` instead of `EncoderMod` (False if absent).
  """

  tokenizer: Mapping[str, Any]

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **attributes: Any) -> Self:
    if 'tokenizer' not in config:
      raise UsageError('config.model.tokenizer: missing, but config.model.name is token_learner')
    tokenizer = dict(config['tokenizer'], patches=config['patches'])
    if tokenizer['tokenlearner_loc'] is None:
      tokenizer['tokenlearner_loc'] = config['num_layers'] // 2
    return super().from_config(config, tokenizer=tokenizer, **attributes)

  def __post_init__(self) -> None:
    _check_tokenizer(self.tokenizer, self.num_layers)
    super().__post_init__()

  @property
  def patch_size(self) -> tuple[int, int]:
    return layers.as_pair(self.tokenizer['patches']['size'])

  @nn.nowrap
  def encoder(self, grid: tuple[int, int]) -> EncoderMod:
    kind = EncoderModFuser if self.tokenizer.get('use_tokenfuse') else EncoderMod
    return kind(
      **self.encoder_attributes(grid),
      tokenizer_type=self.tokenizer['type'],
      num_tokens=self.tokenizer['num_tokens'],
      tokenlearner_loc=self.tokenizer['tokenlearner_loc'],
      use_v11=self.tokenizer.get('use_v11', True),
    )


def _check_tokenizer(tokenizer: Mapping[str, Any], num_layers: int) -> None:
  field = 'config.model.tokenizer'
  if tokenizer['type'] == 'video':
    raise UsageError(f"{field}.type: 'video' needs clips; for images choose {TOKENIZERS}")
  check_choice(f'{field}.type', tokenizer['type'], TOKENIZERS)
  if tokenizer['num_tokens'] < 1:
    raise UsageError(f'{field}.num_tokens: {tokenizer["num_tokens"]} is less than 1')
  location = tokenizer['tokenlearner_loc']
  if tokenizer['type'] == 'dynamic' and not 0 <= location < num_layers:
    raise UsageError(
      f'{field}.tokenlearner_loc: {location} is not a layer; '
      f'config.model.num_layers={num_layers} allows 0 to {num_layers - 1}'
    )
