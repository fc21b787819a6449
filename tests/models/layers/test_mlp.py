"""The MLP of a layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import layers
from vit_jax.models.layers import devices


def test_mlp_widths():
  shapes = jax.eval_shape(
    lambda: layers.MlpBlock(out_dim=3).init(
      jax.random.key(0), jnp.zeros((1, 5)), deterministic=True
    )
  )
  kernels = [shapes['params'][f'Dense_{i}']['kernel'].shape for i in range(2)]
  assert kernels == [(5, 20), (20, 3)]


@pytest.mark.parametrize('gated', [False, True])
def test_gradients_on_a_gpu_keep_what_goes_into_the_activation(monkeypatch, gated):
  block = layers.MlpBlock(mlp_dim=7, dropout_rate=0.0, gated=gated)
  x = jax.random.normal(jax.random.key(0), (2, 3, 5))
  variables = block.init(jax.random.key(1), x, deterministic=True)

  def back(variables, deterministic):
    return jax.vjp(lambda v: block.apply(v, x, deterministic=deterministic), variables)

  def kept(deterministic=False):
    leaves = jax.tree.leaves(jax.eval_shape(lambda v: back(v, deterministic), variables)[1])
    return sum(leaf.size == 2 * 3 * 7 for leaf in leaves)

  usual, (expected, function) = kept(), back(variables, False)
  gradients = function(expected)
  monkeypatch.setattr(devices, 'at_hand', lambda platform: ['a GPU'])
  # What goes in, one or two arrays, and the result for the product after it.
  assert kept() == 2 + gated < usual
  assert kept(deterministic=True) == usual
  y, function = back(variables, False)
  pairs = zip(*map(jax.tree.leaves, ((y, function(y)), (expected, gradients))), strict=True)
  for ours, theirs in pairs:
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('function', 'changes'), [(nn.relu, False), (nn.gelu, True)])
def test_relu_is_left_alone(monkeypatch, function, changes):
  monkeypatch.setattr(devices, 'at_hand', lambda platform: ['a GPU'])
  ours = jax.make_jaxpr(lambda x: layers.activate(function, x, deterministic=False))(1.0)
  assert (str(ours) != str(jax.make_jaxpr(function)(1.0))) == changes
