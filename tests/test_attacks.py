"""A few cases of the commands that attack: tests/fuzz.py and tests/kills.py."""

import pickle
import random
import subprocess
import sys

import fuzz_mutations
import numpy as np
import pytest
from conftest import ROOT
from forked_commands import Ending
from fuzz import MEMORY, Case, problem


def run(script, *args):
  command = [sys.executable, str(ROOT / 'tests' / script), *args]
  return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize('kind', ['weights', 'images', 'folders', 'commands'])
def test_what_is_damaged_is_told_in_a_line(kind):
  result = run('fuzz.py', kind, '--seed=1', '--count=8')
  assert result.returncode == 0, result.stdout + result.stderr
  assert f'{kind}: 8 cases, 0 unclean' in result.stdout


def test_a_killed_run_ends_as_if_it_had_not_been():
  result = run('kills.py', '--seed=1', '--count=1')
  assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({}, None),
    ({'code': 0, 'errors': ''}, None),
    ({'errors': 'predict.py: m.npz: cut\npredict.py: m.npz: damaged\n'}, None),
    ({'errors': 'm.npz\n'}, 'ends with'),
    ({'errors': 'predict.py: damaged\n'}, 'names nothing'),
    ({'errors': 'predict.py: m.npz: \x1b[31m\n'}, 'control character'),
    ({'errors': 'predict.py: m.npz\n' * 13}, '13 lines'),
    ({'errors': ''}, 'without a line'),
    ({'errors': 'Traceback (most recent call last):\n  x\nOSError: 1\n'}, 'traceback: OSError'),
    ({'code': 3}, 'exit code 3'),
    ({'code': -11}, 'exit code -11'),
    ({'code': -9, 'stopped': 'time'}, 'more than 120 s'),
    ({'peak': MEMORY + 1}, 'more than 2048 MiB'),
  ],
)
def test_an_unclean_ending_is_seen(tmp_path, changes, says):
  ending = Ending(2, None, '', 'predict.py: m.npz: damaged\n', 0, 1.0)._replace(**changes)
  found = problem(Case('vit_jax.predict', [], 'cut', ('m.npz',)), ending, tmp_path / 'executed')
  assert found is None if says is None else says in found


def test_what_is_executed_is_seen(tmp_path):
  case = Case('vit_jax.predict', [], 'pickle')
  assert problem(case, Ending(0, None, '', '', 0, 1.0), tmp_path) == 'EXECUTED'


def test_what_would_be_executed_is_where_it_is_unpickled(tmp_path):
  fuzz_mutations.pickled(tmp_path / 'a.pth', random.Random(0), tmp_path / 'first')
  pickle.loads((tmp_path / 'a.pth').read_bytes())
  assert (tmp_path / 'first').exists()
  (tmp_path / 'a.npy').write_bytes(fuzz_mutations.object_array(tmp_path / 'second'))
  np.load(tmp_path / 'a.npy', allow_pickle=True)
  assert (tmp_path / 'second').exists()


def test_equal_seeds_damage_alike(tmp_path):
  outcomes = []
  for name in ('first', 'second'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'a.json').write_text('{"a": [1, 2, {"b": "c"}], "d": 3}')
    rng = random.Random(4)
    done = [fuzz_mutations.damage(tmp_path / name, rng, tmp_path / 'x')[0] for _ in range(3)]
    outcomes.append((done, sorted(p.name for p in (tmp_path / name).iterdir())))
  assert outcomes[0] == outcomes[1]
