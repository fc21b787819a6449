"""Weight standardization against NumPy, and the convolution's padding against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

from vit_jax.models.layers.standardized import StdConv, standardize


@pytest.mark.parametrize('of_deviation', [False, True])
@pytest.mark.parametrize('scale', [1.0, 1e-3])
def test_filters_are_standardized_one_by_one(of_deviation, scale):
  kernel = scale * np.random.default_rng(0).normal(2.0, 1.0, size=(3, 3, 4, 5))
  ours = standardize(jnp.float32(kernel), 1e-5, of_deviation)
  for i in range(5):
    one = kernel[..., i]
    deviation = one.std() + 1e-5 if of_deviation else np.sqrt(one.var() + 1e-5)
    np.testing.assert_allclose(ours[..., i], (one - one.mean()) / deviation, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('side', [7, 8, 17, 18])
@pytest.mark.parametrize(('size', 'stride'), [(1, 2), (3, 1), (3, 2), (7, 2)])
def test_padding(side, size, stride):
  """'SAME' adds what is missing, more of it after; pairs are taken as they are."""
  x = np.random.default_rng(0).normal(size=(2, side, side + 1, 3)).astype(np.float32)
  for padding in ('SAME', ((1, 1), (2, 0))):
    conv = StdConv(4, size, stride, padding)
    variables = conv.init(jax.random.key(0), x)
    missing = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[1:3]]
    pairs = [(n // 2, n - n // 2) for n in missing] if padding == 'SAME' else padding
    padded = np.pad(x, ((0, 0), *pairs, (0, 0)))
    kernel = np.asarray(standardize(variables['params']['kernel'], 1e-10))
    theirs = torch.nn.functional.conv2d(
      torch.from_numpy(padded.transpose(0, 3, 1, 2).copy()),
      torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()),
      stride=stride,
    )
    expected = theirs.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(conv.apply(variables, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('of_deviation', [False, True])
def test_the_gradient(of_deviation):
  kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 2))
  check_grads(lambda k: jnp.cos(standardize(k, 1e-5, of_deviation)), (kernel,), 1, modes=['rev'])


def test_kernels_are_standardized_in_float32():
  x = jnp.ones((1, 4, 4, 3), jnp.bfloat16)
  conv = StdConv(4, 3, dtype=jnp.bfloat16)
  variables = conv.init(jax.random.key(0), x)
  assert variables['params']['kernel'].dtype == jnp.float32
  assert conv.apply(variables, x).dtype == jnp.bfloat16
  # A bfloat16 kernel with this mean would have no more than its mean.
  shifted = {'params': {'kernel': variables['params']['kernel'] + 1000}}
  np.testing.assert_allclose(
    np.float32(conv.apply(shifted, x)), np.float32(conv.apply(variables, x)), atol=0.1
  )
