"""Rotations, scales, shifts and jitter of points, and where they are refused."""

import jax
import numpy as np
import pytest
from image_files import augmentations, run_augment
from image_files import keys as make_keys

from vit_jax.data import augment
from vit_jax.data.augment import points as points_lib
from vit_jax.errors import FieldError

COUNT = 2000


def clouds(count, points=20):
  return np.float32(np.random.default_rng(0).normal(size=(count, points, 3)))


def changed(fields, count=4):
  """Returns (points as they are normalised, points augmented) of some clouds."""
  batch = {'points': clouds(count), 'parts': np.tile(np.arange(20, dtype=np.int32), (count, 1))}
  before, after = (run_augment(f, make_keys(count), batch) for f in ({}, fields))
  np.testing.assert_array_equal(after['parts'], batch['parts'])
  return np.asarray(before['points']), np.asarray(after['points'])


def matrices(rotation, count=COUNT):
  draw = jax.jit(jax.vmap(lambda key: points_lib.random_matrix(key, rotation)))
  return np.asarray(draw(make_keys(count)), np.float64)


@pytest.mark.parametrize('rotation', ['z', 'so3'])
def test_matrices_are_rotations_all_alike_likely(rotation):
  found = matrices(rotation)
  identity = np.broadcast_to(np.eye(3), found.shape)
  np.testing.assert_allclose(found @ found.swapaxes(1, 2), identity, atol=1e-5)
  np.testing.assert_allclose(np.linalg.det(found), 1, atol=1e-5)
  angle = np.sort(np.arctan2(found[:, 1, 0], found[:, 0, 0]) / (2 * np.pi) % 1)
  uniform = (np.arange(COUNT) + 0.5) / COUNT
  # Kolmogorov's statistic of 2,000 uniform numbers is above 0.044 once in a thousand times.
  assert np.abs(angle - uniform).max() < 0.044
  if rotation == 'z':
    np.testing.assert_allclose(found[:, 2], np.tile([0, 0, 1], (COUNT, 1)), atol=1e-6)
  else:  # every direction's coordinate is uniform, as Archimedes found of the sphere
    for row, column in np.ndindex(3, 3):
      height = np.sort(found[:, row, column] / 2 + 0.5)
      assert np.abs(height - uniform).max() < 0.044
    # The angle of the rotation has the density (1 - cos) / pi, whose cosine has the mean -1/2.
    cosines = (np.trace(found, axis1=1, axis2=2) - 1) / 2
    assert abs(cosines.mean() + 0.5) < 0.05


@pytest.mark.parametrize('rotation', ['z', 'so3'])
def test_a_cloud_is_turned_as_a_whole_each_by_its_key(rotation):
  before, after = changed({'rotation': rotation})
  for a, b in zip(before, after, strict=True):
    turn = np.linalg.lstsq(a, b, rcond=None)[0]
    np.testing.assert_allclose(a @ turn, b, atol=1e-5)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-5)
    assert np.abs(turn - np.eye(3)).max() > 0.01
    assert rotation == 'so3' or np.abs(a[:, 2] - b[:, 2]).max() < 1e-6
  turned = augment.rotate(rotation, make_keys(4), {'points': before, 'label': np.arange(4)})
  assert np.abs(np.asarray(turned['points']) - before).max() > 0.1
  again = augment.rotate(rotation, make_keys(4)[2:], {'points': before[2:], 'label': np.arange(2)})
  np.testing.assert_allclose(again['points'], turned['points'][2:], atol=1e-6)
  assert augment.rotate('none', None, turned) is turned


def test_scale_shift_and_jitter():
  before, after = changed({'point_scale': 0.25}, COUNT)
  factors = np.linalg.norm(after, axis=-1).max(axis=1)  # of clouds that reach out to 1
  np.testing.assert_allclose(after, before * factors[:, None, None], atol=1e-5)
  uniform = 0.8 + 0.45 * (np.arange(COUNT) + 0.5) / COUNT
  assert np.abs(np.sort(factors) - uniform).max() < 0.044 * 0.45

  before, after = changed({'point_shift': 0.2}, COUNT)
  offsets = after[:, 0] - before[:, 0]
  np.testing.assert_allclose(after - before, np.repeat(offsets[:, None], 20, 1), atol=1e-6)
  uniform = -0.2 + 0.4 * (np.arange(COUNT) + 0.5) / COUNT
  assert np.abs(np.sort(offsets, axis=0) - uniform[:, None]).max() < 0.044 * 0.4

  before, after = changed({'point_jitter': 0.03}, COUNT)
  noise = (after - before).ravel()
  assert abs(noise.mean()) < 5e-4
  assert abs(noise.std() - 0.03) < 5e-4
  assert np.abs(noise).max() <= 0.15 + 1e-6


def test_what_is_turned_on_leaves_the_draws_of_the_rest_alone():
  _, turned = changed({'rotation': 'so3'})
  _, both = changed({'rotation': 'so3', 'point_scale': 0.25})
  factors = np.linalg.norm(both, axis=-1).max(axis=1)
  np.testing.assert_allclose(both, turned * factors[:, None, None], atol=1e-5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'rotation': 'so2'}, "^rotation: 'so2' is not one of none, z, so3; did you mean 'so3'"),
  ],
)
def test_mistakes(fields, message):
  with pytest.raises(FieldError, match=message):
    augment.validate(augmentations(**fields), ['points', 'label'])
  with pytest.raises(FieldError, match=r"^rotation: 'z', but the model takes no points"):
    augment.check_rotation('z', ['image', 'label'])
