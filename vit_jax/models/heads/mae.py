"""Masked autoencoder (arXiv 2111.06377): a decoder that draws the patches that a ViT doesn't see.

github.com/facebookresearch/mae, models_mae.py.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import FieldError, UsageError, check_choice
from vit_jax.models import layers
from vit_jax.models.backbone import Layout
from vit_jax.models.heads.head import Head
from vit_jax.models.vit import Encoder
from vit_jax.ranges import Count, Layers, NonNegative, Width

POSITIONAL_EMBEDDINGS = ('sinusoidal_2d', 'learned_1d')
_EPSILON = 1e-6  # of a patch's variance


def split_patches(images: jax.Array, patch: tuple[int, int]) -> jax.Array:
  """Returns the pixels of each patch, row by row: [B, H, W, C] to [B, N, height * width * C].

  Args:
    images: whose sides are multiples of the patch's.
    patch: (height, width) in pixels.
  """
  batch, height, width, channels = images.shape
  x = images.reshape(batch, height // patch[0], patch[0], width // patch[1], patch[1], channels)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, math.prod(patch) * channels)


def join_patches(
  patches: np.ndarray, patch: tuple[int, int], image_size: tuple[int, int]
) -> np.ndarray:
  """Returns images [B, H, W, C]; the inverse of `split_patches`.

  Args:
    patches: [B, N, height * width * C].
    patch: (height, width) in pixels.
    image_size: (H, W) in pixels.
  """
  grid = image_size[0] // patch[0], image_size[1] // patch[1]
  x = patches.reshape(-1, *grid, *patch, patches.shape[-1] // math.prod(patch))
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *image_size, x.shape[-1])


class Decoder(nn.Module):
  """Tokens of visible patches [B, num_prefix + M, D] to the pixels of all, float32 [B, N, P].

  Attributes:
    num_outputs: P.
    hidden_size: width of a token in the decoder.
    encoder: the blocks, with positions before and a norm after them.
    dtype: dtype of the computation; parameters and outputs are float32.
  """

  num_outputs: int
  hidden_size: int
  encoder: Encoder
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, tokens: jax.Array, visible: jax.Array | None, num_prefix: int, train: bool
  ) -> jax.Array:
    """`visible` int [B, M] are the places of the tokens among the N; None where all are there."""
    kernel_init = nn.initializers.xavier_uniform()
    embed = nn.Dense(self.hidden_size, dtype=self.dtype, kernel_init=kernel_init, name='embed')
    mask_token = self.param('mask_token', nn.initializers.normal(0.02), (1, 1, self.hidden_size))
    x = embed(tokens)
    prefix, x = x[:, :num_prefix], x[:, num_prefix:]  # [B, M, hidden_size]
    if visible is not None:
      hidden = jnp.tile(mask_token.astype(x.dtype), (len(x), math.prod(self.encoder.grid), 1))
      rows = jnp.arange(len(x))[:, None]
      x = hidden.at[rows, visible].set(x, unique_indices=True)  # [B, N, hidden_size]
    x = self.encoder(jnp.concatenate([prefix, x], axis=1), train=train)[:, num_prefix:]
    predict = nn.Dense(
      self.num_outputs, dtype=jnp.float32, kernel_init=kernel_init, name='predictor'
    )
    return predict(x)


class MAE(Head, kw_only=True):
  """Masked autoencoder on a plain ViT, which encodes the visible patches alone.

  Maps images [B, H, W, C], float, to float32 arrays of their N patches, in rows from the top, with
  the P = height * width * C pixels of each in the order of the image:
    'prediction': [B, N, P], and the 'target' that it should be, [B, N, P];
    'mask': [B, N], 1 where a patch is hidden, 0 where it is visible;
    'mean', 'std': [B, N, 1]: prediction * std + mean are pixels of the image.

  Parameters are in `backbone` and `decoder`.

  Attributes, beside those of `Head`:
    hidden_size: width of a token in the decoder.
    num_layers: blocks of the decoder.
    num_heads: of its attention; divides `hidden_size`.
    mlp_dim: hidden width of its MLPs; None is four times `hidden_size`.
    positional_embedding: of its tokens, 'sinusoidal_2d', which is fixed, or 'learned_1d'.
    norm_epsilon: epsilon of its LayerNorms.
    activation: of its MLPs: a name in `layers.ACTIVATIONS`.
    norm_pixels: predict pixels less the mean of their patch, over its standard deviation.

  Raises:
    FieldError: for fields out of range.
    UsageError: when called, for a backbone that can't encode some of the patches alone.
  """

  hidden_size: Width = 512
  num_layers: Layers = 8
  num_heads: Count = 16
  mlp_dim: Width | None = None
  positional_embedding: str = 'sinusoidal_2d'
  norm_epsilon: NonNegative = 1e-6
  activation: str = 'gelu'
  norm_pixels: bool = True

  def __post_init__(self) -> None:
    super().__post_init__()
    check_choice('positional_embedding', self.positional_embedding, POSITIONAL_EMBEDDINGS)
    check_choice('activation', self.activation, layers.ACTIVATIONS)
    if self.hidden_size % self.num_heads:
      raise FieldError(
        'num_heads', f'{self.num_heads} heads do not divide hidden_size={self.hidden_size}'
      )
    if self.positional_embedding == 'sinusoidal_2d' and self.hidden_size % 4:
      raise FieldError(
        'hidden_size', f"{self.hidden_size} is no multiple of 4, for 'sinusoidal_2d'"
      )

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool = False,
    visible: Callable[[int], jax.Array] | None = None,
  ) -> dict[str, jax.Array]:
    """Encodes and decodes images.

    Args:
      x: float [B, H, W, C].
      train: turns on the backbone's dropout and stochastic depth.
      visible: function of N that returns which patches the backbone sees, int [B, M], no patch
        twice; None for all of them.
    """
    layout = self._layout(x.shape[1:3])
    prefix, num_patches = layout.num_prefix, math.prod(layout.grid)
    places = None if visible is None else visible(num_patches)  # [B, M]

    def select(tokens: jax.Array) -> jax.Array:
      kept = jnp.take_along_axis(tokens[:, prefix:], places[..., None], axis=1)
      return jnp.concatenate([tokens[:, :prefix], kept], axis=1)  # [B, prefix + M, D]

    hooks = {} if places is None else {'select_tokens': select}
    found = self.backbone.features(x, train=train, **hooks)
    if places is None and found.grid is None:
      raise UsageError('a masked autoencoder reads tokens of patches, and the model learns others')
    target = split_patches(x.astype(jnp.float32), layout.patch)  # [B, N, P]
    decoder = Decoder(
      num_outputs=target.shape[-1],
      hidden_size=self.hidden_size,
      encoder=self._encoder(layout),
      dtype=self.dtype,
      name='decoder',
    )
    prediction = decoder(found.tokens, places, prefix, train)  # [B, N, P]
    mean, std = self._scale(target)
    hidden = jnp.full(target.shape[:2], float(places is not None))
    if places is not None:
      hidden = hidden.at[jnp.arange(len(x))[:, None], places].set(0, unique_indices=True)
    return {
      'prediction': prediction,
      'target': (target - mean) / std,
      'mask': hidden,
      'mean': mean,
      'std': std,
    }

  @nn.nowrap
  def _layout(self, image_size: tuple[int, int]) -> Layout:
    """Returns where the backbone's tokens lie."""
    if 'select_tokens' not in self.backbone.PATCH_HOOKS:
      kind = type(self.backbone).__name__
      raise UsageError(f'a masked autoencoder encodes visible patches alone, which {kind} does not')
    layout = self.backbone.layout(image_size)
    if layout.stride != layout.patch:
      raise FieldError('stride', f'{layout.stride}, but patches that overlap tell what is hidden')
    layout.check_covers(image_size)
    return layout

  @nn.nowrap
  def _encoder(self, layout: Layout) -> Encoder:
    return Encoder(
      num_layers=self.num_layers,
      mlp_dim=self.mlp_dim or 4 * self.hidden_size,
      num_heads=self.num_heads,
      positional_embedding=self.positional_embedding,
      dropout_rate=0.0,
      attention_dropout_rate=0.0,
      dtype=self.dtype,
      num_prefix=layout.num_prefix,
      grid=layout.grid,
      norm_epsilon=self.norm_epsilon,
      activation=self.activation,
      parent=None,  # the decoder's
    )

  @nn.nowrap
  def _scale(self, patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (mean, standard deviation) [B, N, 1] that targets are normalised by."""
    mean = patches.mean(axis=-1, keepdims=True)
    if not self.norm_pixels:
      return jnp.zeros_like(mean), jnp.ones_like(mean)
    if patches.shape[-1] == 1:
      raise FieldError('head.norm_pixels', 'True, but a patch of a single pixel has no variance')
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + _EPSILON)
