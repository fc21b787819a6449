"""TokenLearner (arXiv 2106.11297) as a layer: few learned tokens in place of those of a grid."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import FieldError, check_choice
from vit_jax.models.layers import cpu
from vit_jax.models.layers.mlp import MlpBlock
from vit_jax.models.layers.positions import resolve_grid


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
      inputs = inputs.reshape(batch, *resolve_grid(positions, self.grid), channels)

    x = nn.LayerNorm(self.norm_epsilon, self.dtype)(inputs)
    for layer in range(4):
      x = nn.gelu(x) if layer else x
      x = nn.Conv(  # [B, h, w, S]
        self.num_tokens,
        (3, 3),
        padding=1,
        use_bias=False,
        conv_general_dilated=cpu.convolve,
        dtype=self.dtype,
      )(x)
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
    x = MlpBlock(
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
    x = MlpBlock(
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


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """How the layers of a transformer learn tokens; its call stands for that of a layer.

  Before layer `layer` each frame's tokens become `num_tokens` learned ones. With a fuser that layer
  and all after it learn tokens for themselves, and a TokenFuser spreads what comes out over all
  positions and adds it there, so that the number of tokens stays. Tokens before those of the
  frames, such as a class token, pass by.

  Attributes:
    num_tokens: number of tokens to learn per frame.
    layer: index of the layer that learned tokens go into, from 0.
    use_v11: TokenLearner version 1.1 instead of 1.
    use_tokenfuse: whether there is a fuser.
    num_prefix: tokens before those of the frames.
    frames: per example, t; an image has one.
    grid: (h, w) of the tokens of a frame; None means a square.
    dropout_rate: of the modules.
    dtype: likewise.
    norm_epsilon: likewise.
  """

  num_tokens: int
  layer: int
  use_v11: bool = True
  use_tokenfuse: bool = False
  num_prefix: int = 0
  frames: int = 1
  grid: tuple[int, int] | None = None
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  norm_epsilon: float = 1e-6

  def __call__(
    self, index: int, block: Callable[..., jax.Array], x: jax.Array, deterministic: bool
  ) -> jax.Array:
    """Applies layer `index`, `block`, to tokens [B, P + t * h * w, D], or learned ones of them."""
    if index < self.layer or (index > self.layer and not self.use_tokenfuse):
      return block(x, deterministic)
    prefix, frames = self._split(x)  # [B, P, D], [B * t, h * w, D]
    x = block(self._join(prefix, self._learn(frames, deterministic)), deterministic)
    if not self.use_tokenfuse:
      return x  # [B, P + t * S, D]
    prefix, tokens = self._split(x)
    options = {'dtype': self.dtype, 'norm_epsilon': self.norm_epsilon}
    fuser = TokenFuser(dropout_rate=self.dropout_rate, **options)
    return self._join(prefix, fuser(tokens, frames, deterministic) + frames)

  def _learn(self, frames: jax.Array, deterministic: bool) -> jax.Array:
    """Maps the positions of each frame, [B * t, h * w, D], to [B * t, S, D]."""
    options = {'dtype': self.dtype, 'norm_epsilon': self.norm_epsilon}
    if self.use_v11:
      learner = TokenLearnerModuleV11(self.num_tokens, dropout_rate=self.dropout_rate, **options)
      return learner(frames, deterministic)
    return TokenLearnerModule(self.num_tokens, grid=self.grid, **options)(frames)

  def _split(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, P + t * n, D] to the tokens before the frames, [B, P, D], and theirs, [B * t, n, D]."""
    batch, count, width = x.shape
    positions = (count - self.num_prefix) // self.frames
    frames = x[:, self.num_prefix :].reshape(batch * self.frames, positions, width)
    return x[:, : self.num_prefix], frames

  def _join(self, prefix: jax.Array, frames: jax.Array) -> jax.Array:
    """[B, P, D] and [B * t, n, D] to [B, P + t * n, D]."""
    return jnp.concatenate([prefix, frames.reshape(prefix.shape[0], -1, frames.shape[-1])], axis=1)


def learns_tokens(options: Mapping[str, Any] | None) -> bool:
  """Whether options of a tokenizer, as of `vit.ViT`, say that tokens are learned."""
  return bool(options) and options.get('type') not in (None, 'patch')


def make_tokenizer(
  options: Mapping[str, Any] | None, num_layers: int, **attributes: Any
) -> Tokenizer | None:
  """Returns the tokenizer of a transformer; None where it keeps the tokens of the patches.

  Args:
    options: as of `vit.ViT`.
    num_layers: of the transformer.
    **attributes: of `Tokenizer` that the transformer decides.
  """
  if not learns_tokens(options):
    return None
  return Tokenizer(
    num_tokens=options['num_tokens'],
    layer=tokenizer_layer(options, num_layers),
    use_v11=_given(options, 'use_v11', True),
    use_tokenfuse=_given(options, 'use_tokenfuse', False),
    **attributes,
  )


def tokenizer_layer(options: Mapping[str, Any], num_layers: int) -> int:
  """Returns the layer that learned tokens go into: by default, the middle of `num_layers`."""
  return _given(options, 'tokenlearner_loc', num_layers // 2)


def check_tokenizer(
  options: Mapping[str, Any] | None, num_layers: int, learning: str = 'dynamic'
) -> None:
  """Raises FieldError for options of a tokenizer that a transformer of `num_layers` can't have.

  Args:
    options: as of `vit.ViT`.
    num_layers: of the transformer.
    learning: the type with which it learns tokens: 'dynamic' of images, 'video' of clips.
  """
  if options is None or options.get('type') is None:
    return
  types = ('patch', learning)
  if options['type'] == 'video' != learning:
    raise FieldError('tokenizer.type', f"'video' needs clips; for images choose {types}")
  check_choice('tokenizer.type', options['type'], types)
  if options['type'] == 'patch':
    return
  if (count := options.get('num_tokens')) is None:
    raise FieldError('tokenizer.num_tokens', 'not set, and nothing else gives it')
  if count < 1:
    raise FieldError('tokenizer.num_tokens', f'{count} is less than 1')
  layer = tokenizer_layer(options, num_layers)
  if not 0 <= layer < num_layers:
    raise FieldError(
      'tokenizer.tokenlearner_loc',
      f'{layer} is not a layer; num_layers={num_layers} allows 0 to {num_layers - 1}',
    )


def _given(options: Mapping[str, Any], name: str, default: Any) -> Any:
  value = options.get(name)
  return default if value is None else value
