"""Masks over images: colours, legends, and which images are the worst."""

import numpy as np
import pytest

from vit_jax.data.kinds import VOID
from vit_jax.explain import masks

NAMES = ('a$x^$', 'b', 'c')


def evaluation(hits, either):
  return masks.MaskEvaluation('set, test', np.float64(hits), np.float64(either), None)


@pytest.mark.parametrize('num_classes', [3, 20, 21, 150])
def test_each_class_has_a_colour_of_its_own_and_void_is_black(num_classes):
  table = masks.colors(num_classes)
  assert len({tuple(color) for color in table[:num_classes].tolist()}) == num_classes
  assert table[:num_classes].any(axis=1).all()
  assert not table[num_classes:].any()


def test_an_indexed_image_has_the_ids_for_pixels():
  ids = np.uint8([[0, 1, VOID], [2, 2, 1]])
  image = masks.indexed_image(ids, 3)
  np.testing.assert_array_equal(np.asarray(image), ids)
  np.testing.assert_array_equal(np.asarray(image.convert('RGB')), masks.colors(3)[ids])


def test_the_legend_names_the_classes_that_are_drawn_as_they_are_written(tmp_path):
  image, ids = np.zeros((4, 6, 3), np.uint8), np.full((4, 6), VOID, np.uint8)
  ids[:2], other = 0, np.full((4, 6), 2, np.uint8)
  figures = (
    (masks.mask_figure(image, ids, NAMES), ['a$x^$']),
    (masks.masks_figure(image[None], ids[None], other[None], NAMES, ['']), ['a$x^$', 'c']),
  )
  for figure, expected in figures:
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == expected
    figure.savefig(tmp_path / 'figure.png')  # where dollars aren't mathematics


@pytest.mark.parametrize(
  ('num_classes', 'name'),
  [(3, 'cat'), (24, 'black_footed_albatross_{}'), (120, 'a name of {} that is far too long')],
)
def test_a_legend_lies_under_the_images_and_is_not_cut_off(num_classes, name):
  names = [name.format(i) for i in range(num_classes)]
  image, ids = np.zeros((20, 20, 3), np.uint8), (np.arange(400) % num_classes).reshape(20, 20)
  of_two = masks.masks_figure(image[None], ids[None], ids[None], names, [''])
  assert [axis.get_title() for axis in of_two.axes] == ['true', 'predicted']
  for figure in (masks.mask_figure(image, ids, names), of_two):
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == num_classes
    box, images = legend.get_window_extent(), figure.axes[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert 0 <= box.y0 < box.y1 <= images.y0


def test_the_worst_images_are_those_of_the_lowest_mean_iou_and_none_of_void_alone():
  hits = [[4, 4, 0], [0, 0, 0], [0, 2, 0], [1, 0, 0]]
  either = [[4, 8, 0], [0, 0, 0], [4, 4, 0], [10, 0, 0]]
  chosen, ious = masks.worst(evaluation(hits, either), 2)
  assert chosen.tolist() == [3, 2]
  np.testing.assert_allclose(ious, [0.1, 0.25])
  assert masks.worst(evaluation(hits, either), 9)[0].tolist() == [3, 2, 0]


def test_bars_are_the_ious_over_all_images_the_highest_first():
  (axis,) = masks.class_iou_figure(evaluation([[1, 3, 0]] * 2, [[4, 4, 0]] * 2), NAMES).axes
  assert [label.get_text() for label in axis.get_yticklabels()] == ['b', 'a$x^$', 'c']
  assert [bar.get_width() for bar in axis.patches] == [75, 25, 0]
  assert {text.get_text() for text in axis.texts} == {'75.0%', '25.0%', 'no pixels'}
  assert axis.figure.get_suptitle().endswith('(mean 50.0%)')
  assert axis.get_ylim() == (2.6, -0.6)  # no empty rows above or below
