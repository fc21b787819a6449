"""What is not imported: TensorFlow by a run, even where it is installed; training by models."""

import os
import subprocess
import sys

import pytest
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


@pytest.fixture
def spied(tmp_path):
  """An installed 'tensorflow' that leaves a mark when it is imported."""
  package = tmp_path / 'site' / 'tensorflow'
  package.mkdir(parents=True)
  mark = tmp_path / 'imported'
  (package / '__init__.py').write_text(
    f'import traceback; open({str(mark)!r}, "a").write("".join(traceback.format_stack()))\n'
  )
  return package.parent, mark


def test_the_spy_works(spied):
  """The test below can fail: an import of the spy leaves the mark."""
  site, mark = spied
  subprocess.run(
    [sys.executable, '-c', 'import tensorflow'], env={'PYTHONPATH': str(site)}, check=True
  )
  assert mark.exists()


@pytest.mark.parametrize('name', SETS)
def test_a_run_imports_no_tensorflow(spied, tmp_path, request, name):
  site, mark = spied
  args = [f'--workdir={tmp_path}/run', *SETS[name]]
  if name == 'mnist':
    args += [f'--config.data.dir={request.getfixturevalue("tfds_dir")}']
  result = subprocess.run(
    [sys.executable, 'train.py', *TINY, *args, '--config.num_steps=3'],
    env={**os.environ, 'PYTHONPATH': str(site)},
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  assert not mark.exists(), mark.read_text()


def test_models_need_no_checkpoints_data_or_plots():
  """All models can be imported where the packages that training and pictures need are absent."""
  program = """
import sys
sys.modules |= dict.fromkeys(
  ('orbax', 'grain', 'matplotlib', 'tensorflow_datasets', 'tensorboardX', 'PIL', 'sklearn')
)
from vit_jax import models
for name in models.BACKBONES:
  models.backbone(name)
"""
  result = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
