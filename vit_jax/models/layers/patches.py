"""Patches of images: their embedding, and its kernel at other sizes."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import FieldError, UsageError
from vit_jax.models.layers import cpu
from vit_jax.models.layers.resize import resize_weights

_CORRELATION = 0.95  # of neighbouring pixels of photographs; kernels differ little from 0.9 to 0.99


class PatchEmbedding(nn.Module):
  """Projects patches of images: [B, H, W, C] to [B, h, w, features] (arXiv 2010.11929).

  h = (H - patch height) / stride + 1, rounded down, w likewise. The parameters are those of a
  convolution, `kernel` [patch height, patch width, C, features] and `bias`, whichever method
  computes it.

  Attributes:
    features: width of a token.
    patch_size: (height, width) in pixels.
    stride: (vertical, horizontal) step between patches in pixels.
    method: 'conv', or 'linear' for a matrix product over flattened patches.
    dtype: dtype of the computation; parameters are float32.
    use_bias: whether there is a bias.
    drop_remainder: leave out the rows and columns after the last patches.

  Raises:
    FieldError: patches, at this stride, don't tile the image exactly, and nothing is left out.
  """

  features: int
  patch_size: tuple[int, int]
  stride: tuple[int, int]
  method: str = 'conv'
  dtype: Any = jnp.float32
  use_bias: bool = True
  drop_remainder: bool = False

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    if self.drop_remainder:
      images = _drop_remainder(images, self.patch_size, self.stride)
    _check_tiling(images.shape[1:3], self.patch_size, self.stride)
    shape = (*self.patch_size, images.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    images, kernel = images.astype(self.dtype), kernel.astype(self.dtype)
    if self.method == 'linear':
      patches = _extract_patches(images, self.patch_size, self.stride)
      x = jnp.einsum('bhpwqc,pqcd->bhwd', patches, kernel)
    else:
      layout = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}
      x = cpu.convolve(images, kernel, self.stride, ((0, 0), (0, 0)), **layout)
    if not self.use_bias:
      return x
    return x + self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)


def _drop_remainder(
  images: jax.Array, patch: tuple[int, int], stride: tuple[int, int]
) -> jax.Array:
  """Crops [B, H, W, C] to what whole patches cover."""
  height, width = (
    size - max(size - p, 0) % s for size, p, s in zip(images.shape[1:3], patch, stride, strict=True)
  )
  return images[:, :height, :width]


def _check_tiling(image: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int]) -> None:
  if all(i >= p and (i - p) % s == 0 for i, p, s in zip(image, patch, stride, strict=True)):
    return
  i, p, s = ('x'.join(map(str, size)) for size in (image, patch, stride))
  if patch == stride:
    raise FieldError('patches.size', f'{p} pixels do not divide images of {i} pixels')
  raise FieldError(
    'stride',
    f'{p} patches at stride {s} do not reach the border of {i} images; '
    'image - patch must be a multiple of the stride',
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


def resample_patch_kernel(kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resamples a patch kernel, so that resized images have the tokens that they had.

  With B the matrix that resizes a patch, the new kernel v minimises the expected square of
  v^T B x - w^T x over patches x, as in FlexiViT (arXiv 2212.08013, section 3.4). B is the bicubic
  resize with antialiasing that images are brought to size by. To a larger size, v is the
  pseudo-inverse of B^T times w, which computes the same whatever x is. To a smaller one, pixels
  are taken to be correlated as those of photographs: by 0.95 to the power of their distance in
  rows and columns. The same size gives the same bits.

  Args:
    kernel: float32 [height, width, C, D].
    size: (height, width) of the result.

  Returns:
    float32 [*size, C, D].
  """
  if kernel.shape[:2] == tuple(size):
    return kernel
  # B and the covariance are Kronecker products of their two axes' matrices, and so is the solution.
  rows, columns = (_kernel_weights(*sides) for sides in zip(kernel.shape[:2], size, strict=True))
  resampled = np.einsum('ih,jw,hwcd->ijcd', rows, columns, kernel, optimize=True)
  return resampled.astype(np.float32)


def _kernel_weights(old: int, new: int) -> np.ndarray:
  """Returns the float64 [new, old] matrix that resamples a kernel along one axis."""
  weights = resize_weights(np.arange(new), new, old, 'bicubic', antialias=True)
  weights = weights.astype(np.float64)
  if new >= old:
    return np.linalg.pinv(weights.T)
  covariance = _CORRELATION ** np.abs(np.subtract.outer(np.arange(old), np.arange(old)))
  return np.linalg.solve(weights @ covariance @ weights.T, weights @ covariance)


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
  """Returns a patch kernel, [height, width, C, D], for images of another number of channels.

  From 1 to 3 each gets a third, from 3 to 1 they are summed, so that grey images give the same
  tokens, stored as they are or as RGB. The same number gives the same bits.

  Raises:
    UsageError: for other numbers of channels.
  """
  match kernel.shape[2], channels:
    case old, new if old == new:
      return kernel
    case 1, 3:
      return np.repeat(kernel / np.float32(3), 3, axis=2)
    case 3, 1:
      return kernel.sum(axis=2, keepdims=True)
  raise UsageError(
    f'images of {channels} channels, but the weights are for images of {kernel.shape[2]}; '
    'only 1 can be turned into 3, and 3 into 1'
  )
