"""Grey, blurred and solarised images against Pillow and SciPy."""

import functools

import jax
import numpy as np
import pytest
from image_files import MEAN, STD, augmentations, photographs, repeated, run_augment
from image_files import keys as make_keys
from PIL import Image, ImageFilter, ImageOps
from scipy import ndimage, stats

from vit_jax.data import augment
from vit_jax.data.augment import filters
from vit_jax.errors import FieldError

IMAGE = photographs(1, 24, 32)[0]
FRACTIONS = IMAGE / np.float32(255)


@pytest.mark.parametrize('deviation', [0.1, 0.7, 2.0])
def test_blur_is_a_gaussian(deviation):
  blurred = 255 * np.asarray(filters.blur(FRACTIONS, deviation, 8))
  expected = ndimage.gaussian_filter(
    IMAGE.astype(float), (deviation, deviation, 0), mode='nearest', radius=(8, 8, 0)
  )
  np.testing.assert_allclose(blurred, expected, rtol=1e-4, atol=1e-3)
  # Pillow's is made of three boxes, of whole levels.
  pillow = np.asarray(Image.fromarray(IMAGE).filter(ImageFilter.GaussianBlur(deviation)), float)
  assert np.abs(blurred - pillow).mean() < 1.5


def test_blur_draws_its_deviation():
  impulse = np.zeros((1, 41, 1), np.float32)
  impulse[0, 20] = 1
  blur = functools.partial(augment.gaussian_blur, probability=1.0, sigma=(1.0, 3.0))
  rows = repeated(impulse, blur, 300)[:, 0, :, 0]
  deviations = np.sqrt((rows * (np.arange(41) - 20) ** 2).sum(1))
  assert stats.kstest(deviations, stats.uniform(1, 2).cdf).pvalue > 0.01


def test_solarize_is_pillow():
  expected = np.asarray(ImageOps.solarize(Image.fromarray(IMAGE)), np.float32)
  found = augment.solarize(jax.random.key(0), FRACTIONS, probability=1.0)
  np.testing.assert_allclose(255 * np.asarray(found), expected, atol=1e-3)
  low = augment.solarize(jax.random.key(0), FRACTIONS, probability=1.0, threshold=0.25)
  expected = np.asarray(ImageOps.solarize(Image.fromarray(IMAGE), 64), np.float32)
  np.testing.assert_allclose(255 * np.asarray(low), expected, atol=1e-3)


def test_grayscale_is_pillow():
  expected = np.asarray(Image.fromarray(IMAGE).convert('L'), np.float32)
  found = 255 * np.asarray(augment.random_grayscale(jax.random.key(0), FRACTIONS, 1.0))
  assert found.shape == IMAGE.shape
  np.testing.assert_allclose(found, np.broadcast_to(expected[..., None], IMAGE.shape), atol=0.6)
  grey = FRACTIONS[..., :1]
  np.testing.assert_array_equal(augment.random_grayscale(jax.random.key(0), grey, 1.0), grey)


@pytest.mark.parametrize(
  'f',
  [
    lambda key, x: augment.random_grayscale(key, x, 0.3),
    lambda key, x: augment.gaussian_blur(key, x, 0.3, (1.0, 2.0)),
    lambda key, x: augment.solarize(key, x, 0.3),
    lambda key, x: augment.color_jitter(key, x, 0.4, 0.4, 0.2, 0.1, 0.3),
  ],
)
def test_as_many_images_change_as_the_probability_says(f):
  image = 0.5 + FRACTIONS[:8, :8] / 2  # all of which is solarised
  found = repeated(image, f, 300)
  changed = (np.abs(found - image) > 1e-6).any((1, 2, 3))
  assert stats.binomtest(int(changed.sum()), 300, 0.3).pvalue > 0.01
  np.testing.assert_array_equal(found[~changed], np.stack([image] * int((~changed).sum())))


def test_they_come_after_one_another_as_in_dino():
  """Grey, blurred, solarised, normalised."""
  fields = {
    'grayscale': 1.0,
    'gaussian_blur': {'probability': 1.0, 'sigma': (1.0, 1.0)},
    'solarize': {'probability': 1.0},
  }
  found = run_augment(fields, make_keys(1), {'image': IMAGE[None]})['image'][0]
  image = np.asarray(augment.random_grayscale(jax.random.key(0), FRACTIONS, 1.0))
  image = np.asarray(filters.blur(image, 1.0, 4))
  image = np.where(image < 0.5, image, 1 - image)
  np.testing.assert_allclose(found, (image - np.float32(MEAN)) / np.float32(STD), atol=1e-4)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'gaussian_blur': {'sigma': (2.0, 1.0)}}, r'gaussian_blur\.sigma: \(2\.0, 1\.0\) is not'),
  ],
)
def test_mistakes(fields, message):
  with pytest.raises(FieldError, match=f'^{message}'):
    augment.validate(augmentations(**fields))
