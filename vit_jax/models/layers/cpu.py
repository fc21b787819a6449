"""Operations that XLA compiles badly for a CPU, rewritten to be faster, with the speed-up of each.

`python -m vit_jax.models.layers.cpu_times` measures the speed-ups: the time of the usual operation
over that of the one here, in turns, as median and range. In one run on two cores without AVX-512,
jax 0.10.2:

  softmax, gradient of attention of 32 images, 197 tokens, 3 heads of 64: 1.09 (0.86 to 1.35)
  product of 256 matrices of 17x17, its gradient: 2.15 (1.21 to 2.67)
  dense layer of 128 x 196 tokens, 64 to 128 channels, its gradient: 1.73 (1.33 to 3.13)
  exact GELU of 32 x 197 x 768: 2.15 (1.97 to 2.30)
  convolution 3x3 of 32 maps of 2x2, 512 channels: 61 (40 to 68)
  its gradient: 51 (47 to 58)
  convolution 3x3 of 32 maps of 14x14, 64 to 2 channels: 1.84 (1.18 to 2.55)
  its gradient: 1.55 (1.03 to 2.54)
  depthwise convolution 3x3 of 32 maps of 16x16, 256 channels: 22 (17 to 35)
  its gradient: 9.5 (7.1 to 12.6)
  embedding of 16x16 patches of 32 images of 224x224: 1.26 (0.92 to 2.27)
  its gradient: 2.19 (1.53 to 2.67)
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp


@jax.custom_jvp
def softmax(logits: jax.Array) -> jax.Array:
  """jax.nn.softmax over the last axis, with its derivative multiplied out.

  That is as many operations on any device; a CPU runs them in fewer passes.
  """
  return jax.nn.softmax(logits)


@softmax.defjvp
def _softmax_jvp(primals, tangents):
  weights = softmax(*primals)
  change = weights * tangents[0]
  return weights, change - weights * change.sum(axis=-1, keepdims=True)


_rewrites = True  # see `left_alone`

_SHORT = 64  # rows and columns of matrices up to which `product` differs


@jax.custom_jvp
def product(a: jax.Array, b: jax.Array) -> jax.Array:
  """a @ b, [..., n, k] and [..., k, m], with a faster gradient to b for many small a on a CPU.

  XLA has no fast product of many small matrices whose first factor is transposed, as the gradient's
  a^T is. So the other one is transposed here, which is narrow in attention, and the result.
  """
  return a @ b


@product.defjvp
def _product_jvp(primals, tangents):
  (a, b), (a_, b_) = primals, tangents
  if max(a.shape[-2:]) > _SHORT or not _rewrites:
    change = a @ b_
  else:
    change = jax.lax.platform_dependent(a, b_, cpu=_product_by_transposes, default=jnp.matmul)
  return a @ b, a_ @ b + change


def _product_by_transposes(a, b):
  # Barriers keep XLA from undoing the transposes, in the gradient too.
  b = jax.lax.optimization_barrier(jnp.swapaxes(b, -2, -1))
  out = jnp.einsum('...mk,...nk->...mn', b, a)
  return jnp.swapaxes(jax.lax.optimization_barrier(out), -2, -1)


def dot_general(
  x: jax.Array, kernel: jax.Array, dimension_numbers: jax.lax.DotDimensionNumbers, **options: object
) -> jax.Array:
  """jax.lax.dot_general, for `dot_general` of flax.linen's dense layers; on a CPU of two matrices.

  Where x has several axes besides those of the sum, XLA writes the gradient of the result a second
  time, transposed, for that of the kernel. A TPU would have to copy x, whose last two axes it keeps
  in tiles. A model has many such layers, and a choice takes time to trace: so the default backend
  of the process chooses.
  """
  (x_axes, kernel_axes), batch_axes = dimension_numbers
  count = len(x_axes)
  is_dense = tuple(x_axes) == tuple(range(x.ndim - count, x.ndim)) and not any(batch_axes)
  is_dense &= tuple(kernel_axes) == tuple(range(count))
  if not (is_dense and _rewrites and jax.default_backend() == 'cpu'):
    return jax.lax.dot_general(x, kernel, dimension_numbers, **options)
  axes, size = x.shape[: x.ndim - count], math.prod(kernel.shape[:count])
  y = _multiply_rows(x.reshape(*axes, size), kernel.reshape(size, -1), **options)
  return y.reshape(*axes, *kernel.shape[count:])


def _multiply_rows(x, matrix, **options):
  """Multiplies [..., n] by [n, m] as two matrices, as `dot_general` says."""
  rows = x.reshape(-1, x.shape[-1])
  result = jax.lax.dot_general(rows, matrix, (((1,), (0,)), ((), ())), **options)
  return result.reshape(*x.shape[:-1], matrix.shape[-1])


def gelu_exact(x: jax.Array) -> jax.Array:
  """x times the normal distribution's cumulative function at x, as `gelu` of PyTorch (1606.08415).

  On a CPU that is of erf in float32, as in PyTorch: half the time of the usual erfc. The absolute
  error is about 1e-7; erfc has a small relative one below -4, too.
  """
  usual = functools.partial(jax.nn.gelu, approximate=False)
  return jax.lax.platform_dependent(x, cpu=_gelu_by_erf, default=usual) if _rewrites else usual(x)


def _gelu_by_erf(x):
  wide = x.astype(jnp.float32)
  return (wide * 0.5 * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


@contextlib.contextmanager
def left_alone() -> Iterator[None]:
  """What is traced in here has the usual operations alone, with no choice between devices.

  That is for converters to formats of other programs, which know no such choice.
  """
  global _rewrites
  _rewrites = False
  try:
    yield
  finally:
    _rewrites = True


def rewrites() -> bool:
  """Whether what is traced here may have other operations than the usual ones (`left_alone`)."""
  return _rewrites


_SMALL = 8  # pixels a side of a map, up to which a matrix product is the faster convolution
_FEW = 4  # filters that `_convolve_by_projection` is the faster for, whatever the channels


def convolve(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  **options: object,
) -> jax.Array:
  """jax.lax.conv_general_dilated, on a CPU in another way where that is faster.

  That is as one matrix product where maps are small, or where kernels tile the map, whose gradient
  is then faster; as a sum of shifted maps where each channel has a filter of its own; and as a
  product and such a sum where filters are few.

  Args:
    x: [B, H, W, C].
    kernel: [h, w, C, filters]; [h, w, 1, C] of a depthwise convolution.
    strides: of the two axes.
    padding: before and after each of them.
    **options: of `jax.lax.conv_general_dilated`, as flax.linen.Conv gives them; none of them other
      than its default, without dilation. `feature_group_count` is 1, or C of a depthwise one.
  """
  usual = functools.partial(
    jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options
  )
  if options.get('feature_group_count', 1) > 1:
    ours = functools.partial(_convolve_by_shifts, strides=strides, padding=padding)
  elif max(x.shape[1:3]) <= _SMALL:
    ours = functools.partial(_convolve_by_product, strides=strides, padding=padding)
  elif _tiles(x.shape[1:3], kernel.shape[:2], strides, padding):
    ours = _project_patches
  elif _has_few_filters(kernel.shape, strides):
    ours = functools.partial(_convolve_by_projection, padding=padding)
  else:
    return usual(x, kernel)
  return (
    jax.lax.platform_dependent(x, kernel, cpu=ours, default=usual)
    if _rewrites
    else usual(x, kernel)
  )


def _tiles(size, kernel, strides, padding):
  """Whether a kernel's places lie side by side and fill a map, of several pixels each."""
  is_padded = any(map(any, padding))
  divides = all(n % k == 0 for n, k in zip(size, kernel, strict=True))
  return divides and not is_padded and tuple(kernel) == tuple(strides) != (1, 1)


def _has_few_filters(shape, strides):
  """Whether a kernel larger than 1x1, [h, w, C, filters], makes few maps of as many pixels."""
  *size, channels, filters = shape
  return max(size) > 1 and tuple(strides) == (1, 1) and filters <= max(_FEW, channels // 8)


def _project_patches(x, kernel):
  height, width, *_, filters = kernel.shape
  batch, rows, columns, channels = x.shape
  x = x.reshape(batch, rows // height, height, columns // width, width, channels).swapaxes(2, 3)
  return _multiply_rows(x.reshape(*x.shape[:3], -1), kernel.reshape(-1, filters))


def _convolve_by_product(x, kernel, *, strides, padding):
  parts = _shifted(x, kernel.shape[:2], strides, padding)
  return _multiply_rows(jnp.concatenate(parts, -1), kernel.reshape(-1, kernel.shape[-1]))


def _convolve_by_shifts(x, kernel, *, strides, padding):
  parts = _shifted(x, kernel.shape[:2], strides, padding)
  filters = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
  products = (part * weights for part, weights in zip(parts, filters, strict=True))
  return sum(products).astype(x.dtype)  # added up in float32


def _convolve_by_projection(x, kernel, *, padding):
  height, width, channels, filters = kernel.shape
  dtype = jnp.promote_types(x.dtype, jnp.float32)  # in which products are added up
  kernel = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
  # What each pixel adds to the maps around it, as one product. Its gradient is one again: that of
  # the split is a concatenation.
  parts = _multiply_rows(x, kernel, preferred_element_type=dtype)
  parts = jax.lax.split(parts, [filters] * (height * width), axis=3)
  (top, bottom), (left, right) = padding
  shifts = [
    (
      (0, 0, 0),
      (top - i, bottom - height + 1 + i, 0),
      (left - j, right - width + 1 + j, 0),
      (0, 0, 0),
    )
    for i in range(height)
    for j in range(width)
  ]
  zero = jnp.zeros((), dtype)
  shifted = (jax.lax.pad(part, zero, shift) for part, shift in zip(parts, shifts, strict=True))
  return sum(shifted).astype(x.dtype)


def _shifted(x, size, strides, padding):
  """Returns, for each place in a kernel, what it sees of [B, H, W, C]."""
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  height, width = x.shape[1] - size[0] + 1, x.shape[2] - size[1] + 1
  return [
    x[:, i : i + height : strides[0], j : j + width : strides[1]]
    for i in range(size[0])
    for j in range(size[1])
  ]
