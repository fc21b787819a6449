"""python -m vit_jax.compare as a user runs it."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_server import command_server
from conftest import ROOT
from small_vits import SQUARE, random_variables

from vit_jax import weights

DIGITS = SQUARE.replace(channels=1, num_classes=10, activation='gelu_exact')
ENVIRONMENT = {**os.environ, 'OMP_WAIT_POLICY': 'passive'}  # tests share the machine
QUICK = ('--seconds=0.05', '--turns=2', '--batch_size=16')

needs_pytorch = pytest.mark.skipif(
  not (importlib.util.find_spec('torch') and importlib.util.find_spec('transformers')),
  reason='needs PyTorch and transformers',
)


@pytest.fixture(scope='module')
def hub_cache(tmp_path_factory):
  """The folder of Hugging Face's cache."""
  return tmp_path_factory.mktemp('hub')


@pytest.fixture(scope='module')
def compare(hub_cache):
  """Runs the command, without a network; returns its exit code, output and errors."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('OMP_WAIT_POLICY', ENVIRONMENT['OMP_WAIT_POLICY'])
    patch.setenv('HF_HUB_CACHE', str(hub_cache))
    patch.setenv('HF_HUB_OFFLINE', '1')
    with command_server('vit_jax.compare', '[RUN...]') as run:
      yield run


def start_compare(*args, **env):
  """Runs the command to its end in a process of its own, with more in its environment."""
  command = [sys.executable, '-m', 'vit_jax.compare', *map(str, args)]
  return subprocess.run(
    command, cwd=ROOT, env={**ENVIRONMENT, **env}, capture_output=True, text=True, timeout=300
  )


@pytest.fixture
def cached_on_the_hub(hub_cache):
  """The name of a model in Hugging Face's cache."""
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  model = transformers.ViTForImageClassification(
    transformers.ViTConfig(
      hidden_size=16,
      num_hidden_layers=2,
      num_attention_heads=2,
      intermediate_size=32,
      image_size=8,
      patch_size=2,
      num_channels=1,
      num_labels=10,
      initializer_range=0.2,
    )
  )
  folder, commit = hub_cache / 'models--some--vit', 'c' * 40
  model.save_pretrained(folder / 'snapshots' / commit)
  (folder / 'refs').mkdir()
  (folder / 'refs' / 'main').write_text(commit)
  return 'hf:some/vit'


@needs_pytorch
def test_json_of_a_hub_model_on_a_data_set(compare, cached_on_the_hub):
  args = (f'--weights={cached_on_the_hub}', '--dataset=digits', '--num_images=100', '--json')
  result = compare(*args, *QUICK)
  assert result.returncode == 0, result.stderr
  assert result.stderr == ''
  report = json.loads(result.stdout)
  assert report['weights'] == cached_on_the_hub
  assert report['images'] == {'from': 'digits, test', 'count': 100, 'shape': [8, 8, 1]}
  assert report['logits']['largest_difference'] < 1e-4
  assert report['logits']['standard_deviation'] > 0.1
  assert report['logits']['top_1_agreement'] == 1
  accuracy = report['logits']['accuracy']
  assert accuracy['jax'] == accuracy['pytorch'] < 0.5
  assert report['first_losses']['jax'] == pytest.approx(report['first_losses']['pytorch'], rel=1e-4)
  assert (report['dtype'], report['batch_size'], report['turns']) == ('float32', 16, 2)
  for task in ('inference', 'training'):
    for name in ('jax', 'pytorch', 'ratio'):
      summary = report[task][name]
      assert 0 < summary['low'] <= summary['median'] <= summary['high']
  for name, package in (('jax', 'flax'), ('pytorch', 'transformers')):
    assert report[name]['device'] == 'cpu'
    assert report[name]['threads'] > 0
    assert package in report[name]['versions']


@needs_pytorch
def test_table_of_a_file_that_pytorch_cannot_read_itself(compare, tmp_path):
  weights.save(random_variables(DIGITS), DIGITS, tmp_path / 'm.npz', format='augreg')
  result = compare(f'--weights={tmp_path}/m.npz', '--num_images=20', '--dtype=bfloat16', *QUICK)
  assert result.returncode == 0, result.stderr
  difference = re.search(r'^logit difference +at most (\S+), on', result.stdout, re.MULTILINE)
  assert float(difference[1]) < 1e-4
  speed = r' +[\d,.]+ \([\d,.]+ to [\d,.]+\)'
  for pattern in (
    r'JAX +python .*, jax .*; cpu, \d+ threads',
    r'PyTorch +python .*, torch .*, transformers .*; cpu, \d+ threads',
    r'images +20 of 8x8x1 \(random images\)',
    r'top-1 agreement +100\.00%',
    r'images/s, batch 16, bfloat16 \(.*torch\.autocast\): median \(low to high\) of 2 turns; .*',
    rf'inference{speed * 3}',
    rf'training{speed * 3}',
  ):
    assert re.search(f'^{pattern}$', result.stdout, re.MULTILINE), (pattern, result.stdout)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """A folder of models that Hugging Face's classifier can't be, and one that it can."""
  folder = tmp_path_factory.mktemp('models')
  changes = {
    'gmp.npz': {'classifier': 'gmp'},
    'headless.npz': {'num_classes': 0},
    'pre_logits.npz': {'representation_size': 5},
    'good.npz': {},
  }
  for name, change in changes.items():
    config = DIGITS.replace(**change)
    weights.save(random_variables(config), config, folder / name, format='augreg')
  blocked = folder / 'blocked'
  blocked.mkdir()
  (blocked / 'sitecustomize.py').write_text('import sys; sys.modules["transformers"] = None\n')
  dying = folder / 'dying' / 'transformers'
  dying.mkdir(parents=True)
  (dying / '__init__.py').write_text('import os; os._exit(7)\n')
  return folder


# id -> (flags, what the line says)
MISTAKES = {
  'no weights': ([], r'--weights: give a file'),
  'gmp': (['--weights=gmp.npz'], r"gmp.npz: classifier .*'gmp' is not one of token"),
  'no head': (['--weights=headless.npz'], r'headless.npz: the model has no head, so'),
  'pre-logits': (['--weights=pre_logits.npz'], r'pre_logits.npz: representation_size 5 has no'),
  'no such data set': (
    ['--weights=good.npz', '--dataset=digts'],
    r"--dataset: there is no data set 'digts'; did you mean 'digits'\?",
  ),
  'a wrong flag': (
    ['--weights=good.npz', '--dtype=float16'],
    r"--dtype: 'float16' is not one of float32, bfloat16",
  ),
}


@needs_pytorch
@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_end_in_one_line_and_exit_code_2(compare, files, mistake):
  args, message = MISTAKES[mistake]
  assert_mistake(
    compare(*(arg.replace('--weights=', f'--weights={files}/') for arg in args)), message
  )


@needs_pytorch
@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('blocked', r'transformers not installed; pip install torch transformers'),
    ('dying', r'PyTorch: its process ended with exit code 7'),
  ],
)
def test_a_package_that_is_missing_or_ends_its_process(files, path, message):
  result = start_compare(f'--weights={files}/good.npz', PYTHONPATH=str(files / path))
  assert_mistake(result, message)


def assert_mistake(result, message):
  assert result.returncode == 2, result.stderr
  assert result.stdout == ''
  assert result.stderr.startswith('compare.py: ')
  assert result.stderr.count('\n') == 1, result.stderr
  assert re.search(message, result.stderr), result.stderr
  assert '/tmp/tmp' not in result.stderr, 'the folder that is written for PyTorch'


@needs_pytorch
@pytest.mark.skipif(not Path('/proc').is_dir(), reason='needs /proc to see when to interrupt')
def test_ctrl_c_ends_everything_with_a_line(files):
  command = [sys.executable, '-m', 'vit_jax.compare', f'--weights={files}/good.npz', '--seconds=99']
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    env=ENVIRONMENT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  while len(children(process.pid)) < 2:
    assert process.poll() is None
    time.sleep(0.05)
  os.killpg(process.pid, signal.SIGINT)
  _, err = process.communicate(timeout=60)  # waits for the sides too, which have them open
  assert process.returncode == 128 + signal.SIGINT
  assert err == 'compare.py: interrupted\n'


def children(pid):
  """Ids of the processes that a process has started."""
  return Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
