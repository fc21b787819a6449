"""Patch embedding and its grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UsageError
from vit_jax.models import layers


@pytest.mark.parametrize(
  ('size', 'patch', 'stride'),
  [((8, 12), (4, 2), (4, 2)), ((7, 9), (3, 3), (2, 2)), ((9, 8), (3, 4), (1, 4))],
)
def test_linear_patch_embedding_is_the_convolution(size, patch, stride):
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, *size, 3)).astype(np.float32)
  conv, linear = (layers.PatchEmbedding(5, patch, stride, m) for m in ('conv', 'linear'))
  shapes = jax.eval_shape(conv.init, jax.random.key(0), images)
  assert shapes == jax.eval_shape(linear.init, jax.random.key(0), images)
  assert jax.tree.map(jnp.shape, shapes) == {'params': {'kernel': (*patch, 3, 5), 'bias': (5,)}}
  variables = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes)
  expected = conv.apply(variables, images)
  assert expected.shape[1:3] == tuple(
    (n - p) // s + 1 for n, p, s in zip(size, patch, stride, strict=True)
  )
  np.testing.assert_allclose(linear.apply(variables, images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('patch', 'stride', 'message'),
  [
    ((3, 4), (3, 4), r'^patches\.size: 3x4 pixels do not divide images of 8x8'),
    ((16, 16), (16, 16), r'^patches\.size: 16x16 .* 8x8'),
    ((4, 4), (3, 3), r'^stride: 4x4 patches at stride 3x3 .* 8x8'),
  ],
)
def test_patches_that_do_not_tile_the_image(patch, stride, message):
  with pytest.raises(UsageError, match=message):
    layers.PatchEmbedding(4, patch, stride).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize(
  ('image', 'patch', 'stride', 'grid'),
  [
    ((8, 12), (4, 2), (4, 2), (2, 6)),
    ((9, 7), (3, 3), (2, 4), (4, 2)),
    ((5, 5), (5, 5), (1, 1), (1, 1)),
  ],
)
def test_the_grid_of_patches_is_what_the_embedding_gives(image, patch, stride, grid):
  assert layers.patch_grid(image, patch, stride) == grid
  embedding = layers.PatchEmbedding(features=2, patch_size=patch, stride=stride)
  images = jnp.zeros((1, *image, 1))
  shape = jax.eval_shape(lambda: embedding.init_with_output(jax.random.key(0), images)[0]).shape
  assert shape == (1, *grid, 2)


@pytest.mark.parametrize('size', [4, (4,), [4], (4, 4)])
def test_one_side_stands_for_a_square(size):
  assert layers.as_pair(size) == (4, 4)


def bilinear_matrix(old, new):
  """[new pixels, old pixels] of resizing a patch, from the images that JAX resizes."""
  basis = np.eye(old[0] * old[1], dtype=np.float32).reshape(-1, *old)
  resized = jax.image.resize(basis, (len(basis), *new), 'bilinear', antialias=False)
  return np.asarray(resized, np.float64).reshape(len(basis), -1).T


GROWING = [((4, 4), (8, 8)), ((3, 5), (4, 7)), ((8, 8), (9, 16)), ((16, 16), (32, 32))]
SHRINKING = [((8, 8), (4, 4)), ((16, 16), (4, 4)), ((7, 5), (4, 3)), ((14, 14), (8, 3))]
MIXED = [((4, 8), (8, 4)), ((6, 5), (6, 3))]


@pytest.mark.parametrize(('old', 'new'), GROWING)
def test_a_kernel_computes_on_larger_patches_what_it_did(old, new):
  """The property that defines it (arXiv 2212.08013): patches, resized, have the same tokens."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(*old, 3, 6)).astype(np.float32)
  patches = rng.normal(size=(5, *old, 3)).astype(np.float32)
  resampled = layers.resample_patch_kernel(kernel, new)
  assert resampled.shape == (*new, 3, 6)
  assert resampled.dtype == np.float32
  larger = np.asarray(jax.image.resize(patches, (5, *new, 3), 'bilinear', antialias=False))
  tokens = np.einsum('nhwc,hwcd->nd', patches, kernel)
  np.testing.assert_allclose(np.einsum('nhwc,hwcd->nd', larger, resampled), tokens, atol=1e-4)
  assert np.abs(tokens).max() > 1


@pytest.mark.parametrize(('old', 'new'), GROWING[:3] + SHRINKING + MIXED)
def test_a_kernel_is_the_least_squares_solution(old, new):
  kernel = np.random.default_rng(0).normal(size=(*old, 2, 3)).astype(np.float32)
  flat = kernel.reshape(-1, 6).astype(np.float64)
  solution, *_ = np.linalg.lstsq(bilinear_matrix(old, new).T, flat, rcond=1e-9)
  resampled = layers.resample_patch_kernel(kernel, new)
  np.testing.assert_allclose(resampled, solution.reshape(*new, 2, 3), atol=2e-5)


def test_a_kernel_of_half_the_size_sums_what_such_a_patch_averages():
  """A resize to half the size is the mean over 2x2 pixels: its pseudo-inverse is known."""
  kernel = np.random.default_rng(0).normal(size=(8, 4, 3, 5)).astype(np.float32)
  sums = kernel.reshape(4, 2, 2, 2, 3, 5).sum(axis=(1, 3))
  np.testing.assert_allclose(layers.resample_patch_kernel(kernel, (4, 2)), sums, atol=1e-5)


def test_grey_images_have_the_same_tokens_in_one_channel_and_in_three():
  rng = np.random.default_rng(0)
  grey = rng.normal(size=(5, 4, 2, 1)).astype(np.float32)
  colour = np.repeat(grey, 3, axis=-1)

  def tokens(images, kernel):
    return np.einsum('nhwc,hwcd->nd', images, kernel)

  one = rng.normal(size=(4, 2, 1, 6)).astype(np.float32)
  np.testing.assert_allclose(
    tokens(colour, layers.adapt_channels(one, 3)), tokens(grey, one), atol=1e-5
  )
  three = rng.normal(size=(4, 2, 3, 6)).astype(np.float32)
  np.testing.assert_allclose(
    tokens(grey, layers.adapt_channels(three, 1)), tokens(colour, three), atol=1e-5
  )
  assert layers.adapt_channels(three, 1).shape == one.shape
  assert len(np.unique(layers.adapt_channels(one, 3)[0, 0, :, 0])) == 1


@pytest.mark.parametrize(('old', 'new'), [(3, 4), (4, 3), (2, 1)])
def test_other_numbers_of_channels_are_refused(old, new):
  with pytest.raises(UsageError, match=rf'^images of {new} channels, .* images of {old};'):
    layers.adapt_channels(np.zeros((2, 2, old, 1), np.float32), new)


def test_the_same_sizes_give_the_same_bits():
  kernel = np.random.default_rng(0).normal(size=(4, 2, 3, 8)).astype(np.float32)
  assert layers.resample_patch_kernel(kernel, (4, 2)).tobytes() == kernel.tobytes()
  assert layers.adapt_channels(kernel, 3).tobytes() == kernel.tobytes()
