"""Stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import layers


@pytest.mark.parametrize('rate', [0.3, jnp.float32(0.3)])
def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean(rate):
  x = jnp.ones((20_000, 2, 3))
  layer = layers.StochasticDepth(rate)
  out = layer.apply({}, x, False, rngs={'dropout': jax.random.key(0)}).reshape(len(x), -1)
  np.testing.assert_array_equal(out, np.broadcast_to(out[:, :1], out.shape))
  np.testing.assert_allclose(np.unique(out), [0, 1 / 0.7], rtol=1e-6)
  assert abs(out.mean() - 1) < 0.02
  np.testing.assert_array_equal(layer.apply({}, x, True), x)
