"""python -m vit_jax.benchmark as a user runs it; what it times isn't tested."""

import re

import pytest
from command_server import command_server
from conftest import TINY

AGAINST = [arg.replace('--config', '--against') for arg in TINY]
QUICK = ('--turns=2', '--seconds=0')
# Multiply-adds of a layer of the tiny model's, and of what is around the layers, by hand.
BLOCK = 4 * 4 * 16 * 16 + 2 * 4 * 4 * 16 + 2 * 4 * 16 * 16
IMAGE, OUTSIDE = 4 * 16 * 16, 4 * 16 * 16 + 16 * 10  # patches; patches and head


@pytest.fixture(scope='module')
def benchmark():
  """Runs the command; returns its exit code, output and errors."""
  with command_server('vit_jax.benchmark') as run:
    yield run


def rows(result, *names):
  assert result.returncode == 0, result.stderr
  pattern = r'^{} +([\d.]+)(?: steps/s)?  \((.*)\)$'
  found = {name: re.search(pattern.format(name), result.stdout, re.MULTILINE) for name in names}
  return {name: (float(match[1]), match[2]) for name, match in found.items()}


def test_help_shows_all_flags(benchmark):
  result = benchmark('--help')
  assert (result.returncode, result.stderr) == (0, '')
  for text in ('python -m vit_jax.benchmark', '--turns: ', '--config.FIELD=', '--against.FIELD='):
    assert text in result.stdout


def test_resident_against_streamed(benchmark):
  found = rows(benchmark(*TINY, *QUICK), 'resident', 'streamed', 'ratio')
  for middle, spread in found.values():
    low, high = map(float, re.fullmatch(r'([\d.]+) to ([\d.]+), 2 turns', spread).groups())
    assert 0 < low <= middle <= high


def test_two_experiments_with_the_ratio_of_their_flops(benchmark):
  """Of one layer in batches of 64, and three in batches of 32: multiply-adds counted by hand."""
  changes = ('--against.model.num_layers=3', '--against.batch_size=32')
  result = benchmark(*TINY, *AGAINST, *changes, *QUICK)
  found = rows(result, 'config', 'against', 'ratio', 'by FLOPs')
  assert 'batch 64 and 32\n' in result.stdout
  one = 64 * (3 * (OUTSIDE + BLOCK) - IMAGE)
  three = 32 * (3 * (OUTSIDE + 3 * BLOCK) - IMAGE)
  ratio, of_each = found['by FLOPs']
  assert ratio == pytest.approx(three / one, abs=0.005)
  assert of_each == f'{2 * one / 1e9:.4g} and {2 * three / 1e9:.4g} GFLOP a step'


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ([], '--config: give an experiment'),
    ([*TINY, '--against=configs/digit.py'], r"--against: .* did you mean 'configs/digits.py'\?"),
    (
      [*TINY, '--against=configs/digits.py', '--against.batch_sise=3'],
      r"--against.batch_sise: no such field; did you mean 'against.batch_size'\?",
    ),
  ],
)
def test_mistakes(benchmark, args, message):
  result = benchmark(*args)
  assert result.returncode == 2
  assert re.match(f'benchmark.py: {message}', result.stderr)
  assert result.stderr.count('\n') == 1


def test_the_share_of_the_peak(benchmark):
  """By the printed speed and a step's operations; of one side where the data's place is set."""
  result = benchmark(*TINY, *QUICK, '--config.data.resident=yes')
  found = rows(result, 'config')
  assert 'streamed' not in result.stdout
  share = re.search(
    r'^config +(\d+) examples/s, ([\d.e-]+) TFLOP/s, ([\d.]+) % .* \(([\d.e-]+) TFLOP/s a device: '
    r'a matrix product, timed here\)$',
    result.stdout,
    re.MULTILINE,
  )
  examples, rate, percent, peak = map(float, share.groups())
  assert examples == pytest.approx(64 * found['config'][0], rel=0.01)
  assert rate * 1e12 == pytest.approx(examples * 2 * (3 * (OUTSIDE + BLOCK) - IMAGE), rel=0.01)
  assert percent == pytest.approx(100 * rate / peak, abs=0.06)


def test_the_time_to_the_first_step(benchmark):
  result = benchmark(*TINY, '--what', 'start', '--turns=1')
  assert result.returncode == 0, result.stderr
  found = dict(re.findall(r'^(cold|warm) +([\d.]+) s ', result.stdout, re.MULTILINE))
  assert float(found['cold']) > float(found['warm']) > 0


def test_the_start_of_a_run_that_fails_is_told(benchmark):
  result = benchmark(*TINY, '--what=start', '--turns=1', '--config.batch_size=0')
  message = 'benchmark.py: train.py: config.batch_size: 0 is not positive\n'
  assert (result.returncode, result.stderr) == (2, message)
