"""Every mistake a person can make with train.py: one clear line, exit code 2, nothing lost.

The whole text of a message is in the test of the module that raises it, where there is one; here
stands what the line must contain then: the field that the user has to change.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from command_server import command_server
from conftest import ROOT, TINY
from PIL import Image

DIGITS = '--config=configs/digits.py'
FOREIGN, READ_ONLY, EMPTY = 'foreign', 'read_only', 'empty'

# id -> (flags, what the line says)
MISTAKES = {
  'no config': ([], r'--config: give an experiment'),
  'no such config': (
    ['--config=configs/digit.py'],
    r"--config: configs/digit.py does not exist; did you mean 'configs/digits.py'\?",
  ),
  'unknown field': (
    [DIGITS, '--config.batchsize=3'],
    r"--config.batchsize: no such field; did you mean 'config.batch_size'\?",
  ),
  'unknown nested field': (
    [DIGITS, '--config.model.num_layer=3'],
    r"--config.model.num_layer: no such field; did you mean 'config.model.num_layers'\?",
  ),
  'a field of another model': (
    [DIGITS, '--config.model.mlp_ratio=3'],
    r'--config.model.mlp_ratio: no such field',
  ),
  'wrong type': (
    [DIGITS, '--config.batch_size=many'],
    r"--config.batch_size: 'many' is not an integer",
  ),
  'no size': (
    [DIGITS, '--config.data.image_size=8x8'],
    r"config.data.image_size: \('8x8',\) is not \(\) or 1 or 2 whole numbers from 1 ",
  ),
  'a seed beyond 64 bits': (
    [DIGITS, '--config.seed=9223372036854775808'],
    r'config.seed: 9223372036854775808 is not a whole number from 0 to 9223372036854775807',
  ),
  'no number of epochs': (
    [DIGITS, '--config.num_epochs=nan'],
    r'config.num_epochs: nan is not a number',
  ),
  'a shift beyond the image': (
    [DIGITS, '--config.augment.shift=8'],
    r'config.augment.shift: 8 pixels move images of 8x8 out of sight',
  ),
  'an empty config': (['--config='], r"--config: '' does not exist"),
  'an empty path': ([DIGITS, '--workdir='], r'--workdir: empty; give a value'),
  'no number': ([DIGITS, '--config.data.mean=x'], r"config.data.mean: \('x',\) is not a tuple"),
  'no regex': (
    [DIGITS, '--config.freeze=8'],
    r'config.freeze: \(8,\) is not a tuple',
  ),
  'a size without a data set': (
    ['--config=configs/vit.py:S/16'],
    r"--config: 'S/16' is no folder; a size needs a data set after it, as in 'S/16,cifar10'",
  ),
  'no truth value': ([DIGITS, '--config.augment.flip=2'], r"flip: '2' is not true or false"),
  'a flag without its value': ([DIGITS, '--workdir'], r'Missing value for flag --workdir'),
  'a value where none goes': ([DIGITS, '--nodistributed=3'], r'does not take an argument'),
  'unknown flag': ([DIGITS, '--wrkdir=x'], r'wrkdir.*Did you mean: workdir'),
  'unknown mode': ([DIGITS, '--mode=test'], r"--mode: 'test' is not one of train, eval"),
  'a word that is no flag': ([DIGITS, 'eval'], r"'eval' is not a flag"),
  'argument of a config without': (['--config=configs/digits.py:Ti/4'], r'takes no argument'),
  'unknown size': (
    ['--config=configs/vit.py:Tiny/4,digits'],
    r"model size 'Tiny' is not one of Ti, S, .*did you mean 'Ti'\?",
  ),
  'too many words': (['--config=configs/vit.py:Ti/4,digits,x'], r"is not 'SIZE,DATASET'"),
  'patch and image': (
    ['--config=configs/vit.py:Ti/3,digits'],
    r'config.model.patches.size: ',
  ),
  'heads and width': ([DIGITS, '--config.model.num_heads=5'], r'config.model.num_heads: '),
  'unknown data set': (
    ['--config=configs/vit.py:Ti/4,cifar11'],
    r"config.data.name.*cifar11.*did you mean 'cifar10",
  ),
  'unknown split': (
    [DIGITS, '--config.data.test_split=tset'],
    r'config.data.test_split: .*tset.*test',
  ),
  'unknown model': (
    [DIGITS, '--config.model.name=vitt'],
    r"config.model.name: 'vitt' is not one of .*did you mean 'vit'\?",
  ),
  'unknown optimiser': ([DIGITS, '--config.optimizer.name=admw'], r'config.optimizer.name: '),
  'an option of another optimiser': (
    [DIGITS, '--config.optimizer.momentum=0.9'],
    r'config.optimizer.momentum: ',
  ),
  'unknown schedule': ([DIGITS, '--config.schedule.name=cos'], r'config.schedule.name: '),
  'negative warmup': ([DIGITS, '--config.schedule.warmup_steps=-1'], r'schedule.warmup_steps: -1 '),
  'unknown task': ([DIGITS, '--config.task=classify'], r'config.task: '),
  'unknown loss': ([DIGITS, '--config.loss.name=softmx'], r'config.loss.name: '),
  'weights of other classes': (
    [DIGITS, '--config.loss.class_weights=1,2'],
    r'config.loss.class_weights: 2 numbers for 10 classes',
  ),
  'unknown sampling': (
    [DIGITS, '--config.data.sampling=balance'],
    r"config.data.sampling: 'balance' is not one of .*did you mean 'balanced'\?",
  ),
  'unknown monitor': (
    [DIGITS, '--config.monitor=test/acc'],
    r"config.monitor: 'test/acc' is not one of .*did you mean 'test/accuracy'\?",
  ),
  'unknown metric': (
    [DIGITS, "--config.metrics=('macro_f2',)"],
    r"config.metrics: 'macro_f2' is not one of .*did you mean 'macro_f1'\?",
  ),
  'predictions of training': (
    [DIGITS, '--predictions=a.csv'],
    r'--predictions: only with --mode=eval',
  ),
  'unknown dtype': ([DIGITS, '--config.dtype=float16'], r"config.dtype: 'float16'"),
  'negative batch': ([DIGITS, '--config.batch_size=-1'], r'config.batch_size: '),
  'accumulation and batch': (
    [DIGITS, '--config.grad_accum_steps=3'],
    r'config.grad_accum_steps: 3 does not divide the 128 examples',
  ),
  'augmentation out of range': (
    [DIGITS, '--config.augment.color_jitter.hue=0.7'],
    r'config.augment.color_jitter.hue: 0.7',
  ),
  'channels and mean': (
    [DIGITS, '--config.data.mean=(0.1,0.2,0.3)'],
    r'config.data.mean: 3 values, but images have 1 channels',
  ),
  'no class logits': ([DIGITS, '--config.model.classifier=none'], r'config.model.classifier'),
  'freezing nothing': ([DIGITS, "--config.freeze=('head',)"], r'config.freeze: '),
  'no images': (
    ['--config=configs/vit.py:Ti/4,./no/such/folder'],
    r'config.data.dir.*no/such/folder',
  ),
  'foreign workdir': ([DIGITS, f'--workdir={FOREIGN}'], r'--workdir: .*foreign is not empty and'),
  'unwritable workdir': (
    [DIGITS, f'--workdir={READ_ONLY}'],
    r'--workdir: .*read_only is not a folder',
  ),
  'nothing to evaluate': (
    [DIGITS, '--mode=eval', f'--workdir={EMPTY}'],
    r'empty.* holds no run \(no config.json\)',
  ),
  'half a cluster': ([DIGITS, '--coordinator=127.0.0.1:1'], r'go together'),
}


@pytest.fixture(scope='module')
def train():
  with command_server('train') as run:
    yield run


@pytest.fixture(scope='module')
def outcomes(train, tmp_path_factory):
  """Makes all of them."""
  folder = tmp_path_factory.mktemp('mistakes')
  (folder / FOREIGN).mkdir()
  (folder / FOREIGN / 'thesis.txt').write_text('not a run')
  (folder / READ_ONLY).write_text('a file where a folder should be')

  def run(args):
    args = [re.sub(r'^--workdir=(?=.)', f'--workdir={folder}/', arg) for arg in args]
    if not any(arg.startswith('--workdir') for arg in args):
      args.append(f'--workdir={folder / "new"}')
    return train(*args)

  return {name: run(args) for name, (args, _) in MISTAKES.items()}, folder


@pytest.mark.parametrize('mistake', MISTAKES)
def test_is_one_line_with_exit_code_2(outcomes, mistake):
  results, _ = outcomes
  result, says = results[mistake], MISTAKES[mistake][1]
  assert result.returncode == 2, result.stderr
  assert result.stdout == ''
  assert result.stderr.startswith('train.py: ')
  assert result.stderr.count('\n') == 1, result.stderr
  assert re.search(says, result.stderr), result.stderr


@pytest.mark.parametrize(
  ('code', 'frames', 'message'),
  [
    (
      'def get_config():\n  return half(0)\n\n\ndef half(n):\n  return 1 / n\n',
      ['2, in get_config', '6, in half'],
      'ZeroDivisionError: division by zero',
    ),
    ('def get_config():\n  open("/none")\n', ['2, in get_config'], r'FileNotFoundError: .*/none.*'),
    ('def get_config(:\n', ['1'], 'SyntaxError: invalid syntax'),
    ('import none\n', ['1, in <module>'], "ModuleNotFoundError: No module named 'none'"),
    ('get = None\n', [], r'has no get_config\(\)'),
    ('def get_config():\n  pass\n', [], r'get_config\(\) returned NoneType, not a ConfigDict'),
  ],
)
def test_a_config_at_fault_shows_its_own_frames_and_is_named(
  train, tmp_path, code, frames, message
):
  path = tmp_path / 'own.py'
  path.write_text(code)
  result = train(f'--config={path}', '--mode=describe')
  assert (result.returncode, result.stdout) == (2, '')
  *shown, line = result.stderr.splitlines()
  assert re.fullmatch(f'train.py: --config: {path}:? {message}', line)
  assert [f.partition(', line ')[2] for f in shown if f.startswith('  File ')] == frames
  assert {f.partition(', line ')[0] for f in shown if f.startswith('  File ')} <= {
    f'  File "{path}"'
  }


@pytest.mark.parametrize('flag', ['--help', '-h', '--helpfull'])
def test_help_shows_all_flags_and_how_fields_are_set(train, flag):
  result = train(flag)
  assert (result.returncode, result.stderr) == (0, '')
  assert result.stdout.startswith('Trains or evaluates one experiment: python train.py --config=')
  for name in ('--config: ', '--workdir: ', '--[no]distributed: ', '--config.FIELD=VALUE'):
    assert name in result.stdout


def test_help_with_a_config_lists_its_fields(train):
  result = train(DIGITS, '--config.model.name=token_learner', '--help')
  assert (result.returncode, result.stderr) == (0, '')
  lines = result.stdout.splitlines()
  assert '  --config.batch_size=128' in lines
  assert "  --config.model.patches.size='(2, 2)'" in lines
  assert '  --config.model.tokenizer.num_tokens=8' in lines
  assert train('--config=configs/digit.py', '--help').returncode == 2


def test_nothing_slow_is_imported_before_ctrl_c_ends_in_a_line():
  """And --help need not wait for it."""
  code = 'import sys, train; print(*{"jax", "flax", "numpy"} & sys.modules.keys())'
  result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert (result.returncode, result.stdout) == (0, '\n')


def test_nothing_is_lost_or_left(outcomes):
  _, folder = outcomes
  assert (folder / FOREIGN / 'thesis.txt').read_text() == 'not a run'
  assert os.listdir(folder / FOREIGN) == ['thesis.txt']
  assert not (folder / 'new').exists(), 'a run that never started leaves no folder'


def test_another_configuration_in_the_same_workdir(train, tmp_path):
  # What such a trial runs into is told, and it ends with where its pictures are.
  trial = ('--config.num_steps=2', '--config.schedule.warmup_steps=9', '--config.batch_size=1438')
  args = (*TINY, *trial, f'--workdir={tmp_path}')
  result = train(*args)
  assert result.returncode == 0, result.stderr
  assert 'config.schedule.warmup_steps: cut from 9 to 1, ' in result.stdout
  assert 'config.batch_size: 1,438 is more than the 1,437 train images; ' in result.stdout
  assert f'vit_jax.explain --workdir={tmp_path})' in result.stdout
  assert result.stdout.endswith(f'  {tmp_path}/plots/curves.png\n')
  assert json.loads((tmp_path / 'config.json').read_text())['schedule']['warmup_steps'] == 1
  assert 'nothing is left to train' in train(*args).stdout
  before = (tmp_path / 'results.json').read_text()
  result = train(*args, '--config.seed=1', '--config.optimizer.weight_decay=0.5')
  assert result.returncode == 2
  assert result.stderr.count('\n') == 1
  assert 'optimizer.weight_decay' in result.stderr
  assert (tmp_path / 'results.json').read_text() == before


def test_evaluating_without_or_with_damaged_checkpoints(train, tmp_path):
  args = (*TINY, '--config.num_steps=2', f'--workdir={tmp_path}')
  assert train(*args).returncode == 0
  result = train(*args, '--mode=eval')
  assert result.returncode == 0
  assert 'test/accuracy' in result.stdout
  for path in (tmp_path / 'checkpoints').rglob('*'):
    if path.is_file():
      path.write_bytes(b'')
  result = train(*args, '--mode=eval')
  assert result.returncode == 2
  assert re.fullmatch(r'train.py: .*damaged.*\n', result.stderr)
  for path in sorted((tmp_path / 'checkpoints').rglob('*'), reverse=True):
    path.unlink() if path.is_file() else path.rmdir()
  result = train(*args, '--mode=eval')
  assert result.returncode == 2
  assert re.fullmatch(r'train.py: --workdir: .*holds no checkpoint yet\n', result.stderr)


def test_a_file_that_cannot_be_decoded_is_named_and_skipped(train, tmp_path):
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for label in ('cat', 'dog'):
      folder = tmp_path / 'images' / split / label
      folder.mkdir(parents=True)
      for i in range(4):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f'{i}.png')
  (tmp_path / 'images' / 'train' / 'cat' / 'broken.jpg').write_text('not an image')
  result = train(
    f'--config=configs/vit.py:Ti/4,{tmp_path}/images',
    '--config.data.image_size=(8,12)',
    *[flag for flag in TINY if flag.startswith('--config.model')],
    '--config.batch_size=4',
    '--config.num_steps=2',
    f'--workdir={tmp_path}/run',
  )
  assert result.returncode == 0, result.stderr
  assert 'broken.jpg' in result.stderr
  assert '7 train, 1 val and 8 test images of 8x12x3, 2 classes' in result.stdout
