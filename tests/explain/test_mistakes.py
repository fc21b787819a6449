"""Confusion matrices and confident mistakes, by hand, and their figures."""

import numpy as np
import pytest
from explain.helpers import assert_fits_into_readme, random_images, words

from vit_jax.explain.mistakes import (
  confusion_figure,
  confusion_matrix,
  most_confidently_wrong,
  wrong_figure,
)

BREEDS = [f'american_pit_bull_terrier {i}' for i in range(37)]


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


# Figures.


def counts(num_classes):
  return 900 * np.eye(num_classes, dtype=np.int64) + 2


@pytest.mark.parametrize(
  ('num_classes', 'names', 'options'),
  [
    (3, ['cat', 'dog', 'a very long name of a class'], {}),
    (10, None, {'normalize': True}),
    (37, BREEDS, {}),
    (24, [*'ABCDEFGHIKLMNOPQRSTUVWXY'], {}),
    (200, [f'class {i} $' for i in range(200)], {}),
    (51, [f'{i} black footed albatross {i}' for i in range(51)], {}),
  ],
)
def test_a_confusion_matrix_is_not_cut_off(num_classes, names, options):
  assert_fits_into_readme(confusion_figure(counts(num_classes), names, **options))


@pytest.mark.parametrize(
  ('num_images', 'num_classes', 'names'), [(1, 2, ['cat', 'dog']), (13, 37, BREEDS)]
)
def test_a_figure_of_mistakes_is_not_cut_off(num_images, num_classes, names):
  labels = np.arange(num_images) % num_classes
  probabilities = np.random.default_rng(0).uniform(size=(num_images, num_classes))
  assert_fits_into_readme(
    wrong_figure(random_images(num_images, 8, 6, 3), labels, probabilities, names)
  )


def test_a_small_confusion_matrix_carries_its_numbers():
  figure = confusion_figure(np.array([[3, 1], [0, 0]]), ['cat', 'dog'])
  axis = figure.axes[0]
  cells = {text.get_position(): text.get_text() for text in axis.texts}
  assert cells == {(0, 0): '3', (1, 0): '1', (0, 1): '0', (1, 1): '0'}  # (predicted, true)
  assert axis.get_xlabel() == 'predicted class'
  assert [text.get_text() for text in axis.get_yticklabels()] == ['cat', 'dog']
  assert any('3 of 4 right (75.00%)' in text for text in words(figure))


def test_beside_each_row_is_the_recall_of_its_class():
  figure = confusion_figure(np.array([[3, 1, 0], [0, 0, 0], [2, 0, 0]]), ['cat', 'dog', 'cow'])
  recalls = figure.axes[1]
  assert [text.get_text() for text in recalls.texts] == ['75.0', 'none', '0.0']
  assert [bar.get_width() for bar in recalls.patches] == [75, 0, 0]
  assert recalls.get_ylim() == figure.axes[0].get_ylim()


def test_of_many_classes_the_worst_are_named():
  found = np.diag([0, *range(9, 68)])  # 0 of which there is none; of the others 9 to 67 are right
  found[1:, 0] = 10
  figure = confusion_figure(found, [f'breed {i}' for i in range(60)])
  expected = 'lowest recall: breed 1 47.4%, breed 2 50.0%, breed 3 52.4%'
  assert figure.get_suptitle().splitlines()[2] == expected


def test_names_take_no_room_from_the_matrix():
  sizes = []
  for names in (['a', 'b', 'c'], ['american_crow_017', 'black_footed_albatross_02', 'fox']):
    figure = confusion_figure(counts(3), names)
    figure.draw_without_rendering()
    sizes.append(figure.axes[0].get_window_extent().size)
  np.testing.assert_allclose(*sizes, rtol=0.15)


def test_zeros_are_left_out_of_many_cells():
  figure = confusion_figure(np.diag(np.arange(30)), [f'{i}' for i in range(30)])
  assert [text.get_text() for text in figure.axes[0].texts] == [str(i) for i in range(1, 30)]


def test_a_normalized_confusion_matrix_is_in_percent_of_its_rows():
  axis, _, bar = confusion_figure(np.array([[3, 1], [0, 0]]), normalize=True).axes
  np.testing.assert_allclose(axis.images[0].get_array(), [[75, 25], [0, 0]])
  assert [text.get_text() for text in axis.texts] == ['75.0', '25.0', '0.0', '0.0']
  assert 'percent' in bar.get_xlabel()


@pytest.mark.parametrize(
  ('num_classes', 'factor', 'numbers', 'names'),
  [(20, 1, True, True), (37, 1, True, True), (37, 10, False, True), (51, 1, False, False)],
)
def test_numbers_and_names_are_left_out_where_they_could_not_be_read(
  num_classes, factor, numbers, names
):
  breeds = [f'breed {i}' for i in range(num_classes)]
  axis, recalls, _ = confusion_figure(factor * counts(num_classes), breeds).axes
  assert (len(axis.texts), len(recalls.texts)) == (num_classes**2 * numbers, num_classes * names)
  assert ('breed 7' in [text.get_text() for text in axis.get_xticklabels()]) == names


def test_mistakes_are_told_under_their_images():
  figure = wrong_figure(
    random_images(2, 4, 4, 1),
    np.array([1, 0]),
    np.array([[0.75, 0.25], [0.125, 0.875]]),
    ['cat', 'guide_dog'],
  )
  assert [axis.get_xlabel() for axis in figure.axes] == [
    'true guide dog\npredicted cat\n75.0%',
    'true cat\npredicted guide dog\n87.5%',
  ]
