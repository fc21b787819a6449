"""Vector neurons: against a PyTorch statement of them, and by what they are for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from vit_jax import models
from vit_jax.models.layers import vector_neurons as vn

CHANNELS = 8

# name -> the layer, and whether it has a mode of training.
LAYERS = {
  'linear': (vn.VNLinear(6), False),
  'leaky_relu': (vn.VNLeakyReLU(), False),
  'leaky_relu_shared': (vn.VNLeakyReLU(share_nonlinearity=True, negative_slope=0.0), False),
  'batch_norm': (vn.VNBatchNorm(), True),
  'linear_leaky_relu': (vn.VNLinearLeakyReLU(6), True),
  'linear_relu_shared': (
    vn.VNLinearLeakyReLU(6, share_nonlinearity=True, negative_slope=0.0),
    True,
  ),
  'max_pool': (vn.VNMaxPool(), False),
  'std_feature': (vn.VNStdFeature(), True),
  'layer_norm': (vn.VNLayerNorm(), False),
  'rms_norm': (vn.VNRMSNorm(), False),
  'attention': (vn.VNMultiHeadAttention(num_heads=2), False),
}


def vectors(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=(*shape, 3)).astype(np.float32)


def random_variables(layer, x, *args, seed=1):
  """Parameters and statistics that are nowhere those of the start."""
  rng = np.random.default_rng(seed)
  shapes = models.flatten(jax.eval_shape(lambda: layer.init(jax.random.key(0), x, *args)))
  values = {n: rng.normal(size=leaf.shape) for n, leaf in sorted(shapes.items())}
  values = {n: np.abs(v) + 0.5 if n.endswith('var') else 0.7 * v for n, v in values.items()}
  return models.unflatten({n: v.astype(np.float32) for n, v in values.items()})


# github.com/FlyingGiraffe/vnn, and the layers of arXiv 2206.04176, in PyTorch: vectors are
# [B, C, 3, points, neighbours].


class Torch:
  """The layers as functions of vectors, parameters and statistics; these are updated in place."""

  def __init__(self, train):
    self.train = train

  def linear(self, x, p, s, **options):
    return torch.einsum('cd,bci...->bdi...', p['kernel'], x)

  def activate(self, x, d, slope):
    dot, square = (x * d).sum(2, keepdim=True), (d * d).sum(2, keepdim=True)
    flat = x - dot / (square + 1e-6) * d
    return slope * x + (1 - slope) * (x * (dot >= 0) + flat * (dot < 0))

  def leaky_relu(self, x, p, s, slope=0.2):
    return self.activate(x, self.linear(x, p['map_to_dir'], None), slope)

  def leaky_relu_shared(self, x, p, s):
    return self.leaky_relu(x, p, s, slope=0.0)

  def batch_norm(self, x, p, s):
    norm, p, s = x.norm(dim=2) + 1e-6, p['bn'], s['bn']
    new = torch.nn.functional.batch_norm(
      norm, s['mean'], s['var'], p['scale'], p['bias'], training=self.train
    )
    return x / norm.unsqueeze(2) * new.unsqueeze(2)

  def linear_leaky_relu(self, x, p, s, slope=0.2):
    y = self.batch_norm(self.linear(x, p['map_to_feat'], None), p['batchnorm'], s['batchnorm'])
    return self.activate(y, self.linear(x, p['map_to_dir'], None), slope)

  def linear_relu_shared(self, x, p, s):
    return self.linear_leaky_relu(x, p, s, slope=0.0)

  def max_pool(self, x, p, s):
    dot = (x * self.linear(x, p['map_to_dir'], None)).sum(2, keepdim=True)
    index = dot.argmax(-1, keepdim=True).expand(*x.shape[:-1], 1)
    return x.gather(-1, index).squeeze(-1)

  def std_feature(self, x, p, s):
    frame = self.linear_leaky_relu(x, p['vn1'], s['vn1'])
    frame = self.linear_leaky_relu(frame, p['vn2'], s['vn2'])
    frame = self.linear(frame, p['vn_lin'], None)  # [B, 3, 3, ...], the second of coordinates
    return torch.einsum('bci...,bki...->bck...', x, frame), frame

  def layer_norm(self, x, p, s):
    norm, p = x.norm(dim=2) + 1e-6, p['ln']
    new = torch.nn.functional.layer_norm(
      norm.movedim(1, -1), norm.shape[1:2], p['scale'], p['bias'], eps=1e-6
    )
    return x / norm.unsqueeze(2) * new.movedim(-1, 1).unsqueeze(2)

  def rms_norm(self, x, p, s):
    size = ((x * x).sum(2, keepdim=True).mean(1, keepdim=True) + 1e-6).sqrt()
    return torch.einsum('c,bci...->bci...', p['scale'], x / size)

  def attention(self, x, p, s):
    q, k, v = (self.linear(x, p[name], None).chunk(2, dim=1) for name in ('query', 'key', 'value'))
    logits = [torch.einsum('bcin,bcim->bnm', *qk) for qk in zip(q, k, strict=True)]
    weights = [(w / (3 * CHANNELS / 2) ** 0.5).softmax(-1) for w in logits]
    heads = [torch.einsum('bnm,bcim->bcin', *wv) for wv in zip(weights, v, strict=True)]
    return self.linear(torch.cat(heads, dim=1), p['out'], None)


def to_torch(tree):
  return jax.tree.map(lambda a: torch.from_numpy(np.array(a)), tree)


def from_torch(x):
  """[B, C, 3, points, neighbours] to [B, points, neighbours, C, 3], or without some of the axes."""
  return np.moveaxis(x.numpy(), (1, 2), (-2, -1))


MODES = [(name, train) for name, (_, has_modes) in LAYERS.items() for train in {False, has_modes}]


@pytest.mark.parametrize(('name', 'train'), MODES)
def test_the_layers_are_those_of_the_papers(name, train):
  layer, has_modes = LAYERS[name]
  args = (train,) if has_modes else ()
  for shape in {'max_pool': [(2, 5, 3)], 'attention': [(2, 5)]}.get(name, [(2, 5, 3), (4, 7)]):
    x = vectors(*shape, CHANNELS)
    variables = random_variables(layer, x, *args)
    apply = jax.jit(lambda v, x: layer.apply(v, x, *args, mutable=['batch_stats']))
    found, after = apply(variables, x)
    variables = to_torch(variables)
    y = torch.from_numpy(np.moveaxis(x, (-2, -1), (1, 2)).copy())
    statistics = variables.get('batch_stats', {})
    expected = getattr(Torch(train), name)(y, variables['params'], statistics)
    for ours, theirs in zip(*map(as_tuple, (found, expected)), strict=True):
      assert_close(ours, from_torch(theirs))
    before = jax.tree.leaves(random_variables(layer, x, *args).get('batch_stats', {}))
    after = jax.tree.leaves(after)
    for old, ours, theirs in zip(before, after, jax.tree.leaves(statistics), strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
      assert np.any(old != ours) == train


def as_tuple(x):
  return x if isinstance(x, tuple) else (x,)


def assert_close(ours, theirs, tolerance=1e-5):
  assert ours.shape == theirs.shape
  scale = np.abs(np.asarray(theirs)).max()
  np.testing.assert_allclose(ours, theirs, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize('cross', [False, True])
@pytest.mark.parametrize('channels', [1, 4])
def test_edge_features_are_those_of_vnn(channels, cross):
  x, k = vectors(2, 12, channels), 5
  neighbors = vn.nearest_neighbors(x.reshape(2, 12, -1), k)
  found = vn.edge_features(x, neighbors, cross=cross)
  rows = torch.from_numpy(x)
  nearest = torch.cdist(rows.flatten(2), rows.flatten(2)).argsort(-1)[..., :k]  # [B, N, k]
  near = torch.stack([rows[b][nearest[b]] for b in range(2)])
  here = rows.unsqueeze(2).expand_as(near)
  parts = [near - here, here] + ([torch.linalg.cross(near, here)] if cross else [])
  assert_close(found, torch.cat(parts, dim=-2).numpy())


def rotations(count, seed=2):
  return Rotation.random(count, rng=np.random.default_rng(seed)).as_matrix().astype(np.float32)


def rotate(x, turns):
  """Vectors [B, ..., 3] to [B * turns, ..., 3]."""
  turned = np.einsum('b...i,tij->bt...j', x, turns)
  return turned.reshape(-1, *x.shape[1:])


@pytest.mark.parametrize('name', LAYERS)
def test_the_layers_turn_with_their_input(name):
  x = vectors(2, 7, CHANNELS) if name == 'attention' else vectors(2, 7, 3, CHANNELS)
  layer, has_modes = LAYERS[name]
  args, turns = (False,) if has_modes else (), rotations(100)
  variables = random_variables(layer, x, *args)
  apply = jax.jit(lambda x: layer.apply(variables, x, *args))
  before, after = as_tuple(apply(x)), as_tuple(apply(rotate(x, turns)))
  if name == 'std_feature':
    assert_close(after[0], np.repeat(before[0], len(turns), axis=0))  # invariant
    before, after = before[1:], after[1:]
  for ours, theirs in zip(after, before, strict=True):
    assert_close(ours, rotate(np.asarray(theirs), turns))
    assert np.abs(theirs - np.asarray(ours)[:: len(turns)]).max() > 0.1  # and it does turn


def test_edge_features_turn_and_a_reflection_turns_the_cross_product_the_other_way():
  x, turns = vectors(2, 9, 2), rotations(100)
  neighbors = vn.nearest_neighbors(x.reshape(2, 9, -1), 4)
  many = np.repeat(neighbors, len(turns), axis=0)
  turned = rotate(x, turns)
  np.testing.assert_array_equal(vn.nearest_neighbors(turned.reshape(len(many), 9, -1), 4), many)
  before = np.asarray(vn.edge_features(x, neighbors, cross=True))
  assert_close(vn.edge_features(turned, many, cross=True), rotate(before, turns))
  mirrored = vn.edge_features(-x, neighbors, cross=True)
  np.testing.assert_array_equal(mirrored, before * np.repeat([-1, -1, 1], 2)[:, None])


def test_near_neighbors_far_from_the_origin_are_found_where_inner_products_cancel():
  offsets = np.float32([0, 2, 3, 5, 8])[:, None] * 2**-12
  points = (np.float32([1000, 2000, 3000]) + offsets)[None]
  found = vn.nearest_neighbors(points, 2)
  np.testing.assert_array_equal(found, [[[0, 1], [1, 2], [2, 1], [3, 2], [4, 3]]])


@pytest.mark.parametrize('name', LAYERS)
def test_zero_vectors_have_finite_gradients(name):
  x = np.zeros((2, 3, CHANNELS, 3), np.float32)
  layer, has_modes = LAYERS[name]
  for args in [(False,), (True,)] if has_modes else [()]:
    variables = random_variables(layer, x, *args)

    @jax.jit
    def loss(params, x, variables=variables, args=args):
      found, _ = layer.apply({**variables, 'params': params}, x, *args, mutable=['batch_stats'])
      return sum(jnp.square(y - 1).sum() for y in as_tuple(found))

    gradients = jax.grad(loss, argnums=(0, 1))(variables['params'], x)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_statistics_are_those_of_the_batch_over_all_devices():
  x = vectors(4, 5, CHANNELS)
  variables = random_variables(vn.VNBatchNorm(), x, False)

  def apply(x, axis_name=None):
    layer = vn.VNBatchNorm(axis_name=axis_name)
    return layer.apply(variables, x, True, mutable=['batch_stats'])

  whole, after = apply(x)
  halves, states = jax.vmap(lambda x: apply(x, 'batch'), axis_name='batch')(
    x.reshape(2, 2, 5, 8, 3)
  )
  assert_close(halves.reshape(x.shape), whole)
  for ours, theirs in zip(jax.tree.leaves(states), jax.tree.leaves(after), strict=True):
    np.testing.assert_allclose(ours, [theirs] * 2, rtol=1e-5)


@pytest.mark.parametrize('name', LAYERS)
def test_bfloat16_reaches_the_vectors_and_no_parameter(name):
  layer, has_modes = LAYERS[name]
  args = (False,) if has_modes else ()
  x = jnp.zeros((2, 3, CHANNELS, 3), jnp.bfloat16)
  layer = layer.clone(dtype=jnp.bfloat16)
  found, shapes = jax.eval_shape(lambda: layer.init_with_output(jax.random.key(0), x, *args))
  assert {leaf.dtype for leaf in as_tuple(found)} == {jnp.dtype('bfloat16')}
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
