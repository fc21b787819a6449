"""Records of several kinds: checked, stacked and normalised by them; and one kind more."""

import jax
import numpy as np
import pytest
from image_files import MEAN, STD, run_augment, scene
from image_files import keys as make_keys

from vit_jax.data import ArraySource, eval_loader, kinds, make_preprocess
from vit_jax.data.kinds import KINDS, VOID, kind
from vit_jax.errors import UsageError

IMAGE = np.zeros((4, 6, 3), np.uint8)
GOOD = {
  'image': IMAGE,
  'video': np.zeros((5, 4, 6, 1), np.uint8),
  'mask': np.zeros((4, 6), np.int32),
  'box': np.zeros(4, np.float32),
  'label': 3,
  'points': np.zeros((7, 3), np.float32),
  'parts': np.zeros(7, np.int32),
}


@pytest.mark.parametrize('name', GOOD)
def test_what_is_of_a_kind_is_let_through(name):
  kinds.check({name: GOOD[name]})


def test_labels_may_be_numbers_of_numpy_and_multi_hot():
  kinds.check({'label': np.int64(3)})
  kinds.check({'label': np.zeros(5, np.float32)})


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    (
      'image',
      IMAGE / 255,
      r"a record's image is float64 \[4, 6, 3\], not uint8 \[height, width, 1",
    ),
    ('image', IMAGE[..., 0], r'uint8 \[4, 6\], not'),
    ('image', np.zeros((4, 6, 4), np.uint8), r'uint8 \[4, 6, 4\], not'),
    ('video', IMAGE, r'not uint8 \[frames, height'),
    ('video', np.zeros((0, 4, 6, 3), np.uint8), r'uint8 \[0, 4, 6, 3\], not'),
    ('mask', np.zeros((4, 6), np.int64), r'int64 \[4, 6\], not uint8 or int32'),
    ('mask', IMAGE, r'not uint8 or int32 \[height, width\]'),
    ('box', np.zeros(4), r'float64 \[4\], not float32'),
    ('box', np.zeros((1, 4), np.float32), r'float32 \[1, 4\], not'),
    ('label', None, 'object .*, not an int'),
    ('label', 0.5, 'float64 .*, not an int'),
    ('points', np.zeros((7, 2), np.float32), r'float32 \[7, 2\], not float32 \[points, 3\]'),
    ('points', np.zeros((0, 3), np.float32), r'float32 \[0, 3\], not'),
    ('parts', np.zeros(7), r'float64 \[7\], not int32 \[points\]'),
    ('parts', np.zeros((7, 1), np.int32), r'int32 \[7, 1\], not'),
  ],
)
def test_what_is_not_of_its_kind_is_refused(name, value, message):
  with pytest.raises(UsageError, match=message):
    kinds.stack([{name: value}])
  with pytest.raises(UsageError, match=message):
    make_preprocess((8, 8), 0, 'resize', train=True)({name: value})


def test_pictures_of_a_record_are_of_one_size():
  record = {'image': IMAGE, 'mask': np.zeros((6, 4), np.uint8)}
  with pytest.raises(UsageError, match='differ in size: image 4x6, mask 6x4'):
    make_preprocess((8, 8), 3, 'resize', train=True)(record)


def test_stacking_gives_the_dtypes_of_batches():
  batch = kinds.stack([GOOD, GOOD])
  shapes = {name: (str(array.dtype), array.shape) for name, array in batch.items()}
  assert shapes == {
    'image': ('uint8', (2, 4, 6, 3)),
    'video': ('uint8', (2, 5, 4, 6, 1)),
    'mask': ('int32', (2, 4, 6)),
    'box': ('float32', (2, 4)),
    'label': ('int32', (2,)),
    'parts': ('int32', (2, 7)),
    'points': ('float32', (2, 7, 3)),
  }
  multi_hot = kinds.stack([{'label': np.eye(5, dtype=np.float32)[i]} for i in range(3)])['label']
  assert (multi_hot.dtype, multi_hot.shape) == (np.float32, (3, 5))
  assert kinds.stack([{'mask': np.zeros((4, 6), np.uint8)}])['mask'].dtype == np.uint8


def test_an_entry_without_a_kind_is_refused_in_batches_with_the_nearest():
  with pytest.raises(UsageError, match=r"'maks', not one of image, .*did you mean 'mask'"):
    kinds.stack([{'maks': IMAGE}])


def test_normalisation_is_that_of_each_kind_in_batches_and_views():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (2, 3, 4, 6, 3), np.uint8)  # two examples of three views
  mask = np.array([[[0, VOID]]], np.uint8)
  box = np.float32([[0.5, 0.5, 1, 1]])
  batch = {'image/global': image, 'video': image, 'mask': mask, 'box': box, 'slot': np.arange(2)}
  normalized = jax.tree.map(np.asarray, kinds.normalize(batch, MEAN, STD))
  expected = (image / 255 - np.array(MEAN)) / np.array(STD)
  for name in ('image/global', 'video'):
    assert normalized[name].dtype == np.float32
    np.testing.assert_allclose(normalized[name], expected, atol=1e-5)
  assert normalized['mask'].dtype == np.int32
  np.testing.assert_array_equal(normalized['mask'], mask)
  for name in ('box', 'slot'):
    np.testing.assert_array_equal(normalized[name], batch[name])


def test_predictions_for_a_window_become_those_for_the_picture():
  box, mask = np.float32((0.5, 0.5, 1, 1)), np.full((3, 3), 7, np.uint8)
  prediction = {'probabilities': np.ones(5), 'box': box, 'mask': mask}
  restored = kinds.restore(prediction, (0.25, 0, 0.75, 0.5), (4, 8))
  np.testing.assert_array_equal(restored['probabilities'], np.ones(5))
  np.testing.assert_allclose(restored['box'], (0.5, 0.25, 0.5, 0.5))
  expected = np.full((4, 8), VOID)
  expected[:2, 2:6] = 7
  np.testing.assert_array_equal(restored['mask'], expected)


class Depth(kind.Kind):
  """A number for each of a 2x2 grid of cells, which a flip exchanges; in batches a float32."""

  form, plural = 'float64 [2, 2]', 'depths'
  cannot_follow = ('mixup_alpha',)

  def is_valid(self, value):
    return value.dtype == np.float64 and value.shape == (2, 2)

  def stack(self, values):
    return np.float32(values)

  def flip(self, value, flip):
    return jax.numpy.where(flip, value[:, ::-1], value)


def test_a_new_kind_goes_through_loader_and_augmentation(monkeypatch):
  monkeypatch.setitem(KINDS, 'depth', Depth())
  records = [scene(seed) for seed in range(8)]
  arrays = {'image': np.stack([r['image'] for r in records])}
  arrays['depth'] = np.arange(32.0).reshape(8, 2, 2)
  loader = eval_loader(
    ArraySource(arrays),
    make_preprocess((12, 16), 3, 'central', train=False),
    batch_size=8,
    num_devices=1,
    process_index=0,
    process_count=1,
    resident=True,
    num_workers=0,
    num_threads=1,
    prefetch=1,
  )
  np.testing.assert_array_equal(loader.arrays['depth'], np.float32(arrays['depth']))
  batch = run_augment({'flip': True}, make_keys(8), loader.arrays)
  plain = run_augment({}, make_keys(8), loader.arrays)
  flipped = (batch['image'] != plain['image']).any((1, 2, 3))
  assert set(flipped.tolist()) == {True, False}
  expected = np.where(flipped[:, None, None], arrays['depth'][:, :, ::-1], arrays['depth'])
  np.testing.assert_array_equal(batch['depth'], expected)
