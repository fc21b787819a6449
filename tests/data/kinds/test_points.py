"""Point clouds: what normalising makes of them, and what they can't follow."""

import numpy as np
import pytest
from image_files import augmentations, run_augment
from image_files import keys as make_keys

from vit_jax.data import augment
from vit_jax.errors import FieldError


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
