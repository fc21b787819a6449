"""Running statistics through training: whose they are, what moves them, what is kept of them."""

import functools
import shutil
import subprocess
import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from accuracies import assert_accuracy
from conftest import ROOT, tiny_config, virtual_devices

from vit_jax import tasks, weights
from vit_jax.errors import UsageError
from vit_jax.models import resnet
from vit_jax.models.mobilevit import MobileViT
from vit_jax.models.resnet import ResNet
from vit_jax.run.checkpoints import Checkpointer, read_variables
from vit_jax.train import loop
from vit_jax.train import step as steps
from vit_jax.train.experiment import Experiment
from vit_jax.train.feeds import MAX_STEPS, put_on_devices
from vit_jax.train.state import TrainState, create_state

pytestmark = pytest.mark.usefixtures('brief_ends')

BATCH = 16
TASK = tasks.build('classification', {}, 3)
MODEL = ResNet(num_classes=3, stage_sizes=(1, 1), num_filters=4, axis_name='batch')
MOBILEVIT = MobileViT(
  num_classes=3,
  neck_hidden_sizes=(4, 4, 4, 4, 4, 4, 8),
  hidden_sizes=(4, 4, 4),
  depths=(1, 1, 1),
  num_heads=2,
  expand_ratio=2.0,
  strides=(2, 1, 2, 1, 1, 1),
  dropout_rate=0.0,
  classifier_dropout_rate=0.0,
  axis_name='batch',
)


def step_config(**changes):
  from configs import common

  config = common.get_config('vit')
  config.update(batch_size=BATCH, ema_decay=0.75)
  config.update_from_flattened_dict(changes)
  return config


def make_batch(step, devices=1):
  """Images of which each of four in a row is brighter than the one before."""
  rng = np.random.default_rng(step)
  brightness = 40 * (np.arange(BATCH) % 4)[:, None, None, None]
  image = (rng.integers(0, 80, (BATCH, 16, 16, 3)) + brightness).astype(np.uint8)
  batch = {
    'image': image,
    'label': rng.integers(0, 3, BATCH, dtype=np.int32),
    'weight': np.ones(BATCH, np.float32),
    'slot': np.arange(BATCH, dtype=np.int32),
  }
  return {n: x.reshape(devices, BATCH // devices, *x.shape[1:]) for n, x in batch.items()}


def run_steps(config, num_steps, devices=1, model=MODEL):
  """Returns (states from the first on, metrics of each step) of plain SGD."""
  tx, schedule = optax.sgd(0.1), optax.constant_schedule(0.1)
  start = jax.jit(model.clone(axis_name=None).init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  state = create_state(config, start['params'], tx, {'batch_stats': start['batch_stats']})
  step = steps.make_train_step(config, model, TASK, tx, schedule, 3)
  mapped = steps.map_over_devices(lambda state, batch, _: step(state, batch))
  states, log = [jax.device_get(state)], []
  state = put_on_devices(states[0])
  for i in range(num_steps):
    state, metrics = mapped(state, make_batch(i, devices), ())
    states.append(jax.device_get(state))
    log.append(jax.device_get(metrics))
  return states, log


def close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@jax.jit
def statistics_after(state, image):
  """What a pass over these images makes of a state's statistics, by the model alone."""
  image = (image / 255.0 - 0.5) / 0.5
  given = {'params': state.params, **state.model_state}
  _, new = MODEL.clone(axis_name=None).apply(given, image, train=True, mutable=['batch_stats'])
  return new


@pytest.mark.parametrize('parts', [1, 2, 4])
def test_statistics_pass_through_the_micro_batches_in_order(parts):
  (before, after), _ = run_steps(step_config(grad_accum_steps=parts), 1)
  image, expected = make_batch(0)['image'][0].astype(np.float32), before
  for part in range(parts):
    new = statistics_after(expected, image[part::parts])
    expected = expected.replace(model_state=new)
  close(after.model_state, expected.model_state, rtol=1e-4, atol=1e-5)
  mean, old_mean = (s.model_state['batch_stats']['bn1']['mean'] for s in (after, before))
  assert np.abs(mean - old_mean).max() > 0.01


def test_frozen_norms_keep_their_parameters_and_their_statistics_move():
  """As in PyTorch, where requires_grad=False leaves running statistics to move in train()."""
  states, _ = run_steps(step_config(freeze=('conv1', 'bn1', 'layer1_.*')), 2)
  for name in ('conv1', 'bn1', 'layer1_0'):
    jax.tree.map(np.testing.assert_array_equal, states[0].params[name], states[2].params[name])
  moved, free = (
    jax.tree.map(lambda a, b: np.abs(a - b).max(), s[0].model_state, s[2].model_state)
    for s in (states, run_steps(step_config(), 2)[0])
  )
  assert min(jax.tree.leaves(moved)) > 1e-4
  assert min(jax.tree.leaves(free)) > 1e-4
  close(states[1].model_state, statistics_after(states[0], make_batch(0)['image'][0]),
        rtol=1e-4, atol=1e-5)  # fmt: skip


def test_the_average_of_the_parameters_is_evaluated_with_the_statistics_of_now():
  states, _ = run_steps(step_config(), 2)
  last = states[-1]
  average = states[0].params
  for state in states[1:]:
    average = jax.tree.map(lambda ema, p: 0.75 * ema + 0.25 * p, average, state.params)
  close(last.eval_variables['params'], average, rtol=1e-5, atol=1e-6)
  jax.tree.map(
    np.testing.assert_array_equal,
    last.eval_variables['batch_stats'],
    last.model_state['batch_stats'],
  )
  eval_step = steps.make_eval_step(step_config(), MODEL, TASK)
  mapped = steps.map_over_devices(lambda variables, batch, _: eval_step(variables, batch))
  batch = make_batch(0)
  sums, _ = mapped(put_on_devices(last.eval_variables), batch, ())
  loss, count = sums['loss']
  image = (batch['image'][0] / 255.0 - 0.5) / 0.5
  logits = MODEL.apply({'params': average, **last.model_state}, image, train=False)
  losses = -jax.nn.log_softmax(logits)[np.arange(BATCH), batch['label'][0]]
  assert loss / count == pytest.approx(float(losses.mean()), rel=1e-4)


CASES = {  # name -> (model, micro-batches)
  'whole': (MODEL, 1),
  'halves': (MODEL, 2),
  'mobilevit': (MOBILEVIT, 1),
}


def main(path, devices, *cases):
  """Saves what some steps give."""
  found = {}
  for case in cases:
    model, parts = CASES[case]
    states, log = run_steps(step_config(grad_accum_steps=parts), 3, devices, model)
    flat = {
      'model_state': states[-1].model_state,
      'params': states[-1].params,
      'log': {str(i): {n: pair[0] / pair[1] for n, pair in m.items()} for i, m in enumerate(log)},
    }
    flat = flax.traverse_util.flatten_dict(flat, sep='/')
    found |= {f'{case}/{name}': value for name, value in flat.items()}
  np.savez(path, **found)


def on_one_device_and_on_eight(folder, *cases):
  """Returns what `main` saves of one device, after a look at what it does of eight."""
  code = 'import sys; sys.path[:0] = sys.argv[1:3]; import test_model_state as t; '
  code += 't.main(sys.argv[3], 8, *sys.argv[4:])'
  command = [sys.executable, '-c', code, ROOT / 'tests' / 'train', ROOT / 'tests']
  command += [folder / 'eight.npz', *cases]
  eight = subprocess.Popen(command, env=virtual_devices(8), cwd=ROOT)
  main(folder / 'one.npz', 1, *cases)
  assert eight.wait(timeout=300) == 0
  one, eight = (np.load(folder / f'{name}.npz') for name in ('one', 'eight'))
  assert set(one) == set(eight)
  for name in one:
    np.testing.assert_allclose(eight[name], one[name], rtol=1e-4, atol=2e-5, err_msg=name)
  return one


def test_eight_devices_have_the_statistics_and_losses_of_one(tmp_path):
  """Statistics are those of the global batch, and its gradient flows through them."""
  one = on_one_device_and_on_eight(tmp_path, 'whole', 'halves')
  whole, halves = (one[f'{case}/model_state/batch_stats/bn1/var'] for case in ('whole', 'halves'))
  assert np.abs(whole - halves).max() > 1e-3


def test_eight_devices_train_a_mobilevit_as_one_does(tmp_path):
  one = on_one_device_and_on_eight(tmp_path, 'mobilevit')
  assert any(name.startswith('mobilevit/model_state/batch_stats/layer_5_1/') for name in one)


def test_every_norm_of_a_mobilevit_is_of_the_global_batch():
  """Each sums its statistics over the devices."""
  image, alone = jax.ShapeDtypeStruct((2, 16, 16, 3), np.float32), MOBILEVIT.clone(axis_name=None)
  variables = jax.eval_shape(alone.init, jax.random.key(0), image)

  def trained(variables, image, model):
    return model.apply(variables, image, train=True, mutable=['batch_stats'])

  def count_sums(model):
    trace = jax.make_jaxpr(functools.partial(trained, model=model), axis_env=[('batch', 8)])
    return str(trace(variables, image)).count('psum')

  norms = len(jax.tree.leaves(variables['batch_stats'])) // 2  # mean and variance
  assert norms > 10
  assert count_sums(MOBILEVIT) == norms
  assert count_sums(alone) == 0


def run_config(**changes):
  """A ResNet-18 of little width on digits of 32x32."""
  from configs.resnet import get_config

  config = get_config('resnet18,digits')
  config.model.num_filters = 4
  config.data.update(image_size=(32, 32), channels=3)
  config.update(batch_size=32, eval_batch_size=90, num_steps=2, ema_decay=0.5)
  config.optimizer.learning_rate = 0.02
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A finished run: (workdir, results)."""
  workdir = tmp_path_factory.mktemp('runs') / 'resnet'
  return workdir, loop.train_and_evaluate(run_config(), workdir)


def last_state(workdir, config):
  checkpointer = Checkpointer(workdir / 'checkpoints', read_only=True)
  state, _ = checkpointer.restore(Experiment(config).initial_state())
  checkpointer.close()
  return state


class ResNet18(ResNet, kw_only=True):
  """In place of the real one, to compile in less time."""

  __module__ = resnet.__name__
  stage_sizes: tuple[int, ...] = (1, 1)


def test_a_run_that_was_cut_off_ends_with_the_same_bits(tmp_path, monkeypatch):
  monkeypatch.setattr(resnet, 'ResNet18', ResNet18)
  config = run_config(num_steps=4, eval_every=2)
  whole = loop.train_and_evaluate(config, tmp_path / 'run')
  expected = last_state(tmp_path / 'run', config)
  (tmp_path / 'run' / 'checkpoints' / '4').rename(tmp_path / 'gone')
  (tmp_path / 'run' / 'results.json').unlink()
  again = loop.train_and_evaluate(config, tmp_path / 'run')
  assert again['final'] == whole['final']
  assert len(jax.tree.leaves(expected.model_state)) == 2 * 6
  jax.tree.map(np.testing.assert_array_equal, last_state(tmp_path / 'run', config), expected)


def test_what_is_loaded_is_what_was_evaluated(run):
  from vit_jax.data import load_source, make_preprocess

  workdir, results = run
  variables, config = weights.load(workdir)
  state = last_state(workdir, run_config())
  assert results['parameters'] == sum(leaf.size for leaf in jax.tree.leaves(state.params))
  jax.tree.map(np.testing.assert_array_equal, variables, state.eval_variables)
  found = config.name, config.backbone.num_filters, config.image_size
  assert found == ('resnet18', 4, (32, 32))
  preprocess, source = make_preprocess((32, 32), 3, 'resize', False), load_source('digits', 'test')
  records = [preprocess(source[i]) for i in range(len(source))]
  images = np.stack([record['image'] for record in records])
  apply = jax.jit(config.model.apply, compiler_options={'xla_backend_optimization_level': 0})
  logits = apply(variables, (images / np.float32(255) - 0.5) / 0.5)
  labels = [record['label'] for record in records]
  assert_accuracy(results['final']['test/accuracy'], logits, labels)


def test_a_run_goes_to_torchvision_s_format_and_on_from_there(run, tmp_path):
  from configs import finetune

  variables, config = weights.load(run[0])
  path = tmp_path / 'm.safetensors'
  weights.save(variables, config, path, format='torchvision')
  start = Experiment(run_config(init_from=str(path))).initial_state()
  jax.tree.map(np.testing.assert_array_equal, start.eval_variables, variables)
  new_head = Experiment(run_config(**{'init_from': str(path), 'init_options.head': 'new'}))
  assert 'head: new, 10 classes' in new_head.describe()
  state = new_head.initial_state()
  jax.tree.map(
    np.testing.assert_array_equal, state.model_state['batch_stats'], variables['batch_stats']
  )
  config = finetune.get_config('digits')
  config.update(init_from=str(path), batch_size=32, num_steps=2)
  config.schedule.warmup_steps = 0
  config.data.update(image_size=(32, 32), channels=3)
  experiment = Experiment(config)
  assert experiment.config.model.to_dict() == {'name': 'resnet18', 'num_filters': 4}
  start = experiment.initial_state()
  jax.tree.map(np.testing.assert_array_equal, start.eval_variables, variables)
  config.model.name = 'vit'
  with pytest.raises(UsageError, match=r"config\.model\.name: 'vit', but .* of a 'resnet18'"):
    Experiment(config)


def test_on_a_cpu_no_loop_stands_around_convolutions():
  """Steps of a ResNet in a loop took five times as long; those of a ViT don't."""
  feed = Experiment(run_config()).train_feed()
  assert feed._max_steps == (1 if jax.default_backend() == 'cpu' else MAX_STEPS)
  assert Experiment(tiny_config(num_steps=1)).train_feed()._max_steps == MAX_STEPS


def test_damaged_statistics_are_noticed(tmp_path):
  """They count into the checksum of what is evaluated."""
  params, statistics = (
    {'a': np.ones(3, np.float32)},
    {'batch_stats': {'m': np.zeros(2, np.float32)}},
  )
  state = TrainState(np.int32(6), params, np.ones(2), model_state=statistics)
  other = state.replace(model_state=jax.tree.map(lambda x: x + 1, statistics))
  for name, saved in (('c', state), ('d', other)):
    checkpointer = Checkpointer(tmp_path / name)
    checkpointer.save(saved, {'best': None})
    checkpointer.close()
  found = read_variables(tmp_path / 'c')
  jax.tree.map(np.testing.assert_array_equal, found, {'params': params} | statistics)
  shutil.copytree(tmp_path / 'c' / '6' / 'meta', tmp_path / 'd' / '6' / 'meta', dirs_exist_ok=True)
  with pytest.raises(UsageError, match='contents differ from their checksum'):
    read_variables(tmp_path / 'd')
