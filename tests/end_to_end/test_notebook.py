"""The notebook for Colab, run from its first cell to its last, with tiny settings."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import ROOT, TINY
from ml_collections.config_flags.config_flags import ConfigFileFlagParser
from small_vits import SQUARE, random_variables

from vit_jax import weights
from vit_jax.train.resolve import resolve
from vit_jax.train.schedules import make_schedule

NOTEBOOK = ROOT / 'notebooks' / 'colab.ipynb'
PUBLISHED = SQUARE.replace(num_classes=0, patches={'size': (16, 16)}, image_size=(32, 32))
SMALL = [flag for flag in TINY if flag.startswith('--config.model')]
DATA = ['--config.data.train_split=train[:64]', '--config.data.test_split=test[:16]']
SHORT = ['--config.num_steps=2', '--config.batch_size=8', '--config.schedule.warmup_steps=0']
SMALL_IMAGES = ['--config.data.image_size=(32,32)']
_SIZES = ('hidden_size', 'mlp_dim', 'num_layers')
ARCHITECTURE = [f'--config.model.{n}={getattr(SQUARE.backbone, n)}' for n in _SIZES]


def settings(notebook):
  """What the notebook's own cell of settings says."""
  names = {}
  exec(next(c.source for c in notebook.cells if 'settings' in c.metadata.get('tags', ())), names)
  return {name: value for name, value in names.items() if name.isupper()}


def test_its_own_settings_are_those_of_runs_that_start():
  """What the tiny settings below would hide."""
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  commands = [c.source for c in notebook.cells if c.source.startswith('!python train.py')]
  assert len(commands) == 3
  for command in commands:
    words = shlex.split(command.format(**settings(notebook)))
    config = ConfigFileFlagParser('config').parse(words[2].removeprefix('--config='))
    for word in words[3:]:
      if field := re.fullmatch(r'--config\.([\w.]+)=(.+)', word):
        names, value = field[1].rsplit('.', 1), field[2]
        parent = config[names[0]] if len(names) > 1 else config
        parent[names[-1]] = type(parent[names[-1]])(value)
    config = resolve(config, num_examples=1437)
    make_schedule(config, config.num_steps)


@pytest.fixture
def checkout(tmp_path):
  """What a clone has, as it is now, with weights in place of those on the hub beside it."""
  (tmp_path / 'vit_jax' / 'notebooks').mkdir(parents=True)
  for name in ('vit_jax', 'configs', 'docs'):
    shutil.copytree(ROOT / name, tmp_path / 'vit_jax' / name)
  for name in ('train.py', 'requirements.txt'):
    shutil.copy(ROOT / name, tmp_path / 'vit_jax')
  weights.save(random_variables(PUBLISHED), PUBLISHED, tmp_path / 'published', format='huggingface')
  return tmp_path


def test_it_runs_to_its_end(checkout, tfds_dir, monkeypatch):
  folder = Path(sys.executable).parent
  monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')
  monkeypatch.setenv('TFDS_DATA_DIR', os.path.abspath(tfds_dir))
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  assert not any(cell.get('outputs') for cell in notebook.cells), 'it is kept without outputs'
  tiny = {
    'DIGITS': [*SMALL, *SHORT],
    'CIFAR': [*SMALL, *SHORT, *DATA],
    'FINETUNING': [*ARCHITECTURE, *SHORT, *SMALL_IMAGES, '--config.model.num_heads=2'],
  }
  for cell in notebook.cells:
    tags = cell.metadata.get('tags', ())
    if 'settings' in tags:
      flags = {name: f'{settings(notebook)[name]} {shlex.join(tiny[name])}' for name in tiny}
      flags |= {
        'PUBLISHED': str(checkout / 'published'),
        'IMAGES': settings(notebook)['IMAGES'],
      }
      cell.source = '\n'.join(f'{name} = {value!r}' for name, value in flags.items())
    elif 'once' in tags:  # downloads
      cell.source = ''
    elif cell.cell_type == 'code' and cell.source.startswith('!'):
      cell.source += "\nassert _exit_code == 0, 'see the output above'"
  resources = {'metadata': {'path': str(checkout / 'vit_jax' / 'notebooks')}}
  nbclient.NotebookClient(
    notebook, timeout=300, kernel_name='python3', resources=resources
  ).execute()
  shown = [out for cell in notebook.cells for out in cell.get('outputs', ()) if 'data' in out]
  assert sum('image/png' in out.data for out in shown) == 8
  printed = ''.join(
    out.text for cell in notebook.cells for out in cell.get('outputs', ()) if 'text' in out
  )
  assert '80 files, as images/china/0.jpg' in printed
  assert printed.count('.jpg\r\n') == 4, 'those whose classes are predicted'
  assert len(printed) < 20_000, 'no flood of progress bars'
  assert (checkout / 'vit_jax' / 'finetuned-vit' / 'model.safetensors').exists()
