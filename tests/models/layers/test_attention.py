"""Attention, against NumPy and by its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import layers


def queries_keys_values(shape=(4, 6, 2, 8), dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  return tuple(jax.random.normal(key, shape, dtype) for key in keys)


def test_attention_of_one_key_returns_its_value():
  q, k, v = queries_keys_values()
  out = layers.dot_product_attention(q, k[:, :1], v[:, :1])
  np.testing.assert_allclose(out, np.broadcast_to(v[:, :1], out.shape), rtol=1e-6)


def test_attention_dropout_draws_for_each_weight_and_keeps_the_mean():
  q, k, _ = queries_keys_values()
  identity = jnp.broadcast_to(jnp.eye(6)[None, :, None], (4, 6, 2, 6))  # out = weights

  def weights(seed, rate):
    return layers.dot_product_attention(
      q, k, identity, dropout_rng=jax.random.key(seed), dropout_rate=rate, deterministic=False
    )

  plain = weights(0, 0.0)
  draws = jax.vmap(lambda seed: weights(seed, 0.25))(jnp.arange(4000))
  dropped = np.asarray(draws == 0)
  assert abs(dropped.mean() - 0.25) < 0.005
  assert len(np.unique(dropped[0].transpose(0, 2, 1, 3).reshape(-1, 6), axis=0)) > 10
  np.testing.assert_allclose(draws.mean(0), plain, atol=0.02)


def test_attention_logits_are_float32_whatever_the_inputs():
  # In bfloat16 the two logits 256.5 and 257.5 would be 256 and 258.
  q = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
  k = jnp.array([[128, 128, 128, 129], [128, 128, 128, 131]], jnp.bfloat16).reshape(1, 2, 1, 4)
  v = jnp.eye(2, dtype=jnp.bfloat16).reshape(1, 2, 1, 2)
  out = layers.dot_product_attention(q, k, v)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out[0, 0, 0, 1], 1 / (1 + np.exp(-1.0)), atol=2e-3)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
def test_products_of_gradients_are_in_the_dtype_of_the_inputs(dtype):
  inputs = queries_keys_values(dtype=dtype)
  bias = jnp.ones((2, 6, 6))  # as Swin's, for which no kernel is taken

  def loss(bias, *inputs):
    return jnp.square(layers.dot_product_attention(*inputs, bias=bias).astype(jnp.float32)).sum()

  gradient = jax.grad(loss, argnums=(0, 1, 2, 3))
  traced = jax.make_jaxpr(gradient)(bias, *inputs)
  products = [e for e in traced.eqns if e.primitive.name == 'dot_general']
  assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype(dtype)}
  wide = [x.astype(jnp.float32) for x in inputs]
  for ours, exact in zip(gradient(bias, *inputs), gradient(bias, *wide), strict=True):
    np.testing.assert_allclose(ours, exact, rtol=0.02, atol=0.02)


def numpy_attention(q, k, v, bias=0.0, mask=True):
  """[batch, queries, heads, d], in float64."""
  q, k, v = (np.asarray(x, np.float64).transpose(0, 2, 1, 3) for x in (q, k, v))
  logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + bias
  weights = np.where(mask, np.exp(logits), 0)
  return ((weights / weights.sum(-1, keepdims=True)) @ v).transpose(0, 2, 1, 3)


@pytest.mark.parametrize('with_mask', [True, False])
@pytest.mark.parametrize('with_bias', [True, False])
def test_bias_and_mask_reach_the_weights(with_bias, with_mask):
  q, k, v = queries_keys_values()
  rng = np.random.default_rng(0)
  options = {}
  if with_bias:
    options['bias'] = rng.normal(size=(2, 6, 6)).astype(np.float32)
  if with_mask:
    options['mask'] = (rng.random(size=(4, 1, 6, 6)) > 0.5) | np.eye(6, dtype=bool)
  out = layers.dot_product_attention(q, k, v, **options)
  np.testing.assert_allclose(out, numpy_attention(q, k, v, **options), rtol=1e-4, atol=1e-5)
  module = layers.MultiHeadDotProductAttention(num_heads=2)
  x = rng.normal(size=(4, 6, 8)).astype(np.float32)
  variables = module.init(jax.random.key(0), x)
  plain, changed = module.apply(variables, x), module.apply(variables, x, **options)
  assert (np.abs(plain - changed).max() > 1e-3) == (with_bias or with_mask)


def test_the_parameters_and_outputs_are_those_of_flax():
  import flax.linen as nn

  x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
  theirs = nn.MultiHeadDotProductAttention(2, kernel_init=nn.initializers.xavier_uniform())
  ours = layers.MultiHeadDotProductAttention(num_heads=2)
  variables = theirs.init(jax.random.key(0), x)
  jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(0), x), variables)
  mask = np.tril(np.ones((5, 5), bool))
  np.testing.assert_allclose(
    ours.apply(variables, x, mask=mask), theirs.apply(variables, x, mask=mask), atol=1e-6
  )
