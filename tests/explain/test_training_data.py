"""Pictures of what a model is trained on: what is drawn of an example, and how classes count."""

import time

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from vit_jax.data import ArraySource, decoding
from vit_jax.data.kinds import VOID
from vit_jax.explain import training_data

NAMES = ('cat', 'a$dog', 'bird', 'fish', 'ant')
PIXELS = {'mean': (0.5,), 'std': (0.25,)}


def draw(batch, name='image', names=NAMES):
  figure = training_data.examples_figure(batch, name, names, **PIXELS, title='title')
  FigureCanvasAgg(figure).draw()  # which finds texts that can't be drawn
  return figure.axes, figure


def random(*shape):
  return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


def shown(axis):
  return np.asarray(axis.images[0].get_array())


def captions(axes):
  return [axis.get_xlabel() for axis in axes]


def test_images_are_drawn_as_they_were_before_normalisation():
  images = random(3, 4, 6, 3)
  axes, _ = draw({'image': images, 'label': np.int32([1, 0, 4])})
  assert captions(axes) == ['a$dog', 'cat', 'ant']
  for axis, image in zip(axes, images, strict=True):
    pixels = np.clip(image * 0.25 + 0.5, 0, 1)
    np.testing.assert_allclose(shown(axis) / 255, pixels, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(
  ('label', 'caption'),
  [
    ([0.75, 0.25, 0, 0, 0], 'cat 75%\na$dog 25%'),
    ([0, 0, 1, 0, 0], 'bird'),
    ([0, 1, 1, 0, 0], 'a$dog\nbird'),  # an example of two classes
    ([0.1, 0.2, 0.3, 0.4, 0], 'fish 40%\nbird 30%\na$dog 20%\n1 more'),
    ([0, 0, 0, 0, 0], ''),
    ([0.996, 0.004, 0, 0, 0], 'cat'),
  ],
)
def test_mixed_classes_stand_there_with_their_shares(label, caption):
  axes, _ = draw({'image': random(1, 4, 4, 1), 'label': np.float32([label])})
  assert captions(axes) == [caption]


def test_a_box_is_drawn_where_it_is():
  axes, _ = draw({'image': random(1, 10, 20, 3), 'box': np.float32([[0.5, 0.4, 0.2, 0.6]])})
  (box,) = [patch for patch in axes[0].patches if isinstance(patch, Rectangle)]
  assert (*box.get_xy(), box.get_width(), box.get_height()) == pytest.approx((7.5, 0.5, 4, 6))


def test_a_mask_stands_beside_its_image_and_a_legend_names_its_classes():
  mask = np.full((2, 4, 6), VOID, np.int32)
  mask[0, 0], mask[1, 1] = 3, 1
  axes, figure = draw({'image': random(2, 4, 6, 3), 'mask': mask})
  assert [len(axis.images) for axis in axes] == [1, 2, 1, 2]
  assert [axis.get_title() for axis in axes] == ['', 'mask', '', 'mask']
  assert [text.get_text() for text in figure.legends[0].get_texts()] == ['a$dog', 'fish']


def test_of_a_video_frames_from_its_first_to_its_last_are_drawn():
  videos = random(2, 9, 4, 4, 1)
  axes, _ = draw({'video': videos, 'label': np.int32([2, 3])}, 'video')
  frames = [0, 2, 3, 5, 6, 8]
  assert [axis.get_title() for axis in axes[:6]] == [f'frame {t}' for t in frames]
  assert captions(axes) == ['bird', *[''] * 5, 'fish', *[''] * 5]
  pixels = np.clip(videos[1, 8, ..., 0] * 0.25 + 0.5, 0, 1)
  np.testing.assert_allclose(shown(axes[11]) / 255, pixels, atol=0.5 / 255 + 1e-6)


def test_all_views_of_an_example_are_drawn():
  batch = {'image/global': random(30, 2, 8, 8, 1), 'image/local': random(30, 5, 4, 4, 1)}
  axes, _ = draw(batch)
  names = ['global 1', 'global 2', *(f'local {i}' for i in range(1, 6))]
  assert [axis.get_title() for axis in axes[:7]] == names
  assert len(axes) == 6 * 7
  assert shown(axes[6]).shape == (4, 4)


def test_points_are_drawn_in_one_scale_and_by_their_parts():
  points = random(2, 50, 3)
  points[1] /= 2
  axes, figure = draw({'points': points, 'parts': np.tile(np.int32([0, 2]), (2, 25))}, 'points')
  assert [text.get_text() for text in figure.legends[0].get_texts()] == ['cat', 'bird']
  assert axes[0].get_xlim() == axes[1].get_xlim()
  spread = [np.ptp(axis.collections[0].get_offsets(), axis=0).max() for axis in axes]
  assert spread[1] < spread[0]
  assert len(np.unique(axes[0].collections[0].get_facecolors(), axis=0)) == 2
  (axis, _), figure = draw({'points': points}, 'points')
  assert not figure.legends
  assert len(np.unique(axis.collections[0].get_facecolors(), axis=0)) > 20, 'by depth'


def test_classes_are_counted():
  labels = ArraySource({'label': np.int32([1, 1, 3])}, NAMES)
  found = training_data.count_classes(labels)
  np.testing.assert_array_equal(found.counts, [0, 2, 0, 1, 0])
  assert found[1:] == ('examples', 3, 3)
  several = ArraySource({'label': np.float32([[1, 0, 0, 1, 0], [1, 0, 0, 0, 0]])}, NAMES)
  np.testing.assert_array_equal(training_data.count_classes(several).counts, [2, 0, 0, 1, 0])
  without = ArraySource({'image': np.zeros((2, 4, 4, 1), np.uint8)})
  assert training_data.count_classes(without) == 'the records have no classes'


def test_pixels_of_masks_are_counted_in_percent_of_those_that_have_a_class(monkeypatch):
  masks = np.full((100, 2, 5), VOID, np.uint8)
  masks[:, 0], masks[:, 1, 0] = 1, 4
  source = ArraySource({'image': np.zeros((100, 2, 5, 1), np.uint8), 'mask': masks}, NAMES)
  found = training_data.count_classes(source)
  np.testing.assert_allclose(found.counts, [0, 500 / 6, 0, 0, 100 / 6])
  assert found[1:] == ('% of pixels', 100, 100)
  monkeypatch.setattr(training_data, '_MOST_READ', 10)
  np.testing.assert_allclose(training_data.count_classes(source).counts, found.counts)
  assert training_data.count_classes(source)[1:] == ('% of pixels', 10, 100)


def test_records_are_counted_in_turns_for_memory(monkeypatch):
  decoded, most = [], []

  class Large(ArraySource):
    def read(self, indices):
      for record in super().read(indices):
        decoding.take(decoding.MEMORY)
        decoded.append(record)
        most.append(len(decoded))
        time.sleep(0.001)
        decoded.pop()
        yield record

  source = Large({'mask': np.zeros((20, 1, 1), np.uint8)}, NAMES)
  monkeypatch.setattr(training_data, '_READ_AT_ONCE', 2)
  assert training_data.count_classes(source).counts[0] == 100
  assert max(most) == 1


@pytest.mark.parametrize('count', [3, 24, 200])
def test_counts_of_a_few_and_of_many_classes(count):
  names = [f'class ${i}' for i in range(count)]
  counts = np.arange(count, 0.0, -1)
  split = training_data.ClassCounts(counts, 'examples', 10, 10)
  splits = {'train': split, 'test': split._replace(counts=counts[::-1], num_read=5)}
  figure = training_data.classes_figure(splits, names, 'title')
  FigureCanvasAgg(figure).draw()
  train, test = figure.axes
  bars = [bar.get_width() if count < 60 else bar.get_height() for bar in test.patches]
  assert bars == counts[::-1].tolist()
  assert test.get_title().startswith('test, 5 of 10')
  if count < 60:
    assert [text.get_text() for text in train.get_yticklabels()] == names
    assert [text.get_text() for text in train.texts] == [f'{n:.0f}' for n in counts]
  else:
    assert 'first: class $0, class $1, class $2\nlast: class $197' in test.get_xlabel()
    assert train.get_title() == 'train, 10: 1 to 200, median 100'
