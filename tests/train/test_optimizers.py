"""Optimisers against NumPy statements of the algorithms; decay, clipping, layers' rates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import traverse_util

from configs.common import get_config
from vit_jax import models
from vit_jax.errors import UsageError
from vit_jax.models.backbone import Backbone
from vit_jax.models.vit import ViT
from vit_jax.train.optimizers import learning_rate_factors, make_optimizer
from vit_jax.train.partition import merge, split

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


def make_model(num_layers):
  fields = models.default_config('token_learner').to_dict() | {'num_layers': num_layers}
  return models.build(fields, num_classes=3)


MODEL = make_model(11)


def make_config(**optimizer):
  config = get_config('vit')
  config.optimizer.update({'no_decay': ViT.NO_DECAY, **optimizer})
  return config


def unflatten(flat):
  return traverse_util.unflatten_dict(flat, sep='/')


def flatten(tree):
  return traverse_util.flatten_dict(jax.tree.map(np.asarray, tree), sep='/')


def random_params(paths=DECAYED + NOT_DECAYED, seed=0):
  rng = np.random.default_rng(seed)
  return unflatten({path: rng.normal(size=(2, 3)).astype(np.float32) for path in paths})


def train(config, params, gradients, schedule=lambda step: 0.1, model=MODEL):
  """Returns the parameters after each step, flat, and the last state."""
  tx = make_optimizer(config, model, params, schedule)
  trainable, frozen = split(config.freeze, params)
  state = tx.init(trainable)
  trajectory = []
  for gradient in gradients:
    gradient, _ = split(config.freeze, gradient)
    updates, state = tx.update(gradient, state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    trajectory.append(flatten(merge(trainable, frozen)))
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
  config = make_config(weight_decay=0.1, layer_decay=0.5)
  params = random_params()
  shapes = jax.eval_shape(lambda: params)
  optimizers = [make_optimizer(config, MODEL, p, lambda step: 0.1) for p in (params, shapes)]
  updates = [tx.update(params, tx.init(params), params) for tx in optimizers]
  jax.tree.map(np.testing.assert_array_equal, *updates)


# Block 10 is the last of 11, so that the embedding stands 12 layers below the head.
BELOW_HEAD = {
  'embedding/kernel': 12,
  'embedding/bias': 12,
  'cls': 12,
  'Transformer/posembed_input/pos_embedding': 12,
  'Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel': 11,
  'Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/bias': 11,
  'Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel': 11,
  'Transformer/encoderblock_0/LayerNorm_0/scale': 11,
  'Transformer/encoderblock_0/LayerNorm_0/bias': 11,
  'Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel': 10,
  'Transformer/encoderblock_10/MlpBlock_0/Dense_0/kernel': 1,
}


def test_learning_rates_fall_with_each_layer_below_the_head():
  factors = learning_rate_factors(MODEL, random_params(), layer_decay=0.5)
  assert factors == {path: 0.5 ** BELOW_HEAD.get(path, 0) for path in DECAYED + NOT_DECAYED}


def test_the_head_is_the_last_layer_alone():
  params = random_params(('cls', 'pre_logits/kernel', *DECAYED))
  factors = learning_rate_factors(MODEL, params, head_lr_factor=10.0)
  assert {p for p, factor in factors.items() if factor != 1} == {'output_projection/kernel'}
  both = learning_rate_factors(MODEL, params, layer_decay=0.5, head_lr_factor=10.0)
  assert both['output_projection/kernel'] == factors['output_projection/kernel'] == 10
  assert both['pre_logits/kernel'] == 1
  assert both['cls'] == 0.5**12


LAYERS = {  # path -> factor, where layer_decay is 0.5 and head_lr_factor 3
  'cls': 0.125,
  'Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel': 0.25,
  'Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel': 0.5,
  'Transformer/encoder_norm/scale': 1.0,
  'output_projection/kernel': 3.0,
}


@pytest.mark.parametrize('freeze', [(), ('cls', 'Transformer/encoderblock_1')])
@pytest.mark.parametrize('reference', [sgd, adam, adamw, lion, lamb])
def test_layers_learn_at_their_own_rates(reference, freeze):
  """Decay and moments included; frozen blocks count as layers."""
  options = {'momentum': 0.9} if reference is sgd else {}
  config = make_config(name=reference.__name__, weight_decay=0.3, no_decay='', **options)
  config.optimizer.update(layer_decay=0.5, head_lr_factor=3.0)
  config.freeze = freeze
  params = random_params(tuple(LAYERS))
  gradients = [random_params(tuple(LAYERS), seed) for seed in (1, 2, 3)]
  trajectory, _ = train(
    config, params, gradients, lambda step: 0.1 / (1 + step), make_model(num_layers=2)
  )
  for path, p in flatten(params).items():
    if path.startswith(freeze or '-'):
      assert trajectory[-1][path].tobytes() == p.tobytes()
      continue
    steps = [
      (LAYERS[path] * 0.1 / (1 + step), flatten(gradient)[path].astype(np.float64))
      for step, gradient in enumerate(gradients)
    ]
    expected = reference(p.astype(np.float64), steps, 0.3, **options)
    for got, p in zip(trajectory, expected, strict=True):
      np.testing.assert_allclose(got[path], p, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['SGD', 'Adam', 'AdamW'])
def test_layers_learn_as_parameter_groups_of_pytorch(name):
  torch = pytest.importorskip('torch')
  options = {'momentum': 0.9} if name == 'SGD' else {}
  config = make_config(name=name.lower(), weight_decay=0.3, no_decay='', **options)
  config.optimizer.update(layer_decay=0.5, head_lr_factor=3.0)
  params = random_params(tuple(LAYERS))
  gradients = [random_params(tuple(LAYERS), seed) for seed in (1, 2, 3, 4)]
  trajectory, _ = train(config, params, gradients, model=make_model(num_layers=2))
  theirs = {path: torch.nn.Parameter(torch.tensor(p)) for path, p in flatten(params).items()}
  groups = [{'params': [p], 'lr': 0.1 * LAYERS[path]} for path, p in theirs.items()]
  optimizer = getattr(torch.optim, name)(groups, weight_decay=0.3, **options)
  for gradient, ours in zip(gradients, trajectory, strict=True):
    for path, g in flatten(gradient).items():
      theirs[path].grad = torch.tensor(g)
    optimizer.step()
    for path, p in theirs.items():
      np.testing.assert_allclose(ours[path], p.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_one_rate_for_all_adds_nothing_to_the_state():
  params = random_params()
  usual, layered = (make_config(layer_decay=decay) for decay in (1.0, 0.9))
  usual, layered = (train(config, params, [params])[1] for config in (usual, layered))
  assert len(usual) == 1
  assert len(layered) == 2
  assert jax.tree.structure(usual) == jax.tree.structure(layered[:1])


@pytest.mark.parametrize(
  ('optimizer', 'message'),
  [
    ({'layer_decay': 0.9}, 'layer_decay: 0.9 needs a model whose layers are counted'),
    ({'head_lr_factor': 2.0}, 'head_lr_factor: 2.0 needs a model with a head'),
  ],
)
def test_a_rate_for_layers_that_are_not_there_is_refused(optimizer, message):
  params = random_params(('stages_0/Dense_0/kernel', 'Transformer/encoder_norm/scale', 'head/bias'))
  with pytest.raises(UsageError, match=f'^config.optimizer.{message}; 1.0 is off$'):
    make_optimizer(make_config(**optimizer), Backbone(), params, lambda step: 0.1)
  make_optimizer(make_config(), Backbone(), params, lambda step: 0.1)


def test_zero_turns_an_option_of_another_optimizer_off():
  configs = make_config(name='adamw', momentum=0.0), make_config(name='adamw')
  params = random_params()
  tx, expected = (make_optimizer(c, MODEL, params, lambda step: 0.1) for c in configs)
  updates = [t.update(params, t.init(params), params)[0] for t in (tx, expected)]
  jax.tree.map(np.testing.assert_array_equal, *updates)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'optimizer.name': 'adamm'}, r"config.optimizer.name: 'adamm' is not .* mean 'adam'\?"),
    ({'optimizer.name': 'SGD'}, r"config.optimizer.name: 'SGD' is not .* mean 'sgd'\?"),
    (
      {'optimizer.name': 'adamw', 'optimizer.momentum': 0.9},
      r'config.optimizer.momentum: adamw has no such option \(0 is off\); it has b1, b2, eps',
    ),
    (
      {'optimizer.name': 'sgd', 'optimizer.b1': 0.9},
      r'config.optimizer.b1: sgd has no such option \(0 is off\); it has momentum, nesterov',
    ),
    (
      {'optimizer.name': 'lion', 'optimizer.eps': 1e-8},
      r'config.optimizer.eps: lion has no such option \(0 is off\); it has b1, b2',
    ),
    (
      {'optimizer.name': 'sgd', 'optimizer.nesterov': True},
      'config.optimizer.nesterov: needs a momentum above 0, not None',
    ),
    (
      {'optimizer.no_decay': '(bias'},
      r"config.optimizer.no_decay: '\(bias' is not a regular expression .*",
    ),
  ],
)
def test_mistakes(fields, message):
  config = make_config()
  config.update_from_flattened_dict(fields)
  with pytest.raises(UsageError, match=f'^{message}$'):
    make_optimizer(config, MODEL, random_params(), lambda step: 0.1)


@pytest.mark.parametrize('name', ['adamw', 'adam'])
def test_weight_decay_follows_a_cosine(name):
  """As DINO's, from `weight_decay` to `weight_decay_end` over the steps of the run."""
  config = make_config(name=name, weight_decay=0.04, weight_decay_end=0.4)
  config.num_steps = NUM_STEPS
  params = random_params(('Dense_0/kernel',))
  gradients = [random_params(('Dense_0/kernel',), seed) for seed in range(1, 1 + NUM_STEPS)]
  trajectory, _ = train(config, params, gradients)
  p = torch.nn.Parameter(torch.tensor(params['Dense_0']['kernel']))
  optimizer = {'adamw': torch.optim.AdamW, 'adam': torch.optim.Adam}[name]([p], lr=0.1)
  for step, gradient in enumerate(gradients):
    decay = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * step / NUM_STEPS))
    optimizer.param_groups[0]['weight_decay'] = decay
    p.grad = torch.tensor(gradient['Dense_0']['kernel'])
    optimizer.step()
    got = trajectory[step]['Dense_0/kernel']
    np.testing.assert_allclose(got, p.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_what_is_frozen_first_starts_as_a_parameter_without_gradient_in_pytorch(name):
  """No update, no decay and no moments before; the schedules go on meanwhile."""
  options = {'momentum': 0.9} if name == 'sgd' else {}
  config = make_config(name=name, weight_decay=0.1, weight_decay_end=0.3, no_decay='', **options)
  config.update(num_steps=NUM_STEPS, freeze_first=('last',), freeze_first_steps=2)
  paths = ('last/kernel', 'rest/kernel')
  params = random_params(paths)
  gradients = [random_params(paths, seed) for seed in range(1, 1 + NUM_STEPS)]
  trajectory, _ = train(config, params, gradients, lambda step: 0.1 / (1 + step))
  ours = {path: torch.nn.Parameter(torch.tensor(x)) for path, x in flatten(params).items()}
  optimizer = {'adamw': torch.optim.AdamW, 'sgd': torch.optim.SGD}[name](
    ours.values(), lr=0.1, **options
  )
  for step, gradient in enumerate(gradients):
    decay = 0.3 + 0.5 * (0.1 - 0.3) * (1 + np.cos(np.pi * step / NUM_STEPS))
    optimizer.param_groups[0].update(lr=0.1 / (1 + step), weight_decay=decay)
    for path, p in ours.items():
      frozen = path.startswith('last') and step < 2
      p.grad = None if frozen else torch.tensor(flatten(gradient)[path])
    optimizer.step()
    for path, p in ours.items():
      got = trajectory[step][path]
      np.testing.assert_allclose(got, p.detach().numpy(), rtol=1e-4, atol=1e-5, err_msg=path)
  assert np.array_equal(trajectory[1]['last/kernel'], params['last']['kernel'])


def test_the_gradient_of_each_array_is_clipped():
  """As facebookresearch/dino's clip_gradients; `freeze` leaves arrays out as ever."""
  config = make_config(name='sgd')
  config.update(grad_clip_norm_of_each=1.5, freeze=('cls',))
  params = random_params(('cls', 'small/bias', 'large/kernel'))
  gradient = random_params(('cls', 'small/bias', 'large/kernel'), seed=1)
  gradient['small']['bias'] *= 0.1
  gradient['large']['kernel'] *= 3
  after = train(config, params, [gradient], lambda step: 1.0)[0][-1]
  for path, g in flatten(gradient).items():
    factor = 0 if path == 'cls' else min(1, 1.5 / (np.linalg.norm(g) + 1e-6))
    assert (factor == 1) == (path == 'small/bias')
    expected = flatten(params)[path] - factor * g
    np.testing.assert_allclose(after[path], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'freeze_first': ('nothing',), 'freeze_first_steps': 1},
      r"freeze_first: 'nothing' matches",
    ),
    ({'freeze_first': ('cls',)}, r"freeze_first_steps: 0, but config.freeze_first is \('cls',\)"),
    ({'freeze_first_steps': 2}, r'freeze_first_steps: 2, but config.freeze_first is \(\)'),
  ],
)
def test_mistakes_of_what_changes_in_a_run(changes, message):
  config = make_config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(UsageError, match=f'^config.{message}'):
    make_optimizer(config, MODEL, random_params(), lambda step: 0.1)


def plain_descent(learning_rate, momentum=0.0):
  return optax.sgd(learning_rate, momentum=momentum)


def number(learning_rate):
  return learning_rate


@pytest.mark.parametrize(
  ('name', 'options', 'ours'),
  [
    ('optax:adamw', {'b1': 0.8, 'weight_decay': 0.1}, 'adamw'),
    (f'{__name__}:plain_descent', {'momentum': 0.9, 'weight_decay': 0.1}, 'sgd'),
  ],
)
def test_an_optimizer_by_reference_is_that_optimizer(name, options, ours):
  gradients = [random_params(seed=seed) for seed in range(2)]
  ends = [
    train(make_config(name=n, **options), random_params(), gradients)[0][-1] for n in (name, ours)
  ]
  jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'name': f'{__name__}:number'}, r'name: .* returned .*, not an optax\.GradientTransformation'),
    ({'name': 'optax:adamww'}, r"name: .* optax has no 'adamww'; did you mean 'adamw'"),
    ({'name': 'optax:adamax', 'momentum': 0.9}, r'momentum: .* it has b1, b2, eps'),
  ],
)
def test_mistakes_in_an_optimizer_by_reference(changes, message):
  with pytest.raises(UsageError, match=rf'^config\.optimizer\.{message}'):
    train(make_config(**changes), random_params(), [])
