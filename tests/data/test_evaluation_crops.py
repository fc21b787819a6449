"""How images are brought to size for models that others evaluated, beside their rules in NumPy."""

import math

import numpy as np
import pytest
from image_files import bounds, corners, painted_classes, scene
from PIL import Image

from vit_jax.data.preprocess import make_preprocess
from vit_jax.errors import FieldError

SIZES = [(29, 41), (64, 37), (24, 25), (9, 7), (24, 18)]
TARGETS = [(24, 24), (18, 25)]


def photo(height, width, channels=3):
  noise = np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)
  return noise


def resize(image, height, width, interpolation):
  filters = Image.Resampling[interpolation.upper()]
  return np.asarray(Image.fromarray(image).resize((width, height), filters))


def middle(image, size, round_half, fill=0):
  """The middle of an image, on a ground of `fill` where it is smaller."""
  result = np.empty((*size, 3), np.uint8)
  result[...] = fill
  taken, placed = [], []
  for whole, side in zip(image.shape, size, strict=False):
    # What is put around a smaller image is one pixel less in front, where it is odd.
    start = round_half(abs(whole - side)) if whole >= side else (side - whole) // 2
    placed.append(slice(start, start + whole) if whole < side else slice(None))
    taken.append(slice(start, start + side) if whole >= side else slice(None))
  result[tuple(placed)] = image[tuple(taken)]
  return result


def half_to_even(number):
  return int(np.round(number / 2))


def timm(image, size, crop, fraction, interpolation):
  """What torchvision's Resize and CenterCrop do, and timm's own for the rest."""
  height, width = image.shape[:2]
  scaled = [math.floor(side / fraction) for side in size]
  if crop == 'squash':
    sides = scaled
  elif crop == 'central' and size[0] == size[1]:
    short, long = sorted((height, width))
    other = int(scaled[0] * long / short)
    sides = (scaled[0], other) if height == short else (other, scaled[0])
  else:
    ratios = height / scaled[0], width / scaled[1]
    ratio = max(ratios) if crop == 'border' else min(ratios)
    sides = round(height / ratio), round(width / ratio)
  fill = (124, 116, 104) if crop == 'border' else 0
  return middle(resize(image, *sides, interpolation), size, half_to_even, fill)


@pytest.mark.parametrize('crop', ['central', 'squash', 'border'])
@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear', 'nearest', 'lanczos'])
@pytest.mark.parametrize('fraction', [0.7, 0.95, 1.0, 1.15])
def test_rounded_to_the_nearest_they_are_torchvision_s_and_timm_s(crop, interpolation, fraction):
  fill = {'fill': (124, 116, 104)} if crop == 'border' else {}
  for size in TARGETS:
    preprocess = make_preprocess(
      size, 3, crop, False, fraction, interpolation=interpolation, rounding='nearest', **fill
    )
    for stored in SIZES:
      expected = timm(photo(*stored), size, crop, fraction, interpolation)
      np.testing.assert_array_equal(preprocess({'image': photo(*stored)})['image'], expected)


def test_they_lie_elsewhere_where_halves_are_rounded_down():
  """25 of 28 pixels: the second, as 1.5 is nearer to no even number than to 2."""
  image = {'image': photo(28, 28)}
  for rounding, start in (('down', 1), ('nearest', 2)):
    made = make_preprocess((25, 25), 3, 'cut', False, rounding=rounding)(image)['image']
    np.testing.assert_array_equal(made, image['image'][start : start + 25, start : start + 25])


@pytest.mark.parametrize('stored', SIZES)
def test_cut_puts_a_smaller_image_on_black_with_more_in_front(stored):
  """As Hugging Face's `center_crop`, which rounds the place of the image down."""
  height, width = stored
  made = make_preprocess((25, 30), 3, 'cut', False)({'image': photo(*stored)})['image']
  rows, columns = (np.arange(n) + math.floor((s - n) / 2) for n, s in ((25, height), (30, width)))
  inside = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
  clipped = photo(*stored)[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
  np.testing.assert_array_equal(made, np.where(inside[..., None], clipped, 0))


def test_none_takes_images_of_one_size():
  preprocess = make_preprocess((24, 18), 3, 'none', False)
  np.testing.assert_array_equal(preprocess({'image': photo(24, 18)})['image'], photo(24, 18))
  with pytest.raises(FieldError, match=r"^crop: 'none' takes .*; this one is 18x24, not 24x18"):
    preprocess({'image': photo(18, 24)})


def test_a_grey_image_lies_on_the_ground_that_the_model_s_channels_have():
  grey = photo(10, 30, 1)
  for channels, fill in ((3, (1, 2, 3)), (1, (9,))):
    made = make_preprocess((30, 30), channels, 'border', False, 1.0, fill=fill)({'image': grey})
    np.testing.assert_array_equal(made['image'][[0, -1]], np.broadcast_to(fill, (2, 30, channels)))
    np.testing.assert_array_equal(made['image'][10:20], np.repeat(grey, channels, -1))


@pytest.mark.parametrize(('crop', 'fraction'), [('squash', 0.8), ('border', 0.9), ('cut', None)])
def test_masks_and_boxes_move_with_the_image(crop, fraction):
  """Off edges a pixel keeps its class; the box stays round its object; void lies round both."""
  preprocess = make_preprocess((48, 40), 0, crop, False, fraction, rounding='nearest')
  for seed in range(5):
    made = preprocess(scene(seed, 40, 60))
    inside = made['mask'] != 255
    assert (painted_classes(made['image']) == made['mask'])[inside].mean() > 0.85
    if (made['mask'] == 2).any():
      np.testing.assert_allclose(corners(made['box']), bounds(made['mask']), atol=1 / 40)


@pytest.mark.parametrize(
  ('crop', 'train', 'options', 'message'),
  [
    ('squash', True, {}, "^crop: 'squash' is not one of resize, central, inception, scale"),
    ('cut', False, {'crop_fraction': 0.9}, "^crop_fraction: crop 'cut' has none"),
    ('border', False, {'spatial_crops': 3}, "^spatial_crops: crop 'border' has one"),
    ('central', False, {'interpolation': 'random'}, "^interpolation: 'random' is not one of"),
    ('central', False, {'rounding': 'up'}, "^rounding: 'up' is not one of down, nearest"),
  ],
)
def test_mistakes(crop, train, options, message):
  with pytest.raises(FieldError, match=message):
    make_preprocess((8, 8), 0, crop, train, **options)
