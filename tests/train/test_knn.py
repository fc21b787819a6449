"""k-NN against scikit-learn's, with DINO's weights."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from vit_jax import experiment_config
from vit_jax.errors import FieldError
from vit_jax.train import knn

K, TEMPERATURE, CLASSES = 7, 0.07, 5


def make_data(count, seed):
  """Overlapping clouds round a centre for each class: (float32 [N, 12], int [N])."""
  centres = np.random.default_rng(0).normal(size=(CLASSES, 12))
  rng = np.random.default_rng(seed)
  labels = rng.integers(CLASSES, size=count)
  return (0.5 * centres[labels] + rng.normal(size=(count, 12)) + 1).astype(np.float32), labels


BANK, TEST = make_data(150, seed=1), make_data(333, seed=2)


@pytest.fixture(scope='module')
def reference():
  classifier = KNeighborsClassifier(
    K,
    weights=lambda distances: np.exp((1 - distances) / TEMPERATURE),
    metric='cosine',
    algorithm='brute',
  )
  return classifier.fit(BANK[0].astype(np.float64), BANK[1])


@pytest.mark.parametrize('rows', [1000, 64])
def test_votes_are_scikit_learns_in_blocks_too(monkeypatch, reference, rows):
  monkeypatch.setattr(knn, '_BANK', rows)
  blocks = knn._blocks(*BANK)
  assert len(blocks[1]) == (3 if rows == 64 else 1)
  votes = knn.vote(*blocks, TEST[0], K, TEMPERATURE, CLASSES)
  expected = reference.predict_proba(TEST[0].astype(np.float64))
  np.testing.assert_allclose(votes, expected, atol=1e-6)


def test_accuracy_counts_each_test_example_once(monkeypatch, reference):
  monkeypatch.setattr(knn, '_QUERIES', 50)  # 333 are no whole number of batches
  accuracy = knn.KNN(experiment_config.KNN(k=K, temperature=TEMPERATURE)).accuracy(
    *BANK, *TEST, CLASSES
  )
  assert accuracy == pytest.approx(reference.score(TEST[0].astype(np.float64), TEST[1]))
  assert 0.3 < accuracy < 0.95


def test_at_a_low_temperature_the_nearest_decides():
  votes = knn.vote(*knn._blocks(*BANK), BANK[0], K, 1e-4, CLASSES)
  np.testing.assert_array_equal(votes.argmax(axis=1), BANK[1])


def test_more_neighbours_than_examples():
  with pytest.raises(FieldError, match='k: 151, but the training split has 150 examples'):
    knn.KNN(experiment_config.KNN(k=151)).check(150)
