"""One device, eight devices, two processes of four: the same losses for the same global batch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, free_port, start_training

RUN = (
  '--config.num_steps=20',
  '--config.log_every=1',
  '--config.eval_every=20',
  '--config.augment.mixup_alpha=0.2',
  '--config.augment.crop_padding=1',
  '--config.loss.class_weights=balanced',
  '--config.data.sampling=balanced',
  '--config.grad_clip_norm=1.0',
  '--config.ema_decay=0.9',
  '--config.evaluators.knn.enabled=True',
  '--config.data.val_split=10%',
  "--config.metrics=('roc_auc','user_metrics:order')",
)


def column(workdir, name):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return np.array([line[name] for line in lines if name in line])


@pytest.fixture(scope='module')
def one_device(train, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('one_device')
  result = train(*RUN, f'--workdir={workdir}')
  assert result.returncode == 0, result.stderr
  return workdir


def assert_same_losses(workdir, expected):
  losses = column(workdir, 'train/loss')
  assert len(losses) == 20
  np.testing.assert_allclose(losses, column(expected, 'train/loss'), rtol=1e-4)
  assert_same_evaluation(workdir, expected)


def assert_same_evaluation(workdir, expected):
  for name in ('val/loss', 'test/loss', 'val/roc_auc', 'test/roc_auc'):
    np.testing.assert_allclose(column(workdir, name), column(expected, name), rtol=1e-4)
  for name in ('val/order', 'test/order'):
    found, order = column(workdir, name), column(expected, name)
    assert found.tolist() == order.tolist(), 'labels are in the order of the split, without padding'
  # Of all images two may be so close to a tie that other roundings settle them otherwise.
  for accuracy, images, count in (('test/accuracy', 360, 1), ('knn/accuracy', 144, 2)):
    differences = images * (column(workdir, accuracy) - column(expected, accuracy))
    np.testing.assert_allclose(differences, np.zeros(count), atol=2.1)


def test_eight_devices_give_the_losses_of_one(one_device, train, tmp_path):
  result = train(*RUN, f'--workdir={tmp_path}', devices=8)
  assert result.returncode == 0, result.stderr
  assert_same_losses(tmp_path, one_device)


def test_eight_devices_stream_compiled_as_users_runs_are(one_device, train, tmp_path):
  streamed = f'--workdir={tmp_path}', '--config.data.resident=no'
  result = train(*RUN, *streamed, devices=8, quick=False)
  assert result.returncode == 0, result.stderr
  assert_same_losses(tmp_path, one_device)


def run_two_processes(*args):
  """Runs two processes of four devices each; returns what each of them printed."""
  port = free_port()
  processes = [
    start_training(
      *args,
      f'--coordinator=127.0.0.1:{port}',
      '--num_processes=2',
      f'--process_id={i}',
      devices=4,
    )
    for i in range(2)
  ]
  outputs = [process.communicate(timeout=120) for process in processes]
  for process, (_, err) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, err
  return [out for out, _ in outputs]


def test_two_processes_of_four_devices_give_the_losses_of_one_and_resume(one_device, tmp_path):
  """With several steps in a dispatch, and a second start from the first's checkpoint."""
  several = *RUN, '--config.log_every=5', '--config.checkpoint_every=13', f'--workdir={tmp_path}'
  outputs = run_two_processes(*several)
  expected = column(one_device, 'train/loss').reshape(4, 5).mean(axis=1)
  np.testing.assert_allclose(column(tmp_path, 'train/loss'), expected, rtol=1e-4)
  assert_same_evaluation(tmp_path, one_device)
  results = json.loads((tmp_path / 'results.json').read_text())
  assert results['device'] == {'kind': 'cpu', 'platform': 'cpu', 'count': 8, 'processes': 2}
  assert 'step 20/20' in outputs[0]
  assert 'step' not in outputs[1], 'one process writes logs'

  last = tmp_path / 'checkpoints' / '20'
  last.rename(tmp_path / 'taken_away')
  (tmp_path / 'results.json').unlink()
  outputs = run_two_processes(*several)
  assert 'going on after step 13' in outputs[0]
  np.testing.assert_allclose(column(tmp_path, 'train/loss'), expected, rtol=1e-4)
  assert_same_evaluation(tmp_path, one_device)


def test_two_processes_spread_the_state_and_resume(train, tmp_path):
  """Of eight devices of two processes; and what they saved goes on in one process."""
  run = *RUN, '--config.model.hidden_size=64', '--config.checkpoint_every=13', '--config.shard=all'
  result = train(*run, f'--workdir={tmp_path}/one')
  assert result.returncode == 0, result.stderr
  workdir = tmp_path / 'two'
  outputs = run_two_processes(*run, f'--workdir={workdir}')
  assert_same_losses(workdir, tmp_path / 'one')
  for start in (run_two_processes, lambda *args: [train(*args).stdout]):
    shutil.rmtree(workdir / 'checkpoints' / '20')
    (workdir / 'results.json').unlink()
    outputs = start(*run, '--config.data.resident=no', f'--workdir={workdir}')
    assert 'going on after step 13' in outputs[0]
    assert_same_losses(workdir, tmp_path / 'one')


@pytest.mark.parametrize('mode', ['preview', 'describe'])
def test_every_process_meets_the_mistakes_of_a_mode(tmp_path, mode):
  """Were it process 0 alone, the others would wait for it until they are aborted."""
  code = (
    'import jax, train; from vit_jax import cli; jax.process_index = lambda: 1; cli.run(train.main)'
  )
  flags = f'--mode={mode}', '--config=configs/digits.py', '--config.data.train_split=x'
  command = [sys.executable, '-c', code, *flags, f'--workdir={tmp_path}/run']
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert "config.data.train_split: 'x' is not " in result.stderr.splitlines()[-1]


def test_two_processes_start_from_the_weights_of_a_run_and_stream(one_device, train, tmp_path):
  finetuning = *RUN, f'--config.init_from={one_device}', '--config.freeze=("embedding",)'
  result = train(*finetuning, f'--workdir={tmp_path}/one')
  assert result.returncode == 0, result.stderr
  streamed = f'--workdir={tmp_path}/two', '--config.data.resident=no'
  outputs = run_two_processes(*finetuning, *streamed)
  assert f'starting from {one_device}' in outputs[0]
  assert_same_losses(tmp_path / 'two', tmp_path / 'one')
