"""Several random crops of each record, made on the host."""

import itertools
import pickle

import numpy as np
import pytest
from image_files import bounds, corners, painted_classes, scene

from vit_jax.data import ArraySource, Views, make_preprocess, train_loader

LARGE = make_preprocess((24, 20), 3, 'inception', train=True, area=(0.4, 1.0))
SMALL = make_preprocess((10,), 3, 'inception', train=True, area=(0.05, 0.4))
VIEWS = Views({'global': (LARGE, 2), 'local': (SMALL, 5)})


def rng(seed=0):
  return np.random.default_rng(seed)


def test_groups_have_their_own_sizes_and_the_rest_of_the_record_stays():
  record = scene(0, 40, 48) | {'label': 3}
  made = VIEWS(record, rng())
  shapes = {name: np.shape(value) for name, value in made.items()}
  assert shapes == {
    'image/global': (2, 24, 20, 3),
    'video/global': (2, 2, 24, 20, 3),
    'mask/global': (2, 24, 20),
    'box/global': (2, 4),
    'image/local': (5, 10, 10, 3),
    'video/local': (5, 2, 10, 10, 3),
    'mask/local': (5, 10, 10),
    'box/local': (5, 4),
    'label': (),
  }


def test_views_differ_and_each_has_one_geometry():
  for seed in range(5):
    made = VIEWS(scene(seed, 80, 96), rng(seed))
    assert len(np.unique(made['image/global'].reshape(2, -1), axis=0)) == 2
    assert len(np.unique(made['image/local'].reshape(5, -1), axis=0)) == 5
    for i in range(2):
      mask = made['mask/global'][i]
      assert (painted_classes(made['image/global'][i]) == mask).mean() > 0.85
      np.testing.assert_array_equal(made['video/global'][i, 0], made['image/global'][i])
      np.testing.assert_allclose(corners(made['box/global'][i]), bounds(mask), atol=1 / 18)


def test_a_view_draws_from_its_own_stream():
  """So that a group more, after the others, leaves them as they are."""
  record = {'image': scene(1, 40, 48)['image']}
  both = VIEWS(record, rng(4))
  alone = Views({'global': (LARGE, 2)})(record, rng(4))
  np.testing.assert_array_equal(alone['image/global'], both['image/global'])
  first, second = rng(4).spawn(2)
  for i, stream in enumerate((first, second)):
    np.testing.assert_array_equal(both['image/global'][i], LARGE(record, stream)['image'])


def test_without_randomness_no_stream_is_needed():
  same = make_preprocess((8, 8), 3, 'central', train=False)
  views = Views({'global': (same, 2)})
  assert not views.random
  made = views({'image': scene(0)['image']})
  np.testing.assert_array_equal(made['image/global'][0], made['image/global'][1])
  assert VIEWS.random
  assert VIEWS.resizes
  assert not Views({'all': (make_preprocess((), 3, 'resize', train=True), 1)}).resizes


@pytest.mark.parametrize('workers', [0, 1])
def test_loaders_batch_views_by_seed_and_position_alone(workers):
  images = np.stack([scene(seed, 40, 48)['image'] for seed in range(13)])
  source = ArraySource({'image': images, 'label': np.arange(13)})
  options = {
    'batch_size': 8,
    'num_devices': 2,
    'process_index': 0,
    'process_count': 1,
    'resident': False,
    'num_workers': workers,
    'num_threads': 2,
    'prefetch': 2,
  }
  loader = pickle.loads(pickle.dumps(train_loader(source, VIEWS, seed=0, **options)))

  def take(start, count):
    batches = loader.batches(start)
    try:
      return list(itertools.islice(batches, count))
    finally:
      batches.close()

  batches = take(0, 3)
  assert batches[0]['image/global'].shape == (2, 4, 2, 24, 20, 3)
  assert batches[0]['image/local'].shape == (2, 4, 5, 10, 10, 3)
  again = take(2, 1)[0]
  for name in ('image/global', 'image/local', 'label'):
    np.testing.assert_array_equal(again[name], batches[2][name])
  sequence = np.random.SeedSequence((0, 1, 3))  # of the record at position 3 of seed 0
  expected = VIEWS(source[int(batches[0]['label'][0, 3])], np.random.default_rng(sequence))
  np.testing.assert_array_equal(batches[0]['image/local'][0, 3], expected['image/local'])
