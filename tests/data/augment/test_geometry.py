"""Crops, shifts and flips against every outcome they can have, for one entry and for all alike."""

import numpy as np
import pytest
from image_files import bounds, corners, painted_classes, photographs, repeated, run_augment, scene
from image_files import keys as make_keys
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage, stats

from vit_jax.data import augment


@pytest.mark.parametrize('channels', [1, 3])
def test_random_crop_gives_every_window_of_the_padded_image_and_nothing_else(channels):
  image = photographs(1)[0, :, :, :channels]
  crops = repeated({'image': image}, lambda *args: augment.random_crop(*args, 1), 200)['image']
  assert crops.dtype == np.uint8
  padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
  windows = sliding_window_view(padded, image.shape).reshape(9, *image.shape)
  matches = (crops[:, None] == windows).all((2, 3, 4))
  np.testing.assert_array_equal(matches.sum(1), 1)
  assert matches.sum(0).min() > 200 / 9 / 2


def test_random_shift_moves_by_up_to_the_given_pixels_and_fills_with_zeros():
  image = photographs(1)[0]
  shifted = repeated({'image': image}, lambda *args: augment.random_shift(*args, 2), 300)['image']
  moves = [(dy, dx, 0) for dy in range(-2, 3) for dx in range(-2, 3)]
  expected = np.stack([ndimage.shift(image, move, order=0, cval=0) for move in moves])
  matches = (shifted[:, None] == expected).all((2, 3, 4))
  np.testing.assert_array_equal(matches.sum(1), 1)
  assert matches.any(0).all()


def test_random_flip_mirrors_half_of_the_images():
  image = photographs(1)[0]
  flipped = repeated({'image': image}, augment.random_flip, 400)['image']
  mirrored = (flipped == np.fliplr(image)).all((1, 2, 3))
  assert (mirrored | (flipped == image).all((1, 2, 3))).all()
  assert stats.binomtest(int(mirrored.sum()), 400).pvalue > 0.01


MOVES = {
  'crop': {'crop_padding': 6},
  'flip': {'flip': True},
  'shift': {'shift': 9},
  'all': {'crop_padding': 4, 'flip': True, 'shift': 5},
}


@pytest.mark.parametrize('name', MOVES)
def test_one_geometry_moves_all_of_a_record(name):
  """A pixel keeps its class, the box stays round its object, frames stay alike."""
  count = 60
  records = [scene(seed) for seed in range(count)]
  given = {n: np.stack([r[n] for r in records]) for n in records[0]}
  given['label'] = np.arange(count)
  batch = run_augment(MOVES[name], make_keys(count), given, mean=(0,), std=(1,))
  moved = {n: np.asarray(value) for n, value in batch.items()}
  assert moved['mask'].dtype == np.int32
  image = np.round(moved['image'] * 255)
  np.testing.assert_array_equal(painted_classes(image), moved['mask'])
  np.testing.assert_array_equal(moved['video'][:, 0], moved['image'])
  np.testing.assert_array_equal(moved['video'][:, 1], moved['image'][..., ::-1])
  expected = np.stack([bounds(mask) for mask in moved['mask']])
  np.testing.assert_allclose(corners(moved['box']), expected, atol=1e-5)
  np.testing.assert_array_equal(moved['label'], given['label'])
  assert (moved['mask'] != given['mask']).any((1, 2)).mean() > 0.3
