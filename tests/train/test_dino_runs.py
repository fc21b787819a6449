"""Runs of DINO: what they resume, keep and pass on, on one device and on eight; and mistakes."""

import functools
import shutil

import jax
import numpy as np
import pytest

from configs import dino, finetune
from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.run.checkpoints import Checkpointer
from vit_jax.run.writers import read_history
from vit_jax.train import loop
from vit_jax.train.experiment import Experiment
from vit_jax.train.feeds import put_on_devices

pytestmark = pytest.mark.usefixtures('brief_ends')

TINY = {
  'model.hidden_size': 16,
  'model.mlp_dim': 16,
  'model.num_layers': 1,
  'model.num_heads': 2,
  'model.patches.size': (2, 2),
  'model.stochastic_depth': 0.0,
  'model.head.out_dim': 16,
  'model.head.hidden_size': 16,
  'model.head.bottleneck_size': 8,
  'loss.local_size': 4,
  'loss.local_views': 1,
  'loss.teacher_temperature_steps': 3,
  'loss.teacher_temperature': 0.07,
  'batch_size': 16,
  'eval_batch_size': 72,
  'optimizer.learning_rate': 0.0005,
  'grad_accum_steps': 2,
  'schedule.warmup_steps': 1,
  'freeze_first_steps': 2,
  'num_steps': 6,
  'eval_every': 3,
  'log_every': 1,
}


def config(**changes):
  c = dino.get_config('Ti/2,digits')
  c.update_from_flattened_dict(TINY | changes)
  return c


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('dino') / 'run'
  return workdir, loop.train_and_evaluate(config(), workdir)


@functools.cache
def initial_state():
  return Experiment(config()).initial_state()


def state(workdir, step=6):
  checkpointer = Checkpointer(workdir / 'checkpoints', read_only=True)
  found, _ = checkpointer.restore(initial_state(), step)
  checkpointer.close()
  return found


def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path):
  """Optimiser that started late, centre, moving average and all."""
  workdir, results = run
  shutil.copytree(workdir, tmp_path / 'part')
  (tmp_path / 'part' / 'checkpoints' / '6').rename(tmp_path / 'gone')
  (tmp_path / 'part' / 'results.json').unlink()
  again = loop.train_and_evaluate(config(), tmp_path / 'part')
  assert again['final'] == results['final']
  jax.tree.map(np.testing.assert_array_equal, state(tmp_path / 'part'), state(workdir))


def test_what_changes_and_when(run):
  workdir, _ = run
  start, middle, end = initial_state(), state(workdir, 3), state(workdir)
  frozen = [s.params['last_layer']['kernel'] for s in (start, middle, end)]
  assert (frozen[0] != frozen[1]).all(), 'it starts after two steps'
  center = [s.model_state['batch_stats']['center'] for s in (start, middle, end)]
  assert not center[0].any()
  assert (center[1] != center[2]).all()
  kernels = [s.params['backbone']['embedding']['kernel'] for s in (middle, end)]
  averages = [s.ema_params['backbone']['embedding']['kernel'] for s in (middle, end)]
  assert np.abs(averages[1] - averages[0]).max() < 0.1 * np.abs(kernels[1] - kernels[0]).max()
  lines = read_history(workdir / 'metrics.jsonl')
  assert all(line['train/kl'] > 0 for line in lines if 'train/kl' in line)


def test_eight_devices_and_micro_batches_give_the_losses_of_one(run, train, tmp_path):
  flags = [f'--config.{name}={value}' for name, value in TINY.items()]
  flags = ['--config=configs/dino.py:Ti/2,digits', *flags]
  done = train(*flags, f'--workdir={tmp_path}/eight', devices=8, tiny=False)
  assert done.returncode == 0, done.stderr
  one, eight = (read_history(p / 'metrics.jsonl') for p in (run[0], tmp_path / 'eight'))
  assert len(one) == len(eight)
  for line, expected in zip(eight, one, strict=True):
    for name in expected:
      if name.startswith(('train/', 'test/')):
        np.testing.assert_allclose(line[name], expected[name], rtol=1e-3, err_msg=name)


def test_the_host_cuts_views_out_of_photographs_and_the_device_out_of_small_images(run):
  assert Experiment(config()).resident
  experiment = Experiment(config(**{'data.crop': 'inception', 'data.image_size': (8, 8)}))
  assert not experiment.resident
  with experiment.train_feed() as feed:
    _, sums, _ = feed(put_on_devices(experiment.initial_state()), 0, 1)
  found = float(sums['loss'][0][0] / sums['loss'][1][0])
  first = read_history(run[0] / 'metrics.jsonl')[0]['train/loss']
  assert found != first, 'other parts are drawn'
  np.testing.assert_allclose(found, first, rtol=0.5)


def test_a_classifier_starts_from_the_backbone_of_a_run(run):
  c = finetune.get_config('digits')
  c.update(init_from=str(run[0]), batch_size=32, num_steps=2)
  c.schedule.warmup_steps = 0
  experiment = Experiment(c)
  assert 'mlp_0: left out' in experiment.describe()
  variables, model = weights.load(run[0])
  assert (model.num_classes, model.class_names) == (0, None)
  found = experiment.initial_state().params
  expected = variables['params']['backbone']
  assert found.keys() - expected.keys() == {'output_projection'}
  for name in expected:
    jax.tree.map(np.testing.assert_array_equal, found[name], expected[name])


def test_the_config_is_the_recipe_of_the_paper():
  c = dino.get_config()
  assert (c.optimizer.learning_rate, c.schedule.warmup_steps) == (0.002, 12_510)
  assert (c.freeze_first, c.freeze_first_steps) == (('last_layer',), 1251)
  assert (c.data.crop, c.data.image_size, c.loss.local_size) == ('inception', (224, 224), 96)
  small = dino.get_config('Ti/4,mnist')
  assert (small.data.crop, small.loss.local_size, small.freeze_first_steps) == ('resize', 12, 234)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'ema_decay': 0.0, 'ema_decay_end': None}, r'config\.ema_decay: 0\.0, but the task dino'),
    (
      {'ema_decay_end': 0.5},
      r'config\.ema_decay_end: 0\.5 is not between config\.ema_decay=0\.99',
    ),
    ({'loss.local_size': 5}, r'config\.model\.patches\.size: '),
    ({'loss.blur': (2.0, 0.0, 0.0)}, r'config\.loss\.blur: .* is not 3 numbers'),
    ({'model.head.out_dim': 0}, r'config\.model\.head\.out_dim: 0 is not a whole number from 1 to'),
    ({'model.classifier': 'none'}, r'config\.model: prototypes are compared with one vector'),
    ({'augment.solarize.probability': 0.5}, r'config\.augment\.solarize\.probability: 0\.5, but e'),
    ({'augment.mixup_alpha': 0.2}, r'config\.augment\.mixup_alpha: 0\.2'),
    ({'data.train_size': (4, 4), 'data.image_size': (8, 8)}, r'config\.data\.train_size: \(4, 4\)'),
  ],
)
def test_mistakes(changes, message):
  with pytest.raises(UsageError, match=f'^{message}'):
    Experiment(config(**changes))
