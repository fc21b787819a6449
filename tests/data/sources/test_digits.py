"""scikit-learn's digits: values, splits, slices."""

import numpy as np
import pytest
from image_files import one_line
from sklearn.datasets import load_digits

from vit_jax.data import load_source
from vit_jax.errors import FieldError


def test_digits_are_scaled_to_uint8_and_split_by_class():
  train, test = load_source('digits', 'train'), load_source('digits', 'test')
  assert (len(train), len(test)) == (1437, 360)
  assert train.class_names == tuple('0123456789')
  assert train.image_shape == (8, 8, 1)

  raw = load_digits()
  scaled = np.floor(raw.images * 255 / 16 + 0.5)
  expected = sorted(
    (image.tobytes(), label) for image, label in zip(scaled, raw.target, strict=True)
  )
  records = [*train, *test]
  assert {r['image'].dtype for r in records} == {np.dtype(np.uint8)}
  found = sorted((r['image'][..., 0].astype(float).tobytes(), r['label']) for r in records)
  assert found == expected  # every digit once, over both splits

  counts = np.bincount([r['label'] for r in test])
  np.testing.assert_allclose(counts, np.bincount(raw.target) / 5, atol=1)


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
