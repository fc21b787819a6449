"""Tables of runs beside published values, on made-up results.json files."""

import json

import pytest
from command_server import command_server

from vit_jax.comparison import runs
from vit_jax.errors import UsageError

RESULTS = {
  'model': 'vit',
  'dataset': 'mnist',
  'step': 18740,
  'epochs': 19.989,
  'stopped_early': False,
  'final': {'train/accuracy': 0.9761, 'train/loss': 0.08, 'test/accuracy': 0.9512},
  'best': {'step': 9370, 'train/accuracy': 0.9001, 'test/accuracy': 0.9634},
  'monitor': 'test/accuracy',
  'reference': {'train/accuracy': 0.946, 'source': 'a write-up'},
  'parameters': 40682,
  'flops_per_image': {'forward': 1415168.0, 'training': 4195328.0},
  'training': {'steps_per_second': 12.25, 'images_per_second': 7840.4},
  'device': {'kind': 'cpu', 'platform': 'cpu', 'count': 1, 'processes': 1},
  'dtype': 'float32',
  'versions': {'jax': '0.10.2'},
}


def write(folder, name, **changes):
  """A run's folder with such results; None leaves a field out."""
  path = folder / name
  path.mkdir()
  results = {k: v for k, v in (RESULTS | changes).items() if v is not None}
  (path / 'results.json').write_text(json.dumps(results))
  return str(path)


def cells(table):
  """The cells of a Markdown table: names of columns, and a dict for each row."""
  lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()]
  assert set(''.join(lines[1])) <= {'-', ':'}
  assert len({len(line) for line in lines}) == 1
  return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def table(*workdirs):
  return cells(runs.format_runs([runs.read(workdir) for workdir in workdirs]))


def test_a_training_metric_is_that_of_the_end(tmp_path):
  (row,) = table(write(tmp_path, 'mnist-fixed'))
  assert row == {
    'run': 'mnist-fixed',
    'model': 'vit',
    'data set': 'mnist',
    'epochs': '19.99',
    'metric': 'train/accuracy',
    'ours': '97.61 %',
    'published': '94.60 %',
    'parameters': '40,682',
    'MFLOPs/image': '1.4',
    'images/s': '7,840',
    'device': '1 x cpu, float32',
  }


def test_a_test_metric_is_that_of_the_best_evaluation(tmp_path):
  (row,) = table(write(tmp_path, 'run', reference={'test/accuracy': 0.7503}))
  assert (row['metric'], row['ours'], row['published']) == ('test/accuracy', '96.34 %', '75.03 %')


def test_without_a_reference_there_is_a_dash(tmp_path):
  (row,) = table(write(tmp_path, 'run', reference={}))
  assert (row['metric'], row['ours'], row['published']) == ('test/accuracy', '96.34 %', '—')


def test_every_metric_of_a_reference_has_a_row(tmp_path):
  reference = {'test/accuracy': 0.99, 'steps_per_second': 72.0, 'test/none': 0.5}
  rows = table(write(tmp_path, 'a', reference=reference), write(tmp_path, 'b'))
  assert [row['run'] for row in rows] == ['a', 'a', 'a', 'b']
  assert [row['ours'] for row in rows] == ['96.34 %', '12.25', '—', '97.61 %']
  assert [row['published'] for row in rows] == ['99.00 %', '72', '0.5', '94.60 %']


def test_a_run_of_an_older_version_has_dashes(tmp_path):
  changes = dict.fromkeys(('model', 'dataset', 'epochs', 'reference', 'flops_per_image'))
  training = {'steps_per_second': None, 'images_per_second': None}
  (row,) = table(write(tmp_path, 'old', **changes, training=training))
  for name in ('model', 'data set', 'epochs', 'published', 'MFLOPs/image', 'images/s'):
    assert row[name] == '—'
  assert row['parameters'] == '40,682'


def write_seeds(folder):
  """Runs that start from runs of three seeds, and another that differs in more."""
  workdirs = []
  for seed, accuracy in enumerate((0.91, 0.95, 0.9)):
    starts = [folder / f'start-{seed}', folder / f'tuned-{seed}']
    for path, start in zip(starts, ('', str(starts[0])), strict=True):
      write(folder, path.name, best={'step': 3, 'test/accuracy': accuracy}, reference={})
      (path / 'config.json').write_text(json.dumps({'seed': seed, 'init_from': start, 'x': 1}))
    workdirs.append(str(starts[1]))
  other = write(folder, 'other', reference={})
  (folder / 'other' / 'config.json').write_text(json.dumps({'seed': 0, 'init_from': '', 'x': 2}))
  return [*workdirs, other]


def test_runs_that_differ_in_seeds_alone_are_a_row_with_mean_and_spread(tmp_path):
  rows = cells(runs.format_runs(runs.over_seeds(write_seeds(tmp_path))))
  assert [(row['run'], row['ours']) for row in rows] == [
    ('tuned', '92.00 % (90.00 % to 95.00 %, 3 runs)'),
    ('other', '96.34 %'),
  ]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (None, '^--runs: .* holds no finished run'),
    ('{', 'results.json: damaged: not valid JSON'),
    ('[]', 'results.json: damaged: holds a list'),
    ('{"step": 3}', "results.json: damaged: stopped_early is not what a run's end leaves"),
  ],
)
def test_what_is_no_result_is_one_line(tmp_path, text, message):
  if text is not None:
    (tmp_path / 'results.json').write_text(text)
  with pytest.raises(UsageError, match=message) as error:
    runs.read(str(tmp_path))
  assert '\n' not in str(error.value)


@pytest.fixture(scope='module')
def compare():
  """Runs the command; returns its exit code, output and errors."""
  with command_server('vit_jax.compare', '[RUN...]') as run:
    yield run


def test_help_shows_all_flags(compare):
  result = compare('--help')
  assert (result.returncode, result.stderr) == (0, '')
  for text in ('python -m vit_jax.compare --runs', '--weights: ', '--dtype=float32|', '--mean: '):
    assert text in result.stdout


def test_the_command_prints_json_of_all_runs(compare, tmp_path):
  result = compare('--runs', write(tmp_path, 'a'), write(tmp_path, 'b', reference={}), '--json')
  assert result.returncode == 0, result.stderr
  first, second = json.loads(result.stdout)
  assert first['metrics'] == {'train/accuracy': {'ours': 0.9761, 'published': 0.946}}
  assert second['metrics'] == {'test/accuracy': {'ours': 0.9634, 'published': None}}
  assert (first['source'], second['source']) == ('a write-up', None)
  for name in ('dataset', 'epochs', 'parameters', 'flops_per_image', 'device', 'versions'):
    assert first[name] == RESULTS[name]


def test_the_command_prints_mean_and_spread(compare, tmp_path):
  result = compare('--runs', '--over_seeds', '--json', *write_seeds(tmp_path))
  assert result.returncode == 0, result.stderr
  tuned, other = json.loads(result.stdout)
  values = tuned['metrics']['test/accuracy']
  assert (tuned['count'], values['low'], values['high']) == (3, 0.9, 0.95)
  assert values['ours'] == pytest.approx(0.92)
  assert other['count'] == 1


def test_unfinished_runs_are_left_out(compare, tmp_path):
  (tmp_path / 'unfinished').mkdir()
  result = compare('--runs', tmp_path / 'unfinished', write(tmp_path, 'a'), tmp_path / 'a.txt')
  assert result.returncode == 0
  assert [row['run'] for row in cells(result.stdout)] == ['a']
  assert result.stderr.splitlines() == [
    f'{tmp_path}/{name}: left out, no finished run' for name in ('unfinished', 'a.txt')
  ]


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--runs'], '--runs: give the folders of runs'),
    (['--runs', 'no/run'], '--runs: no/run holds no finished run'),
    (['--runs', 'x', '--weights=y'], '--weights, --runs: give one of them'),
    (['--over_seeds'], '--over_seeds: is of runs'),
    (['no/run'], "'no/run' is not a flag; run directories need --runs"),
  ],
)
def test_mistaken_commands(compare, args, message):
  result = compare(*args)
  assert result.returncode == 2
  assert result.stderr.startswith(f'compare.py: {message}')
  assert result.stderr.count('\n') == 1
