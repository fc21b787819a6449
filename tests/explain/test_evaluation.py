"""What a classifier says of all images, and the pictures of its mistakes."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from small_vits import SQUARE, WIDE, random_params

from vit_jax.explain import pictures
from vit_jax.explain.errors import confusion_matrix
from vit_jax.explain.evaluation import Evaluation, evaluate
from vit_jax.models import MODELS
from vit_jax.predictor import Predictor

NAMES = ['cat', 'dög', '$cow$']


def records(count):
  """Grey photographs of odd sizes, each with a label."""
  rng = np.random.default_rng(0)
  return [
    {'image': rng.integers(0, 256, (9 + i, 7, 1), dtype=np.uint8), 'label': i % 3}
    for i in range(count)
  ]


@pytest.fixture(scope='module')
def predictor():
  return Predictor(random_params(WIDE), WIDE)


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


def context(evaluate, config=SQUARE, labels=((True, False, False),)):
  """What there is to explain of a model, its images being those of `evaluate`."""
  shape = 1, *config['image_size'], config['channels']
  return pictures.Context(
    model=MODELS[config['name']].from_config(config),
    params=random_params(config),
    images=np.zeros(shape, np.uint8),
    inputs=np.zeros(shape, np.float32),
    class_names=NAMES,
    file_names=[''],
    labels=labels and np.array(labels),
    boxes=None,
    evaluate=evaluate,
    layer=None,
    head_fusion='mean',
    discard_ratio=0.0,
    target=None,
  )


def evaluation(labels, probabilities):
  images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones(
    (2, 3, 1), np.uint8
  )
  return Evaluation('animals', np.array(labels), np.array(probabilities), lambda i: images[i])


def test_mistakes_are_counted_and_shown_from_the_most_confident():
  calls = []

  def evaluate():
    calls.append(1)
    sure, unsure = [0.0, 0.0, 1.0], [0.5, 0.4, 0.1]
    return evaluation([0, 1, 2, 1], [unsure, unsure, sure, sure])

  there = context(evaluate)
  confusion = pictures.PICTURES['confusion'](there)
  expected = confusion_matrix(np.array([0, 1, 2, 1]), np.array([0, 0, 2, 2]), 3)
  np.testing.assert_array_equal(confusion.axes[0].images[0].get_array(), expected)
  assert 'Confusion matrix: animals\n2 of 4 right' in confusion.get_suptitle()
  wrong = pictures.PICTURES['wrong'](there)
  assert [axis.images[0].get_array()[0, 0] for axis in wrong.axes] == [3, 1]
  assert wrong.axes[0].get_xlabel() == 'true dög\npredicted $cow$\n100.0%'
  assert wrong.texts[0].get_text() == 'Most confidently wrong of animals: 2 of 2 mistakes'
  for figure in (confusion, wrong):
    figure.draw_without_rendering()  # dollars are no formulas
  assert len(calls) == 1


def test_there_is_no_picture_of_no_mistakes():
  there = context(lambda: evaluation([2, 0], np.eye(3)[[2, 0]]))
  assert pictures.PICTURES['wrong'](there) == 'nothing is wrong of 2 images'
  assert isinstance(pictures.PICTURES['confusion'](there), Figure)


@pytest.mark.parametrize('name', ['confusion', 'wrong'])
def test_why_mistakes_are_not_known_is_said(name):
  assert pictures.PICTURES[name](context(lambda: 'labels are secret')) == 'labels are secret'
  headless = context(lambda: 1 / 0, SQUARE | {'num_classes': 0})
  assert pictures.PICTURES[name](headless) == pictures.NOT_OF_MODEL
  unlabelled = context(lambda: 1 / 0, labels=None)
  assert 'folders of the names of classes' in pictures.PICTURES[name](unlabelled)
