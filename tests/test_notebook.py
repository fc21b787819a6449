"""The notebook for Colab, run from its first cell to its last, with tiny settings."""

import os
import shutil
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import ROOT, TINY
from small_vits import SQUARE, random_params

from vit_jax import weights

NOTEBOOK = ROOT / 'notebooks' / 'colab.ipynb'
PUBLISHED = SQUARE | {'num_classes': 0, 'patches': {'size': (16, 16)}, 'image_size': (32, 32)}
SMALL = [flag for flag in TINY if flag.startswith('--config.model')]
DATA = ['--config.data.train_split=train[:64]', '--config.data.test_split=test[:16]']
SHORT = ['--config.num_steps=2', '--config.batch_size=8', '--config.schedule.warmup_steps=0']
ARCHITECTURE = [f'--config.model.{n}={SQUARE[n]}' for n in ('hidden_size', 'mlp_dim', 'num_layers')]


@pytest.fixture
def checkout(tmp_path):
  """What a clone has, as it is now, and weights in place of those on the hub."""
  for name in ('vit_jax', 'configs', 'docs'):
    shutil.copytree(ROOT / name, tmp_path / 'vit_jax' / name)
  for name in ('train.py', 'requirements.txt'):
    shutil.copy(ROOT / name, tmp_path / 'vit_jax')
  weights.save(random_params(PUBLISHED), PUBLISHED, tmp_path / 'published', format='huggingface')
  return tmp_path


def test_it_runs_to_its_end(checkout, tfds_dir, monkeypatch):
  folder = Path(sys.executable).parent
  monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')
  monkeypatch.setenv('TFDS_DATA_DIR', os.path.abspath(tfds_dir))
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  assert not any(cell.get('outputs') for cell in notebook.cells), 'it is kept without outputs'
  settings = {
    'DIGITS': [*SMALL, *SHORT],
    'CIFAR': [*SMALL, *SHORT, *DATA],
    'FINETUNING': [*ARCHITECTURE, *SHORT, *DATA, '--config.model.num_heads=2'],
    'PUBLISHED': [str(checkout / 'published')],
  }
  for cell in notebook.cells:
    tags = cell.metadata.get('tags', ())
    if 'settings' in tags:
      quoted = {name: ' '.join(f"'{flag}'" for flag in flags) for name, flags in settings.items()}
      cell.source = '\n'.join(f'{name} = {flags!r}' for name, flags in quoted.items())
    elif 'once' in tags:  # downloads
      cell.source = ''
    elif cell.cell_type == 'code' and cell.source.startswith('!'):
      cell.source += "\nassert _exit_code == 0, 'see the output above'"
  resources = {'metadata': {'path': str(checkout)}}
  nbclient.NotebookClient(
    notebook, timeout=300, kernel_name='python3', resources=resources
  ).execute()
  shown = [out for cell in notebook.cells for out in cell.get('outputs', ()) if 'data' in out]
  assert sum('image/png' in out.data for out in shown) == 6
  assert (checkout / 'vit_jax' / 'finetuned-vit' / 'model.safetensors').exists()
