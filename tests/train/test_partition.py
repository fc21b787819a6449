"""Frozen parameters: how they are chosen, and that training neither moves nor pays for them."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vit_jax import models
from vit_jax.errors import UsageError
from vit_jax.models.layers import cpu
from vit_jax.run.checkpoints import Checkpointer
from vit_jax.train import step as steps
from vit_jax.train.experiment import Experiment
from vit_jax.train.feeds import put_on_devices
from vit_jax.train.partition import merge, path_names, split, trainable_mask
from vit_jax.train.state import create_state

PATHS = (
  'cls',
  'embedding/kernel',
  'embedding/bias',
  'Transformer/posembed_input/pos_embedding',
  'Transformer/encoderblock_0/LayerNorm_0/bias',
  'Transformer/encoderblock_1/LayerNorm_0/scale',
  'Transformer/encoderblock_10/LayerNorm_0/scale',
  'Transformer/TokenLearnerModuleV11_0/token_masking/Dense_0/bias',
  'MAPHead_0/probe',
  'output_projection/kernel',
  'output_projection/bias',
)
HEAD = {'output_projection/kernel', 'output_projection/bias'}
ALL_BUT_HEAD = r'(?!output_projection).*'


def make_params(paths=PATHS):
  return traverse_util.unflatten_dict(
    {path: np.ones(i + 1) for i, path in enumerate(paths)}, sep='/'
  )


def flatten(tree):
  return traverse_util.flatten_dict(jax.device_get(tree), sep='/')


def paths_of(tree):
  return set(jax.tree.leaves(path_names(tree)))


def test_paths_are_joined_by_slashes():
  tree = {'a': {'b': {'kernel': 1, 'bias': 2}}, 'cls': 3}
  assert path_names(tree) == {
    'a': {'b': {'kernel': 'a/b/kernel', 'bias': 'a/b/bias'}},
    'cls': 'cls',
  }


@pytest.mark.parametrize(
  ('freeze', 'frozen'),
  [
    ((), set()),
    (('cls',), {'cls'}),
    (('embedding/bias',), {'embedding/bias'}),
    (('embedding',), {'embedding/kernel', 'embedding/bias'}),
    (('cls', 'embedding/.*'), {'cls', 'embedding/kernel', 'embedding/bias'}),
    (('.*/bias',), {path for path in PATHS if path.endswith('/bias')}),
    # Not block 10, whose name starts as block 1's does.
    (('Transformer/encoderblock_[0-5]',), {p for p in PATHS if 'block_0/' in p or 'block_1/' in p}),
    (('.*/encoderblock_[0-5]/.*',), {p for p in PATHS if 'block_0/' in p or 'block_1/' in p}),
    (('Transformer',), {path for path in PATHS if path.startswith('Transformer/')}),
    ((ALL_BUT_HEAD,), {*PATHS} - HEAD),
  ],
)
def test_a_pattern_freezes_a_parameter_or_all_below_its_parent(freeze, frozen):
  params = make_params()
  mask = flatten(trainable_mask(freeze, params))
  assert {path for path, trainable in mask.items() if not trainable} == frozen
  trainable, still = split(freeze, params)
  assert paths_of(trainable) == {*PATHS} - frozen
  assert paths_of(still) == frozen
  jax.tree.map(np.testing.assert_array_equal, merge(trainable, still), params)


@pytest.mark.parametrize('name', ['vit', 'token_learner'])
def test_linear_probing_trains_the_head_alone(name):
  from configs import token_learner, vit

  config = {'vit': vit, 'token_learner': token_learner}[name].get_config('Ti/4,digits')
  config.model.update(hidden_size=8, mlp_dim=8, num_layers=2, num_heads=2, representation_size=4)
  model = models.build(config.model, num_classes=10)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))['params']
  assert len(paths_of(shapes)) > 30
  assert paths_of(split((ALL_BUT_HEAD,), shapes)[0]) == HEAD


@pytest.mark.parametrize(
  ('freeze', 'message'),
  [
    (('cls', '['), r"config.freeze: '\[' is not a regular expression .*"),
    # Neither a part of a name nor the end of a path is a match.
    (('cls', 'embed'), "config.freeze: 'embed' matches no parameter"),
    (('kernel',), "config.freeze: 'kernel' matches no parameter"),
    (('',), "config.freeze: '' matches no parameter"),
    (('.*',), r"config.freeze: \('\.\*',\) leaves no parameter to train"),
  ],
)
def test_mistakes(freeze, message):
  with pytest.raises(UsageError, match=f'^{message}$'):
    trainable_mask(freeze, make_params())


def make_experiment(freeze, **changes):
  from configs import digits

  config = digits.get_config()
  config.model.update(hidden_size=32, mlp_dim=128, num_layers=2, num_heads=2)
  config.update(batch_size=8, num_steps=10, freeze=freeze)
  config.update_from_flattened_dict(changes)
  return Experiment(config)


def train(experiment, num_steps):
  """Returns the states before and after, as NumPy arrays."""
  before, done = experiment.initial_state(), 0
  state = put_on_devices(before)
  with experiment.train_feed() as feed:
    while done < num_steps:
      state, _, n = feed(state, done, num_steps - done)
      done += n
  return before, jax.device_get(state)


EVERYTHING = {'grad_accum_steps': 2, 'ema_decay': 0.9, 'optimizer.layer_decay': 0.8}


@pytest.mark.parametrize(
  ('freeze', 'moments', 'changes'),
  [
    (('embedding', '.*/posembed_input', '.*/encoderblock_0'), 2, EVERYTHING),
    (('.*/encoderblock_1', '.*/bias'), 2, {'data.resident': 'no', 'ema_decay': 0.9}),
    ((ALL_BUT_HEAD,), 1, {'optimizer.name': 'lion', 'grad_clip_norm': 1.0}),
  ],
)
def test_training_neither_moves_nor_tracks_what_is_frozen(tmp_path, freeze, moments, changes):
  experiment = make_experiment(freeze, **changes)
  before, after = train(experiment, 4)
  trainable, frozen = split(freeze, before.params)
  assert f'({sum(x.size for x in jax.tree.leaves(trainable)):,} train)' in experiment.describe()
  for old, new in ((before.params, after.params), (before.ema_params, after.ema_params)):
    new = flatten(new) if new is not None else {}
    for path, p in (flatten(old) if old is not None else {}).items():
      same = p.tobytes() == new[path].tobytes()
      if path in paths_of(frozen):
        assert same, path
      elif not path.endswith('key/bias'):  # whose gradient is 0 but for rounding
        assert not same, path

  def shapes(tree, times=1):
    return collections.Counter([x.shape for x in jax.tree.leaves(tree) if x.ndim] * times)

  assert shapes(after.opt_state) == shapes(trainable, moments)

  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(after, {'best': None})
  found, _ = checkpointer.restore(before)
  checkpointer.close()
  assert jax.tree.structure(found) == jax.tree.structure(after)
  jax.tree.map(np.testing.assert_array_equal, found, after)


def mapped_step(freeze, parts=1):
  """Returns the step as the loop maps it over devices, and what it takes, or its shapes."""
  experiment = make_experiment(freeze, grad_accum_steps=parts)
  config, tx = experiment.config, experiment._tx
  train_step = steps.make_train_step(
    config, experiment.model, experiment.task, tx, experiment._schedule, 10
  )
  batch = {
    'image': np.zeros((1, 8, 8, 8, 1), np.uint8),
    'label': np.zeros((1, 8), np.int32),
    'weight': np.ones((1, 8), np.float32),
    'slot': np.arange(8, dtype=np.int32)[None],
  }
  state = jax.eval_shape(lambda p: create_state(config, p, tx), experiment._param_shapes)
  return steps.map_over_devices(lambda s, b, _: train_step(s, b)), (state, batch, ())


def equations(jaxpr):
  """Yields the equations of a jaxpr and of all within it."""
  for equation in jaxpr.eqns:
    yield equation
    for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns')):
      if hasattr(getattr(value, 'jaxpr', value), 'eqns'):
        yield from equations(getattr(value, 'jaxpr', value))


FIRST_HALF = ('embedding', 'Transformer/posembed_input', 'Transformer/encoderblock_0')


@pytest.mark.parametrize(
  ('freeze', 'blocks', 'head'), [((), 2, 2), (FIRST_HALF, 1, 2), ((ALL_BUT_HEAD,), 0, 1)]
)
@pytest.mark.parametrize('parts', [1, 2])
def test_what_is_frozen_has_no_backward_pass(freeze, blocks, head, parts):
  """A block has 8 products of matrices, the head 1; each needs up to 2 more for its gradients.

  One of these 2 is the input's, which the head doesn't need where all before it is frozen.
  """
  step, arguments = mapped_step(freeze, parts)
  with cpu.left_alone():  # else there are products of all devices
    found = list(equations(jax.make_jaxpr(step)(*arguments).jaxpr))
  products = sum(equation.primitive.name == 'dot_general' for equation in found)
  assert products == 2 * 8 + 1 + 2 * 8 * blocks + head

  summed = sum(
    variable.aval.size
    for equation in found
    if equation.primitive.name.startswith('psum')
    for variable in equation.invars
  )
  trainable, _ = split(freeze, arguments[0].params)
  metrics = 3 * 2  # loss, accuracy, top5_accuracy: (sum, count) each
  assert summed == sum(x.size for x in jax.tree.leaves(trainable)) + metrics


@functools.cache
def count_flops(freeze):
  step, arguments = mapped_step(freeze)
  return step.lower(*arguments).compile().cost_analysis()['flops']


@pytest.mark.parametrize(('freeze', 'share'), [(FIRST_HALF, 2 / 3), ((ALL_BUT_HEAD,), 1 / 3)])
def test_the_compiled_step_does_less(freeze, share):
  """Forward, the gradients of inputs and those of weights cost the same: thirds of a step."""
  assert count_flops(freeze) / count_flops(()) == pytest.approx(share, rel=0.03)
