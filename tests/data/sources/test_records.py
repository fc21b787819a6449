"""What every source answers alike."""

import numpy as np
import pytest
from image_files import make_folder, pixels, save

from vit_jax.data import load_source
from vit_jax.data.sources.records import ArraySource


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('digits', {}),
    ('folder', {}),
    ('moving_mnist', {}),
    ('digits_in_space', {}),
    ('digits_in_space', {'digits': 2}),
  ],
)
def test_labels_are_those_of_the_records(name, options, tmp_path, request):
  if name == 'folder':
    make_folder(tmp_path)
  elif name != 'digits':
    request.getfixturevalue('tfds_dir')
  root = str(tmp_path) if name == 'folder' else ''
  source = load_source(name, 'test[:7]', root, options)
  labels = source.labels()
  if 'digits' in options:  # which have parts, and no one class
    assert labels is None
  else:
    assert labels.dtype == np.int32
    assert labels.tolist() == [record['label'] for record in source]


def test_a_source_without_an_answer_of_its_own_reads_its_records():
  class Read(ArraySource):
    labels = ArraySource.__base__.labels

  rows = np.float32([[0, 1], [1, 1], [0, 0]])
  images = np.zeros((3, 2, 2, 1), np.uint8)
  for label, dtype in ((rows, np.float32), (np.arange(3), np.int32)):
    for kind in (Read, ArraySource):
      labels = kind({'image': images, 'label': label}).labels()
      np.testing.assert_array_equal(labels, label)
      assert labels.dtype == dtype
  assert Read({'image': images}).labels() is ArraySource({'image': images}).labels() is None


def test_unlabelled_images_have_no_labels(tmp_path):
  save(tmp_path / 'a.png', pixels(4, 4))
  assert load_source('folder', 'train', str(tmp_path)).labels() is None
