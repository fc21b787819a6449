"""Attention, stochastic depth, patch embedding and position tables by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UsageError
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


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
  x = jnp.ones((20_000, 2, 3))
  layer = layers.StochasticDepth(0.3)
  out = layer.apply({}, x, False, rngs={'dropout': jax.random.key(0)}).reshape(len(x), -1)
  np.testing.assert_array_equal(out, np.broadcast_to(out[:, :1], out.shape))
  np.testing.assert_allclose(np.unique(out), [0, 1 / 0.7], rtol=1e-6)
  assert abs(out.mean() - 1) < 0.02
  np.testing.assert_array_equal(layer.apply({}, x, True), x)


def test_mlp_widths():
  shapes = jax.eval_shape(
    lambda: layers.MlpBlock(out_dim=3).init(
      jax.random.key(0), jnp.zeros((1, 5)), deterministic=True
    )
  )
  kernels = [shapes['params'][f'Dense_{i}']['kernel'].shape for i in range(2)]
  assert kernels == [(5, 20), (20, 3)]


@pytest.mark.parametrize(
  ('size', 'patch', 'stride'),
  [((8, 12), (4, 2), (4, 2)), ((7, 9), (3, 3), (2, 2)), ((9, 8), (3, 4), (1, 4))],
)
def test_linear_patch_embedding_is_the_convolution(size, patch, stride):
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, *size, 3)).astype(np.float32)
  conv, linear = (layers.PatchEmbedding(5, patch, stride, m) for m in ('conv', 'linear'))
  shapes = jax.eval_shape(conv.init, jax.random.key(0), images)
  assert shapes == jax.eval_shape(linear.init, jax.random.key(0), images)
  assert jax.tree.map(jnp.shape, shapes) == {'params': {'kernel': (*patch, 3, 5), 'bias': (5,)}}
  variables = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes)
  expected = conv.apply(variables, images)
  assert expected.shape[1:3] == tuple(
    (n - p) // s + 1 for n, p, s in zip(size, patch, stride, strict=True)
  )
  np.testing.assert_allclose(linear.apply(variables, images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('patch', 'stride', 'message'),
  [
    ((3, 4), (3, 4), r'config\.model\.patches\.size: 3x4 pixels do not divide images of 8x8'),
    ((16, 16), (16, 16), r'config\.model\.patches\.size: 16x16 .* 8x8'),
    ((4, 4), (3, 3), r'config\.model\.stride: 4x4 patches at stride 3x3 .* 8x8'),
  ],
)
def test_patches_that_do_not_tile_the_image(patch, stride, message):
  with pytest.raises(UsageError, match=message):
    layers.PatchEmbedding(4, patch, stride).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_sinusoids_have_unit_norm_per_pair_and_depend_on_distance_alone():
  one = layers.sinusoidal_1d(10, 8).astype(np.float64)
  np.testing.assert_allclose((one**2).sum(-1), 4, rtol=1e-6)
  gram = one @ one.T
  for offset in range(1, 10):
    np.testing.assert_allclose(np.ptp(np.diagonal(gram, offset)), 0, atol=1e-5)


def test_2d_sinusoids_put_columns_first():
  table = layers.sinusoidal_2d(2, 3, 8)
  assert table.shape == (2, 3, 8)
  assert table.dtype == np.float32
  np.testing.assert_array_equal(table[0, :, :4], table[1, :, :4])
  np.testing.assert_array_equal(table[:, 0, 4:], table[:, 2, 4:])
  np.testing.assert_allclose(table[0, 2, [0, 2]], [np.sin(2), np.cos(2)], rtol=1e-6)
  hot = layers.sinusoidal_2d(2, 3, 8, temperature=100.0)
  np.testing.assert_allclose(hot[0, 2, 1], np.sin(2 * 0.1), rtol=1e-6)
  added = layers.AddFixedSinCosPositionEmbedding(temperature=100.0).apply({}, np.ones((1, 2, 3, 8)))
  np.testing.assert_allclose(added[0], 1 + hot, rtol=1e-6)


@pytest.mark.parametrize(
  ('image', 'patch', 'stride', 'grid'),
  [
    ((8, 12), (4, 2), (4, 2), (2, 6)),
    ((9, 7), (3, 3), (2, 4), (4, 2)),
    ((5, 5), (5, 5), (1, 1), (1, 1)),
  ],
)
def test_the_grid_of_patches_is_what_the_embedding_gives(image, patch, stride, grid):
  assert layers.patch_grid(image, patch, stride) == grid
  embedding = layers.PatchEmbedding(features=2, patch_size=patch, stride=stride)
  images = jnp.zeros((1, *image, 1))
  shape = jax.eval_shape(lambda: embedding.init_with_output(jax.random.key(0), images)[0]).shape
  assert shape == (1, *grid, 2)


def test_resolve_grid():
  assert layers.resolve_grid(12, (3, 4)) == (3, 4)
  assert layers.resolve_grid(9, None) == (3, 3)
  with pytest.raises(ValueError, match='12 tokens do not fill a 3x3 grid'):
    layers.resolve_grid(12, None)
  with pytest.raises(ValueError, match='12 tokens do not fill a 2x4 grid'):
    layers.resolve_grid(12, (2, 4))


@pytest.mark.parametrize('size', [4, (4,), [4], (4, 4)])
def test_one_side_stands_for_a_square(size):
  assert layers.as_pair(size) == (4, 4)
