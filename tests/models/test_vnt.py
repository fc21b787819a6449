"""VNT-Net and the plain point transformer: what rotations and permutations do, sizes, mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vit_jax import models
from vit_jax.errors import FieldError, UsageError
from vit_jax.models.heads.part_segmentation import PartSegmenter
from vit_jax.models.point_transformer import PointTransformer
from vit_jax.models.vnt import VNTNet
from vit_jax.weights.adapt import adapt

SMALL = {
  'num_classes': 5,
  'num_neighbors': 6,
  'hidden_size': 8,
  'num_layers': 2,
  'num_heads': 2,
  'mlp_dim': 12,
  'fused_size': 9,
  'head_dims': (16, 8),
}
KINDS = [VNTNet, PointTransformer]


TURNS = 100
BATCH = 2 * (1 + TURNS)  # of all that is computed, so that a model is compiled once


def clouds(batch=BATCH, count=24, seed=0):
  """Normalised points."""
  x = np.random.default_rng(seed).normal(size=(batch, count, 3))
  x -= x.mean(axis=1, keepdims=True)
  return np.float32(x / np.linalg.norm(x, axis=-1).max(axis=1)[:, None, None])


@functools.cache
def set_up(kind, **changes):
  """A small model, and variables that are random, statistics too."""
  model = kind(**SMALL | changes)
  rng = np.random.default_rng(1)
  shapes = model.variable_shapes(None, 3)
  flat = {n: 0.5 * rng.normal(size=s).astype(np.float32) for n, s in sorted(shapes.items())}
  flat = {n: 0.5 + abs(v) if n.endswith(('/var', '/scale')) else v for n, v in flat.items()}
  return model, models.unflatten(flat)


@functools.cache
def reader(kind, **changes):
  """Clouds [202, 24, 3] to (logits, pooled features, tokens)."""
  model, variables = set_up(kind, **changes)

  @jax.jit
  def run(x):
    found = model.apply(variables, x, method='features')
    return model.apply(variables, x), found.pooled, found.tokens

  return lambda x: [np.asarray(y, np.float32) for y in run(x)]


def difference(found, expected):
  """Largest difference over the largest value."""
  return np.abs(found - expected).max() / np.abs(expected).max()


def differences_under_rotation(read):
  """Those of (logits, pooled features, tokens) of two clouds."""
  turns = Rotation.random(TURNS, rng=np.random.default_rng(2)).as_matrix().astype(np.float32)
  x = clouds(2)
  turned = np.einsum('bni,tij->tbnj', x, turns)
  found = read(np.concatenate([x[None], turned]).reshape(clouds().shape))
  found = [y.reshape(1 + TURNS, 2, *y.shape[1:]) for y in found]
  return [difference(y[1:], y[:1]) for y in found]


@pytest.mark.parametrize(('pooling', 'norm'), [('mean', 'rms'), ('max', 'layer')])
def test_rotations_change_nothing(pooling, norm):
  read = reader(VNTNet, neighbor_pooling=pooling, norm=norm)
  assert max(differences_under_rotation(read)) < 1e-4


def test_rotations_change_what_the_plain_transformer_sees():
  read = reader(PointTransformer, neighbor_pooling='mean', norm='rms')
  assert min(differences_under_rotation(read)) > 0.1


def test_rotations_change_bfloat16_by_its_rounding():
  read = reader(VNTNet, dtype=jnp.bfloat16)
  logits, _, _ = differences_under_rotation(read)
  assert 1e-4 < logits < 0.2
  exact = reader(VNTNet, neighbor_pooling='mean', norm='rms')
  assert difference(read(clouds())[0], exact(clouds())[0]) < 0.2


@pytest.mark.parametrize('kind', KINDS)
def test_clouds_are_told_apart_and_by_their_shape(kind):
  read = reader(kind, neighbor_pooling='mean', norm='rms')
  logits, _, _ = read(clouds())
  assert difference(logits[1:], logits[:1]) > 0.1
  mirrored, _, _ = read(clouds() * np.float32([1, 1, -1]))
  assert difference(mirrored, logits) > 0.01


@pytest.mark.parametrize('kind', KINDS)
def test_the_order_of_points_is_that_of_the_tokens(kind):
  read, order = (
    reader(kind, neighbor_pooling='mean', norm='rms'),
    np.random.default_rng(3).permutation(24),
  )
  logits, pooled, tokens = read(clouds())
  found = read(clouds()[:, order])
  for ours, theirs in zip(found, (logits, pooled, tokens[:, order]), strict=True):
    assert difference(ours, theirs) < 1e-4
  np.testing.assert_allclose(
    pooled, np.concatenate([tokens.max(axis=1), tokens.mean(axis=1)], axis=-1), atol=1e-4
  )


def test_points_that_are_all_the_same_have_finite_gradients():
  model, variables = set_up(VNTNet)

  @jax.jit
  def loss(params, x):
    options = {'mutable': ['batch_stats'], 'rngs': {'dropout': jax.random.key(0)}}
    logits, _ = model.apply({**variables, 'params': params}, x, train=True, **options)
    return jnp.square(logits - 1).sum()

  x = np.broadcast_to(np.float32([0, 0, 1])[:, None, None], (3, 24, 3))  # at the origin, and apart
  gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables['params'], x)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize('kind', KINDS)
def test_bfloat16_features_and_float32_everywhere_else(kind):
  model = kind(**SMALL, dtype=jnp.bfloat16)
  logits, shapes = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, 8, 3)))
  )
  assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
  found = jax.eval_shape(lambda v: model.apply(v, jnp.zeros((2, 8, 3)), method='features'), shapes)
  assert (found.tokens.shape, found.tokens.dtype) == ((2, 8, 6 * 9), jnp.bfloat16)
  assert (found.pooled.shape, found.num_prefix, found.grid) == ((2, 12 * 9), 0, None)


@functools.cache
def count_parameters(name, size):
  from configs import vnt

  model = models.build({'name': name, **vnt.SIZES[size]}, num_classes=40)
  shapes = model.variable_shapes(None, 3)
  return sum(np.prod(s) for n, s in shapes.items() if not n.startswith('batch_stats/'))


@pytest.mark.parametrize('size', ['base', 'small'])
def test_the_plain_transformer_has_nearly_as_many_parameters(size):
  found = count_parameters('point_transformer', size) / count_parameters('vnt', size)
  assert 1 <= found < 1.12


def vn_linear_leaky_relu(inputs, outputs, directions=None):
  return inputs * outputs + 2 * outputs + inputs * (directions or outputs)


def test_the_parameters_of_vnt_net_by_hand():
  layer = vn_linear_leaky_relu
  block = 4 * 48 * 48 + 2 * 48 + layer(48, 96) + 96 * 48
  std_feature = layer(682, 341) + layer(341, 170) + 170 * 3
  head = 12 * 341 * 512 + 2 * 512 + 512 * 256 + 2 * 256 + 256 * 40 + 40
  total = layer(3, 48) + layer(96, 48) + 4 * block + layer(192, 341, 1) + std_feature + head
  assert count_parameters('vnt', 'base') == total == 2_989_942


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'neighbor_pooling': 'sum'}, r"^neighbor_pooling: 'sum' is not one of"),
    ({'norm': 'batch'}, r"^norm: 'batch' is not one of"),
    ({'num_heads': 3}, r'^num_heads: 3 does not divide hidden_size 8$'),
    ({'num_neighbors': 0}, r'^num_neighbors: 0 is not a whole number from 1 on$'),
    (
      {'head_dims': (8, 0)},
      r'^head_dims: \(8, 0\) is not a tuple',
    ),
  ],
)
def test_mistakes_name_their_field(fields, message):
  with pytest.raises(FieldError, match=message):
    VNTNet(**SMALL | fields)


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    ((2, 5, 3), r'^num_neighbors: 6, but there are 5 points'),
    ((2, 8, 4), r'^points have 4 coordinates; VNTNet takes 3'),
  ],
)
def test_clouds_that_it_cannot_take(shape, message):
  with pytest.raises(UsageError, match=message):
    jax.eval_shape(VNTNet(**SMALL).init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize('norm', ['rms', 'layer'])
@pytest.mark.parametrize('kind', KINDS)
def test_the_norm_of_a_block_is_chosen(kind, norm):
  shapes = kind(**SMALL, norm=norm).variable_shapes(None, 3)
  found = {name.rpartition('/')[2] for name in shapes if '/norm1/' in name}
  assert found == ({'scale'} if norm == 'rms' else {'scale', 'bias'})


@pytest.mark.parametrize('kind', KINDS)
def test_another_head_takes_the_whole_backbone_and_leaves_its_head_out(kind):
  model, variables = set_up(kind)
  without = model.clone(num_classes=0)
  segmenter = PartSegmenter(backbone=without, num_classes=3)
  configs = [models.ModelConfig(m, num_points=24) for m in (model, segmenter)]
  found, notes = adapt(variables, *configs, 'w')
  taken = models.flatten(configs[1].backbone_variables(found))
  assert taken.keys() == without.variable_shapes(None, 3).keys()
  assert {'head_0: left out', 'head_1: left out', 'head: left out'} <= {*notes}


def test_heads_read_no_single_layer():
  model, variables = set_up(VNTNet)
  with pytest.raises(UsageError, match=r'^VNTNet: heads read the fusion of its layers'):
    model.apply(variables, clouds(), method='features', layers=(0,))
