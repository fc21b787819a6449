"""A batch through all augmentations, and what `validate` refuses."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_files import MEAN, NUM_CLASSES, STD, augmentations, keys, photographs, run_augment

from vit_jax.data import augment
from vit_jax.errors import FieldError

HEIGHT, WIDTH = 12, 16


EVERYTHING = {
  'crop_padding': 2,
  'flip': True,
  'shift': 1,
  'rand_augment': {'num_ops': 2},
  'color_jitter': {'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.1},
  'random_erasing': {'probability': 0.5},
  'mixup_alpha': 0.8,
  'cutmix_alpha': 1.0,
}


def make_batch(count):
  return {
    'image': jnp.asarray(photographs(count)),
    'label': jnp.arange(count) % NUM_CLASSES,
    'id': jnp.arange(count),
  }


def test_normalize_takes_bytes_and_floats():
  images = photographs(2)
  expected = (images / 255 - np.array(MEAN)) / np.array(STD)
  normalized = augment.normalize(images, MEAN, STD)
  assert normalized.dtype == jnp.float32
  np.testing.assert_allclose(normalized, expected, atol=1e-5)
  floats = augment.normalize(np.float32(images / 255), MEAN, STD)
  np.testing.assert_allclose(floats, expected, atol=1e-5)


def test_augment_with_nothing_on_only_normalises_and_draws_nothing():
  batch = make_batch(3)
  augmented = run_augment({}, keys(3), batch)
  np.testing.assert_array_equal(augmented['label'], batch['label'])
  np.testing.assert_array_equal(augmented['id'], batch['id'])
  expected = augment.normalize(batch['image'], MEAN, STD)
  np.testing.assert_allclose(augmented['image'], expected, atol=1e-6)
  for fields, draws in (({}, False), ({'flip': True}, True)):
    config = augmentations(**fields)
    step = jax.jit(lambda k, b, c=config: augment.augment(c, k, b, NUM_CLASSES, MEAN, STD))
    assert ('threefry' in step.lower(keys(3), batch).as_text()) == draws


@pytest.mark.parametrize('field', [f for f in EVERYTHING if not f.endswith('alpha')])
def test_augment_applies_each_field_by_itself_to_each_image_differently(field):
  images = np.broadcast_to(photographs(1), (8, HEIGHT, WIDTH, 3))
  batch = {'image': jnp.asarray(images), 'label': jnp.zeros(8, jnp.int32)}
  augmented = run_augment({field: EVERYTHING[field]}, keys(8), batch)
  assert augmented['image'].dtype == jnp.float32
  assert augmented['image'].shape == images.shape
  np.testing.assert_array_equal(augmented['label'], batch['label'])
  assert len(np.unique(augmented['image'].reshape(8, -1), axis=0)) > 1


def test_augment_erases_to_the_channel_mean_after_all_other_changes_to_the_image():
  fields = {'color_jitter': {'brightness': 0.9}, 'random_erasing': {'probability': 1.0}}
  augmented = run_augment(fields, keys(8), make_batch(8))
  assert (np.asarray(augmented['image']) == 0).all(-1).any((1, 2)).all()


def test_augment_is_the_same_however_the_batch_is_split():
  count = 16
  batch, batch_keys = make_batch(count), keys(count)
  split = jax.tree.map(lambda x: x.reshape(2, count // 2, *x.shape[1:]), batch)
  config = augmentations(**EVERYTHING)
  step = functools.partial(augment.augment, config, num_classes=NUM_CLASSES, mean=MEAN, std=STD)
  # Compiled as for users: without its fusion emitters, XLA rounds otherwise in a loop, and some of
  # the operations turn that into other pixels.
  is_quick = 'xla_cpu_use_fusion_emitters' in os.environ['XLA_FLAGS']
  compiled = functools.partial(
    jax.jit, compiler_options={'xla_cpu_use_fusion_emitters': True} if is_quick else None
  )
  whole = compiled(step)(batch_keys, batch)
  # In a device loop under pmap, as in training.
  in_a_loop = compiled(jax.pmap(lambda k, b: jax.lax.map(lambda args: step(*args), (k, b))))
  parts = in_a_loop(batch_keys.reshape(1, 2, -1), jax.tree.map(lambda x: x[None], split))
  for name, value in whole.items():
    part = parts[name].reshape(value.shape)
    np.testing.assert_allclose(part, value, atol=1e-5, err_msg=name)


def test_augment_takes_grey_images():
  images = jnp.asarray(photographs(4)[..., :1])
  batch = {'image': images, 'label': jnp.arange(4)}
  fields = {**EVERYTHING, 'mixup_alpha': 0.0}
  augmented = run_augment(fields, keys(4), batch, mean=(0.13,), std=(0.31,))
  assert augmented['image'].shape == images.shape
  assert np.isfinite(augmented['image']).all()


@pytest.mark.parametrize('field', ['random_erasing.area', 'random_erasing.aspect'])
def test_an_interval_that_ends_before_it_begins(field):
  config = augmentations(**EVERYTHING)
  augment.validate(config)
  config.update_from_flattened_dict({field: (0.3, 0.2)})
  with pytest.raises(FieldError, match=rf'^{field}: \(0\.3, 0\.2\) is not \(low, high\)'):
    augment.validate(config)


@pytest.mark.parametrize('field', ['crop_padding', 'shift'])
def test_images_are_not_moved_out_of_sight(field):
  augment.check_moves(augmentations(**{field: 7}), [(8, 9), None])
  with pytest.raises(FieldError, match=f'^{field}: 8 pixels move images of 9x8 out of sight'):
    augment.check_moves(augmentations(**{field: 8}), [(16, 16), (9, 8)])
