"""Boxes on images, where they belong."""

import numpy as np
import pytest
from explain.helpers import assert_fits_into_readme, random_images, words
from matplotlib.patches import Rectangle

from vit_jax.explain.boxes import boxes_figure


def random(*shape):
  return np.random.default_rng(sum(shape)).uniform(size=shape)


@pytest.mark.parametrize(
  ('count', 'channels', 'predicted', 'caption'),
  [(1, 1, random(1, 4) * 9, ''), (5, 3, random(5, 4) - 0.5, 'true: A\nIoU 0.83')],
)
def test_a_figure_of_boxes_is_not_cut_off(count, channels, predicted, caption):
  images = random_images(count, 6, 8, channels)
  assert_fits_into_readme(boxes_figure(images, random(count, 4), predicted, [caption] * count))


def test_boxes_are_drawn_in_the_coordinates_of_the_image_and_cut_off_at_its_border():
  true, predicted = np.array([[0.5, 0.5, 1, 1]]), np.array([[0.25, 0.75, 0.5, 1]])
  figure = boxes_figure(random_images(1, 10, 20, 3), true, predicted, ['A'])
  (axis,) = figure.axes
  boxes = [patch.get_bbox().extents for patch in axis.patches if isinstance(patch, Rectangle)]
  np.testing.assert_allclose(boxes, [[-0.5, -0.5, 19.5, 9.5], [-0.5, 2, 9.5, 12]])
  assert (axis.get_xlim(), axis.get_ylim()) == ((-0.5, 19.5), (9.5, -0.5))
  # A quarter of the image and an eighth; the other eighth is outside of it.
  assert {'true', 'predicted', 'A\nIoU 33%'} <= set(words(figure))
  assert [patch.get_linestyle() for patch in axis.patches] == ['-', '--']


def test_where_true_boxes_are_not_known_the_predicted_are_drawn():
  figure = boxes_figure(random_images(2, 10, 20, 3), None, random(2, 4), ['A', 'B'])
  assert [[p.get_linestyle() for p in axis.patches] for axis in figure.axes] == [['--'], ['--']]
  assert {'predicted', 'A', 'B'} <= set(words(figure))
  assert 'true' not in words(figure)
