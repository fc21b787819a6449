"""A classifier's predictions for all images of a data set."""

import numpy as np
import pytest
from explain.helpers import WIDE, random_variables

from vit_jax.explain.evaluation import evaluate
from vit_jax.models import ModelConfig
from vit_jax.predictor import Predictor


def records(count):
  """Grey photographs of odd sizes, each with a label."""
  rng = np.random.default_rng(0)
  return [
    {'image': rng.integers(0, 256, (9 + i, 7, 1), dtype=np.uint8), 'label': i % 3}
    for i in range(count)
  ]


@pytest.fixture(scope='module')
def predictor():
  config = ModelConfig.from_dict(WIDE)
  return Predictor(random_variables(config), config)


def test_every_record_is_classified_with_its_label(predictor):
  given = records(7)
  evaluation = evaluate(predictor, given, 'seven', batch_size=2)
  assert evaluation.name == 'seven'
  np.testing.assert_array_equal(evaluation.labels, [0, 1, 2, 0, 1, 2, 0])
  expected = predictor([record['image'] for record in given], batch_size=2)
  np.testing.assert_array_equal(evaluation.probabilities, expected)
  np.testing.assert_array_equal(evaluation.image(5), predictor.prepare(given[5]['image']))
  assert evaluation.image(5).shape == (8, 6, 1)


def test_a_record_that_cannot_be_read_ends_it(predictor):
  with pytest.raises(KeyError, match='image'):
    evaluate(predictor, [*records(2), {'label': 0}], 'three')


def test_several_labels_to_an_image_tell_no_mistakes(predictor):
  several = [record | {'label': np.array([1, 0, 1], np.float32)} for record in records(2)]
  assert evaluate(predictor, several, 'two') == 'only of images with one label each'
