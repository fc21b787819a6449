"""results.json: what is read of it, whatever is in it."""

import json

import pytest
from conftest import ROOT

from vit_jax.errors import UsageError
from vit_jax.run import results

KEPT = ROOT / 'tests' / 'kept_runs' / 'resnet' / results.FILE
DESCRIPTIONS = {'accuracy': {'unit': '%', 'higher_is_better': True, 'label': 'accuracy'}}


def write(folder, changes):
  """Writes the results of a run of an earlier version, with changes by dotted names."""
  content = json.loads(KEPT.read_text())
  for name, value in changes.items():
    *path, last = name.split('.')
    group = content
    for part in path:
      group = group[part]
    group[last] = value
  (folder / results.FILE).write_text(json.dumps(content))


def test_no_file_is_no_results(tmp_path):
  assert results.read(tmp_path) is None
  assert results.read_descriptions(tmp_path) == {}


def test_those_of_earlier_versions_are_read(tmp_path):
  write(tmp_path, {})
  found = results.read(tmp_path)
  assert (found['step'], found['start'], found['command']) == (2, {}, None)
  assert results.read_descriptions(tmp_path) == {}


def test_descriptions_are_read_where_there_are_some(tmp_path):
  write(tmp_path, {'metrics': DESCRIPTIONS, 'start': {'test/loss': 2}})
  assert results.read_descriptions(tmp_path) == DESCRIPTIONS


@pytest.mark.parametrize(
  ('changes', 'name'),
  [
    ({'step': '2'}, 'step'),
    ({'final': None}, 'final'),
    ({'final.test/accuracy': 'x'}, 'final.test/accuracy'),
    ({'best.step': None}, 'best.step'),
    ({'device': {'kind': 'cpu'}}, 'device.count'),
    ({'training': []}, 'training'),
    ({'metrics': {'accuracy': {'unit': '%'}}}, 'metrics.accuracy.higher_is_better'),
    ({'metrics': {'accuracy': 3}}, 'metrics.accuracy'),
    ({'reference': {'test/accuracy': None}}, 'reference.test/accuracy'),
    ({'flops_per_image': 3}, 'flops_per_image'),
  ],
)
def test_another_shape_is_a_line_that_names_the_place(tmp_path, changes, name):
  write(tmp_path, changes)
  with pytest.raises(UsageError) as error:
    results.read(tmp_path)
  expected = f"{tmp_path / results.FILE}: damaged: {name} is not what a run's end leaves"
  assert str(error.value) == expected


@pytest.mark.parametrize(
  ('content', 'problem'),
  [('{"step": 2, "sto', 'not valid JSON'), ('null', 'holds a NoneType'), ('{}', 'step is not')],
)
def test_a_cut_file_is_a_line(tmp_path, content, problem):
  (tmp_path / results.FILE).write_text(content)
  with pytest.raises(UsageError, match=rf'^{tmp_path}/results\.json: damaged: {problem}'):
    results.read(tmp_path)
  (tmp_path / results.FILE).unlink()
  (tmp_path / results.FILE).mkdir()
  with pytest.raises(UsageError, match=r'results\.json: cannot be read \(Is a directory'):
    results.read(tmp_path)
