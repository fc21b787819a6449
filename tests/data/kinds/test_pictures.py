"""Masks and videos: resized against Pillow, put back, and coloured alike in all frames."""

import numpy as np
import pytest
from image_files import keys as make_keys
from image_files import photographs, run_augment
from PIL import Image

from vit_jax.data import kinds, make_preprocess
from vit_jax.data.kinds import VOID, WHOLE, Geometry

MASK = kinds.KINDS['mask']


def noise(height, width, dtype=np.uint8, seed=0):
  return np.random.default_rng(seed).integers(0, 200, (height, width)).astype(dtype)


@pytest.mark.parametrize('size', [(5, 9), (10, 14), (21, 29), (13, 17), (7, 40)])
@pytest.mark.parametrize('dtype', [np.uint8, np.int32])
def test_masks_resize_to_the_nearest_pixel_as_in_pillow(size, dtype):
  mask = noise(13, 17, dtype)
  resized = MASK.fit(mask, Geometry(WHOLE, size))
  assert resized.dtype == dtype
  expected = Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)
  np.testing.assert_array_equal(resized, np.asarray(expected))


def between_pixels(stored, wanted):
  """Where a pixel's centre lies on the edge of two of those that are stored, bool [wanted]."""
  return ((2 * np.arange(wanted) + 1) * stored) % (2 * wanted) == 0


@pytest.mark.parametrize('part', [(2, 3, 12, 9), (0, 0, 17, 13), (16, 12, 17, 13), (3, 1, 10, 11)])
@pytest.mark.parametrize('size', [(4, 6), (20, 30), (9, 7)])
def test_masks_are_cropped_before_they_are_resized(part, size):
  mask = noise(13, 17)
  left, top, right, bottom = part
  geometry = Geometry((left / 17, top / 13, right / 17, bottom / 13), size)
  cropped = Image.fromarray(mask[top:bottom, left:right])
  expected = np.asarray(cropped.resize(size[::-1], Image.Resampling.NEAREST))
  rows, columns = between_pixels(bottom - top, size[0]), between_pixels(right - left, size[1])
  clear = ~rows[:, None] & ~columns  # of two that are as near, Pillow's rounding decides
  assert clear.any()
  np.testing.assert_array_equal(MASK.fit(mask, geometry)[clear], expected[clear])


def test_of_two_pixels_that_are_as_near_a_mask_has_the_second():
  mask = np.arange(12, dtype=np.uint8).reshape(2, 6)
  np.testing.assert_array_equal(MASK.fit(mask, Geometry(WHOLE, (1, 3))), [[7, 9, 11]])


@pytest.mark.parametrize('dtype', [np.uint8, np.int32])
def test_outside_the_picture_images_are_black_and_masks_void(dtype):
  mask = noise(8, 8, dtype)
  image = np.repeat(mask.astype(np.uint8)[..., None], 3, -1)
  geometry = Geometry((-0.25, 0.5, 1.125, 1.25), (6, 11))  # at the size that it has
  moved = kinds.fit({'image': image, 'mask': mask}, geometry)
  expected = np.full((6, 11), VOID, dtype)
  expected[:4, 2:10] = mask[4:]
  np.testing.assert_array_equal(moved['mask'], expected)
  black = np.zeros((6, 11, 3), np.uint8)
  black[:4, 2:10] = image[4:]
  np.testing.assert_array_equal(moved['image'], black)


@pytest.mark.parametrize('size', [(40, 60), (35, 90), (16, 16)])
def test_a_mask_predicted_on_a_crop_is_put_back_where_it_was(size):
  """Enlarged or reduced, the middle of it is what was there, and what wasn't seen is void."""
  mask = np.kron(noise(5, 5), np.ones((size[0] // 5 + 1, size[1] // 5 + 1), np.uint8))
  mask = np.ascontiguousarray(mask[: size[0], : size[1]])
  preprocess = make_preprocess((32, 32), 0, 'central', train=False)
  seen = preprocess({'mask': mask})['mask']
  restored = MASK.restore(seen, preprocess.window(*size), size)
  assert restored.shape == size
  left, top, right, bottom = preprocess.window(*size)
  rows, columns = (np.arange(size[0]) + 0.5) / size[0], (np.arange(size[1]) + 0.5) / size[1]
  inside = ((top < rows) & (rows < bottom))[:, None] & (left < columns) & (columns < right)
  assert (restored[~inside] == VOID).all()
  assert inside.mean() > 0.2
  assert (restored[inside] == mask[inside]).mean() > 0.85


def test_every_frame_is_prepared_as_an_image():
  video = photographs(4, 20, 30)
  sizes = {'central': (8, 10), 'inception': (16, 16), 'resize': ()}
  for crop, size in sizes.items():
    channels = 3 if crop == 'central' else 1
    preprocess = make_preprocess(size, channels, crop, train=True)
    made = preprocess({'video': video}, np.random.default_rng(3))['video']
    frames = [preprocess({'image': f}, np.random.default_rng(3))['image'] for f in video]
    np.testing.assert_array_equal(made, np.stack(frames))


COLORS = {
  'rand_augment': {'num_ops': 2},
  'color_jitter': {'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.1},
  'random_erasing': {'probability': 0.5},
}


COMBINATIONS = {name: {name: fields} for name, fields in COLORS.items()}
COMBINATIONS['all'] = {'flip': True, 'crop_padding': 3, **COLORS}


@pytest.mark.parametrize('name', COMBINATIONS)
def test_frames_change_as_an_image_does_and_all_alike(name):
  images = photographs(6)
  video = np.repeat(images[:, None], 3, axis=1)  # each frame is the image
  batch = run_augment(COMBINATIONS[name], make_keys(6), {'image': images, 'video': video})
  assert batch['video'].dtype == np.float32
  assert batch['video'].shape == video.shape
  for t in range(3):
    np.testing.assert_allclose(batch['video'][:, t], batch['image'], atol=1e-5)


@pytest.mark.parametrize(
  'fields',
  [{'mixup_alpha': 0.5}, {'cutmix_alpha': 1.0}, {'mixup_alpha': 0.5, 'cutmix_alpha': 1.0}],
)
def test_videos_are_mixed_as_images_are(fields):
  images, labels = photographs(8), np.arange(8)
  expected = run_augment(fields, make_keys(8), {'image': images, 'label': labels})
  video = np.repeat(images[:, None], 2, axis=1)
  batch = run_augment(fields, make_keys(8), {'video': video, 'label': labels})
  np.testing.assert_array_equal(batch['label'], expected['label'])
  for t in range(2):
    np.testing.assert_allclose(batch['video'][:, t], expected['image'], atol=1e-6)


def test_a_mask_that_cannot_follow_is_left_out():
  batch = {'image': photographs(4), 'mask': np.zeros((4, 12, 16), np.uint8)}
  assert 'mask' in run_augment({'crop_padding': 2, 'flip': True}, make_keys(4), batch)
  assert 'mask' not in run_augment({'rand_augment': {'num_ops': 1}}, make_keys(4), batch)


@pytest.mark.parametrize('shape', [(40, 300, 3), (300, 40, 1)])
def test_of_a_strip_the_middle_alone_is_resized(monkeypatch, shape):
  image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
  preprocess = make_preprocess((64, 64), 0, 'central', train=False)
  whole = preprocess({'image': image})['image']
  monkeypatch.setattr(kinds.pictures, '_MOST_RESIZED', 0)
  middle = preprocess({'image': image})['image']
  # Of noise; between the two directions, in either order, Pillow rounds.
  assert np.abs(whole.astype(int) - middle).mean() < 0.5


def test_a_strip_takes_no_more_memory_than_its_pixels():
  strip = np.zeros((1, 2**20, 1), np.uint8)  # as high as the result, it would have 2**36 pixels
  taken = make_preprocess((224, 224), 0, 'central', train=False)({'image': strip})['image']
  assert taken.shape == (224, 224, 1)
