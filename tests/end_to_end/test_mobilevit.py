"""A MobileViT through the commands: trained, resumed, drawn."""

import json
import shutil

import jax
import numpy as np
import pytest
from command_server import command_server

from vit_jax import weights
from vit_jax.errors import UsageError

TINY_MOBILEVIT = (
  '--config=configs/mobilevit.py:XXS,digits',
  '--config.model.neck_hidden_sizes=(4,4,4,8,8,8,12)',
  '--config.model.hidden_sizes=(8,8,8)',
  '--config.model.depths=(1,1,1)',
  '--config.model.num_heads=2',
  '--config.num_steps=4',
  '--config.batch_size=32',
  '--config.log_every=2',
  '--config.eval_every=2',
  '--config.schedule.warmup_steps=0',
)


@pytest.fixture(scope='module')
def run(train, tmp_path_factory):
  """A run with layer decay and a frozen first convolution."""
  workdir = tmp_path_factory.mktemp('mobilevit') / 'run'
  options = ('--config.optimizer.layer_decay=0.7', "--config.freeze=('conv_1/.*',)")
  command = (*TINY_MOBILEVIT, *options, f'--workdir={workdir}')
  done = train(*command, tiny=False)
  assert done.returncode == 0, done.stderr
  return workdir, command


def test_a_run_that_was_cut_off_ends_with_the_same_bits(run, train, tmp_path):
  workdir, command = run
  expected, _ = weights.load(workdir)
  results = json.loads((workdir / 'results.json').read_text())
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '4')
  (tmp_path / 'run' / 'results.json').unlink()
  done = train(*command[:-1], f'--workdir={tmp_path / "run"}', tiny=False)
  assert done.returncode == 0, done.stderr
  assert 'going on after step 2' in done.stdout
  again = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert again['final'] == results['final']
  jax.tree.map(np.testing.assert_array_equal, weights.load(tmp_path / 'run')[0], expected)


def test_it_is_not_written_where_it_has_no_place(run, tmp_path):
  message = r'strides \(1, 1, 2, 2, 2, 1\) has no place there'
  with pytest.raises(UsageError, match=message):
    weights.save(*weights.load(run[0]), tmp_path / 'no.safetensors', format='timm')


def test_attention_is_drawn_and_what_there_is_not_says_so(run, tmp_path):
  with command_server('vit_jax.explain.__main__', '[IMAGE...]') as explain:
    pictures = '--pictures=attention,rollout,filters,positions,attention_distance,token_maps'
    drawn = explain(f'--workdir={run[0]}', f'--out={tmp_path}', '--num_images=1', pictures)
  assert drawn.returncode == 2, drawn.stderr
  assert sorted(path.name for path in tmp_path.glob('*.png')) == ['attention.png']
  for name in ('rollout', 'filters', 'positions', 'attention_distance', 'token_maps'):
    assert f'{name}: not of this model' in drawn.stderr
