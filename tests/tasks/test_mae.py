"""The task of masked autoencoders: what is hidden, and the error on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import FieldError, UsageError
from vit_jax.tasks import build
from vit_jax.tasks.mae import MaskedAutoencoding, visible_patches


def hidden_by(task, keys, num_patches=16):
  """The mask that the task asks for, by example."""
  found = []

  def apply(inputs, visible):
    mask = np.ones((len(inputs), num_patches), bool)
    np.put_along_axis(mask, np.asarray(visible(num_patches)), False, axis=1)
    found.append(mask)
    return {}

  task.outputs(apply, {'image': jnp.zeros((len(keys), 4, 4, 1))}, keys, True)
  return found[0]


@pytest.mark.parametrize(('ratio', 'count'), [(0.75, 12), (0.5, 8), (0.6, 10), (0.9, 15)])
def test_each_image_has_its_own_patches_hidden(ratio, count):
  keys = jax.random.split(jax.random.key(0), 50)
  masks = hidden_by(build('mae', {'mask_ratio': ratio}, 0), keys)
  assert (masks.sum(axis=1) == count).all()
  assert len(np.unique(masks, axis=0)) > 10
  assert (masks.mean(axis=0) > ratio - 0.25).all()
  # Nothing but an image's key decides.
  np.testing.assert_array_equal(hidden_by(MaskedAutoencoding(0, ratio), keys[7:9]), masks[7:9])


def test_loss_and_pixel_error_are_those_of_hidden_patches():
  rng = np.random.default_rng(0)
  prediction, target = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
  mask = np.array([[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]], np.float32)
  std = rng.uniform(0.5, 2, size=(3, 4, 1)).astype(np.float32)
  outputs = {'prediction': prediction, 'target': target, 'mask': mask, 'std': std}
  weight = np.array([1, 0, 1], np.float32)
  sums = MaskedAutoencoding(0).loss(outputs, {'weight': weight}, None, True)
  rows = [0, 2]  # of weight 1
  hidden = mask[rows] > 0
  error = (prediction - target)[rows][hidden]
  total, count = sums['loss']
  np.testing.assert_allclose(total / count, (error**2).mean(), rtol=1e-6)
  total, count = sums['pixel_error']
  expected = np.abs(error * np.broadcast_to(std[rows], (2, 4, 5))[hidden]).mean()
  np.testing.assert_allclose(total / count, expected, rtol=1e-6)
  assert count == 2


@pytest.mark.parametrize('ratio', [0.0, 1.0, -0.5, 1.5])
def test_a_mask_ratio_out_of_range(ratio):
  with pytest.raises(FieldError, match=f'^mask_ratio: {ratio} is not a number above 0 and below 1'):
    MaskedAutoencoding(0, ratio)


@pytest.mark.parametrize('ratio', [0.9, 1e-17])
def test_some_patches_are_visible_and_some_hidden(ratio):
  count = 0 if ratio == 0.9 else 4
  with pytest.raises(
    UsageError, match=f'mask ratio of {ratio} leaves {count} of 4 patches visible'
  ):
    visible_patches(jnp.zeros((1, 4)), ratio)
