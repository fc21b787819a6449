"""A state spread over devices: the losses, parameters and checkpoints of one that is whole."""

import json
import math
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, tiny_config, virtual_devices

from vit_jax.errors import UsageError
from vit_jax.run.checkpoints import Checkpointer
from vit_jax.train import describe
from vit_jax.train.experiment import Experiment
from vit_jax.train.feeds import put_on_devices
from vit_jax.train.shard import device_bytes
from vit_jax.train.step import one_train_step

DEVICES, STEPS = 8, 4
# Wide enough for arrays that are worth spreading.
WIDE = {'model.hidden_size': 64, 'model.mlp_dim': 64}
CLIPPED = WIDE | {'grad_clip_norm': 0.1, 'ema_decay': 0.9}
# Which makes no large updates of gradients that are nothing but rounding.
SGD = {'optimizer.name': 'sgd', 'optimizer.learning_rate': 0.1, 'optimizer.momentum': 0.9}
CASES = {
  'adamw': CLIPPED,
  'lamb': CLIPPED | {'optimizer.name': 'lamb', 'data.resident': 'no'},
  'micro-batches': CLIPPED | {'grad_accum_steps': 2, 'freeze': ('embedding',)},
  'remat in bfloat16': WIDE | SGD | {'model.remat': True, 'dtype': 'bfloat16'},
  'layers in a loop': WIDE | SGD | {'model.scan': True, 'model.remat': True, 'model.num_layers': 4},
}


def make_config(case, mode):
  if case in CASES:
    return tiny_config(num_steps=STEPS, shard=mode, **CASES[case])
  if case == 'a teacher':
    from test_dino_runs import config

    return config(num_steps=STEPS, shard=mode, **WIDE, **SGD)
  from test_model_state import run_config

  return run_config(num_steps=STEPS, shard=mode, eval_batch_size=72, **SGD)


def gathers(training):
  """Returns how many parameters are spread, and how many the program of a step gathers."""
  e = training.experiment
  batch = {
    n: jax.ShapeDtypeStruct((DEVICES, *x.shape), x.dtype) for n, x in e.batch_shapes().items()
  }
  steps = one_train_step(e._train_step(e.layout))
  lowered = e.layout.compile_training(steps, e.state_shapes).lower(e.state_shapes, batch, ())
  params = jax.tree.leaves(training.state.params)
  places = [share < 1 for _, share in shares(training.state.params)]
  spread = sum(x.size for x, is_spread in zip(params, places, strict=True) if is_spread)
  found = re.findall(r'stablehlo\.all_gather.*-> tensor<((?:\d+x)+)\w+>', lowered.as_text())
  return spread, sum(math.prod(map(int, shape.split('x')[:-1])) for shape in found)


class Training:
  """An experiment that trains without a run directory."""

  def __init__(self, config):
    self.experiment = Experiment(config)
    self.feed = self.experiment.train_feed()
    self.state = self.put(self.experiment.initial_state())

  def put(self, state):
    return put_on_devices(state, self.experiment.layout)

  def train(self, last):
    """Returns the losses of the steps up to `last`."""
    losses = []
    while (step := int(self.state.step)) < last:
      self.state, sums, n = self.feed(self.state, step, 1)
      total, weight = jax.device_get(sums)['loss']
      losses.append((total[:n] / weight[:n]).item())
    return losses

  def evaluate(self):
    sums, _ = self.experiment.eval_feed('test')(self.state.eval_variables)
    return np.divide(*sums['loss'])


def shares(tree):
  """Returns (shape of an array, share of it on the device that has most) of each."""
  return [
    (x.shape, max(shard.data.size for shard in x.addressable_shards) / x.size)
    for x in jax.tree.leaves(tree)
  ]


def check_shares(state, mode):
  """Asserts what is spread: arrays of 1,024 entries or more that the devices divide."""
  spread = {'opt_state': state.opt_state, 'ema_params': state.ema_params}
  if mode == 'all':
    spread['params'] = state.params
  else:
    assert all(share == 1 for _, share in shares(state.params))
  for name, tree in spread.items():
    for shape, share in shares(tree):
      is_large = np.prod(shape) >= 1024 and any(n % DEVICES == 0 for n in shape)
      assert share == (1 / DEVICES if is_large else 1), (name, shape)


def check_memory(experiment):
  """Asserts that the compiled step takes the memory that `describe` says of the state."""
  shapes = experiment.state_shapes, experiment.batch_shapes()
  found = experiment.compiled_train_step().memory_analysis()
  assert abs(found.argument_size_in_bytes - device_bytes(shapes)) < 2**12
  assert abs(found.output_size_in_bytes - device_bytes(shapes[0])) < 2**12
  text = describe.describe(experiment)
  for tree in (shapes[0].params, shapes[0].opt_state, experiment.gradient_shapes):
    assert f' {device_bytes(tree) / 2**20:,.1f} MiB' in text


def restored(checkpointer, training):
  state, _ = checkpointer.restore(training.experiment.state_shapes)
  return training.put(state)


def check_checkpoints(folder, spread, whole, losses):
  """Asserts that a run goes on from a checkpoint: the same way with the same bits, or whole."""
  checkpointer = Checkpointer(folder)
  checkpointer.save(spread.state, {'best': None})
  checkpointer.wait()
  went_on, state = spread.train(STEPS), jax.device_get(spread.state)
  spread.state = restored(checkpointer, spread)
  assert went_on == spread.train(STEPS)
  jax.tree.map(np.testing.assert_array_equal, state, jax.device_get(spread.state))
  whole.state = restored(checkpointer, whole)
  np.testing.assert_allclose(whole.train(STEPS), losses, rtol=2e-5)
  checkpointer.close()


def compare(case, folder):
  """Trains a case in every mode, on eight devices, and asserts that all do the same."""
  assert jax.device_count() == DEVICES
  whole = Training(make_config(case, 'none'))
  start, losses = jax.device_get(whole.state.params), whole.train(STEPS)
  evaluated, reached = whole.evaluate(), jax.device_get(whole.state)
  is_rough = whole.experiment.config.dtype == 'bfloat16'
  tolerance = {'rtol': 1e-2, 'atol': 1e-3} if is_rough else {'rtol': 2e-5, 'atol': 2e-6}
  moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), start, reached.params)
  assert max(jax.tree.leaves(moved)) > 10 * tolerance['atol'], 'else nothing is compared'
  for mode in ('optimizer', 'all'):
    spread = Training(make_config(case, mode))
    check_shares(spread.state, mode)
    assert any(share < 1 for _, share in shares(spread.state.opt_state))
    if case == 'remat in bfloat16':
      count, found = gathers(spread)
      assert found == 0 if mode == 'optimizer' else 1.5 * count < found <= 2 * count
    if case == 'layers in a loop':  # of which one is gathered at a time, forth and back
      count, found = gathers(spread)
      assert found == 0 if mode == 'optimizer' else 0 < found < count
    if case == 'micro-batches':
      check_memory(spread.experiment)
    first = spread.train(STEPS // 2)
    if case == 'adamw':
      check_checkpoints(folder / mode, spread, whole, losses[STEPS // 2 :])
      rest = losses[STEPS // 2 :]
    else:
      rest = spread.train(STEPS)
    np.testing.assert_allclose([*first, *rest], losses, **tolerance)
    check_shares(spread.state, mode)
    np.testing.assert_allclose(spread.evaluate(), evaluated, rtol=tolerance['rtol'])
    found, expected = (
      (state.params, state.ema_params, state.model_state)
      for state in (jax.device_get(spread.state), reached)
    )
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(x, y, **tolerance)


def on_eight_devices(case, folder):
  code = 'import pathlib, sys; sys.path[:0] = sys.argv[1:3]; import test_shard; '
  code += 'test_shard.compare(sys.argv[3], pathlib.Path(sys.argv[4]))'
  paths = ROOT / 'tests' / 'train', ROOT / 'tests'
  command = [sys.executable, '-c', code, *paths, case, folder]
  result = subprocess.run(
    command, env=virtual_devices(DEVICES), cwd=ROOT, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr


def test_a_spread_state_trains_evaluates_and_goes_on_as_a_whole_one(tmp_path):
  on_eight_devices('adamw', tmp_path)


@pytest.mark.parametrize('case', [*list(CASES)[1:], 'a teacher', 'batch statistics'])
def test_any_optimiser_model_and_task_is_spread(case, tmp_path):
  on_eight_devices(case, tmp_path)


def test_a_run_goes_on_with_another_number_of_devices(train, tmp_path):
  """From eight devices to four, and to one, on which nothing is spread; it starts from weights."""
  fields = {'num_steps': 4, 'log_every': 1, 'eval_every': 4} | CLIPPED
  run = [f'--config.{name}={value}' for name, value in fields.items()]
  run.append('--config.evaluators.knn.enabled=True')

  def losses(workdir, mode, devices, *flags):
    result = train(*run, f'--workdir={workdir}', f'--config.shard={mode}', *flags, devices=devices)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return result.stdout, [
      [line[name] for line in lines if name in line] for name in ('train/loss', 'test/loss')
    ]

  losses(tmp_path / 'start', 'none', 1)
  flags = f'--config.init_from={tmp_path}/start', '--config.num_steps=12'
  _, (expected, evaluated) = losses(tmp_path / 'one', 'none', 1, *flags)
  workdir = tmp_path / 'run'
  for devices, mode in ((8, 'all'), (4, 'optimizer'), (1, 'all'), (1, 'none')):
    text, (found, tested) = losses(workdir, mode, devices, *flags)
    assert ('going on after step 8' in text) == (devices < 8)
    assert f'config.shard={mode}: ' in text or mode == 'none'
    assert ('nothing to spread over' in text) == ((devices, mode) == (1, 'all'))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(tested, evaluated, rtol=1e-4)
    shutil.rmtree(workdir / 'checkpoints' / '12')
    (workdir / 'results.json').unlink()


def test_another_value_is_refused():
  with pytest.raises(UsageError, match=r"^config.shard: 'params' is not one of none, optimizer, "):
    Experiment(tiny_config(shard='params'))


def test_one_device_has_the_state_whole():
  experiment = Experiment(tiny_config(shard='all'))
  assert 'config.shard=all: nothing to spread over, on one device' in experiment.describe()
  assert isinstance(experiment.initial_state().step, np.ndarray)
