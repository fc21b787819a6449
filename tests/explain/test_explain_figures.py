"""What the figures show: the right things in the right places, no text cut off."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from vit_jax.errors import UsageError
from vit_jax.explain.boxes import boxes_figure
from vit_jax.explain.errors import confusion_figure, wrong_figure
from vit_jax.explain.filters import components_figure, principal_components
from vit_jax.explain.positions import cosine_similarity, similarity_figure
from vit_jax.explain.token_maps import token_maps_figure

BREEDS = [f'american_pit_bull_terrier {i}' for i in range(37)]


def random(*shape):
  return np.random.default_rng(sum(shape)).uniform(size=shape)


def random_images(*shape):
  return (255 * random(*shape)).astype(np.uint8)


def counts(num_classes):
  return 900 * np.eye(num_classes, dtype=np.int64) + 2


def words(figure):
  return [text.get_text() for text in figure.findobj(Text)]


def components(height, width, channels):
  return components_figure(*principal_components(random(height, width, channels, 40)))


def similarity(rows, columns):
  return similarity_figure(cosine_similarity(random(rows, columns, 8) - 0.5))


def wrong(num_images, num_classes, names=None):
  labels = np.arange(num_images) % num_classes
  images, probabilities = random_images(num_images, 8, 6, 3), random(num_images, num_classes)
  return wrong_figure(images, labels, probabilities, names)


@pytest.mark.parametrize(
  'draw',
  [
    lambda: components(4, 4, 1),
    lambda: components(8, 2, 3),
    lambda: components(1, 1, 1),
    lambda: similarity(3, 5),
    lambda: similarity(20, 4),
    lambda: similarity(2, 9),
    lambda: token_maps_figure(random_images(2, 8, 8, 1), random(2, 8, 8, 8), ['a\nb'] * 2),
    lambda: token_maps_figure(random_images(1, 4, 8, 3), random(1, 2, 4, 8), ['true: cat']),
    lambda: confusion_figure(counts(3), ['cat', 'dog', 'a very long name of a class']),
    lambda: confusion_figure(counts(10), normalize=True),
    lambda: confusion_figure(counts(37), BREEDS),
    lambda: confusion_figure(counts(100), [f'class {i}' for i in range(100)]),
    lambda: wrong(1, 2, ['cat', 'dog']),
    lambda: wrong(13, 37, BREEDS),
    lambda: boxes_figure(random_images(1, 6, 8, 1), random(1, 4), random(1, 4) * 9, ['']),
    lambda: boxes_figure(
      random_images(5, 6, 8, 3), random(5, 4), random(5, 4) - 0.5, ['true: A\nIoU 0.83'] * 5
    ),
  ],
)
def test_nothing_is_cut_off_and_the_figure_is_not_wider_than_a_readme(draw):
  figure = draw()
  canvas = FigureCanvasAgg(figure)
  canvas.draw()  # lays it out
  drawn = figure.get_tightbbox(canvas.get_renderer())
  width, height = figure.get_size_inches()
  assert 5 <= width <= 9
  assert drawn.x0 >= 0
  assert drawn.y0 >= 0
  assert drawn.x1 <= width
  assert drawn.y1 <= height


def test_components_fill_their_range_and_carry_their_shares():
  figure = components_figure(
    np.array([[[[0.0], [0.5]]], [[[-0.9], [0.1]]]], np.float32), np.array([0.75, 0.125])
  )
  tiles = [axis.images[0].get_array() for axis in figure.axes]
  np.testing.assert_allclose(tiles, [[[0, 1]], [[0, 1]]])
  assert {'1: 75.0%', '2: 12.5%'} <= set(words(figure))
  assert any('87.5% in all' in text for text in words(figure))


def test_components_that_are_no_pictures_are_refused():
  with pytest.raises(UsageError, match='filters of 2 channels'):
    components(2, 2, 2)


def test_a_tile_of_similarities_stands_where_its_patch_does():
  values = cosine_similarity(random(3, 4, 6) - 0.5)
  figure = similarity_figure(values)
  axis, bar = figure.axes
  mosaic = axis.images[0].get_array()
  for row, column in np.ndindex(3, 4):
    tile = mosaic[4 * row : 4 * row + 3, 5 * column : 5 * column + 4]
    np.testing.assert_array_equal(tile, values[row, column])
  assert mosaic.mask[3].all()
  assert mosaic.mask[:, 4].all()
  assert axis.images[0].get_clim() == (-1, 1)
  assert axis.yaxis_inverted()
  assert [text.get_text() for text in axis.get_xticklabels()] == ['1', '2', '3', '4']
  np.testing.assert_array_equal(axis.get_yticks(), [1, 5, 9])
  assert bar.get_ylabel() == 'cosine similarity'


def test_token_maps_are_drawn_row_by_row_on_one_scale():
  images = np.zeros((2, 2, 3, 3), np.uint8)
  images[1] = [0, 90, 255]
  maps = random(2, 2, 2, 3) / 2
  maps[0, 1, 0, 2] = 0.5
  figure = token_maps_figure(images, maps, ['first', 'second'])
  panels = [[drawn.get_array() for drawn in axis.images] for axis in figure.axes[:6]]
  for row, image in enumerate(images):
    (shown,), *heats = panels[3 * row : 3 * row + 3]
    np.testing.assert_array_equal(shown, image)
    for (grey, heat), values in zip(heats, maps[row], strict=True):
      np.testing.assert_array_equal(grey, np.full((2, 3), 115 * row))  # (0 + 90 + 255) / 3
      np.testing.assert_array_equal(heat, values)
  norms = [axis.images[1].norm for axis in figure.axes[:6] if len(axis.images) > 1]
  assert {(norm.vmin, norm.vmax) for norm in norms} == {(0, 0.5)}
  assert {'first', 'second', 'token 0', 'token 1'} <= set(words(figure))


def test_a_small_confusion_matrix_carries_its_numbers():
  figure = confusion_figure(np.array([[3, 1], [0, 0]]), ['cat', 'dog'])
  axis = figure.axes[0]
  cells = {text.get_position(): text.get_text() for text in axis.texts}
  assert cells == {(0, 0): '3', (1, 0): '1', (0, 1): '0', (1, 1): '0'}  # (predicted, true)
  assert axis.get_xlabel() == 'predicted class'
  assert [text.get_text() for text in axis.get_yticklabels()] == ['cat', 'dog']
  assert any('3 of 4 right (75.00%)' in text for text in words(figure))


def test_a_normalized_confusion_matrix_is_in_percent_of_its_rows():
  axis, bar = confusion_figure(np.array([[3, 1], [0, 0]]), normalize=True).axes
  np.testing.assert_allclose(axis.images[0].get_array(), [[75, 25], [0, 0]])
  assert [text.get_text() for text in axis.texts] == ['75.0', '25.0', '0.0', '0.0']
  assert 'percent' in bar.get_ylabel()


@pytest.mark.parametrize(
  ('num_classes', 'numbers', 'names'), [(20, True, True), (37, False, True), (51, False, False)]
)
def test_numbers_and_names_are_left_out_where_they_could_not_be_read(num_classes, numbers, names):
  axis = confusion_figure(counts(num_classes), [f'breed {i}' for i in range(num_classes)]).axes[0]
  assert bool(axis.texts) == numbers
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
