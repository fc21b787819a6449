"""Confusion matrices and confident mistakes, by hand."""

import numpy as np
import pytest

from vit_jax.explain.errors import confusion_matrix, most_confidently_wrong


def test_rows_are_true_classes_and_columns_predictions():
  counts = confusion_matrix(np.array([0, 0, 0, 2, 2, 1]), np.array([0, 2, 2, 2, 0, 1]), 4)
  assert counts.dtype == np.int64
  np.testing.assert_array_equal(counts, [[1, 0, 2, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(
  ('labels', 'predictions', 'name'), [([0, 3], [0, 1], 'labels'), ([0, 1], [-1, 1], 'predictions')]
)
def test_what_is_no_class_is_refused_rather_than_left_out(labels, predictions, name):
  with pytest.raises(ValueError, match=rf'{name}: not all in \[0, 3\)'):
    confusion_matrix(np.array(labels), np.array(predictions), 3)


def test_confident_mistakes_come_first_and_right_answers_never():
  probabilities = np.array(
    [[0.6, 0.4], [0.01, 0.99], [0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.2, 0.8]], np.float32
  )
  labels = np.array([1, 1, 1, 0, 1, 1])
  wrong = most_confidently_wrong(probabilities, labels, 10)
  np.testing.assert_array_equal(wrong, [2, 3, 0, 4])  # of 0.6 twice, the first example first
  np.testing.assert_array_equal(most_confidently_wrong(probabilities, labels, 2), [2, 3])


def test_a_classifier_that_is_always_right_has_no_mistakes():
  assert most_confidently_wrong(np.eye(3), np.arange(3), 5).shape == (0,)
