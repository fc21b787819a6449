"""What isn't imported: TensorFlow and PyTorch by a run, training by models, wherever they are."""

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


PACKAGES = 'tensorflow', 'torch'


@pytest.fixture
def spied(tmp_path):
  """Installed packages of these names, which leave a mark when they are imported."""
  site, mark = tmp_path / 'site', tmp_path / 'imported'
  for name in PACKAGES:
    (site / name).mkdir(parents=True)
    (site / name / '__init__.py').write_text(
      f'import traceback; open({str(mark)!r}, "a").write("".join(traceback.format_stack()))\n'
    )
  return site, mark


@pytest.mark.parametrize('name', PACKAGES)
def test_the_spies_work(spied, name):
  """The test below can fail: an import of a spy leaves the mark."""
  site, mark = spied
  subprocess.run(
    [sys.executable, '-c', f'import {name}'], env={'PYTHONPATH': str(site)}, check=True
  )
  assert mark.exists()


@pytest.mark.parametrize('name', SETS)
def test_a_run_imports_neither(spied, tmp_path, request, name):
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
