"""Layers that the models share: attention, MLP, stochastic depth, patch and position embeddings."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UsageError

# What config.model.activation can name. 'gelu' is Flax's: the tanh approximation.
ACTIVATIONS = {
  'gelu': nn.gelu,
  'gelu_exact': functools.partial(nn.gelu, approximate=False),
  'relu': nn.relu,
}


@jax.custom_jvp
def softmax(logits: jax.Array) -> jax.Array:
  """jax.nn.softmax over the last axis, with a derivative that XLA compiles better on a CPU."""
  return jax.nn.softmax(logits)


@softmax.defjvp
def _softmax_jvp(primals, tangents):
  weights = softmax(*primals)
  change = weights * tangents[0]
  return weights, change - weights * change.sum(axis=-1, keepdims=True)


def dot_product_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  dropout_rng: jax.Array | None = None,
  dropout_rate: float = 0.0,
  deterministic: bool = True,
  module: nn.Module | None = None,
) -> jax.Array:
  """Computes softmax(q k^T / sqrt(d)) v per head (arXiv 1706.03762).

  The products run in the inputs' dtype; logits and softmax are float32 whatever it is. Given a
  `module`, the weights before dropout, float32 [batch, heads, queries, keys], are sown into its
  'intermediates' as 'attention_weights', which costs nothing unless that collection is mutable;
  and 'attention_weights' of its 'perturbations', where `apply` is given that collection, is added
  to them, so that the gradient with respect to it is that with respect to the weights.

  Args:
    query: [batch, queries, heads, d].
    key: [batch, keys, heads, d].
    value: [batch, keys, heads, d].
    dropout_rng: key for dropout, one draw for each weight.
    dropout_rate: share of the weights that are zeroed unless `deterministic`.
    deterministic: turns dropout off.
    module: where the weights are sown, and perturbations looked up.

  Returns:
    [batch, queries, heads, d] in the inputs' dtype.
  """
  query = query * query.shape[-1] ** -0.5
  # With heads in front, the products are of plain matrices; on a CPU that is far faster.
  query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  logits = jnp.matmul(query, jnp.swapaxes(key, 2, 3), preferred_element_type=jnp.float32)
  weights = softmax(logits)
  if module is not None:
    module.sow('intermediates', 'attention_weights', weights)
    if module.has_variable('perturbations', 'attention_weights'):
      weights += module.get_variable('perturbations', 'attention_weights')
  if dropout_rate > 0 and not deterministic:
    keep = jax.random.bernoulli(dropout_rng, 1 - dropout_rate, weights.shape)
    weights = jnp.where(keep, weights / (1 - dropout_rate), 0)
  return jnp.swapaxes(jnp.matmul(weights.astype(value.dtype), value), 1, 2)


# Flax's projections (parameters query, key, value, out) around the attention above.
MultiHeadAttention = functools.partial(
  nn.MultiHeadDotProductAttention,
  kernel_init=nn.initializers.xavier_uniform(),
  attention_fn=dot_product_attention,
)


class MlpBlock(nn.Module):
  """Two dense layers with an activation between: [..., d] to [..., out_dim].

  Attributes:
    mlp_dim: width of the hidden layer; None means four times the input's.
    out_dim: width of the output; None means the input's.
    dropout_rate: dropout after each layer.
    activation_fn: elementwise function between the layers.
    dtype: dtype of the computation; parameters are float32.
  """

  mlp_dim: int | None = None
  out_dim: int | None = None
  dropout_rate: float = 0.1
  activation_fn: Callable[[jax.Array], jax.Array] = nn.gelu
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, inputs: jax.Array, *, deterministic: bool) -> jax.Array:
    dense = functools.partial(
      nn.Dense,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(stddev=1e-6),
    )
    x = self.activation_fn(dense(self.mlp_dim or 4 * inputs.shape[-1])(inputs))
    x = nn.Dropout(self.dropout_rate)(x, deterministic)
    x = dense(self.out_dim or inputs.shape[-1])(x)
    return nn.Dropout(self.dropout_rate)(x, deterministic)


class StochasticDepth(nn.Module):
  """Zeroes whole examples of a residual branch, each on its own draw (arXiv 1603.09382).

  Survivors are scaled by 1 / (1 - rate), so the mean over draws is the input.

  Attributes:
    rate: probability of dropping an example.
  """

  rate: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    return nn.Dropout(self.rate, broadcast_dims=range(1, x.ndim))(x, deterministic)


class PatchEmbedding(nn.Module):
  """Projects patches of images: [B, H, W, C] to [B, h, w, features] (arXiv 2010.11929).

  h = (H - patch height) / stride + 1, w likewise. The parameters are those of a convolution,
  `kernel` [patch height, patch width, C, features] and `bias`, whichever method computes it.

  Attributes:
    features: width of a token.
    patch_size: (height, width) in pixels.
    stride: (vertical, horizontal) step between patches in pixels.
    method: 'conv', or 'linear' for a matrix product over flattened patches.
    dtype: dtype of the computation; parameters are float32.

  Raises:
    UsageError: patches, at this stride, don't tile the image exactly.
  """

  features: int
  patch_size: tuple[int, int]
  stride: tuple[int, int]
  method: str = 'conv'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    _check_tiling(images.shape[1:3], self.patch_size, self.stride)
    shape = (*self.patch_size, images.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    images, kernel, bias = (a.astype(self.dtype) for a in (images, kernel, bias))
    if self.method == 'linear':
      patches = _extract_patches(images, self.patch_size, self.stride)
      return jnp.einsum('bhpwqc,pqcd->bhwd', patches, kernel) + bias
    convolve = functools.partial(
      jax.lax.conv_general_dilated, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    return convolve(images, kernel, self.stride, 'VALID') + bias


def _check_tiling(image: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int]) -> None:
  if all(i >= p and (i - p) % s == 0 for i, p, s in zip(image, patch, stride, strict=True)):
    return
  i, p, s = ('x'.join(map(str, size)) for size in (image, patch, stride))
  if patch == stride:
    raise UsageError(f'config.model.patches.size: {p} pixels do not divide images of {i} pixels')
  raise UsageError(
    f'config.model.stride: {p} patches at stride {s} do not reach the border of {i} images; '
    'image - patch must be a multiple of the stride'
  )


def _extract_patches(
  images: jax.Array, patch: tuple[int, int], stride: tuple[int, int]
) -> jax.Array:
  """Cuts [B, H, W, C] into [B, h, patch height, w, patch width, C]."""
  batch, height, width, channels = images.shape
  if patch == stride:
    grid = (height // patch[0], patch[0], width // patch[1], patch[1])
    return images.reshape(batch, *grid, channels)
  rows, columns = (
    np.arange(0, size - p + 1, s)[:, None] + np.arange(p)
    for size, p, s in zip((height, width), patch, stride, strict=True)
  )
  return images[:, rows][:, :, :, columns]


def as_pair(size: int | Sequence[int]) -> tuple[int, ...]:
  """Returns (height, width); one number, alone or in a sequence, stands for both."""
  size = (size,) if isinstance(size, int) else tuple(size)
  return size * 2 if len(size) == 1 else size


def patch_grid(
  image_size: Sequence[int], patch: tuple[int, int], stride: tuple[int, int]
) -> tuple[int, int]:
  """Returns (rows, columns) of the patches in an image; all sizes are (height, width) in pixels."""
  rows, columns = ((i - p) // s + 1 for i, p, s in zip(image_size, patch, stride, strict=True))
  return rows, columns


def resolve_grid(num_tokens: int, grid: tuple[int, int] | None) -> tuple[int, int]:
  """Returns (rows, columns) of `num_tokens` tokens: `grid` if given, else a square.

  Raises:
    ValueError: the tokens don't fill that grid.
  """
  height, width = grid or (int(num_tokens**0.5),) * 2
  if height * width != num_tokens:
    raise ValueError(f'{num_tokens} tokens do not fill a {height}x{width} grid; pass grid=(h, w)')
  return height, width


def sinusoidal_1d(length: int, channels: int, temperature: float = 10_000.0) -> np.ndarray:
  """Sines at even and cosines at odd channels (arXiv 1706.03762): float32 [length, channels].

  `channels` must be even.
  """
  omega = temperature ** -(np.arange(0, channels, 2) / channels)
  angles = np.arange(length)[:, None] * omega
  return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, channels).astype(np.float32)


def sinusoidal_2d(
  height: int, width: int, channels: int, temperature: float = 10_000.0
) -> np.ndarray:
  """Fixed position embedding of a grid (arXiv 2205.01580): float32 [height, width, channels].

  Four equal parts: sine and cosine of the column, then of the row. `channels` must be a multiple
  of four.
  """
  omega = temperature ** -(np.arange(channels // 4) / (channels // 4))
  rows, columns = np.mgrid[:height, :width][..., None]
  parts = [f(position * omega) for position in (columns, rows) for f in (np.sin, np.cos)]
  return np.concatenate(parts, axis=-1).astype(np.float32)


class AddFixedSinCosPositionEmbedding(nn.Module):
  """Adds `sinusoidal_2d` to a grid of tokens [B, h, w, channels]; has no parameters.

  Attributes:
    temperature: what wavelengths over 2 pi, in tokens, rise towards.
  """

  temperature: float = 10_000.0

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    embedding = sinusoidal_2d(*inputs.shape[1:], self.temperature)
    return inputs + embedding.astype(inputs.dtype)
