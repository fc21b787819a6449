"""Metrics of classes: scikit-learn's values, and by hand where classes don't occur."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from vit_jax import tasks

N, K = 90, 12


def metrics(several=False, num_classes=K):
  """The metrics of classification by name, as functions of probabilities and labels."""
  label = np.zeros(num_classes, np.float32) if several else 3
  task = tasks.build('classification', {}, num_classes)
  return {name: m.value for name, m in task.further_metrics({'label': label}).items()}


def examples(several):
  """Probabilities that are right more often than not, and labels; every class occurs."""
  rng = np.random.default_rng(0)
  label = np.arange(N, dtype=np.int32) * 7 % K
  if several:
    truth = (np.eye(K)[label] + (rng.random((N, K)) < 0.2) > 0).astype(np.float32)
    return np.float32(0.4 * truth + 0.6 * rng.random((N, K))), truth
  scores = np.exp(2 * np.eye(K)[label] + rng.normal(size=(N, K)))
  return np.float32(scores / scores.sum(axis=1, keepdims=True)), label


def expected_of_one_label(p, y):
  guess = p.argmax(axis=1)
  return {
    'accuracy': sk.accuracy_score(y, guess),
    'balanced_accuracy': sk.balanced_accuracy_score(y, guess),
    'matthews_corrcoef': sk.matthews_corrcoef(y, guess),
    'cohen_kappa': sk.cohen_kappa_score(y, guess),
    'average_precision': sk.average_precision_score(y, p, average=None),
    'mean_average_precision': sk.average_precision_score(y, p),
    'roc_auc': sk.roc_auc_score(y, p, multi_class='ovr'),
    **{f'top{k}_accuracy': sk.top_k_accuracy_score(y, p, k=k) for k in (2, 3, 10)},
    **scores(y, guess, ('macro', 'weighted')),
  }


def expected_of_several(p, y):
  guess = p >= 0.5
  return {
    'hamming_loss': sk.hamming_loss(y, guess),
    'average_precision': sk.average_precision_score(y, p, average=None),
    'mean_average_precision': sk.average_precision_score(y, p),
    'roc_auc': sk.roc_auc_score(y, p),
    **scores(y, guess, ('macro', 'weighted')),
  }


def scores(y, guess, averages):
  functions = {'precision': sk.precision_score, 'recall': sk.recall_score, 'f1': sk.f1_score}
  found = {name: f(y, guess, average=None) for name, f in functions.items()}
  for average in averages:
    found |= {f'{average}_{name}': f(y, guess, average=average) for name, f in functions.items()}
  return found


@pytest.mark.parametrize('several', [False, True])
def test_values_are_those_of_scikit_learn(several):
  probabilities, labels = examples(several)
  expected = (expected_of_several if several else expected_of_one_label)(probabilities, labels)
  accuracy = expected.pop('accuracy', None)
  assert accuracy is None or 0.3 < accuracy < 0.9, 'neither all right nor all wrong'
  found = {name: value(probabilities, labels) for name, value in metrics(several).items()}
  assert found.keys() == expected.keys()
  for name, value in found.items():
    np.testing.assert_allclose(value, expected[name], rtol=1e-9, err_msg=name)


# Of class 0 two are right and one is taken for class 3, of which there is none; the one of class 1
# is right; that of class 2 is taken for class 0.
P = np.eye(5, dtype=np.float32)[[0, 0, 3, 1, 0]]
Y = np.array([0, 0, 0, 1, 2])
NAN = np.nan


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('precision', [2 / 3, 1, 0, NAN, NAN]),
    ('recall', [2 / 3, 1, 0, NAN, NAN]),
    ('f1', [2 / 3, 1, 0, NAN, NAN]),
    ('macro_precision', 5 / 9),
    ('balanced_accuracy', 5 / 9),
    ('macro_f1', 5 / 9),
    ('weighted_recall', 3 / 5),
    ('average_precision', [2 / 3 * 2 / 3 + 1 / 3 * 3 / 5, 1, 1 / 5, NAN, NAN]),
    ('roc_auc', ((3 + 1 / 2) / 6 + 1 + 1 / 2) / 3),  # of class 0, 3 of 6 pairs and a tie
  ],
)
def test_classes_that_do_not_occur_count_nowhere(name, expected):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    found = metrics(num_classes=5)[name](P, Y)
  np.testing.assert_allclose(found, expected)


def test_of_several_labels_by_hand():
  probabilities = np.array([[0.9, 0.2, 0.1], [0.5, 0.6, 0.1], [0.4, 0.1, 0.1]], np.float32)
  labels = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
  found = {name: f(probabilities, labels) for name, f in metrics(True, 3).items()}
  np.testing.assert_allclose(found['recall'], [1, 0, NAN])
  np.testing.assert_allclose(found['average_precision'], [1, 1 / 3, NAN])
  assert found['mean_average_precision'] == pytest.approx(2 / 3)
  assert found['hamming_loss'] == pytest.approx(2 / 9)


@pytest.mark.parametrize('several', [False, True])
def test_rows_are_what_metrics_are_computed_from(several):
  _, label = examples(several)
  logits = np.random.default_rng(1).normal(size=(N, K)).astype(np.float32)
  task = tasks.build('classification', {'name': 'sigmoid'}, K)
  rows = task.rows({'logits': logits}, {'label': label})
  np.testing.assert_array_equal(rows['label'], label)
  np.testing.assert_allclose(rows['probabilities'], 1 / (1 + np.exp(-logits)), rtol=1e-5)
  expected = logits >= 0 if several else logits.argmax(axis=1)
  np.testing.assert_array_equal(rows['predicted'], expected)


@pytest.mark.parametrize('several', [False, True])
def test_of_one_class_or_none_nothing_warns(several):
  probabilities, labels = examples(several)
  labels = np.zeros_like(labels)  # all of class 0, or of none
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    found = {name: value(probabilities, labels) for name, value in metrics(several).items()}
  assert np.isnan(found['roc_auc'])
  assert np.isnan(found['recall'][1:]).all()
  assert np.isnan(found['mean_average_precision']) == several
