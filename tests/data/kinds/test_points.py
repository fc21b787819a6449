"""Point clouds: what normalising makes of them, and what they can't follow."""

import numpy as np
import pytest
from image_files import augmentations, run_augment
from image_files import keys as make_keys

from vit_jax.data import augment, make_preprocess
from vit_jax.errors import FieldError, UsageError


def clouds(count, seed=0):
  generator = np.random.default_rng(seed)
  return np.float32(generator.normal((3, -2, 50), (1, 20, 5), (count, 40, 3)))


def test_points_have_mean_zero_and_reach_out_to_one():
  given = clouds(5)
  batch = run_augment({}, make_keys(5), {'points': given, 'label': np.arange(5)})
  assert batch.keys() == {'points', 'label'}
  points = np.asarray(batch['points'])
  assert points.dtype == np.float32
  np.testing.assert_allclose(points.mean(1), np.zeros((5, 3)), atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(points, axis=-1).max(1), np.ones(5), atol=1e-5)
  # Moved and scaled alone: shapes stay.
  distances = np.linalg.norm(points[:, 1:] - points[:, :-1], axis=-1)
  expected = np.linalg.norm(given[:, 1:] - given[:, :-1], axis=-1)
  ratio = distances / expected
  np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-3)
  evaluated = augment.normalize_batch({'points': given}, (0.5,), (0.5,))['points']
  np.testing.assert_allclose(evaluated, points, atol=1e-6)


def test_points_in_one_place_are_zero():
  points = augment.normalize_batch({'points': np.full((1, 4, 3), 7, np.float32)}, (0,), (1,))
  np.testing.assert_array_equal(points['points'], np.zeros((1, 4, 3)))


@pytest.mark.parametrize(
  ('field', 'value'),
  [('flip', True), ('shift', 1), ('color_jitter.hue', 0.1), ('random_erasing.probability', 0.5)],
)
def test_augmentations_of_images_are_refused(field, value):
  config = augmentations()
  augment.validate(config, ['points', 'label'])
  config.update_from_flattened_dict({field: value})
  augment.validate(config, ['label'])
  with pytest.raises(FieldError, match=rf'^{field}: {value}, but the task has points'):
    augment.validate(config, ['points', 'label'])


def numbered(count):
  """A record whose points and parts tell which they are."""
  ids = np.arange(count)
  return {'points': np.float32(np.stack([ids] * 3, axis=1)), 'parts': np.int32(ids), 'label': 1}


def taken(preprocess, count, rng=None):
  record = preprocess(numbered(count), rng)
  assert record['label'] == 1
  np.testing.assert_array_equal(record['points'][:, 0], record['parts'])
  return record['parts'].tolist()


def test_points_are_taken_at_random_to_train_and_alike_to_evaluate():
  evaluate, train = (make_preprocess((), 0, 'resize', t, num_points=5) for t in (False, True))
  assert (evaluate.random, train.random, train.takes_points) == (False, True, True)
  first = taken(evaluate, 50)
  assert len(set(first)) == 5
  assert first == taken(evaluate, 50)
  found = [taken(train, 50, np.random.default_rng(i)) for i in (0, 0, *range(1, 300))]
  assert found[0] == found[1] != found[2]
  counts = np.bincount(np.concatenate(found[1:]), minlength=50)
  assert counts.min() > 10, 'each is taken 30 times on average'
  assert all(len(set(ids)) == 5 for ids in found)
  stored = make_preprocess((), 0, 'resize', train=True)
  assert (stored.random, stored.takes_points, taken(stored, 4)) == (False, False, [0, 1, 2, 3])


def test_a_cloud_of_fewer_points_has_each_about_as_often():
  for train in (False, True):
    preprocess = make_preprocess((), 0, 'resize', train, num_points=8)
    ids = taken(preprocess, 3, np.random.default_rng(0))
    assert sorted(np.bincount(ids)) == [2, 3, 3]


def test_mistakes():
  with pytest.raises(FieldError, match=r'^num_points: -1 is negative'):
    make_preprocess((), 0, 'resize', train=True, num_points=-1)
  preprocess = make_preprocess((), 0, 'resize', train=False, num_points=2)
  with pytest.raises(FieldError, match=r'^num_points: 2, but the records have no points'):
    preprocess({'label': 1})
  with pytest.raises(UsageError, match='points of a record differ in number: points 4, parts 3'):
    preprocess(numbered(4) | {'parts': np.arange(3, dtype=np.int32)})
