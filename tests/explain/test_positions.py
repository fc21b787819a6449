"""Position embeddings and their cosine similarity, on cases with known answers."""

import numpy as np
import pytest

from vit_jax.errors import UsageError
from vit_jax.explain.positions import cosine_similarity, position_embeddings


def make_params(width, positions=None, cls=False):
  """As much of a model's parameters as is read."""
  params = {'embedding': {'kernel': np.zeros((2, 2, 1, width))}}
  if positions is not None:
    params['Transformer'] = {'posembed_input': {'pos_embedding': positions[None]}}
  return params | ({'cls': np.zeros((1, 1, width))} if cls else {})


def test_orthogonal_embeddings_have_similarity_0_equal_ones_1_and_opposite_ones_minus_1():
  x, y = np.array([2.0, 0.0, 0.0]), np.array([0.0, 0.0, 0.5])
  similarity = cosine_similarity(np.array([[x, 3 * x, -x], [y, y, 0 * x]]))
  assert similarity.shape == (2, 3, 2, 3)
  assert similarity.dtype == np.float32
  np.testing.assert_allclose(similarity[0, 0], [[1, 1, -1], [0, 0, 0]])
  np.testing.assert_allclose(similarity[0, 2], [[-1, -1, 1], [0, 0, 0]])
  np.testing.assert_allclose(similarity[1, 1], [[0, 0, 0], [1, 1, 0]])
  np.testing.assert_array_equal(similarity[1, 2], np.zeros((2, 3)))


@pytest.mark.parametrize('cls', [False, True])
def test_learned_embeddings_are_the_grid_row_by_row_without_the_class_token(cls):
  table = np.arange(7 * 4, dtype=np.float32).reshape(7, 4)
  params = make_params(4, table if cls else table[1:], cls)
  embeddings = position_embeddings(params, 'learned_1d', (2, 3))
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

  one = position_embeddings(make_params(8), 'sinusoidal_1d', (3, 5))
  np.testing.assert_allclose(cosine_similarity(one), mean_cosine(5 * rows + columns), atol=1e-5)
  two = position_embeddings(make_params(16), 'sinusoidal_2d', (3, 5))
  expected = (mean_cosine(rows) + mean_cosine(columns)) / 2
  np.testing.assert_allclose(cosine_similarity(two), expected, atol=1e-5)


def test_one_dimensional_sinusoids_begin_at_the_class_token():
  embeddings = position_embeddings(make_params(4, cls=True), 'sinusoidal_1d', (2, 2))
  np.testing.assert_allclose(embeddings[..., 0], np.sin([[1, 2], [3, 4]]), rtol=1e-6)


def test_a_model_without_position_embeddings_is_refused():
  with pytest.raises(UsageError, match=r"config\.model\.positional_embedding: 'none'"):
    position_embeddings(make_params(4), 'none', (2, 2))


def test_embeddings_of_another_grid_are_refused():
  params = make_params(4, np.zeros((7, 4)), cls=True)
  with pytest.raises(UsageError, match='7 positions for 2x4 patches and 1 class tokens'):
    position_embeddings(params, 'learned_1d', (2, 4))
