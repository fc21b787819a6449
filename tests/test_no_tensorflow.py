"""What isn't imported: TensorFlow and PyTorch by a run, training by models, wherever they are."""

import subprocess
import sys

import pytest
from command_server import command_server
from conftest import ROOT, TINY

# Streamed data and resident data, with TFDS and without.
SETS = {
  'digits': ('--config.data.resident=no',),
  'mnist': (
    '--config.data.resident=yes',
    '--config.data.name=mnist',
    '--config.data.channels=1',
    '--config.data.train_split=train[:300]',
    '--config.data.test_split=test[:100]',
  ),
}


PACKAGES = 'tensorflow', 'torch'


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """A folder of packages of these names, which leave a mark when they are imported."""
  root = tmp_path_factory.mktemp('site')
  for name in PACKAGES:
    (root / name).mkdir()
    (root / name / '__init__.py').write_text(
      f'import traceback; open({str(root / "mark")!r}, "a").write'
      '("".join(traceback.format_stack()))\n'
    )
  return root


@pytest.fixture
def mark(site):
  path = site / 'mark'
  path.unlink(missing_ok=True)
  return path


@pytest.fixture(scope='module')
def train(site):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('PYTHONPATH', str(site))
    with command_server('train', fresh=True) as run:
      yield run


@pytest.mark.parametrize('name', PACKAGES)
def test_the_spies_work(site, mark, name):
  """The test below can fail: an import of a spy leaves the mark."""
  subprocess.run(
    [sys.executable, '-c', f'import {name}'], env={'PYTHONPATH': str(site)}, check=True
  )
  assert mark.exists()


@pytest.mark.parametrize('name', SETS)
def test_a_run_imports_neither(train, mark, tmp_path, request, name):
  args = [*SETS[name], '--config.num_steps=3', f'--workdir={tmp_path}/run']
  if name == 'mnist':
    args += [f'--config.data.dir={request.getfixturevalue("tfds_dir")}']
  result = train(*TINY, *args)
  assert result.returncode == 0, result.stderr
  assert not mark.exists(), mark.read_text()


def test_models_and_features_need_no_plots():
  """They can be imported where the packages that training and pictures need are absent."""
  program = """
import sys
sys.modules |= dict.fromkeys(
  ('orbax', 'grain', 'matplotlib', 'tensorflow_datasets', 'tensorboardX', 'PIL', 'sklearn')
)
from vit_jax import models
for name in models.BACKBONES:
  models.backbone(name)
for name in ('orbax', 'grain', 'PIL'):
  del sys.modules[name]
import vit_jax.features
"""
  result = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
