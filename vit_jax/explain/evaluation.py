"""A classifier's predictions for all images of a data set."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from vit_jax.predictor import Predictor


class Evaluation(NamedTuple):
  """A classifier's predictions for N images.

  Attributes:
    name: of the images, as 'mnist, test'.
    labels: int [N].
    probabilities: float32 [N, num_classes].
    image: index to image, uint8 [H, W, C], as it goes into the model; of a video a frame.
  """

  name: str
  labels: np.ndarray
  probabilities: np.ndarray
  image: Callable[[int], np.ndarray]


def evaluate(
  predictor: Predictor, records: Sequence[Mapping[str, Any]], name: str, batch_size: int = 32
) -> Evaluation | str:
  """Classifies records batch by batch, with a progress bar on terminals where it takes a while.

  Where images have several labels each, it returns in words that it can't.

  Args:
    predictor: the classifier.
    records: such as a data source, one or more; each has what the classifier takes, as an `image`,
      uint8 [height, width, 1 or 3], and an integer `label`. They are read by several threads.
    name: of the images, as 'mnist, test'.
    batch_size: images computed at once.
  """
  if np.ndim(records[0]['label']):
    return 'only of images with one label each'
  labels = np.empty(len(records), np.int64)
  probabilities = np.empty((len(records), len(predictor.class_names)), np.float32)

  def read(index):
    record = records[index]
    labels[index] = record['label']
    return record[predictor.input]

  rows = predictor.map(read, range(len(records)), batch_size)
  bar = {'total': len(records), 'desc': 'Classifying', 'unit': predictor.input}
  for index, row in tqdm(rows, **bar, delay=2, disable=None, leave=False):
    if isinstance(row, Exception):
      raise row
    probabilities[index] = predictor.task.probabilities(row)

  def picture(index):
    return predictor.picture(records[index][predictor.input])

  return Evaluation(name, labels, probabilities, picture)
