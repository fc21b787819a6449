"""Principal components of patch filters, against planted ones and scikit-learn's; a figure."""

import numpy as np
import pytest
from explain.helpers import assert_fits_into_readme, words
from sklearn.decomposition import PCA

from vit_jax.errors import UsageError
from vit_jax.explain.filters import components_figure, principal_components


def test_planted_components_are_found_with_their_shares():
  """Filters that are a mean, +-3 of one direction and +-1 of another, in all combinations."""
  stripes = np.tile([[0.5, -0.5]], (2, 1))[:, :, None]
  corner = np.array([[1.0, 1.0], [-1.0, -1.0]])[:, :, None] / -2
  mean = np.array([[9.0, 1.0], [2.0, 7.0]])[:, :, None]
  kernel = np.stack(
    [mean + 3 * a * stripes + b * corner for a in (-1, 1) for b in (-1, 1)], axis=-1
  )
  components, shares = principal_components(kernel, num_components=2)
  assert components.shape == (2, 2, 2, 1)
  assert components.dtype == shares.dtype == np.float32
  # The first of the largest entries is positive: `corner` turns its sign.
  np.testing.assert_allclose(components, [stripes, -corner], atol=1e-6)
  np.testing.assert_allclose(shares, [0.9, 0.1], rtol=1e-6)


def test_components_are_those_of_scikit_learn():
  kernel = np.random.default_rng(0).normal(size=(4, 3, 3, 50)).astype(np.float32)
  components, shares = principal_components(kernel, num_components=10)
  pca = PCA(10).fit(kernel.reshape(36, 50).T)
  np.testing.assert_allclose(shares, pca.explained_variance_ratio_, rtol=1e-4)
  cosines = (components.reshape(10, 36) * pca.components_).sum(axis=1)
  np.testing.assert_allclose(np.abs(cosines), 1, rtol=1e-4)


def test_signs_do_not_depend_on_those_of_the_filters():
  kernel = np.random.default_rng(1).normal(size=(3, 3, 1, 20))
  components, _ = principal_components(kernel)
  np.testing.assert_allclose(principal_components(-kernel)[0], components, atol=1e-5)
  flat = components.reshape(len(components), -1)
  assert (flat.max(axis=1) == np.abs(flat).max(axis=1)).all()


@pytest.mark.parametrize('seed', range(8))
def test_of_entries_that_rounding_alone_tells_apart_the_first_is_positive(seed):
  """Two directions of entries of one magnitude each, disturbed as another BLAS would."""
  signs = np.array([[-1, 1, -1, -1, 1, 1], [1, 1, 1, -1, -1, 1]])
  amounts = np.array([[3, -3, 0, 0], [0, 0, 1, -1]])
  noise = np.random.default_rng(seed).normal(scale=1e-12, size=(6, 4))
  kernel = (signs.T @ amounts + noise).reshape(2, 3, 1, 4)
  components, _ = principal_components(kernel, num_components=2)
  expected = signs * signs[:, :1] / 6**0.5
  np.testing.assert_allclose(components.reshape(2, 6), expected, atol=1e-6)


@pytest.mark.parametrize(('num_filters', 'expected'), [(3, 2), (5, 4), (50, 4)])
def test_there_are_no_more_components_than_pixels_nor_than_centred_filters(num_filters, expected):
  kernel = np.random.default_rng(2).normal(size=(2, 2, 1, num_filters))
  components, shares = principal_components(kernel)
  assert len(components) == len(shares) == expected
  assert shares.sum() == pytest.approx(1)


def test_filters_that_are_all_alike_are_refused():
  kernel = np.repeat(np.random.default_rng(3).normal(size=(2, 2, 3, 1)), 7, axis=-1)
  with pytest.raises(UsageError, match='patch embedding: its filters are all alike'):
    principal_components(kernel.astype(np.float32))


def draw(height, width, channels):
  kernel = np.random.default_rng(height).uniform(size=(height, width, channels, 40))
  return components_figure(*principal_components(kernel))


@pytest.mark.parametrize('shape', [(4, 4, 1), (8, 2, 3), (1, 1, 1)])
def test_a_figure_of_components_is_not_cut_off(shape):
  assert_fits_into_readme(draw(*shape))


def test_components_fill_their_range_and_carry_their_shares():
  figure = components_figure(
    np.array([[[[0.0], [0.5]]], [[[-0.9], [0.1]]]], np.float32), np.array([0.75, 0.125])
  )
  tiles = [axis.images[0].get_array() for axis in figure.axes]
  np.testing.assert_allclose(tiles, [[[0, 1]], [[0, 1]]])
  assert {'1: 75.0%', '2: 12.5%'} <= set(words(figure))
  assert any('87.5% in all' in text for text in words(figure))


def test_components_that_are_no_pictures_are_refused():
  with pytest.raises(UsageError, match='filters of 2 channels'):
    draw(2, 2, 2)
