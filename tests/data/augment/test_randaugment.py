"""RandAugment's operations against Pillow's, and how they are drawn."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from sklearn.datasets import load_sample_image

from vit_jax.data.augment.randaugment import OPERATIONS, apply_operation, rand_augment

HEIGHT, WIDTH = 40, 56
WARPS = OPERATIONS[1:6]


def affine(image, matrix):
  return image.transform(image.size, Image.Transform.AFFINE, matrix)


def enhancer(name):
  kind = getattr(ImageEnhance, name)
  return lambda image, level, sign: kind(image).enhance(1 + 0.9 * level * sign)


# What torchvision.transforms.RandAugment does to a Pillow image, level being magnitude / 30.
PILLOW = {
  'identity': lambda image, level, sign: image,
  'shear_x': lambda image, level, sign: affine(image, (1, 0.3 * level * sign, 0, 0, 1, 0)),
  'shear_y': lambda image, level, sign: affine(image, (1, 0, 0, 0.3 * level * sign, 1, 0)),
  'translate_x': lambda image, level, sign: affine(
    image, (1, 0, -int(150 / 331 * image.width * level * sign), 0, 1, 0)
  ),
  'translate_y': lambda image, level, sign: affine(
    image, (1, 0, 0, 0, 1, -int(150 / 331 * image.height * level * sign))
  ),
  'rotate': lambda image, level, sign: image.rotate(30 * level * sign),
  'brightness': enhancer('Brightness'),
  'color': enhancer('Color'),
  'contrast': enhancer('Contrast'),
  'sharpness': enhancer('Sharpness'),
  'posterize': lambda image, level, sign: ImageOps.posterize(image, 8 - round(4 * level)),
  'solarize': lambda image, level, sign: ImageOps.solarize(image, 255 * (1 - level)),
  'autocontrast': lambda image, level, sign: ImageOps.autocontrast(image),
  'equalize': lambda image, level, sign: ImageOps.equalize(image),
}


def photograph(channels):
  """Returns uint8 [HEIGHT, WIDTH, channels]: a faded photograph, so that contrasts can grow."""
  photo = Image.fromarray(load_sample_image('china.jpg')).resize((WIDTH, HEIGHT))
  photo = photo.convert({1: 'L', 3: 'RGB'}[channels])
  faded = ImageEnhance.Contrast(photo).enhance(0.8)
  return np.asarray(faded).reshape(HEIGHT, WIDTH, channels)


# With these nothing falls on the edge of two pixels or two levels (they stay 5e-4 and more away),
# where two programs could round apart: all that compute an operation give the same image.
UNTIED, UNTIED_TWICE = 14.3, 11.8


def every_operation(image, magnitude):
  """Returns the image under each operation with sign 1 and with sign -1, [2, 14, H, W, C]."""
  f = jax.vmap(lambda x, op, sign: apply_operation(x, op, magnitude, sign), (None, 0, None))
  f = jax.jit(jax.vmap(f, (None, None, 0)))
  return np.asarray(f(image, jnp.arange(len(OPERATIONS)), jnp.array([1.0, -1.0])))


@pytest.mark.parametrize(('channels', 'magnitude'), [(3, 9), (3, 30), (1, 17.5)])
def test_operations_are_pillows(channels, magnitude):
  image = photograph(channels)
  results = every_operation(image, magnitude)
  assert results.dtype == np.uint8
  for sign, by_sign in zip((1, -1), results, strict=True):
    for name, result in zip(OPERATIONS, by_sign, strict=True):
      expected = PILLOW[name](Image.fromarray(image.squeeze()), magnitude / 30, sign)
      difference = np.abs(result.astype(int) - np.asarray(expected).reshape(image.shape))
      if name in WARPS:  # pixel centres that fall on the edge of two pixels may round apart
        assert (difference > 0).mean() < 0.005, (name, sign)
      else:
        assert difference.max() <= 1, (name, sign)
        assert (difference > 0).mean() < 0.1, (name, sign)
      changed = (result != image).any()
      assert changed == (name not in ('identity', 'color') or (name == 'color' and channels == 3))


def test_magnitude_zero_leaves_the_image_alone_but_for_operations_without_one():
  image = photograph(3)
  results = every_operation(image, 0)
  for name, result in zip(OPERATIONS, results[0], strict=True):
    same = (result == image).all()
    assert same == (name not in ('autocontrast', 'equalize')), name


@pytest.mark.parametrize('value', [0, 77, 254])
def test_a_flat_image_stays_flat_and_a_tiny_one_passes(value):
  flat = np.full((2, 2, 1), value, np.uint8)
  results = every_operation(flat, 0)
  np.testing.assert_array_equal(results, np.broadcast_to(flat, results.shape))


def test_every_operation_is_drawn_equally_often_with_both_signs():
  image = photograph(3)[::2, ::2]
  count = 700
  keys = jax.random.split(jax.random.key(0), count)
  draw = jax.jit(jax.vmap(lambda key, x: rand_augment(key, x, 1, UNTIED), (0, None)))
  drawn = np.asarray(draw(keys, image))
  candidates = every_operation(image, UNTIED)
  matches = (drawn[:, None, None] == candidates).all((3, 4, 5))
  assert matches.any((1, 2)).all()
  operations = matches.any(1).sum(0)
  assert operations.sum() == count
  assert stats.chisquare(operations).pvalue > 0.01
  signed = matches[..., 1:10].sum(0)  # shear to sharpness have a sign
  assert stats.chisquare(signed.sum(1)).pvalue > 0.01
  assert signed.min() > 0


def test_two_operations_follow_one_another():
  image = photograph(3)[::4, ::4]
  keys = jax.random.split(jax.random.key(1), 32)
  draw = jax.jit(jax.vmap(lambda key, x: rand_augment(key, x, 2, UNTIED_TWICE), (0, None)))
  drawn = np.asarray(draw(keys, image))
  once = every_operation(image, UNTIED_TWICE).reshape(-1, *image.shape)
  signs, operations = np.divmod(np.arange(2 * len(OPERATIONS)), len(OPERATIONS))
  again = jax.vmap(lambda x, op, sign: apply_operation(x, op, UNTIED_TWICE, sign), (None, 0, 0))
  again = jax.jit(jax.vmap(again, (0, None, None)))
  twice = np.asarray(again(once, operations, 1.0 - 2 * signs)).reshape(-1, image.size)
  possible = {row.tobytes() for row in twice}
  assert all(row.tobytes() in possible for row in drawn)
  assert sum(row.tobytes() not in {one.tobytes() for one in once} for row in drawn) > 16


def test_rotation_keeps_the_centre():
  image = np.zeros((9, 9, 1), np.uint8)
  image[4, 4] = 200
  rotated = every_operation(image, 30)[:, OPERATIONS.index('rotate')]
  assert (rotated[:, 4, 4, 0] == 200).all()
  image[4, 4], image[4, 8] = 0, 200  # four pixels right of the centre: 30 degrees up or down
  rotated = every_operation(image, 30)[:, OPERATIONS.index('rotate'), :, :, 0]
  for turned in rotated:
    row, column = np.argwhere(turned)[0]
    assert abs(row - 4) == round(4 * math.sin(math.pi / 6))
    assert abs(column - (4 + 4 * math.cos(math.pi / 6))) < 1
  assert (rotated[0] != rotated[1]).any()
