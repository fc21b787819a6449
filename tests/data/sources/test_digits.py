"""scikit-learn's digits: values, splits, slices."""

import numpy as np
import pytest
from image_files import one_line
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vit_jax.data import load_source
from vit_jax.errors import FieldError


def test_digits_are_scaled_to_uint8_and_split_by_class():
  """As scikit-learn has them and splits them; whose import training need not wait for."""
  raw = load_digits()
  splits = train_test_split(
    np.arange(len(raw.images)), test_size=0.2, stratify=raw.target, random_state=0
  )
  for split, rows in zip(('train', 'test'), splits, strict=True):
    source = load_source('digits', split)
    assert source.class_names == tuple('0123456789')
    assert source.image_shape == (8, 8, 1)
    images = np.stack([record['image'] for record in source])
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[..., 0], np.floor(raw.images[rows] * 255 / 16 + 0.5))
    assert source.labels().tolist() == raw.target[rows].tolist()
  assert len(splits[0]) == 1437


def test_digits_slices_are_disjoint_and_complete():
  def images(split):
    return [r['image'].tobytes() for r in load_source('digits', split)]

  assert images('train[:30%]') + images('train[30%:]') == images('train')
  assert images('test + train[-5:]') == images('test') + images('train')[-5:]
  assert images('all') == images('train') + images('test')


@pytest.mark.parametrize(
  ('split', 'message'),
  [
    ('tset', "'tset' is not one of train, test, all; did you mean 'test'?"),
    ('train[:9x%]', 'cannot be read'),
    ('train[', 'TFDS syntax'),
    ('all[:5]', 'cannot be read'),
    ('train[:9999]', 'incompatible with 1437 examples'),
    ('train[:0]', 'holds no examples'),
  ],
)
def test_wrong_split(split, message):
  with pytest.raises(FieldError) as error:
    load_source('digits', split)
  assert one_line(error).startswith('split: ')
  assert message in one_line(error)
