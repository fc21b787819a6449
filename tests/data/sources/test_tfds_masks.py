"""Data sets of TFDS that have masks: records against what was written."""

import numpy as np
import pytest
from data.sources.test_tfds import image_feature, label_feature, png, write_tfds
from image_files import pixels

from vit_jax.data import load_source
from vit_jax.errors import FieldError

FEATURES = {
  'image': image_feature(-1, -1, 3),
  'segmentation_mask': image_feature(-1, -1, 1),
  'label': label_feature(2),
}
IDS = [np.random.default_rng(i).integers(0, 5, (4, 5 + i), dtype=np.uint8) for i in range(3)]
EXAMPLES = [
  {'image': png(pixels(*ids.shape, seed=i)), 'segmentation_mask': png(ids), 'label': [0]}
  for i, ids in enumerate(IDS)
]


def load(root, **options):
  return load_source('tfds_masks', 'train', root, {'dataset': 'tiny', **options})


def test_records_are_the_images_and_masks_by_the_names_of_ids(tmp_path):
  source = load(write_tfds(tmp_path, EXAMPLES, FEATURES))
  assert source.class_names == ('pet', 'background')
  assert source.image_shape == (None, None, 3)
  assert len(source) == 3
  classes = {0: 255, 1: 0, 2: 1, 3: 255, 4: 255}
  for i, record in enumerate(source.read(range(3))):
    np.testing.assert_array_equal(record['image'], pixels(*IDS[i].shape, seed=i))
    np.testing.assert_array_equal(record['mask'], np.vectorize(classes.get)(IDS[i]))
  other = load(str(tmp_path), names=('a', 'b', 'c', 'd', 'e'), first_id=0)
  np.testing.assert_array_equal(other[2]['mask'], IDS[2])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'names': ('a', 'void')}, r"^options\.names: \('a', 'void'\) from id 1 are no classes"),
    ({'names': ('a', 'a', 'b')}, r'^options\.names: '),
    ({'first_id': 254}, r'^options\.names: .* from id 254'),
    ({'dataset': 'other'}, r"^options\.dataset: there is no data set 'other'"),
  ],
)
def test_mistakes(tmp_path, options, message):
  root = write_tfds(tmp_path, EXAMPLES, FEATURES)
  with pytest.raises(FieldError, match=message):
    load(root, **options)


def test_a_set_without_masks_is_refused(tmp_path):
  features = {name: FEATURES[name] for name in ('image', 'label')}
  examples = [{name: example[name] for name in features} for example in EXAMPLES]
  with pytest.raises(FieldError, match=r"^options\.dataset: 'tiny' needs an image and one mask"):
    load(write_tfds(tmp_path, examples, features))
