"""Runs that get another length: which may go on, and that they end as if they had always had it."""

import functools
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

pytestmark = pytest.mark.usefixtures('brief_ends')

FIELDS = {
  'eval_every': 4,
  'log_every': 4,
  'schedule.name': 'constant',
  'schedule.warmup_steps': 2,
  'optimizer.learning_rate': 1e-12,
  'plateau.factor': 0.5,
  'plateau.patience': 1,
  'early_stopping_patience': 3,
  'ema_decay': 0.9,
}


# Of evaluations by their steps, others 0.5: that after step 10, which a longer run doesn't have, is
# the best; without it, that after step 12 is better than that after step 4.
ACCURACIES = {4: 0.6, 10: 0.9, 12: 0.7}


@pytest.fixture(scope='module', autouse=True)
def _accuracies():
  """Runs find these accuracies."""
  found = loop.Run.evaluate

  def evaluate(self, eval_feed):
    metrics = found(self, eval_feed)
    given = {'test/accuracy': ACCURACIES.get(self.step, 0.5)}
    return metrics | {name: value for name, value in given.items() if name in metrics}

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop.Run, 'evaluate', evaluate)
    yield


def run(workdir, num_steps, **changes):
  config = tiny_config(**FIELDS, num_steps=num_steps)
  config.update_from_flattened_dict(changes)
  return loop.train_and_evaluate(config, workdir)


@functools.cache
def initial_state():
  return Experiment(tiny_config(**FIELDS)).initial_state()


def last_state(workdir):
  checkpointer = Checkpointer(workdir / 'checkpoints', read_only=True)
  state, meta = checkpointer.restore(initial_state())
  checkpointer.close()
  return state, meta


@pytest.fixture(scope='module')
def short(tmp_path_factory):
  """A finished run of 10 steps, whose last lines in metrics.jsonl a longer one doesn't have."""
  workdir = tmp_path_factory.mktemp('short') / 'run'
  results = run(workdir, 10)
  assert (results['best']['step'], results['best']['test/accuracy']) == (10, 0.9)
  assert (workdir / 'checkpoints' / '4').is_dir(), 'it is the best, should the run become longer'
  return workdir


def test_a_longer_run_is_as_if_it_had_always_been(short, tmp_path, capsys):
  shutil.copytree(short, tmp_path / 'run')
  run(tmp_path / 'run', 40, **{'reference': {'test/accuracy': 0.5}})
  assert 'going on after step 10' in capsys.readouterr().out
  run(tmp_path / 'whole', 40, **{'reference': {'test/accuracy': 0.5}})
  (state, meta), (whole, whole_meta) = (last_state(tmp_path / n) for n in ('run', 'whole'))
  jax.tree.map(np.testing.assert_array_equal, state, whole)
  assert float(state.plateau.scale) == 1 / 16
  assert meta == whole_meta
  assert (meta['best']['step'], meta['waited'], meta['stopped']) == (12, 3, True)
  differing = {'images_per_second', 'peak_host_memory_mib', 'training', 'command'}

  def without(values):
    return {
      name: without(value) if isinstance(value, dict) else value
      for name, value in values.items()
      if name not in differing
    }

  lines, expected = (
    [without(line) for line in read_history(tmp_path / name / 'metrics.jsonl')]
    for name in ('run', 'whole')
  )
  assert lines == expected
  found, expected = (
    without(json.loads((tmp_path / name / 'results.json').read_text())) for name in ('run', 'whole')
  )
  assert found == expected
  assert found['step'] == 24
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['num_steps'] == 40
  # Killed at its new end, it isn't mistaken for the finished run that it was.
  assert loop._finished(short, 10)['step'] == 10
  assert loop._finished(short, 24) is None


def test_every_metric_has_its_period():
  changes = {'data.val_split': '10%', 'evaluators.knn.enabled': True, 'evaluators.knn.every': 3}
  experiment = Experiment(tiny_config(**FIELDS | {'log_every': 2} | changes))
  names = 'train/loss', 'images_per_second', 'val/loss', 'knn/accuracy', 'test/loss'
  assert [experiment.period(name) for name in names] == [2, 2, 4, 3, None]
  assert Experiment(tiny_config(**FIELDS)).period('test/loss') == 4


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'num_steps': 4}, r'has done 10 steps \(num_steps 10 there, 4 now\)'),
    ({'num_steps': 19, 'seed': 1}, r'configuration \(num_steps 10 .*; seed 0 there, 1 now\)'),
    ({'log_every': 3}, r'another configuration \(log_every 4 there, 3 now\)'),
    ({'num_steps': 19, 'optimizer.weight_decay_end': 0.1}, 'weight_decay_end None there, 0.1 now'),
  ],
)
def test_what_is_refused_says_how_to_start_from_the_run(short, changes, message):
  with pytest.raises(UsageError, match=message) as error:
    run(short, **{'num_steps': 10, **changes})
  assert str(error.value).endswith(
    f'; give another --workdir, and --config.init_from={short} to start from its weights'
  )
  assert '\n' not in str(error.value)


def test_a_schedule_that_the_length_changes_is_refused(short, tmp_path):
  """A cosine to the end of the run, as if the run that is there had had it."""
  config = tiny_config(**FIELDS | {'schedule.name': 'cosine'}, num_steps=10)
  shutil.copytree(short, tmp_path / 'run')
  (tmp_path / 'run' / 'config.json').write_text(Experiment(config).config.to_json_best_effort())
  config.num_steps = 20
  with pytest.raises(UsageError, match='its learning rate in the 10 steps done depends on that'):
    loop.train_and_evaluate(config, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints')  # where nothing was done, any length is taken
  resolved = Experiment(config)
  with directory.claimed(tmp_path / 'run', resolved.config, resolved.model_config):
    assert json.loads((tmp_path / 'run' / 'config.json').read_text())['num_steps'] == 20


def test_the_number_of_epochs_alone_says_nothing(short):
  config = Experiment(tiny_config(**FIELDS, num_steps=10, num_epochs=3.0)).config
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
    run(tmp_path, 200, early_stopping_patience=0)


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
