"""Runs that get another length: which may go on, and that they end as if they had always had it."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import tiny_config

from vit_jax.errors import UsageError
from vit_jax.run import directory
from vit_jax.run.checkpoints import Checkpointer
from vit_jax.run.writers import read_history
from vit_jax.train import loop
from vit_jax.train.experiment import Experiment
from vit_jax.train.length import differing_schedules

FIELDS = {
  'eval_every': 4,
  'log_every': 2,
  'schedule.name': 'constant',
  'schedule.warmup_steps': 2,
  'optimizer.learning_rate': 1e-12,  # nothing improves, so that the plateau moves
  'plateau.factor': 0.5,
  'plateau.patience': 1,
  'ema_decay': 0.9,
}


def run(workdir, num_steps, **changes):
  config = tiny_config(**FIELDS, num_steps=num_steps)
  config.update_from_flattened_dict(changes)
  return loop.train_and_evaluate(config, workdir)


def last_state(workdir):
  checkpointer = Checkpointer(workdir / 'checkpoints', read_only=True)
  state, meta = checkpointer.restore(Experiment(tiny_config(**FIELDS)).initial_state())
  checkpointer.close()
  return state, meta


@pytest.fixture(scope='module')
def short(tmp_path_factory):
  """A finished run of 6 steps, whose last evaluation a longer one doesn't have."""
  workdir = tmp_path_factory.mktemp('short') / 'run'
  run(workdir, 6)
  return workdir


def test_a_longer_run_is_as_if_it_had_always_been(short, tmp_path, capsys):
  shutil.copytree(short, tmp_path / 'run')
  found = run(tmp_path / 'run', 16, **{'reference': {'test/accuracy': 0.5}})
  assert 'going on after step 6' in capsys.readouterr().out
  expected = run(tmp_path / 'whole', 16)
  (state, meta), (whole, whole_meta) = (last_state(tmp_path / n) for n in ('run', 'whole'))
  jax.tree.map(np.testing.assert_array_equal, state, whole)
  assert float(state.plateau.scale) == 0.125
  assert meta == whole_meta
  lines = [read_history(tmp_path / n / 'metrics.jsonl') for n in ('run', 'whole')]
  tests = [[line for line in part if 'test/loss' in line] for part in lines]
  assert [line for line in tests[0] if line['step'] != 6] == tests[1]
  timed = {'images_per_second', 'peak_host_memory_mib'}
  trained = [
    [{k: v for k, v in line.items() if k not in timed} for line in part if 'train/loss' in line]
    for part in lines
  ]
  assert trained[0] == trained[1]
  assert (found['step'], found['final']) == (16, expected['final'])
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['num_steps'] == 16
  # Killed at its new end, it isn't mistaken for the finished run that it was.
  assert loop._finished(short, 6)['step'] == 6
  assert loop._finished(short, 16) is None


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'num_steps': 4}, r'has done 6 steps \(num_steps 6 there, 4 now\)'),
    ({'num_steps': 9, 'seed': 1}, r'another configuration \(num_steps 6 .*; seed 0 there, 1 now\)'),
    ({'log_every': 3}, r'another configuration \(log_every 2 there, 3 now\)'),
    ({'num_steps': 9, 'optimizer.weight_decay_end': 0.1}, 'weight_decay_end None there, 0.1 now'),
  ],
)
def test_what_is_refused_says_how_to_start_from_the_run(short, changes, message):
  with pytest.raises(UsageError, match=message) as error:
    run(short, **{'num_steps': 6, **changes})
  assert str(error.value).endswith(
    f'; give another --workdir, and --config.init_from={short} to start from its weights'
  )
  assert '\n' not in str(error.value)


def test_a_schedule_that_the_length_changes_is_refused(short, tmp_path):
  """A cosine to the end of the run, as if the run that is there had had it."""
  config = tiny_config(**FIELDS | {'schedule.name': 'cosine'}, num_steps=6)
  shutil.copytree(short, tmp_path / 'run')
  (tmp_path / 'run' / 'config.json').write_text(Experiment(config).config.to_json_best_effort())
  config.num_steps = 12
  with pytest.raises(UsageError, match='its learning rate in the 6 steps done depends on that'):
    loop.train_and_evaluate(config, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints')  # where nothing was done, any length is taken
  resolved = Experiment(config)
  with directory.claimed(tmp_path / 'run', resolved.config, resolved.model_config):
    assert json.loads((tmp_path / 'run' / 'config.json').read_text())['num_steps'] == 12


def test_the_number_of_epochs_alone_says_nothing(short):
  config = Experiment(tiny_config(**FIELDS, num_steps=6, num_epochs=3.0)).config
  directory.check(short, config, depending=lambda *_: ['all'])
  with pytest.raises(UsageError, match=r'num_epochs 120\.0 there, 3\.0 now'):
    directory.check(short, config)


def test_a_run_that_stopped_early_stays_stopped(tmp_path, capsys):
  stopping = {'early_stopping_patience': 1}
  assert run(tmp_path, 100, **stopping)['step'] == 8
  assert run(tmp_path, 200, **stopping)['step'] == 8
  text = 'complete after step 8, where it stopped early, nothing is left to train'
  assert text in capsys.readouterr().out
  with pytest.raises(UsageError, match='early_stopping_patience 1 there, 0 now'):
    run(tmp_path, 200)


@pytest.mark.parametrize(
  ('changes', 'done', 'expected'),
  [
    ({'schedule.name': 'constant', 'schedule.warmup_steps': 10}, 50, []),
    ({'schedule.name': 'rsqrt', 'schedule.warmup_steps': 10}, 50, []),
    ({'schedule.name': 'cosine'}, 1, []),  # the first step is at the peak in any case
    ({'schedule.name': 'cosine'}, 2, ['learning rate']),
    ({'schedule.name': 'linear', 'schedule.warmup_steps': 30}, 31, []),
    ({'schedule.name': 'linear', 'schedule.warmup_steps': 30}, 32, ['learning rate']),
    ({'schedule.name': 'constant', 'optimizer.weight_decay_end': 0.4}, 50, ['weight decay']),
    ({'schedule.name': 'constant', 'ema_decay': 0.5, 'ema_decay_end': 1.0}, 50,
     ['decay of the moving average']),
    ({'schedule.name': 'cosine', 'ema_decay': 0.5, 'ema_decay_end': 1.0}, 9,
     ['learning rate', 'decay of the moving average']),
  ],
)  # fmt: skip
def test_numbers_at_the_steps_done_decide(changes, done, expected):
  config = tiny_config(num_steps=200, **changes)
  assert differing_schedules(config, 100, done) == expected
  assert differing_schedules(config, 200, done) == []
