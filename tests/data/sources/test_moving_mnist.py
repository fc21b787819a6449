"""Clips of moving digits: the class is the motion, and no frame by itself tells it."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from image_files import one_line
from tfds_files import image_feature, label_feature, png, write_tfds

from vit_jax.data import load_source
from vit_jax.errors import FieldError, UsageError

TFDS_DATA_DIR = os.environ.get('TFDS_DATA_DIR', '')
pytestmark = pytest.mark.skipif(
  not TFDS_DATA_DIR or not Path(TFDS_DATA_DIR, 'mnist').is_dir(),
  reason='mnist is not in TFDS_DATA_DIR',
)
STEPS = {
  'right': (0, 1),
  'down right': (1, 1),
  'down': (1, 0),
  'down left': (1, -1),
  'left': (0, -1),
  'up left': (-1, -1),
  'up': (-1, 0),
  'up right': (-1, 1),
}


def shifts(video):
  """How far each frame moved from the one before, (down, right), by their correlation."""
  spectra = np.fft.fft2(video[..., 0].astype(float))
  correlations = np.fft.ifft2(spectra[1:] * spectra[:-1].conj()).real
  size = video.shape[1]
  peaks = [np.unravel_index(c.argmax(), c.shape) for c in correlations]
  return [tuple((int(p) + size // 2) % size - size // 2 for p in peak) for peak in peaks]


def test_the_class_is_the_direction_at_a_speed_of_each_clip():
  options = {'size': 40, 'num_frames': 5, 'speeds': (1, 3)}
  source = load_source('moving_mnist', 'train[:96]', options=options)
  assert (source.image_shape, source.num_frames, len(source)) == ((40, 40, 1), 5, 96)
  assert source.class_names == tuple(STEPS)
  digits, speeds = load_source('mnist', 'train[:96]'), []
  for record, digit in zip(source, digits, strict=True):
    assert record['video'].shape == (5, 40, 40, 1)
    moved = set(shifts(record['video']))
    assert len(moved) == 1, 'it moves alike all the time'
    (step,), direction = moved, STEPS[source.class_names[record['label']]]
    speeds.append(max(map(abs, step)))
    assert step == tuple(speeds[-1] * d for d in direction)
    for frame in record['video']:
      np.testing.assert_array_equal(
        np.sort(frame[frame > 0]), np.sort(digit['image'][digit['image'] > 0])
      )
  assert set(speeds) == {1, 2, 3}


def test_clips_are_the_same_each_time_and_others_in_each_split():
  source, test = load_source('moving_mnist', 'train'), load_source('moving_mnist', 'test')
  assert (len(source), len(test)) == (60_000, 10_000)
  again = pickle.loads(pickle.dumps(source))
  for i in (5, 1234):
    np.testing.assert_array_equal(source[i]['video'], again[i]['video'])
  assert [r['label'] for r in source.read(range(16))] == [*range(8), *range(8)]


@pytest.mark.parametrize('frame', [0, 7])
def test_a_frame_does_not_tell_the_direction(frame):
  """The digit's middle is uniform over the picture, whatever the class: chi-squared of 16 cells."""
  counts = np.zeros((8, 4, 4))
  for record in load_source('moving_mnist', 'train').read(range(1600)):
    picture = record['video'][frame, ..., 0].astype(float)
    angles = [2 * np.pi * np.arange(64) / 64] * 2
    middle = [
      np.angle((picture.sum(axis=1 - axis) * np.exp(1j * angles[axis])).sum()) for axis in (0, 1)
    ]
    row, column = (int(angle / (2 * np.pi) % 1 * 4) for angle in middle)
    counts[record['label'], row, column] += 1
  expected = counts.sum(axis=(1, 2), keepdims=True) / 16
  statistic = ((counts - expected) ** 2 / expected).sum(axis=(1, 2))
  assert statistic.max() < 40, '15 degrees of freedom: 0.0005 of uniform draws are above'


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'size': 27}, 'options.size: 27 is less than the 28'),
    ({'num_frames': 0}, 'options.num_frames: 0 is not'),
    ({'speeds': (2,)}, r'options.speeds: \(2,\) is not'),
    ({'speeds': (0, 2)}, r'options.speeds: \(0, 2\) is not'),
    ({'speeds': (1, 32)}, r'less than half of 64'),
    ({'num_frames': 10**9}, 'options.num_frames: 1,000,000,000 of 64x64 pixels take more than 1'),
    ({'size': 10**9}, 'options.num_frames: 8 of 1,000,000,000x1,000,000,000 pixels take more'),
    ({'size': '32'}, "options.size: '32' is not such as 64"),
    ({'size': True}, 'options.size: True is not such as 64'),
    ({'speeds': 2}, r'options.speeds: 2 is not such as \(2, 4\)'),
    ({'speeds': [[2], 4]}, r'options.speeds: \[\[2\], 4\] is not such as'),
    ({'sise': 32}, "options.sise: no such option of 'moving_mnist'; did you mean 'size'"),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(FieldError, match=message) as error:
    load_source('moving_mnist', 'train', options=options)
  one_line(error)


def test_other_sources_have_no_options():
  with pytest.raises(FieldError, match=r"options\.size: no such option of 'digits'"):
    load_source('digits', 'train', options={'size': 8})


def test_other_images_of_that_name_are_refused(tmp_path):
  picture = png(np.zeros((8, 9), np.uint8))
  features = {'image': image_feature(8, 9, 1), 'label': label_feature(2)}
  root = write_tfds(tmp_path, [{'image': picture, 'label': [0]}], features, name='mnist')
  for name in ('moving_mnist', 'digits_in_space'):
    with pytest.raises(FieldError, match=r'^dir: the images of mnist there are \(8, 9, 1\), not'):
      load_source(name, 'train', root)


def test_points_of_a_blank_image_are_refused(tmp_path):
  picture = png(np.zeros((28, 28), np.uint8))
  features = {'image': image_feature(28, 28, 1), 'label': label_feature(2)}
  root = write_tfds(tmp_path, [{'image': picture, 'label': [0]}], features, name='mnist')
  with pytest.raises(UsageError, match='mnist: an image is blank'):
    load_source('digits_in_space', 'train', root)[0]
