"""Maps of features: where examples lie, and how their classes are told apart."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vit_jax.explain import feature_map


def draw(count, labels, names):
  places = np.random.default_rng(0).uniform(size=(count, 2))
  asked = []

  def picture(i):
    asked.append(i)
    return np.full((4, 6, 1), i % 256, np.uint8)

  figure = feature_map.map_figure(places, labels, names, picture, 'title')
  FigureCanvasAgg(figure).draw()
  points, pictures = figure.axes
  assert len(pictures.images) == len(asked) == len(set(asked)) > 5
  assert sum(len(c.get_offsets()) for c in points.collections) == count
  return figure, points


@pytest.mark.parametrize('count', [3, 24])
def test_a_legend_tells_classes_apart(count):
  labels = np.arange(100) % count
  figure, points = draw(100, labels, [f'class ${i}' for i in range(count)])
  texts = [text.get_text() for text in figure.legends[0].get_texts()]
  assert texts == [f'class ${i}' for i in range(count)]
  colors = [tuple(c.get_facecolor()[0]) for c in points.collections]
  assert len(set(colors)) == count


def test_of_many_classes_names_stand_where_they_are():
  figure, points = draw(600, np.arange(600) % 200, [f'class {i}' for i in range(200)])
  assert not figure.legends
  assert 10 < len(points.texts) < 200
  assert points.get_xlabel() == f'names of {len(points.texts)} of 200 classes'
  boxes = [text.get_window_extent() for text in points.texts]
  assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_without_classes_there_is_no_legend():
  figure, points = draw(20, None, [])
  assert not figure.legends
  assert not points.texts


def test_examples_that_are_alike_lie_side_by_side_and_always_in_the_same_place():
  rng = np.random.default_rng(0)
  directions = np.repeat(np.eye(3, 8, dtype=np.float32), 20, axis=0)
  features = directions * rng.uniform(1, 9, (60, 1)) + rng.normal(0, 0.01, (60, 8))
  places = feature_map.places(np.float32(features))
  assert (places.min(axis=0) == 0).all()
  assert (places.max(axis=0) == 1).all()
  distances = np.linalg.norm(places[:, None] - places, axis=-1) + 9 * np.eye(60)
  nearest = distances.argmin(axis=1)
  assert (nearest // 20 == np.arange(60) // 20).mean() > 0.9
  np.testing.assert_array_equal(places, feature_map.places(np.float32(features)))
