import tomllib
from pathlib import Path

import pytest

from vit_jax import requirements

ROOT = Path(__file__).resolve().parent.parent


def _lines(name):
  lines = (ROOT / name).read_text().splitlines()
  return [line for line in lines if not line.startswith('-')]


@pytest.fixture(scope='module')
def project():
  return tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def test_the_package_and_its_extras_need_what_a_checkout_needs(project):
  extras = project['optional-dependencies']
  needed = list(project['dependencies'])
  for extra in requirements.EXTRAS.values():
    assert extra in extras['all'][0]
    needed += extras[extra]
  assert sorted(needed) == sorted(_lines('requirements.txt'))


def test_constraints_fit_the_requirements():
  pins = dict(line.split('==') for line in _lines('constraints.txt'))
  for line in _lines('requirements.txt') + _lines('tests/requirements.txt'):
    requirement = requirements.Requirement(line)
    assert requirement.specifier.contains(pins[requirement.name.lower().replace('_', '-')]), line


def test_a_package_that_is_too_old_is_told_with_the_version_that_is_needed(monkeypatch):
  versions = {'jax': '0.6.9', 'flax': '0.10.7'}

  def version(name):
    if name not in versions:
      raise requirements.metadata.PackageNotFoundError(name)
    return versions[name]

  monkeypatch.setattr(requirements.metadata, 'version', version)
  with pytest.raises(
    ImportError, match=r'vit_jax needs jax>=0\.7\.2 \(0\.6\.9 is installed\); pip'
  ):
    requirements.check_versions()
  versions['jax'] = '0.7.2.dev1+local'
  with pytest.raises(ImportError, match='jax'):
    requirements.check_versions()
  versions['jax'] = '0.8.0'
  requirements.check_versions()


def test_an_installed_package_leaves_the_tools_of_tests_alone(monkeypatch, tmp_path):
  lines = ['jax>=0.7.2', 'av>=14.2; extra == "video"', 'torch==2.13.0; extra == "test"']
  monkeypatch.setattr(requirements, '__file__', str(tmp_path / 'vit_jax' / 'requirements.py'))
  monkeypatch.setattr(requirements.metadata, 'requires', lambda name: lines)
  found = requirements._requirements.__wrapped__()
  assert [requirement.name for requirement in found] == ['jax', 'av']


def test_a_copy_of_the_package_alone_needs_nothing_by_name(monkeypatch, tmp_path):
  def requires(name):
    raise requirements.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(requirements, '__file__', str(tmp_path / 'vit_jax' / 'requirements.py'))
  monkeypatch.setattr(requirements.metadata, 'requires', requires)
  assert requirements._requirements.__wrapped__() == ()


def test_a_missing_module_is_told_with_the_extra_that_brings_it(monkeypatch):
  monkeypatch.setattr(requirements.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ImportError, match=r"pip install 'vit_jax\[plots\]'"):
    requirements.need('matplotlib')
  assert requirements.advice('another') is None
