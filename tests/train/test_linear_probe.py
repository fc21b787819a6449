"""The linear probe against scikit-learn's logistic regression."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vit_jax.experiment_config import Linear
from vit_jax.train import linear_probe
from vit_jax.train.linear_probe import LinearProbe

CLASSES = 4


def make_data(count, seed):
  """Overlapping clouds on axes of very different scales, and a feature that never changes."""
  centres = np.random.default_rng(0).normal(size=(CLASSES, 6))
  rng = np.random.default_rng(seed)
  labels = rng.integers(CLASSES, size=count)
  features = (centres[labels] + rng.normal(size=(count, 6))) * 10.0 ** np.arange(-3, 3) + 5
  return np.pad(features, ((0, 0), (0, 1)), constant_values=7).astype(np.float32), labels


TRAIN, TEST = make_data(301, seed=1), make_data(200, seed=2)


def softmax(logits):
  exp = np.exp(logits - logits.max(axis=1, keepdims=True))
  return exp / exp.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(('l2', 'rows'), [(1e-1, 1000), (1e-3, 100)])
def test_it_solves_scikit_learns_problem_in_blocks_too(monkeypatch, l2, rows):
  monkeypatch.setattr(linear_probe, '_BLOCK', rows)
  probe = LinearProbe(Linear(l2=l2, max_steps=200))
  logits = probe.fit(*TRAIN, CLASSES)(TEST[0])
  features, test_features = TRAIN[0].astype(np.float64), TEST[0].astype(np.float64)
  scaler = StandardScaler().fit(features)
  reference = LogisticRegression(C=1 / (l2 * len(TRAIN[1])), tol=1e-9, max_iter=2000)
  reference.fit(scaler.transform(features), TRAIN[1])
  expected = reference.predict_proba(scaler.transform(test_features))
  np.testing.assert_allclose(softmax(logits), expected, atol=1e-5)
  accuracy = probe.accuracy(*TRAIN, *TEST, CLASSES)
  assert accuracy == np.mean(expected.argmax(axis=1) == TEST[1])
  assert 0.5 < accuracy < 0.99


def test_it_is_the_same_each_time_and_ends_after_its_steps():
  logits = [
    LinearProbe(Linear(max_steps=steps)).fit(*TRAIN, CLASSES)(TEST[0]) for steps in (3, 3, 4)
  ]
  np.testing.assert_array_equal(logits[0], logits[1])
  assert np.abs(logits[2] - logits[0]).max() > 1e-4
