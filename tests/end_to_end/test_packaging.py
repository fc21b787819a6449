"""What `pip install .` promises in pyproject.toml: commands, extras, packages."""

import importlib
import os
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

PYPROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
SCRIPTS = PYPROJECT['project']['scripts']


@pytest.mark.parametrize('name', SCRIPTS)
def test_scripts_run_the_command_of_their_name(name, monkeypatch):
  module, _, function = SCRIPTS[name].partition(':')
  ran = []
  monkeypatch.setattr('runpy.run_module', lambda module, **options: ran.append((module, options)))
  getattr(importlib.import_module(module), function)()
  ((command, options),) = ran
  assert command == f'vit_jax.{name.removeprefix("vit-jax-")}'
  assert importlib.util.find_spec(command)
  assert options == {'run_name': '__main__', 'alter_sys': True}


def test_a_script_works_from_any_folder(tmp_path):
  module, _, function = SCRIPTS['vit-jax-convert'].partition(':')
  result = subprocess.run(
    [sys.executable, '-c', f'import {module}; {module}.{function}()', 'a', 'b'],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert (result.returncode, result.stdout) == (2, '')
  assert result.stderr.startswith('convert.py: --to: ')


def test_extras_are_the_requirements_of_the_tests():
  lines = (ROOT / 'tests' / 'requirements.txt').read_text().splitlines()
  first, *requirements = lines
  assert first == '-r ../requirements.txt'
  assert PYPROJECT['project']['optional-dependencies']['test'] == requirements


def test_the_package_imports_nothing_that_is_not_installed():
  """The configs and tests are beside the package, and stay in the repository."""
  sources = list((ROOT / 'vit_jax').rglob('*.py'))
  assert sources
  for path in sources:
    for line in path.read_text().splitlines():
      assert not line.strip().startswith(('from configs', 'import configs', 'from tests')), path
