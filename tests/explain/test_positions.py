"""Position embeddings of models and their cosine similarity, on cases with known answers."""

import numpy as np
import pytest
from explain.helpers import VIT, assert_fits_into_readme

from vit_jax.errors import UsageError
from vit_jax.explain.positions import cosine_similarity, similarity_figure
from vit_jax.models import ModelConfig


def embeddings_of(kind, grid, width, positions=None, classifier='gap'):
  """Those of a ViT on patches of 2x2 pixels whose learned embeddings are `positions`."""
  fields = {'hidden_size': width, 'patches': {'size': (2, 2)}, 'classifier': classifier}
  model = ModelConfig.from_dict(VIT | fields | {'positional_embedding': kind}).model
  params = {}
  if positions is not None:
    params['Transformer'] = {'posembed_input': {'pos_embedding': positions[None]}}
  found = model.positions(params, (2 * grid[0], 2 * grid[1]))
  assert found.kind == kind
  return found.embeddings


def test_orthogonal_embeddings_have_similarity_0_equal_ones_1_and_opposite_ones_minus_1():
  x, y = np.array([2.0, 0.0, 0.0]), np.array([0.0, 0.0, 0.5])
  similarity = cosine_similarity(np.array([[x, 3 * x, -x], [y, y, 0 * x]]))
  assert similarity.shape == (2, 3, 2, 3)
  assert similarity.dtype == np.float32
  np.testing.assert_allclose(similarity[0, 0], [[1, 1, -1], [0, 0, 0]])
  np.testing.assert_allclose(similarity[0, 2], [[-1, -1, 1], [0, 0, 0]])
  np.testing.assert_allclose(similarity[1, 1], [[0, 0, 0], [1, 1, 0]])
  np.testing.assert_array_equal(similarity[1, 2], np.zeros((2, 3)))


@pytest.mark.parametrize('classifier', ['gap', 'token'])
def test_learned_embeddings_are_the_grid_row_by_row_without_the_class_token(classifier):
  table = np.arange(7 * 4, dtype=np.float32).reshape(7, 4)
  positions = table if classifier == 'token' else table[1:]
  embeddings = embeddings_of('learned_1d', (2, 3), 4, positions, classifier)
  assert embeddings.shape == (2, 3, 4)
  np.testing.assert_array_equal(embeddings[1, 0], table[4])
  np.testing.assert_array_equal(embeddings[0, 2], table[3])


def test_sinusoidal_embeddings_depend_on_distances_alone():
  """Sums of cosines of distances along the row-by-row order, or along each axis."""
  rows, columns = np.mgrid[:3, :5]
  omegas = 10_000.0 ** -(np.arange(4) / 4)

  def mean_cosine(index):
    distances = index[:, :, None, None] - index
    return np.cos(distances[..., None] * omegas).mean(axis=-1)

  one = embeddings_of('sinusoidal_1d', (3, 5), 8)
  np.testing.assert_allclose(cosine_similarity(one), mean_cosine(5 * rows + columns), atol=1e-5)
  two = embeddings_of('sinusoidal_2d', (3, 5), 16)
  expected = (mean_cosine(rows) + mean_cosine(columns)) / 2
  np.testing.assert_allclose(cosine_similarity(two), expected, atol=1e-5)


def test_one_dimensional_sinusoids_begin_at_the_class_token():
  embeddings = embeddings_of('sinusoidal_1d', (2, 2), 4, classifier='token')
  np.testing.assert_allclose(embeddings[..., 0], np.sin([[1, 2], [3, 4]]), rtol=1e-6)


def test_embeddings_of_another_grid_are_refused():
  with pytest.raises(UsageError, match='7 positions for 2x4 patches and 1 tokens before them'):
    embeddings_of('learned_1d', (2, 4), 4, np.zeros((7, 4)), 'token')


def random(*shape):
  return np.random.default_rng(sum(shape)).uniform(size=shape)


def similarity(rows, columns):
  return similarity_figure(cosine_similarity(random(rows, columns, 8) - 0.5))


@pytest.mark.parametrize('grid', [(3, 5), (20, 4), (2, 9)])
def test_a_figure_of_similarities_is_not_cut_off(grid):
  assert_fits_into_readme(similarity(*grid))


def test_a_tile_of_similarities_stands_where_its_patch_does():
  values = cosine_similarity(random(3, 4, 6) - 0.5)
  figure = similarity_figure(values)
  axis, bar = figure.axes
  mosaic = axis.images[0].get_array()
  for row, column in np.ndindex(3, 4):
    tile = mosaic[4 * row : 4 * row + 3, 5 * column : 5 * column + 4]
    np.testing.assert_array_equal(tile, values[row, column])
  assert mosaic.mask[3].all()
  assert mosaic.mask[:, 4].all()
  assert axis.images[0].get_clim() == (-1, 1)
  assert axis.yaxis_inverted()
  assert [text.get_text() for text in axis.get_xticklabels()] == ['1', '2', '3', '4']
  np.testing.assert_array_equal(axis.get_yticks(), [1, 5, 9])
  assert bar.get_ylabel() == 'cosine similarity'
