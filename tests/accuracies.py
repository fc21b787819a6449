"""Accuracies that two programs compute of the same images."""

import numpy as np
import pytest


def assert_accuracy(reported, scores, labels):
  """`reported` is the accuracy of scores [N, classes], but for images that are as good as tied.

  Those another program may settle another way, as it rounds otherwise.
  """
  scores, labels = np.asarray(scores), np.asarray(labels)
  hits = scores.argmax(axis=1) == labels
  first, second = np.sort(scores, axis=1)[:, [-1, -2]].T
  settled = first - second > 1e-5 * np.abs(scores).max()
  assert settled.mean() > 0.95
  right = round(len(hits) * reported)
  assert right == pytest.approx(len(hits) * reported, abs=1e-3)
  assert hits[settled].sum() <= right <= hits[settled].sum() + (~settled).sum()
