import jax
import numpy as np
import pytest
from image_files import MEAN, STD, augmentations, run_augment

from vit_jax.data import augment
from vit_jax.errors import FieldError


def scale(key, record):
  return record | {'image': record['image'] * jax.random.uniform(key)}


def invert(key, record):
  return record | {'image': 1 - record['image']}


def soften(key, record):
  return record | {'label': 0.9 * jax.nn.one_hot(record['label'], 10)}


def cut(key, record):
  return record | {'image': record['image'][1:]}


def forget(key, record):
  return {'image': record['image']}


def pixels_alone(key, record):
  return record['image']


def make_batch(count=4):
  images = np.random.default_rng(0).integers(250, size=(count, 6, 5, 3), dtype=np.uint8)
  return {'image': images, 'label': np.arange(count, dtype=np.int32)}


def names(*functions):
  return {'own': tuple(f'{__name__}:{function.__name__}' for function in functions)}


KEYS = jax.random.split(jax.random.key(3), 4)


def test_functions_see_pixels_from_0_to_1_in_their_order():
  batch = make_batch()
  made = run_augment(names(invert, scale), KEYS, batch)
  factors = (np.asarray(made['image']) * STD + MEAN) / (1 - batch['image'] / 255)
  each = np.nanmedian(factors, axis=(1, 2, 3))
  np.testing.assert_allclose(
    factors, np.broadcast_to(each[:, None, None, None], factors.shape), atol=1e-4
  )
  assert len({*each.round(4)}) == 4  # each example has a key of its own
  other = run_augment(names(scale, invert), KEYS, batch)
  assert not np.allclose(made['image'], other['image'])


def test_what_is_drawn_depends_on_the_key_of_the_example_alone():
  batch = make_batch()
  whole = run_augment(names(scale, scale) | {'shift': 1}, KEYS, batch)
  half = run_augment(
    names(scale, scale) | {'shift': 1}, KEYS[2:], {n: v[2:] for n, v in batch.items()}
  )
  np.testing.assert_array_equal(whole['image'][2:], half['image'])


def test_own_functions_leave_what_others_draw_alone():
  fields = {'shift': 2, 'flip': True}
  batch = make_batch()
  twice = run_augment(fields | names(invert, invert), KEYS, batch)
  np.testing.assert_allclose(twice['image'], run_augment(fields, KEYS, batch)['image'], atol=1e-5)


def test_labels_may_become_soft_and_are_mixed():
  fields = names(soften) | {'mixup_alpha': 0.5}
  made = run_augment(fields, KEYS, make_batch())
  assert made['label'].shape == (4, 10)
  np.testing.assert_allclose(made['label'].sum(axis=1), 0.9, atol=1e-6)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('invert', r"own: 'invert' is not written as 'module:function'"),
    (f'{__name__}:inverted', r"has no 'inverted'; did you mean 'invert'"),
    (f'{__name__}:KEYS', r'is not a function'),
    (f'{__name__}:pixels_alone', r'returned \w+, not a record of image, label'),
    (f'{__name__}:forget', r'returned a record of image, not a record of image, label'),
    (f'{__name__}:cut', r'made of image, float32 \[6, 5, 3\], one that is float32 \[5, 5, 3\]'),
  ],
)
def test_mistakes_show_before_a_run(name, message):
  record = {'image': make_batch()['image'][0], 'label': 1}
  with pytest.raises(FieldError, match=message):
    augment.check_own(augmentations(own=(name,)).own, record)
