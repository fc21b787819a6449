"""python -m vit_jax.benchmark as a user runs it; what it times isn't tested."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
from command_server import command_server
from conftest import ROOT, TINY, virtual_devices

AGAINST = [arg.replace('--config', '--against') for arg in TINY]
QUICK = ('--turns=2', '--seconds=0.01')
# Multiply-adds of a layer of the tiny model's, and of what is around the layers, by hand.
BLOCK = 4 * 4 * 16 * 16 + 2 * 4 * 4 * 16 + 2 * 4 * 16 * 16
IMAGE, OUTSIDE = 4 * 16 * 16, 4 * 16 * 16 + 16 * 10  # patches; patches and head
TRAINING, FORWARD = 2 * (3 * (OUTSIDE + BLOCK) - IMAGE), 2 * (OUTSIDE + BLOCK)

needs_pytorch = pytest.mark.skipif(
  not (importlib.util.find_spec('torch') and importlib.util.find_spec('transformers')),
  reason='needs PyTorch and transformers',
)


@pytest.fixture(scope='module')
def benchmark():
  """Runs the command; returns its exit code, output and errors."""
  with command_server('vit_jax.benchmark') as run:
    yield run


def json_of(result):
  assert (result.returncode, result.stderr) == (0, '')
  return json.loads(result.stdout)


def check_summary(summary, turns=2):
  assert len(summary['turns']) == turns
  assert 0 < min(summary['turns']) == summary['low'] <= summary['median']
  assert summary['median'] <= summary['high'] == max(summary['turns'])


def check_row(row, flops, batch_size=64):
  """Checks what follows from the speed of a row: steps, operations, shares."""
  check_summary(row['images_per_second'])
  speed, steps = row['images_per_second']['median'], row['steps_per_second']['median']
  assert speed == pytest.approx(steps * batch_size)
  assert row['batch_size'] == batch_size
  assert row['dtype'] == 'float32'
  assert row['flops_per_image'] == flops
  assert row['flops_per_second'] == pytest.approx(speed * flops)
  assert row['first_step_seconds'] > 0


def test_help_shows_all_flags(benchmark):
  result = benchmark('--help')
  assert (result.returncode, result.stderr) == (0, '')
  for text in ('python -m vit_jax.benchmark', '--turns: ', '--config.FIELD=', '--against.FIELD='):
    assert text in result.stdout


def test_resident_against_streamed_in_training_inference_and_input(benchmark):
  report = json_of(benchmark(*TINY, *QUICK, '--what=data,train,infer', '--json'))
  assert {name: side['data'] for name, side in report['sides'].items()} == {
    'resident': 'resident',
    'streamed': 'streamed',
  }
  train, infer, data = (report[what]['rows'] for what in ('train', 'infer', 'data'))
  assert [*train] == [*data] == ['resident', 'streamed']
  assert [*infer] == ['resident']  # the model is one
  for row in train.values():
    check_row(row, TRAINING)
    assert row['compile_seconds'] > 0
  check_row(infer['resident'], FORWARD)
  peak = report['peaks']['float32']
  assert peak['from'] == 'a matrix product, timed here'
  for row in (train['resident'], infer['resident']):
    share = row['flops_per_second'] / peak['flops_per_second']
    assert row['share_of_peak'] == row['share_of_matrix_product'] == pytest.approx(share)
  for row in data.values():
    check_summary(row['images_per_second'])
    each = row['images_per_second_per_core']['median']
    assert each * row['cores'] == pytest.approx(row['images_per_second']['median'])
  for what in ('train', 'data'):
    (ratio,) = report[what]['ratios']
    assert (ratio['of'], ratio['to']) == ('resident', 'streamed')
    speeds = [report[what]['rows'][n]['images_per_second']['turns'] for n in (*train,)]
    assert ratio['turns'] == pytest.approx([a / b for a, b in zip(*speeds, strict=True)])


def test_two_experiments_with_the_ratio_of_their_flops(benchmark):
  """Of one layer in batches of 64, and three in batches of 32: multiply-adds counted by hand."""
  changes = ('--against.model.num_layers=3', '--against.batch_size=32')
  result = benchmark(*TINY, *AGAINST, *changes, *QUICK)
  assert (result.returncode, result.stderr) == (0, '')
  assert re.search(r'^config: jax .*; batch 64, float32$', result.stdout, re.MULTILINE)
  assert re.search(r'^against: jax .*; batch 32, float32$', result.stdout, re.MULTILINE)
  row = r'^{} +([\d.,]+) \(([\d.,]+) to ([\d.,]+)\) .* [\d.]+%$'
  for name in ('config', 'against'):
    found = re.search(row.format(name), result.stdout, re.MULTILINE).groups()
    middle, low, high = (float(number.replace(',', '')) for number in found)
    assert 0 < low <= middle <= high
  three = 2 * (3 * (OUTSIDE + 3 * BLOCK) - IMAGE)
  ratio = r'^config / against: [\d.]+ \([\d.]+ to [\d.]+\), 2 turns; FLOPs allow ([\d.]+)$'
  allowed = re.search(ratio, result.stdout, re.MULTILINE)[1]
  assert float(allowed) == pytest.approx(three / TRAINING, abs=0.005)


@needs_pytorch
def test_against_pytorch_with_its_loader_on_two_virtual_devices(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', virtual_devices(2)['XLA_FLAGS'])
  with command_server('vit_jax.benchmark') as benchmark:
    result = benchmark(
      *(*TINY, *QUICK, '--config.model.classifier=token', '--config.augment.shift=0'),
      *('--what=train,infer', '--against=torch', '--torch_from=transformers', '--torch_loader'),
      '--json',
    )
  report = json_of(result)
  assert report['sides']['config']['device_count'] == 2
  logits = report['sides']['torch']['logits']
  assert logits['largest_difference'] < 1e-4 * logits['standard_deviation']
  assert report['sides']['torch']['parameters'] == report['sides']['config']['parameters']
  assert 'transformers' in report['sides']['torch']['versions']
  assert report['sides']['torch']['loader']
  train, infer = (report[what]['rows'] for what in ('train', 'infer'))
  assert [*train] == ['config', 'plain', 'torch']
  assert [*infer] == ['config', 'torch']
  flops = [rows['config']['flops_per_image'] for rows in (train, infer)]
  for rows, count in zip((train, infer), flops, strict=True):
    for row in rows.values():
      check_row(row, count)
      assert row['share_of_peak'] > 0
  assert train['torch']['peak_memory_mib'] > 0
  assert [(r['of'], r['to']) for r in report['train']['ratios']] == [
    ('config', 'torch'),
    ('plain', 'torch'),
  ]


def test_virtual_devices(benchmark):
  report = json_of(benchmark(*TINY, *QUICK, '--devices=1,2', '--json'))
  counts = {name: side['device_count'] for name, side in report['sides'].items()}
  assert counts == {'1 device': 1, '2 devices': 2}
  for row in report['train']['rows'].values():
    check_row(row, TRAINING)
    assert row['share_of_peak'] is None
    assert row['peak_memory_of'] == 'host'
  assert report['train']['ratios'][0]['by_flops'] == 1


def test_two_experiments_on_virtual_devices_of_their_own(benchmark):
  args = *TINY, *AGAINST, '--config.batch_size=32', '--against.batch_size=16', '--devices=2,1'
  report = json_of(benchmark(*args, *QUICK, '--json'))
  counts = {name: side['device_count'] for name, side in report['sides'].items()}
  assert counts == {'config, 2 devices': 2, 'against, 1 device': 1}
  batches = [side['batch_size'] for side in report['sides'].values()]
  assert batches == [32, 16]


MISTAKES = [
  ([], '--config: give an experiment'),
  ([*TINY, '--against=configs/digit.py'], r"--against: .* did you mean 'configs/digits.py'\?"),
  (
    [*TINY, '--against=configs/digits.py', '--against.batch_sise=3'],
    r"--against.batch_sise: no such field; did you mean 'against.batch_size'\?",
  ),
  ([*TINY, '--what=trian'], r"--what: 'trian' is not one of train, .*; did you mean 'train'\?"),
  ([*TINY, '--what='], r"--what: '' is not one of train, infer, data, start"),
  ([*TINY, '--seconds=0'], r'--seconds: 0 is not over 0 and up to 3,600'),
  ([*TINY, '--seconds=nan'], r'--seconds: nan is not a number'),
  ([*TINY, '--seconds=1e300'], r'--seconds: 1e\+300 is not over 0 and up to 3,600'),
  ([*TINY, f'--turns={10**12}'], r'--turns: .*10000'),
  ([*TINY, '--what=start', '--seconds=1'], r'--seconds: not with --what=start'),
  ([*TINY, '--what=train,start', '--devices=1'], r'--devices: not with --what=start'),
  ([*TINY, '--devices=1,x'], r"--devices: '1,x' is not numbers of devices, as 1,8"),
  ([*TINY, '--devices=99999999'], r"--devices: '99999999' is not numbers of devices.* up to 999"),
  ([*TINY, '--devices=1', *AGAINST], r'--devices: give two numbers, of --config and of --against'),
  ([*TINY, '--torch=compile'], r'--torch: is for --against=torch'),
]
MISTAKES_WITH_PYTORCH = [
  (['--torch=eagre'], r"--torch: 'eagre' is not one of .*; did you mean 'eager'\?"),
  (['--what=data'], r'--against=torch: not with --what=data; --torch_loader times both'),
  (['--what=infer', '--torch_loader'], r'--torch_loader: is for --what=train'),
  (
    ['--torch_loader', '--config.model.classifier=token', '--config.data.resident=no'],
    r'--torch_loader: needs a set that stays on the device',
  ),
  (
    ['--torch_from=transformers', '--config.model.classifier=gmp'],
    r"--against=torch: transformers: classifier 'gmp' is not one of token",
  ),
]


@pytest.mark.parametrize(('args', 'message'), MISTAKES)
def test_mistakes(benchmark, args, message):
  check_mistake(benchmark(*args), message)


@needs_pytorch
@pytest.mark.parametrize(('args', 'message'), MISTAKES_WITH_PYTORCH)
def test_mistakes_with_pytorch(benchmark, args, message):
  check_mistake(benchmark(*TINY, '--against=torch', *args), message)


def check_mistake(result, message):
  assert result.returncode == 2
  assert re.match(f'benchmark.py: {message}', result.stderr), result.stderr
  assert result.stderr.count('\n') == 1


@needs_pytorch
def test_a_model_without_logits_has_no_twin(benchmark):
  result = benchmark('--config=configs/mae.py:Ti/4,digits', '--against=torch', '--what=infer')
  check_mistake(result, '--against=torch: the model has no head')


def test_pytorch_that_is_missing_is_told(tmp_path):
  (tmp_path / 'sitecustomize.py').write_text('import sys; sys.modules["torch"] = None\n')
  command = [sys.executable, '-m', 'vit_jax.benchmark', *TINY, '--against=torch']
  environment = {**os.environ, 'PYTHONPATH': str(tmp_path)}
  result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  check_mistake(result, '--against=torch: torch is not installed; pip install torch timm')


def test_the_time_to_the_first_step(benchmark):
  report = json_of(benchmark(*TINY, '--what', 'start', '--turns=1', '--json'))
  for name in ('cold', 'warm'):
    check_summary(report['start']['rows'][name]['seconds'], turns=1)


def test_the_start_of_a_run_that_fails_is_told(benchmark):
  result = benchmark(*TINY, '--what=start', '--turns=1', '--config.batch_size=0')
  message = 'benchmark.py: train.py: config.batch_size: 0 is not a whole number from 1 on\n'
  assert (result.returncode, result.stderr) == (2, message)
