"""Killed, stopped or damaged at any moment, a run goes on and ends with the same bits."""

import functools
import json
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from conftest import start_training

from vit_jax.run.checkpoints import Checkpointer

RUN = (
  '--config.num_steps=60',
  '--config.log_every=3',
  '--config.eval_every=20',
  '--config.checkpoint_every=4',
  '--config.ema_decay=0.9',
  '--config.model.dropout_rate=0.1',
  '--config.plateau.factor=0.5',
  '--config.plateau.patience=1',
  '--config.data.sampling=sqrt',
)
EXTRA = {'resident': (), 'streamed': ('--config.data.resident=no',)}


def final_state(workdir):
  """Returns the leaves of the last checkpoint, whatever their structure."""
  checkpointer = Checkpointer(workdir / 'checkpoints', read_only=True)
  step = checkpointer.latest_step()
  manager = checkpointer._manager
  state = manager.restore(step)['state']
  checkpointer.close()
  return step, jax.tree.map(np.asarray, state)


def assert_same_end(workdir, expected):
  step, state = final_state(workdir)
  expected_step, expected_state = final_state(expected)
  assert step == expected_step == 60
  jax.tree.map(np.testing.assert_array_equal, state, expected_state)


def measurements(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [
    {
      k: v
      for k, v in json.loads(line).items()
      if k not in ('images_per_second', 'peak_host_memory_mib')
    }
    for line in lines
  ]


@pytest.fixture(scope='module')
def uninterrupted(train, tmp_path_factory):
  """Returns the directory of such a run, made once, and its flags."""

  @functools.cache
  def run(kind):
    args, workdir = (*RUN, *EXTRA[kind]), tmp_path_factory.mktemp(kind) / 'run'
    result = train(*args, f'--workdir={workdir}', quick=False)
    assert result.returncode == 0, result.stderr
    return workdir, args

  return run


def wait_for_training(process, step_lines):
  """Reads lines until some training lines were seen, or the run is over."""
  for line in process.stdout:
    step_lines -= line.startswith('step ')
    if step_lines <= 0:
      return


@pytest.mark.parametrize(('kind', 'times'), [('resident', 2), ('streamed', 1)])
def test_kill_9_at_random_steps_changes_nothing(uninterrupted, train, tmp_path, kind, times):
  expected, args = uninterrupted(kind)
  workdir, rng = tmp_path / 'run', random.Random(0)
  for _ in range(times):
    process = start_training(*args, f'--workdir={workdir}', quick=False)
    wait_for_training(process, rng.randint(1, 4))
    time.sleep(rng.uniform(0, 0.1))
    process.kill()
    process.communicate()
  result = train(*args, f'--workdir={workdir}', quick=False)
  assert result.returncode == 0, result.stderr
  assert_same_end(workdir, expected)
  assert measurements(workdir) == measurements(expected)


def test_a_truncated_newest_checkpoint_changes_nothing(uninterrupted, train, tmp_path):
  expected, args = uninterrupted('resident')
  workdir = tmp_path / 'run'
  shutil.copytree(expected, workdir)
  newest = max((workdir / 'checkpoints').glob('[0-9]*'), key=lambda p: int(p.name))
  for path in newest.rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  result = train(*args, f'--workdir={workdir}', quick=False)
  assert result.returncode == 0, result.stderr
  assert f'checkpoints/{newest.name}: damaged checkpoint' in result.stdout
  assert 'going on after step 56' in result.stdout
  assert_same_end(workdir, expected)
  assert measurements(workdir) == measurements(expected)


@pytest.mark.parametrize(
  ('kind', 'signum'), [('resident', signal.SIGTERM), ('streamed', signal.SIGINT)]
)
def test_a_signal_saves_and_says_how_to_resume(uninterrupted, train, tmp_path, kind, signum):
  expected, args = uninterrupted(kind)
  workdir = tmp_path / 'run'
  process = start_training(*args, f'--workdir={workdir}', quick=False)
  wait_for_training(process, 2)
  process.send_signal(signum)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 128 + signum
  assert err.startswith('train.py: stopped and saved after step ')
  assert 'to go on: python train.py --config=configs/digits.py' in err
  assert err.count('\n') == 1
  step, _ = final_state(workdir)
  assert f'after step {step};' in err
  result = train(*args, f'--workdir={workdir}', quick=False)
  assert f'going on after step {step}' in result.stdout
  assert_same_end(workdir, expected)
  assert measurements(workdir) == measurements(expected)


def test_a_finished_run_is_not_run_again(uninterrupted, train):
  workdir, args = uninterrupted('streamed')
  before = [(workdir / name).read_text() for name in ('metrics.jsonl', 'results.json')]
  result = train(*args, f'--workdir={workdir}', quick=False)
  assert result.returncode == 0
  assert 'nothing is left to train' in result.stdout
  assert before == [(workdir / name).read_text() for name in ('metrics.jsonl', 'results.json')]
