"""Mixup and cutmix, by themselves and as `augment` applies them to a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_files import MEAN, NUM_CLASSES, STD, keys, photographs, run_augment
from scipy import stats

from vit_jax.data import augment
from vit_jax.errors import FieldError

HEIGHT, WIDTH = 12, 16


def make_batch(count):
  return {
    'image': jnp.asarray(photographs(count)),
    'label': jnp.arange(count) % NUM_CLASSES,
    'id': jnp.arange(count),
  }


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


@pytest.mark.parametrize('function', [augment.mixup, augment.cutmix])
def test_all_frames_of_a_video_are_mixed_alike(function):
  images = np.random.default_rng(0).uniform(size=(4, 6, 8, 3)).astype(np.float32)
  videos, labels = np.stack([images, images[..., ::-1]], axis=1), jnp.eye(4)
  of_images, expected = jax.jit(lambda x: function(keys(4), x, labels, 1.0))(images)
  of_videos, found = jax.jit(lambda x: function(keys(4), x, labels, 1.0))(videos)
  assert (np.asarray(of_images) != images).any()
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_allclose(of_videos[:, 0], of_images, atol=1e-6)
  np.testing.assert_allclose(of_videos[:, 1], of_images[..., ::-1], atol=1e-6)


def test_mixup_or_cutmix_takes_each_for_half_of_the_pairs():
  outcome = mixed(augment.mixup_or_cutmix, 400, 0.8, 1.0)
  blended, pasted = is_mixup(*outcome), is_cutmix(*outcome)
  assert (blended | pasted).all()
  np.testing.assert_array_equal(blended[::2], blended[1::2])
  assert stats.binomtest(int((~blended[::2]).sum()), 200, 0.45).pvalue > 0.01


@pytest.mark.parametrize('field', ['mixup_alpha', 'cutmix_alpha'])
def test_mixing_an_odd_batch_is_a_usage_error(field):
  with pytest.raises(FieldError, match=r'^batch_size: 3 images .* odd'):
    run_augment({field: 1.0}, keys(3), make_batch(3))


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


@pytest.mark.parametrize('field', ['mixup_alpha', 'cutmix_alpha'])
def test_mixing_images_without_labels_is_a_usage_error(field):
  with pytest.raises(FieldError, match=rf'^{field}: 1\.0, but the images have no labels to mix'):
    run_augment({field: 1.0}, keys(2), {'image': photographs(2)})
