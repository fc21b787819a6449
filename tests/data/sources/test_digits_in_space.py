"""Digits in space: points on the strokes of real digits, on a sheet that no rotation maps to it."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
from image_files import one_line
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from vit_jax.data import load_source
from vit_jax.errors import FieldError

TFDS_DATA_DIR = os.environ.get('TFDS_DATA_DIR', '')
pytestmark = pytest.mark.skipif(
  not TFDS_DATA_DIR or not Path(TFDS_DATA_DIR, 'mnist').is_dir(),
  reason='mnist is not in TFDS_DATA_DIR',
)


def pixels(points):
  """The (row, column) of the picture's pixel that each point was drawn in."""
  columns, rows = (points[:, 0] + 1) * 14, (1 - points[:, 1]) * 14
  return np.floor(rows).astype(int), np.floor(columns).astype(int)


def bend(points, depth):
  return depth * np.maximum(points[:, 1], 0) ** 2


def test_points_lie_on_the_stroke_and_the_bent_sheet():
  options = {'num_points': 500, 'depth': 0.7, 'thickness': 0.2}
  source = load_source('digits_in_space', 'train[:20]', options=options)
  assert (len(source), source.num_points, source.image_shape) == (20, 500, ())
  assert source.class_names == tuple('0123456789')
  ratios = []
  for record, digit in zip(source, load_source('mnist', 'train[:20]'), strict=True):
    points, picture = record['points'], digit['image'][..., 0]
    assert (points.shape, points.dtype) == ((500, 3), np.float32)
    assert record['label'] == digit['label']
    ink = picture[pixels(points)]
    assert (ink > 0).all()
    ratios.append((ink > 128).mean() / (picture[picture > 128].sum() / picture.sum()))
    off_sheet = points[:, 2] - bend(points, 0.7)
    assert np.abs(off_sheet).max() <= 0.1 + 1e-6
    assert np.abs(off_sheet).max() > 0.09
  assert abs(np.mean(ratios) - 1) < 0.01, 'points are as dense as the ink'


def test_clouds_are_the_same_each_time():
  source, test = (load_source('digits_in_space', split) for split in ('train', 'test'))
  assert (len(source), len(test)) == (60_000, 10_000)
  again = pickle.loads(pickle.dumps(source))
  for i in (5, 1234):
    np.testing.assert_array_equal(source[i]['points'], again[i]['points'])
  assert not np.array_equal(source[5]['points'], test[5]['points'])


def closest(cloud, other):
  """The least mean distance from points of a cloud to another, over rotations about its middle."""
  tree = cKDTree(other - other.mean(axis=0))
  centred = cloud - cloud.mean(axis=0)

  def distance(vector):
    return tree.query(Rotation.from_rotvec(vector).apply(centred))[0].mean()

  starts = Rotation.create_group('O').as_rotvec()
  best = sorted(starts, key=distance)[:3]
  return min(scipy.optimize.minimize(distance, s, method='Nelder-Mead').fun for s in best)


@pytest.mark.parametrize('change', ['upside down', 'mirrored'])
def test_a_changed_picture_is_another_object_under_any_rotation(change):
  """A 6 turned round, nearly a 9, and a mirrored digit, which a flat one is from behind."""
  options = {'num_points': 300, 'thickness': 0.0}
  records = load_source('digits_in_space', 'train[:40]', options=options)
  points = next(r['points'] for r in records if r['label'] == 6)
  sheet = points - np.stack([0 * points[:, 0], 0 * points[:, 0], bend(points, 1)], axis=1)
  changed = sheet * ((-1, -1, 1) if change == 'upside down' else (-1, 1, 1))
  assert closest(sheet, changed) < 0.01, 'flat, it is the same'
  changed = changed + np.stack([0 * points[:, 0], 0 * points[:, 0], bend(changed, 1)], axis=1)
  assert closest(points, changed) > 0.03


def test_of_several_digits_each_point_has_the_one_that_it_belongs_to():
  options = {'digits': 3, 'num_points': 100, 'thickness': 0.0}
  source = load_source('digits_in_space', 'test[:50]', options=options)
  digits = list(load_source('mnist', 'test[:50]'))
  drawn = set()
  for i, record in enumerate(source):
    assert record.keys() == {'points', 'parts'}
    assert (record['points'].shape, record['parts'].dtype) == ((100, 3), np.int32)
    assert source[i]['parts'].tolist() == record['parts'].tolist()
    for place, (start, stop) in enumerate(((0, 33), (33, 66), (66, 100))):
      (label,) = set(record['parts'][start:stop].tolist())
      points = record['points'][start:stop] - np.float32([2 * place, 0, 0])
      np.testing.assert_allclose(points[:, 2], bend(points, 1), atol=1e-6)
      assert place or label == digits[i]['label']
      inked = [(d['image'][..., 0][pixels(points * 0.9999)] > 0).all() for d in digits]
      assert any(ok and d['label'] == label for ok, d in zip(inked, digits, strict=True))
      drawn.add(label)
  assert len(drawn) == 10


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_points': 0}, 'options.num_points: 0 is not'),
    ({'num_points': 10**12}, 'options.num_points: 1000000000000 is not from 1 to 8,388,608'),
    ({'digits': 0}, 'options.digits: 0 is not from 1 to 256'),
    ({'digits': 5, 'num_points': 4}, 'options.digits: 5 is not from 1 to 4'),
    ({'depth': -1.0}, r'options.depth: -1.0 is not a number from 0 on'),
    ({'thickness': float('nan')}, 'options.thickness: nan is not'),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(FieldError, match=message) as error:
    load_source('digits_in_space', 'train', options=options)
  one_line(error)
