"""Run directories and weight files that an earlier version left, kept as it wrote them.

`run` was stopped after step 10 of 20, and `expected.jsonl` is what it would have written to the
end; the weight files were converted from its end. `resnet` and `token_learner` are finished. They
were made by train.py with the flags below, and by `python -m vit_jax.convert`.
"""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY
from PIL import Image

from vit_jax import models, weights
from vit_jax.run import results
from vit_jax.run.metrics import format_values
from vit_jax.run.writers import read_history

KEPT = ROOT / 'tests' / 'kept_runs'
RUN = (*TINY, '--config.num_steps=20', '--config.eval_every=10', '--config.checkpoint_every=10')
FINISHED = {
  'resnet': (
    '--config=configs/resnet.py:digits',
    '--config.model.num_filters=2',
    '--config.num_steps=2',
    '--config.batch_size=8',
    '--config.eval_batch_size=64',
    '--config.schedule.warmup_steps=0',
  ),
  'token_learner': (
    '--config=configs/token_learner.py:Ti/4,digits',
    '--config.model.hidden_size=16',
    '--config.model.mlp_dim=16',
    '--config.model.num_layers=2',
    '--config.model.num_heads=2',
    '--config.num_steps=2',
    '--config.batch_size=8',
  ),
}

# Number of variables and of their entries; of all entries, by the order of their paths, the sum of
# magnitudes and that of their products with cos(0), cos(1), ..., as the earlier version read them.
DIGESTS = {
  'run': ('vit', 23, 2234, 457.732707, -3.552782),
  'resnet': ('resnet18', 102, 11764, 1642.443904, 16.274896),
  'token_learner': ('token_learner', 45, 5570, 1024.770183, -2.154747),
  'w.npz': ('vit', 23, 2234, 458.06663, -3.506214),
  'w.safetensors': ('vit', 23, 2234, 458.06663, -3.506214),
  'w.msgpack': ('vit', 23, 2234, 458.06663, -3.506214),
}


@pytest.mark.parametrize('name', DIGESTS)
def test_values_are_those_that_the_earlier_version_read(name):
  variables, config = weights.load(KEPT / name)
  flat = models.flatten(variables)
  entries = np.concatenate([np.asarray(flat[path], np.float64).ravel() for path in sorted(flat)])
  total, mixed = np.abs(entries).sum(), entries @ np.cos(np.arange(entries.size))
  assert (config.name, len(flat), entries.size) == DIGESTS[name][:3]
  np.testing.assert_allclose((total, mixed), DIGESTS[name][3:], rtol=0, atol=2e-6)
  assert (config.channels, config.image_size, config.num_classes) == (1, (8, 8), 10)


def test_an_interrupted_run_goes_on_to_the_end_that_it_would_have_had(train, tmp_path):
  shutil.copytree(KEPT / 'run', tmp_path / 'run')
  result = train(*RUN, f'--workdir={tmp_path}/run', tiny=False)
  assert result.returncode == 0, result.stderr
  assert 'going on after step 10' in result.stdout
  found, expected = (
    read_history(path) for path in (tmp_path / 'run' / 'metrics.jsonl', KEPT / 'expected.jsonl')
  )
  assert [line['step'] for line in found] == [line['step'] for line in expected]
  for line, other in zip(found, expected, strict=True):
    assert line.keys() == other.keys()
    for key in line.keys() - {'images_per_second', 'peak_host_memory_mib'}:
      assert line[key] == pytest.approx(other[key], rel=1e-4), (line['step'], key)


@pytest.mark.parametrize('name', FINISHED)
def test_a_finished_run_is_known_again(train, tmp_path, name):
  shutil.copytree(KEPT / name, tmp_path / name)
  result = train(*FINISHED[name], f'--workdir={tmp_path}/{name}', tiny=False)
  assert result.returncode == 0, result.stderr
  assert 'complete after step 2, nothing is left to train' in result.stdout
  result = train(*FINISHED[name], '--mode=eval', f'--workdir={tmp_path}/{name}', tiny=False)
  assert result.returncode == 0, result.stderr
  best = json.loads((KEPT / name / 'results.json').read_text())['best']
  test = {metric: value for metric, value in best.items() if metric.startswith('test/')}
  shown = dict(zip(*[iter(result.stdout.replace(' %', '').split())] * 2, strict=True))
  assert shown.pop('step') == '2'
  expected = dict(zip(*[iter(format_values(test).replace(' %', '').split())] * 2, strict=True))
  assert shown.keys() == expected.keys()
  for metric in shown:
    assert float(shown[metric]) == pytest.approx(float(expected[metric]), rel=1e-3), metric


@pytest.mark.parametrize(
  ('mode', 'flag', 'message'),
  [
    ('train', '--config.data.sampling=balanced', "data.sampling 'uniform' there, 'balanced' now"),
    (
      'eval',
      '--config.optimizer.weight_decay_end=0.1',
      'optimizer.weight_decay_end None there, 0.1 now',
    ),
  ],
)
def test_fields_that_a_run_lacks_have_their_defaults(train, mode, flag, message):
  result = train(*RUN, f'--mode={mode}', flag, f'--workdir={KEPT}/run', tiny=False)
  assert result.returncode == 2
  assert f'holds a run of another configuration ({message})' in result.stderr


def test_results_that_record_no_units_are_formatted_by_the_metrics_names():
  assert results.read_descriptions(KEPT / 'resnet') == {}
  folder = KEPT / 'resnet'
  table = results.table(results.read(folder), folder)
  assert 'test/accuracy 10.00 %  test/loss 6.568  test/top5_accuracy 50.00 %' in table


@pytest.mark.parametrize(
  'source', ['--workdir=run', '--workdir=resnet', '--workdir=token_learner', '--weights=w.npz']
)
def test_they_predict(tmp_path, source):
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'digit.png')
  flag, name = source.split('=')
  command = [sys.executable, '-m', 'vit_jax.predict', f'{flag}={KEPT / name}', '--json', '--top=99']
  done = subprocess.run(
    [*command, tmp_path / 'digit.png'], cwd=ROOT, capture_output=True, text=True, check=True
  )
  predictions = json.loads(done.stdout)['predictions']
  assert sorted(p['label'] for p in predictions) == list(range(10))
  assert sum(p['probability'] for p in predictions) == pytest.approx(1, abs=1e-5)
