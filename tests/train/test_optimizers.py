"""Optimisers against NumPy statements of the algorithms; decay, clipping and freezing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs.common import get_config
from vit_jax.errors import UsageError
from vit_jax.train.optimizers import make_optimizer, path_names, trainable_mask

OPTIMIZERS = ('sgd', 'adam', 'adamw', 'lion', 'lamb')
NUM_STEPS = 6

# Paths that scenic's ViT (class token or attention pooling) and TokenLearner have.
DECAYED = (
  'embedding/kernel',
  'Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel',
  'Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel',
  'Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel',
  'Transformer/encoderblock_10/MlpBlock_0/Dense_0/kernel',
  'Transformer/TokenLearnerModuleV11_0/token_masking/Dense_0/kernel',
  'MAPHead_0/MlpBlock_0/Dense_0/kernel',
  'output_projection/kernel',
)
NOT_DECAYED = (
  'cls',
  'embedding/bias',
  'Transformer/posembed_input/pos_embedding',
  'Transformer/encoderblock_0/LayerNorm_0/scale',
  'Transformer/encoderblock_0/LayerNorm_0/bias',
  'Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/bias',
  'Transformer/encoder_norm/scale',
  'Transformer/TokenFuser_0/fuser_mix_norm1/scale',
  'MAPHead_0/probe',
  'output_projection/bias',
)


def make_config(**optimizer):
  config = get_config()
  config.optimizer.update(optimizer)
  return config


def unflatten(flat):
  return traverse_util.unflatten_dict(flat, sep='/')


def flatten(tree):
  return traverse_util.flatten_dict(jax.tree.map(np.asarray, tree), sep='/')


def random_params(paths=DECAYED + NOT_DECAYED, seed=0):
  rng = np.random.default_rng(seed)
  return unflatten({path: rng.normal(size=(2, 3)).astype(np.float32) for path in paths})


def train(config, params, gradients, schedule=lambda step: 0.1):
  """Returns the parameters after each step, flat, and the last state."""
  tx = make_optimizer(config, params, schedule)
  state = tx.init(params)
  trajectory = []
  for gradient in gradients:
    updates, state = tx.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    trajectory.append(flatten(params))
  return trajectory, state


# One array's way through training, in float64: each yields it after every update.


def sgd(p, steps, decay, momentum=0.0, nesterov=False):
  """torch.optim.SGD."""
  buffer = 0.0
  for rate, g in steps:
    g = g + decay * p
    buffer = momentum * buffer + g
    p = p - rate * (g + momentum * buffer if nesterov else buffer)
    yield p


def adam_directions(gradients, b1, b2, eps):
  m = v = 0.0
  for t, g in enumerate(gradients, start=1):
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    yield (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


def adam(p, steps, decay, b1=0.9, b2=0.999, eps=1e-8):
  """torch.optim.Adam: decay joins the gradient, and so both moments."""
  m = v = 0.0
  for t, (rate, g) in enumerate(steps, start=1):
    g = g + decay * p
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    p = p - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    yield p


def adamw(p, steps, decay, b1=0.9, b2=0.999, eps=1e-8):
  """torch.optim.AdamW."""
  rates, gradients = zip(*steps, strict=True)
  for rate, direction in zip(rates, adam_directions(gradients, b1, b2, eps), strict=True):
    p = p * (1 - rate * decay)
    p = p - rate * direction
    yield p


def lion(p, steps, decay, b1=0.9, b2=0.99):
  """arXiv 2302.06675, algorithm 2."""
  m = 0.0
  for rate, g in steps:
    p = p - rate * (np.sign(b1 * m + (1 - b1) * g) + decay * p)
    m = b2 * m + (1 - b2) * g
    yield p


def lamb(p, steps, decay, b1=0.9, b2=0.999, eps=1e-6):
  """arXiv 1904.00962, algorithm 2, with the norm itself as scaling function."""
  rates, gradients = zip(*steps, strict=True)
  for rate, direction in zip(rates, adam_directions(gradients, b1, b2, eps), strict=True):
    direction = direction + decay * p
    size, length = np.linalg.norm(p), np.linalg.norm(direction)
    p = p - rate * (size / length if size and length else 1.0) * direction
    yield p


@pytest.mark.parametrize('weight_decay', [0.0, 0.3])
@pytest.mark.parametrize(
  ('reference', 'options'),
  [
    (sgd, {}),
    (sgd, {'momentum': 0.9}),
    (sgd, {'momentum': 0.8, 'nesterov': True}),
    (sgd, {'momentum': 0.8, 'nesterov': False}),
    (adam, {}),
    (adam, {'b1': 0.7, 'b2': 0.95, 'eps': 0.1}),
    (adamw, {}),
    (adamw, {'b1': 0.7, 'b2': 0.95, 'eps': 0.1}),
    (lion, {}),
    (lion, {'b1': 0.8, 'b2': 0.6}),
    (lamb, {}),
    (lamb, {'b1': 0.7, 'b2': 0.95, 'eps': 0.1}),
  ],
)
def test_every_update_follows_the_algorithm(reference, options, weight_decay):
  config = make_config(name=reference.__name__, weight_decay=weight_decay, **options)
  params = random_params(('Dense_0/kernel', 'Dense_0/bias'))
  params['Dense_0']['bias'][:] = 0  # as initialised: LAMB's ratio must not be 0 there
  gradients = [random_params(('Dense_0/kernel', 'Dense_0/bias'), seed) for seed in range(1, 7)]
  rates = [0.2 / (1 + step) for step in range(NUM_STEPS)]
  trajectory, _ = train(config, params, gradients, lambda step: 0.2 / (1 + step))
  for name, decay in (('kernel', weight_decay), ('bias', 0.0)):
    steps = [
      (rate, gradient['Dense_0'][name].astype(np.float64))
      for rate, gradient in zip(rates, gradients, strict=True)
    ]
    expected = reference(params['Dense_0'][name].astype(np.float64), steps, decay, **options)
    for got, p in zip(trajectory, expected, strict=True):
      # 1 - b2, from which Adam's first steps follow, has five digits in float32.
      np.testing.assert_allclose(got[f'Dense_0/{name}'], p, rtol=1e-5, atol=1e-5)


def moved_without_gradient(config):
  params = random_params()
  after = train(config, params, [jax.tree.map(jnp.zeros_like, params)])[0][-1]
  return {path for path, leaf in flatten(params).items() if not np.array_equal(leaf, after[path])}


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_decay_reaches_kernels_alone(name):
  assert moved_without_gradient(make_config(name=name, weight_decay=0.1)) == set(DECAYED)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_decay_without_exceptions_reaches_everything(name):
  config = make_config(name=name, weight_decay=0.1, no_decay='')
  assert moved_without_gradient(config) == {*DECAYED, *NOT_DECAYED}


def test_no_decay_is_searched_for_in_the_path():
  config = make_config(weight_decay=0.1, no_decay='MlpBlock|^output')
  exempt = {p for p in DECAYED + NOT_DECAYED if 'MlpBlock' in p or p.startswith('output')}
  assert moved_without_gradient(config) == {*DECAYED, *NOT_DECAYED} - exempt


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_nothing_moves_without_gradient_and_decay(name):
  assert not moved_without_gradient(make_config(name=name))


@pytest.mark.parametrize('limit', [0.5, 100.0])
def test_clipping_scales_to_the_global_norm(limit):
  config = make_config(name='sgd')
  config.grad_clip_norm = limit
  params, gradient = random_params(), random_params(seed=1)
  norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in jax.tree.leaves(gradient)))
  assert 0.5 < norm < 100
  after = train(config, params, [gradient], lambda step: 1.0)[0][-1]
  for path, g in flatten(gradient).items():
    expected = flatten(params)[path] - g * min(1, limit / norm)
    np.testing.assert_allclose(after[path], expected, rtol=1e-5, atol=1e-6)


def test_clipping_comes_before_coupled_decay():
  config = make_config(name='sgd', weight_decay=0.5)
  config.grad_clip_norm = 1.0
  params = {'kernel': np.full((1,), 10.0, np.float32)}
  after = train(config, params, [{'kernel': np.full((1,), 4.0, np.float32)}], lambda step: 1.0)[0][
    -1
  ]
  np.testing.assert_allclose(after['kernel'], 10 - (1 + 0.5 * 10))


def test_clipping_ignores_frozen_gradients():
  config = make_config(name='sgd')
  config.update(grad_clip_norm=1.0, freeze=('embedding',))
  params = random_params(('embedding/kernel', 'head/kernel'))
  gradient = jax.tree.map(np.zeros_like, params)
  gradient['embedding']['kernel'][:] = 1e6
  gradient['head']['kernel'][0, 0] = 0.6
  after = train(config, params, [gradient], lambda step: 1.0)[0][-1]
  moved = flatten(params)['head/kernel'] - after['head/kernel']
  np.testing.assert_allclose(moved, gradient['head']['kernel'], atol=1e-6)


FREEZE_CASES = [
  (('cls',), {'cls'}),
  (('embedding/bias',), {'embedding/bias'}),
  (('embedding',), {'embedding/kernel', 'embedding/bias'}),
  (('cls', 'embedding/.*'), {'cls', 'embedding/kernel', 'embedding/bias'}),
  (('.*/bias',), {p for p in NOT_DECAYED if p.endswith('/bias')}),
  # Not block 10, whose name starts as block 1's does.
  (
    ('Transformer/encoderblock_[0-5]',),
    {p for p in DECAYED + NOT_DECAYED if 'block_0/' in p or 'block_1/' in p},
  ),
  (('Transformer',), {p for p in DECAYED + NOT_DECAYED if p.startswith('Transformer/')}),
  (('(?!output_projection).*',), {p for p in DECAYED + NOT_DECAYED if not p.startswith('output')}),
]


@pytest.mark.parametrize(('freeze', 'frozen'), FREEZE_CASES)
def test_a_pattern_freezes_a_parameter_or_all_below_its_parent(freeze, frozen):
  mask = trainable_mask(freeze, random_params())
  assert {path for path, trainable in flatten(mask).items() if not trainable} == frozen


def test_nothing_frozen_means_all_trainable():
  assert all(jax.tree.leaves(trainable_mask((), random_params())))


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_frozen_parameters_stay_and_cost_no_state(name):
  momentum = {'momentum': 0.9} if name == 'sgd' else {}
  config = make_config(name=name, weight_decay=0.1, **momentum)
  moments = {'sgd': 1, 'lion': 1}.get(name, 2)
  params = random_params()
  gradients = [random_params(seed=seed) for seed in (1, 2, 3)]
  before = flatten(params)

  def arrays(state):
    return sum(leaf.shape == (2, 3) for leaf in jax.tree.leaves(state))

  _, state = train(config, params, gradients)
  assert arrays(state) == moments * len(before)

  config.freeze = ('Transformer', 'cls')
  frozen = {path for path in before if path.startswith('Transformer/')} | {'cls'}
  trajectory, state = train(config, params, gradients)
  assert arrays(state) == moments * (len(before) - len(frozen))
  for path, leaf in trajectory[-1].items():
    assert (leaf.tobytes() == before[path].tobytes()) == (path in frozen), path


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'lion'])
def test_freezing_a_part_leaves_the_rest_of_training_alone(name):
  config = make_config(name=name, weight_decay=0.1)
  params, gradients = random_params(), [random_params(seed=1), random_params(seed=2)]
  free, _ = train(config, params, gradients)
  config.freeze = ('embedding',)
  partly, _ = train(config, params, gradients)
  for path, leaf in partly[-1].items():
    if not path.startswith('embedding/'):
      np.testing.assert_allclose(leaf, free[-1][path], rtol=1e-6)


def test_shapes_stand_for_parameters():
  config = make_config(weight_decay=0.1)
  config.freeze = ('embedding',)
  params = random_params()
  shapes = jax.eval_shape(lambda: params)
  states = [make_optimizer(config, p, lambda step: 0.1).init(params) for p in (params, shapes)]
  assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_paths_are_joined_by_slashes():
  tree = {'a': {'b': {'kernel': 1, 'bias': 2}}, 'cls': 3}
  assert path_names(tree) == {
    'a': {'b': {'kernel': 'a/b/kernel', 'bias': 'a/b/bias'}},
    'cls': 'cls',
  }


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'optimizer.name': 'adamm'}, r"config.optimizer.name: 'adamm' is not .* mean 'adam'\?"),
    ({'optimizer.name': 'SGD'}, r"config.optimizer.name: 'SGD' is not .* mean 'sgd'\?"),
    (
      {'optimizer.name': 'adamw', 'optimizer.momentum': 0.9},
      'config.optimizer.momentum: adamw has no such option; it has b1, b2, eps',
    ),
    (
      {'optimizer.name': 'sgd', 'optimizer.b1': 0.9},
      'config.optimizer.b1: sgd has no such option; it has momentum, nesterov',
    ),
    (
      {'optimizer.name': 'lion', 'optimizer.eps': 1e-8},
      'config.optimizer.eps: lion has no such option; it has b1, b2',
    ),
    (
      {'optimizer.name': 'sgd', 'optimizer.nesterov': True},
      'config.optimizer.nesterov: needs a momentum above 0, not None',
    ),
    (
      {'optimizer.weight_decay': -0.1},
      'config.optimizer.weight_decay: -0.1 is not a number from 0 on',
    ),
    ({'grad_clip_norm': -1.0}, 'config.grad_clip_norm: -1.0 is not a number from 0 on'),
    (
      {'optimizer.no_decay': '(bias'},
      r"config.optimizer.no_decay: '\(bias' is not a regular expression .*",
    ),
    ({'freeze': ('cls', '[')}, r"config.freeze: '\[' is not a regular expression .*"),
    # Neither a part of a name nor the end of a path is a match.
    ({'freeze': ('cls', 'embed')}, "config.freeze: 'embed' matches no parameter"),
    ({'freeze': ('kernel',)}, "config.freeze: 'kernel' matches no parameter"),
    ({'freeze': ('',)}, "config.freeze: '' matches no parameter"),
    ({'freeze': ('.*',)}, r"config.freeze: \('\.\*',\) leaves no parameter to train"),
  ],
)
def test_mistakes(fields, message):
  config = get_config()
  config.update_from_flattened_dict(fields)
  with pytest.raises(UsageError, match=f'^{message}$'):
    make_optimizer(config, random_params(), lambda step: 0.1)
