"""Augmentations against independent statements of them in NumPy, SciPy, Pillow and colorsys."""

import colorsys
import functools
import math
import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageEnhance
from scipy import ndimage, stats
from sklearn.datasets import load_sample_image

from vit_jax.data import augment
from vit_jax.errors import UsageError

HEIGHT, WIDTH = 12, 16
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
NUM_CLASSES = 10


def make_config(**fields):
  config = ml_collections.ConfigDict(
    {
      'crop_padding': 0,
      'flip': False,
      'shift': 0,
      'rand_augment': {'num_ops': 0, 'magnitude': 9.0},
      'color_jitter': {'brightness': 0.0, 'contrast': 0.0, 'saturation': 0.0, 'hue': 0.0},
      'random_erasing': {'probability': 0.0, 'area': (0.02, 0.33), 'aspect': (0.3, 3.3)},
      'mixup_alpha': 0.0,
      'cutmix_alpha': 0.0,
    }
  )
  config.update(fields)
  return config


EVERYTHING = {
  'crop_padding': 2,
  'flip': True,
  'shift': 1,
  'rand_augment': {'num_ops': 2},
  'color_jitter': {'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.1},
  'random_erasing': {'probability': 0.5},
  'mixup_alpha': 0.8,
  'cutmix_alpha': 1.0,
}


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def photographs(count):
  """Returns uint8 [count, HEIGHT, WIDTH, 3]: pieces of a photograph, shrunk."""
  photo = load_sample_image('flower.jpg')
  size = (WIDTH, HEIGHT)
  corners = [(30 * (i % 8), 40 * (i // 8)) for i in range(count)]
  return np.stack(
    [
      np.asarray(Image.fromarray(photo[top : top + 180, left : left + 240]).resize(size))
      for top, left in corners
    ]
  )


def repeated(image, f, count, seed=0):
  """Returns f(key, image) for `count` keys."""
  return np.asarray(jax.jit(jax.vmap(f, (0, None)))(keys(count, seed), image))


def make_batch(count):
  return {
    'image': jnp.asarray(photographs(count)),
    'label': jnp.arange(count) % NUM_CLASSES,
    'id': jnp.arange(count),
  }


def run_augment(fields, keys, batch, mean=MEAN, std=STD):
  config = make_config(**fields)
  return jax.jit(lambda k, b: augment.augment(config, k, b, NUM_CLASSES, mean, std))(keys, batch)


@pytest.mark.parametrize('channels', [1, 3])
def test_random_crop_gives_every_window_of_the_padded_image_and_nothing_else(channels):
  image = photographs(1)[0, :, :, :channels]
  crops = repeated(image, lambda key, image: augment.random_crop(key, image, 1)[0], 200)
  assert crops.dtype == np.uint8
  padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
  windows = sliding_window_view(padded, image.shape).reshape(9, *image.shape)
  matches = (crops[:, None] == windows).all((2, 3, 4))
  np.testing.assert_array_equal(matches.sum(1), 1)
  assert matches.sum(0).min() > 200 / 9 / 2


def test_random_shift_moves_by_up_to_the_given_pixels_and_fills_with_zeros():
  image = photographs(1)[0]
  shifted = repeated(image, lambda key, image: augment.random_shift(key, image, 2)[0], 300)
  moves = [(dy, dx, 0) for dy in range(-2, 3) for dx in range(-2, 3)]
  expected = np.stack([ndimage.shift(image, move, order=0, cval=0) for move in moves])
  matches = (shifted[:, None] == expected).all((2, 3, 4))
  np.testing.assert_array_equal(matches.sum(1), 1)
  assert matches.any(0).all()


def test_random_flip_mirrors_half_of_the_images():
  image = photographs(1)[0]
  flipped = repeated(image, lambda key, image: augment.random_flip(key, image)[0], 400)
  mirrored = (flipped == np.fliplr(image)).all((1, 2, 3))
  assert (mirrored | (flipped == image).all((1, 2, 3))).all()
  assert stats.binomtest(int(mirrored.sum()), 400).pvalue > 0.01


ENHANCERS = {
  'brightness': ImageEnhance.Brightness,
  'contrast': ImageEnhance.Contrast,
  'saturation': ImageEnhance.Color,
}


@pytest.mark.parametrize('factor', [0.6, 1.4])
@pytest.mark.parametrize('grey', [False, True])
def test_color_jitter_is_pillow_in_the_stated_order(monkeypatch, factor, grey):
  monkeypatch.setattr(augment, '_factor', lambda key, strength: factor)
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


def test_random_erasing_zeroes_one_rectangle_in_the_ranges():
  image = np.ones((24, 32, 3), np.float32)
  area, aspect = (0.05, 0.2), (0.5, 1.5)
  erase = functools.partial(augment.random_erasing, probability=0.6, area=area, aspect=aspect)
  erased = repeated(image, erase, 400) == 0
  hit = erased.any((1, 2, 3))
  assert stats.binomtest(int(hit.sum()), 400, 0.6).pvalue > 0.01
  boxes = erased[hit]
  heights, widths = boxes.any((2, 3)).sum(1), boxes.any((1, 3)).sum(1)
  np.testing.assert_array_equal(boxes.sum((1, 2, 3)), heights * widths * 3)
  # Sides are whole pixels: at most half a pixel from what was drawn.
  assert ((heights + 0.5) * (widths + 0.5) >= area[0] * 24 * 32).all()
  assert ((heights - 0.5) * (widths - 0.5) <= area[1] * 24 * 32).all()
  assert ((heights + 0.5) / (widths - 0.5) >= aspect[0]).all()
  assert ((heights - 0.5) / (widths + 0.5) <= aspect[1]).all()
  fractions = (heights * widths) / (24 * 32)
  assert stats.kstest(fractions, stats.uniform(area[0], area[1] - area[0]).cdf).pvalue > 0.01
  assert boxes.any((0, 2, 3)).all()
  assert boxes.any((0, 1, 3)).all()


def test_random_erasing_leaves_an_image_that_no_rectangle_fits():
  image = np.ones((4, 6, 1), np.float32)
  erase = functools.partial(augment.random_erasing, probability=1.0, area=(1.0, 1.0))
  np.testing.assert_array_equal(repeated(image, erase, 8), np.broadcast_to(image, (8, 4, 6, 1)))


def mixed(f, count, *alphas):
  """Returns images, labels, both mixed, and the weight that the label keeps; all labels differ."""
  images = np.random.default_rng(0).uniform(size=(count, 6, 8, 3)).astype(np.float32)
  labels = np.eye(count, dtype=np.float32)
  mix = jax.jit(lambda *args: f(*args, *alphas))
  new_images, new_labels = map(np.asarray, mix(keys(count), images, labels))
  assert new_images.dtype == new_labels.dtype == np.float32
  kept = np.diag(new_labels)
  partner = np.arange(count).reshape(-1, 2)[:, ::-1].ravel()
  expected = kept[:, None] * labels + (1 - kept)[:, None] * labels[partner]
  np.testing.assert_allclose(new_labels, expected, atol=1e-6)
  np.testing.assert_array_equal(kept[::2], kept[1::2])
  return images, images[partner], new_images, kept


def is_mixup(images, others, new_images, kept):
  weight = kept[:, None, None, None]
  return np.isclose(new_images, weight * images + (1 - weight) * others, atol=1e-5).all((1, 2, 3))


def is_cutmix(images, others, new_images, kept):
  """True where one rectangle, of just the area that the label gave up, is the partner's."""
  pasted = np.isclose(new_images, others, atol=1e-5).all(-1)
  whole = (pasted | np.isclose(new_images, images, atol=1e-5).all(-1)).all((1, 2))
  sides = pasted.any(2).sum(1), pasted.any(1).sum(1)
  area = pasted.sum((1, 2))
  return whole & (area == sides[0] * sides[1]) & np.isclose(1 - area / pasted[0].size, kept)


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_mixup_blends_neighbours_by_a_beta_weight(alpha):
  images, others, new_images, kept = mixed(augment.mixup, 400, alpha)
  assert is_mixup(images, others, new_images, kept).all()
  assert kept.min() >= 0
  assert kept.max() <= 1
  assert stats.kstest(kept[::2], stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_cutmix_pastes_a_rectangle_and_weighs_labels_by_its_area():
  images, others, new_images, kept = mixed(augment.cutmix, 400, 1.0)
  assert is_cutmix(images, others, new_images, kept).all()
  pasted = (new_images == others).all(-1)
  np.testing.assert_array_equal(pasted[::2], pasted[1::2])
  # Off the border the box has the image's aspect: 6 and 8 pixels times the same r, cut to even.
  inner = pasted[:, 1:-1, 1:-1].any((1, 2)) & ~(
    pasted[:, [0, -1]].any((1, 2)) | pasted[:, :, [0, -1]].any((1, 2))
  )
  sides = set(zip(pasted[inner].any(2).sum(1), pasted[inner].any(1).sum(1), strict=True))
  allowed = {(2 * int(3 * r), 2 * int(4 * r)) for r in np.linspace(0, 1, 1000)}
  assert {(2, 2), (2, 4), (4, 4)} & sides
  assert sides <= allowed


def test_mixup_or_cutmix_takes_each_for_half_of_the_pairs():
  outcome = mixed(augment.mixup_or_cutmix, 400, 0.8, 1.0)
  blended, pasted = is_mixup(*outcome), is_cutmix(*outcome)
  assert (blended | pasted).all()
  np.testing.assert_array_equal(blended[::2], blended[1::2])
  assert stats.binomtest(int((~blended[::2]).sum()), 200, 0.45).pvalue > 0.01


@pytest.mark.parametrize('field', ['mixup_alpha', 'cutmix_alpha'])
def test_mixing_an_odd_batch_is_a_usage_error(field):
  with pytest.raises(UsageError, match=r'^config\.batch_size: 3 images .* odd'):
    run_augment({field: 1.0}, keys(3), make_batch(3))


def test_normalize_takes_bytes_and_floats():
  images = photographs(2)
  expected = (images / 255 - np.array(MEAN)) / np.array(STD)
  normalized = augment.normalize(images, MEAN, STD)
  assert normalized.dtype == jnp.float32
  np.testing.assert_allclose(normalized, expected, atol=1e-5)
  floats = augment.normalize(np.float32(images / 255), MEAN, STD)
  np.testing.assert_allclose(floats, expected, atol=1e-5)


def test_augment_with_nothing_on_only_normalises_and_draws_nothing():
  batch = make_batch(3)
  augmented = run_augment({}, keys(3), batch)
  np.testing.assert_array_equal(augmented['label'], batch['label'])
  np.testing.assert_array_equal(augmented['id'], batch['id'])
  expected = augment.normalize(batch['image'], MEAN, STD)
  np.testing.assert_allclose(augmented['image'], expected, atol=1e-6)
  for fields, draws in (({}, False), ({'flip': True}, True)):
    config = make_config(**fields)
    step = jax.jit(lambda k, b, c=config: augment.augment(c, k, b, NUM_CLASSES, MEAN, STD))
    assert ('threefry' in step.lower(keys(3), batch).as_text()) == draws


@pytest.mark.parametrize('field', [f for f in EVERYTHING if not f.endswith('alpha')])
def test_augment_applies_each_field_by_itself_to_each_image_differently(field):
  images = np.broadcast_to(photographs(1), (8, HEIGHT, WIDTH, 3))
  batch = {'image': jnp.asarray(images), 'label': jnp.zeros(8, jnp.int32)}
  augmented = run_augment({field: EVERYTHING[field]}, keys(8), batch)
  assert augmented['image'].dtype == jnp.float32
  assert augmented['image'].shape == images.shape
  np.testing.assert_array_equal(augmented['label'], batch['label'])
  assert len(np.unique(augmented['image'].reshape(8, -1), axis=0)) > 1


def test_augment_erases_to_the_channel_mean_after_all_other_changes_to_the_image():
  fields = {'color_jitter': {'brightness': 0.9}, 'random_erasing': {'probability': 1.0}}
  augmented = run_augment(fields, keys(8), make_batch(8))
  assert (np.asarray(augmented['image']) == 0).all(-1).any((1, 2)).all()


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'mixup_alpha': 0.5}, {'mixup'}),
    ({'cutmix_alpha': 1.0}, {'cutmix'}),
    ({'mixup_alpha': 0.5, 'cutmix_alpha': 1.0}, {'mixup', 'cutmix'}),
  ],
)
def test_augment_mixes_images_and_labels(fields, expected):
  count = NUM_CLASSES
  images = np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)
  batch = {'image': jnp.asarray(images), 'label': jnp.arange(count)}
  plain = np.asarray(augment.normalize(batch['image'], MEAN, STD))
  augmented = jax.tree.map(np.asarray, run_augment(fields, keys(count), batch))
  partner = np.arange(count) ^ 1
  kept = np.diag(augmented['label'])
  assert augmented['label'].dtype == np.float32
  np.testing.assert_allclose(kept + augmented['label'][np.arange(count), partner], 1, atol=1e-6)
  outcome = plain, plain[partner], augmented['image'], kept
  by_kind = {'mixup': is_mixup(*outcome), 'cutmix': is_cutmix(*outcome)}
  assert {kind for kind, images in by_kind.items() if images.any()} == expected
  assert (by_kind['mixup'] | by_kind['cutmix']).all()


def test_augment_mixes_float_labels_and_draws_the_same_whatever_else_is_on():
  batch = make_batch(8)
  several = np.random.default_rng(0).integers(0, 2, (8, NUM_CLASSES)).astype(np.float32)
  mix = {'mixup_alpha': 0.5}
  weights = run_augment(mix, keys(8), batch)['label'][np.arange(8), batch['label']]
  more = run_augment({**mix, 'flip': True}, keys(8), {**batch, 'label': jnp.asarray(several)})
  weights = np.asarray(weights)[:, None]
  expected = weights * several + (1 - weights) * several[np.arange(8) ^ 1]
  np.testing.assert_allclose(more['label'], expected, atol=1e-6)


def test_augment_is_the_same_however_the_batch_is_split():
  count = 16
  batch, batch_keys = make_batch(count), keys(count)
  split = jax.tree.map(lambda x: x.reshape(2, count // 2, *x.shape[1:]), batch)
  config = make_config(**EVERYTHING)
  step = functools.partial(augment.augment, config, num_classes=NUM_CLASSES, mean=MEAN, std=STD)
  # Compiled as for users: without its fusion emitters, XLA rounds otherwise in a loop, and some of
  # the operations turn that into other pixels.
  is_quick = 'xla_cpu_use_fusion_emitters' in os.environ['XLA_FLAGS']
  compiled = functools.partial(
    jax.jit, compiler_options={'xla_cpu_use_fusion_emitters': True} if is_quick else None
  )
  whole = compiled(step)(batch_keys, batch)
  # In a device loop under pmap, as in training.
  in_a_loop = compiled(jax.pmap(lambda k, b: jax.lax.map(lambda args: step(*args), (k, b))))
  parts = in_a_loop(batch_keys.reshape(1, 2, -1), jax.tree.map(lambda x: x[None], split))
  for name, value in whole.items():
    part = parts[name].reshape(value.shape)
    np.testing.assert_allclose(part, value, atol=1e-5, err_msg=name)


def test_augment_takes_grey_images():
  images = jnp.asarray(photographs(4)[..., :1])
  batch = {'image': images, 'label': jnp.arange(4)}
  fields = {**EVERYTHING, 'mixup_alpha': 0.0}
  augmented = run_augment(fields, keys(4), batch, mean=(0.13,), std=(0.31,))
  assert augmented['image'].shape == images.shape
  assert np.isfinite(augmented['image']).all()


@pytest.mark.parametrize(
  ('field', 'value', 'allowed'),
  [
    ('crop_padding', -1, 'at least 0'),
    ('shift', -2, 'at least 0'),
    ('rand_augment.num_ops', -1, 'at least 0'),
    ('rand_augment.magnitude', 31.0, 'from 0 to 30'),
    ('color_jitter.brightness', -0.1, 'at least 0'),
    ('color_jitter.contrast', math.nan, 'at least 0'),
    ('color_jitter.saturation', math.inf, 'at least 0'),
    ('color_jitter.hue', 0.6, 'from 0 to 0.5'),
    ('random_erasing.probability', 1.1, 'from 0 to 1'),
    ('random_erasing.area', (0.3, 0.2), '0 < low <= high <= 1'),
    ('random_erasing.area', (0.3, 1.2), '0 < low <= high <= 1'),
    ('random_erasing.aspect', (0.0, 1.0), '0 < low <= high'),
    ('random_erasing.aspect', (1.0,), r'\(low, high\)'),
    ('mixup_alpha', -0.2, 'at least 0'),
    ('cutmix_alpha', math.inf, 'at least 0'),
  ],
)
def test_validate_names_the_field_the_value_and_what_is_allowed(field, value, allowed):
  config = make_config(**EVERYTHING)
  augment.validate(config)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UsageError, match=rf'^config\.augment\.{field}: .* is not .*{allowed}'):
    augment.validate(config)
