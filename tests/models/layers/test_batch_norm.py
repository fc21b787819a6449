"""Batch normalisation against NumPy."""

import numpy as np

from vit_jax.models.layers import BatchNorm


def test_statistics_are_those_of_a_sample():
  """Running averages of the mean and the unbiased variance; normalised by the biased one."""
  rng = np.random.default_rng(0)
  x = (3 + 2 * rng.normal(size=(2, 1, 3, 4))).astype(np.float32)
  before = {'mean': rng.normal(size=4), 'var': rng.uniform(1, 2, size=4)}
  before = {name: value.astype(np.float32) for name, value in before.items()}
  params = {'scale': np.full(4, 2, np.float32), 'bias': np.full(4, 5, np.float32)}
  model, start = BatchNorm(), {'params': params, 'batch_stats': before}
  y, after = model.apply(start, x, train=True, mutable=['batch_stats'])
  rows = x.reshape(6, 4).astype(np.float64)
  expected = 2 * (x - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) + 5
  np.testing.assert_allclose(y, expected, atol=1e-5)
  after = after['batch_stats']
  np.testing.assert_allclose(after['mean'], 0.9 * before['mean'] + 0.1 * rows.mean(0), rtol=1e-5)
  np.testing.assert_allclose(
    after['var'], 0.9 * before['var'] + 0.1 * rows.var(0, ddof=1), rtol=1e-5
  )
  y = model.apply(start, x, train=False)
  expected = 2 * (x - before['mean']) / np.sqrt(before['var'] + 1e-5) + 5
  np.testing.assert_allclose(y, expected, atol=1e-5)
