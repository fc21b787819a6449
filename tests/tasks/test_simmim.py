"""SimMIM's masks by counting, and its loss against NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import tasks
from vit_jax.errors import FieldError, UsageError
from vit_jax.tasks.simmim import block_mask


@pytest.mark.parametrize(
  ('size', 'block', 'ratio', 'expected'),
  [
    ((192, 192), 32, 0.6, 22),  # as published: 0.6 of 36, rounded up
    ((224, 160), 32, 0.5, 18),
    ((28, 28), 8, 0.6, 10),  # of 4x4, the last of which are cut off
    ((28, 20), 4, 0.1, 4),
  ],
)
def test_masks_are_of_blocks_whose_number_is_the_share_rounded_up(size, block, ratio, expected):
  keys = jax.random.split(jax.random.key(0), 50)
  draw = jax.jit(jax.vmap(lambda key: block_mask(key, size, block, ratio)))
  masks = np.asarray(draw(keys))
  assert masks.shape == (50, *size)
  corners = masks[:, ::block, ::block]
  blocks = corners.repeat(block, axis=1).repeat(block, axis=2)[:, : size[0], : size[1]]
  np.testing.assert_array_equal(masks, blocks)
  assert set(corners.sum(axis=(1, 2))) == {expected} == {math.ceil(ratio * corners[0].size)}
  assert 0 < corners.mean(axis=0).min() < corners.mean(axis=0).max() < 1, 'each in its own places'
  np.testing.assert_array_equal(draw(keys[7:9]), masks[7:9])


def test_the_loss_is_a_mean_over_hidden_pixels_of_all_examples():
  rng = np.random.default_rng(0)
  images, found = rng.normal(size=(2, 3, 8, 6, 2)).astype(np.float32)
  mask, weight = rng.random((3, 8, 6)) < [[[0.2]], [[0.9]], [[0.5]]], np.float32([1, 1, 0])
  batch = {'image': jnp.asarray(images), 'weight': jnp.asarray(weight)}
  task = tasks.build('simmim', {}, 0)
  outputs = {'reconstruction': jnp.asarray(found), 'mask': jnp.asarray(mask)}
  sums = task.loss(outputs, batch, None, True)
  errors = np.concatenate([(images - found)[i][mask[i]].ravel() for i in (0, 1)])
  assert float(sums['loss'][1]) == errors.size == float(sums['mse'][1])
  assert float(sums['loss'][0] / sums['loss'][1]) == pytest.approx(np.abs(errors).mean(), rel=1e-5)
  assert float(sums['mse'][0] / sums['mse'][1]) == pytest.approx((errors**2).mean(), rel=1e-5)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'mask_ratio': 0.0}, r'^mask_ratio: 0\.0 is not a number above 0 and below 1'),
    ({'mask_ratio': 1.0}, r'^mask_ratio: 1\.0 is not a number above 0 and below 1'),
    ({'mask_patch_size': 0}, r'^mask_patch_size: 0 is not a whole number from 1 to 65536'),
  ],
)
def test_options_out_of_range(options, message):
  with pytest.raises(FieldError, match=message):
    tasks.build('simmim', options, 0)


def test_several_views_are_refused():
  task, views = tasks.build('simmim', {}, 0), {'image_views': jnp.zeros((2, 3, 8, 8, 1))}
  with pytest.raises(UsageError, match='several views are averaged'):
    task.outputs(None, views, jax.random.split(jax.random.key(0), 2), False)
