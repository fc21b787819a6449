"""Patch embedding and its grid."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.datasets import load_sample_images

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


def resize_matrix(old, new):
  """[new pixels, old pixels] of resizing a patch, from the images that PyTorch resizes."""
  basis = torch.eye(old[0] * old[1]).reshape(-1, 1, *old)
  resized = torch.nn.functional.interpolate(basis, new, mode='bicubic', antialias=True)
  return resized.reshape(len(basis), -1).T.numpy().astype(np.float64)


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
  larger = np.einsum('np,mpc->mnc', resize_matrix(old, new), patches.reshape(5, -1, 3))
  larger = larger.reshape(5, *new, 3)
  tokens = np.einsum('nhwc,hwcd->nd', patches, kernel)
  np.testing.assert_allclose(np.einsum('nhwc,hwcd->nd', larger, resampled), tokens, atol=1e-4)
  assert np.abs(tokens).max() > 1


@pytest.mark.parametrize(('old', 'new'), GROWING[:3] + SHRINKING)
def test_a_kernel_is_the_least_squares_solution_over_correlated_pixels(old, new):
  kernel = np.random.default_rng(0).normal(size=(*old, 2, 3)).astype(np.float32)
  rows, columns = (index.ravel() for index in np.indices(old))
  distance = sum(np.abs(np.subtract.outer(index, index)) for index in (rows, columns))
  root = np.linalg.cholesky(0.95**distance)  # of patches that are root times white noise
  theirs = resize_matrix(old, new)
  solution, *_ = np.linalg.lstsq((theirs @ root).T, root.T @ kernel.reshape(-1, 6), rcond=1e-9)
  resampled = layers.resample_patch_kernel(kernel, new)
  np.testing.assert_allclose(resampled, solution.reshape(*new, 2, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('old', 'new'), [(16, 8), (16, 14), (14, 16), (32, 8)])
def test_photographs_keep_their_tokens_better_than_by_other_rules(old, new):
  """big_vision's and timm's pseudo-inverses, and resizing the kernel itself."""
  path = ROOT / 'benchmarks' / 'patch_kernels.py'
  spec = importlib.util.spec_from_file_location('patch_kernels', path)
  benchmark = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(benchmark)
  image = load_sample_images().images[0][:224, :320]
  errors = benchmark.errors([image], old, new, principal=False)
  ours = errors.pop('vit_jax')
  assert ours < 0.1
  assert ours <= 1.001 * min(errors.values())


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
