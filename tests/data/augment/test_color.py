"""Changes of colour against Pillow and colorsys."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_files import keys as make_keys
from image_files import photographs, repeated
from PIL import Image, ImageEnhance
from scipy import stats

from vit_jax.data import augment
from vit_jax.data.augment import color

ENHANCERS = {
  'brightness': ImageEnhance.Brightness,
  'contrast': ImageEnhance.Contrast,
  'saturation': ImageEnhance.Color,
}


@pytest.mark.parametrize('factor', [0.6, 1.4])
@pytest.mark.parametrize('grey', [False, True])
def test_color_jitter_is_pillow_in_a_fixed_order(monkeypatch, factor, grey):
  monkeypatch.setattr(color, '_factor', lambda key, strength: factor)
  image = photographs(1)[0, :, :, :1] if grey else photographs(1)[0]
  one = image.astype(np.float32) / 255
  for names in (['brightness'], ['contrast'], ['saturation'], list(ENHANCERS)):
    expected = Image.fromarray(image.squeeze())
    for name in names:
      expected = ENHANCERS[name](expected).enhance(factor)
    expected = np.asarray(expected).reshape(image.shape)
    jittered = augment.color_jitter(jax.random.key(0), one, **dict.fromkeys(names, 0.5))
    # Pillow truncates to whole levels at every step and rounds the mean of the brightness.
    np.testing.assert_allclose(np.asarray(jittered) * 255, expected, atol=1.01 + len(names))


def test_color_jitter_draws_factors_and_hues_from_torchvisions_ranges():
  white = np.full((1, 1, 3), 0.4, np.float32)
  for strength, low, high in ((0.5, 0.5, 1.5), (1.25, 0, 2.25)):
    bright = repeated(white, functools.partial(augment.color_jitter, brightness=strength), 500)
    factors = bright[:, 0, 0, 0] / 0.4
    assert stats.kstest(factors, stats.uniform(low, high - low).cdf).pvalue > 0.01
  red = np.float32((0.8, 0.2, 0.2)).reshape(1, 1, 3)
  colors = repeated(red, functools.partial(augment.color_jitter, hue=0.1), 500).reshape(-1, 3)
  hues = np.array([colorsys.rgb_to_hsv(*color)[0] for color in colors])
  turns = np.where(hues > 0.5, hues - 1, hues)
  assert stats.kstest(turns, stats.uniform(-0.1, 0.2).cdf).pvalue > 0.01


@pytest.mark.parametrize('turns', [-0.5, -0.13, 0.0, 0.07, 0.5])
def test_rotate_hue_is_colorsys(turns):
  colors = photographs(1).reshape(-1, 3) / 255
  extremes = np.stack(np.meshgrid(*[(0.0, 0.5, 1.0)] * 3), -1).reshape(-1, 3)
  colors = np.concatenate([colors, extremes])
  hsv = [colorsys.rgb_to_hsv(*color) for color in colors]
  expected = [colorsys.hsv_to_rgb((h + turns) % 1, s, v) for h, s, v in hsv]
  rotated = augment.rotate_hue(jnp.float32(colors), turns)
  np.testing.assert_allclose(rotated, expected, atol=2e-6)


def test_color_jitter_leaves_a_grey_image_alone_where_only_colours_change():
  image = photographs(1)[0, :, :, :1] / np.float32(255)
  jittered = augment.color_jitter(jax.random.key(0), image, saturation=0.9, hue=0.5)
  np.testing.assert_allclose(jittered, image, atol=1e-7)


def test_hues_are_right_where_what_goes_before_is_compiled_with_them():
  """XLA fuses the steps, and may compute in two ways what one of them gives several times."""
  images = photographs(6) / np.float32(255)
  f = functools.partial(augment.color_jitter, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
  keys = make_keys(6)
  with jax.disable_jit():
    expected = jax.vmap(f)(keys, images)
  np.testing.assert_allclose(jax.jit(jax.vmap(f))(keys, images), expected, atol=1e-5)
