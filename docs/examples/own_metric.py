"""A metric of one's own: --config.metrics=own_metric:far_misses, and then in test/far_misses."""

import numpy as np


def far_misses(probabilities, targets):
  """Returns the share of examples whose guess is two classes or more away from the label.

  `probabilities` are float32 [N, num_classes], `targets` int [N], of a whole split.
  """
  return np.mean(np.abs(probabilities.argmax(axis=1) - targets) > 1)


far_misses.higher_is_better = False
