"""The examples of docs/own_parts.md, from a folder of their own, through the commands."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

# Commands one after the other in one process, each with the flags of its own module alone.
COMMANDS = """
import importlib, json, os, shutil, sys
import grain  # defines flags, which would be removed with those of a command
from absl import flags
from absl.testing import flagsaver
from vit_jax import cli

os._exit = sys.exit  # how cli leaves
module = None
for name, arguments, argv in json.loads(sys.argv[1]):
  if name == 'interrupt':  # as if it had been killed before its last checkpoint
    run, killed, step = argv
    shutil.copytree(run, killed)
    shutil.rmtree(f'{killed}/checkpoints/{step}')
    os.remove(f'{killed}/results.json')
    continue
  if module is None or module.__name__ != name:
    if module is not None:
      defined = flags.FLAGS.flags_by_module_dict().get(module.__name__, [])
      flags.FLAGS.remove_flag_values([flag.name for flag in defined])
    module = importlib.import_module(name)
    unparsed = flagsaver.save_flag_values()
  flagsaver.restore_flag_values(unparsed)
  flags.FLAGS.unparse_flags()
  sys.argv = [module.__file__, *argv]
  try:
    code = cli.run(module.main, arguments=arguments)
  except SystemExit as e:
    code = e.code
  print(f'exit code {code or 0}', flush=True)
"""
PARTS = (
  '--config.model.name=own_model:TinyNet',
  '--config.model.width=8',
  '--config.data.name=own_data:load',
  '--config.data.options.size=6',
  '--config.augment.own=own_augmentation:brighten',
  '--config.task=own_task:Ordinal',
  '--config.loss.distance_weight=2',
  '--config.metrics=own_metric:far_misses',
  '--config.writers=own_writer:Table',
)
RUN = (
  f'--config={ROOT}/configs/digits.py',
  *PARTS,
  '--config.num_steps=6',
  '--config.log_every=1',
  '--config.eval_every=3',
  '--config.batch_size=16',
  '--config.schedule.warmup_steps=0',
)
STREAMED = ('--config.data.resident=no', '--config.profile=(5,6)')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A user's folder: the examples, and some images."""
  folder = tmp_path_factory.mktemp('mine')
  for file in (ROOT / 'docs' / 'examples').glob('*.py'):
    shutil.copy(file, folder)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    from own_data import load

    for i, record in enumerate(load('test', '', size=6).read(range(3))):
      Image.fromarray(record['image'][..., 0]).save(folder / f'{i}.png')
  return folder


@pytest.fixture(scope='module')
def outputs(folder):
  """What the commands print there: of training, of going on, and so on."""
  commands = {
    'train': ('train', (), (*RUN, '--workdir=run')),
    'interrupt': ('interrupt', (), ('run', 'killed', '6')),
    'resume': ('train', (), (*RUN, *STREAMED, '--workdir=killed')),
    'evaluate': ('train', (), (*RUN, '--workdir=run', '--mode=eval')),
    'predict': (
      'vit_jax.predict',
      ('IMAGE_OR_FOLDER...',),
      ('--workdir=run', '--json', '0.png', '1.png', '2.png'),
    ),
    'explain': (
      'vit_jax.explain.__main__',
      ('[IMAGE_OR_FOLDER...]',),
      ('--workdir=run', '--pictures=confusion,curves'),
    ),
    'features': (
      'vit_jax.features',
      ('RUN_OR_WEIGHTS', '[IMAGE_OR_FOLDER...]'),
      ('run', 'features.npz'),
    ),
    'export': (
      'vit_jax.export',
      ('RUN_OR_WEIGHTS', 'FILE'),
      ('run', 'own.stablehlo', '--predictions'),
    ),
  }
  result = subprocess.run(
    [sys.executable, '-c', COMMANDS, json.dumps([*commands.values()])],
    cwd=folder,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  texts = result.stdout.split('exit code ')
  assert [text[0] for text in texts[1:]] == ['0'] * 7, result.stderr
  printed = [text.partition('\n')[2] if i else text for i, text in enumerate(texts)]
  return dict(zip([name for name in commands if name != 'interrupt'], printed, strict=False))


def values(folder, run):
  lines = (folder / run / 'table.csv').read_text().splitlines()
  return [line for line in lines if 'images_per_second' not in line and 'memory' not in line]


def test_every_part_is_used_in_training(folder, outputs):
  assert 'own_data:load: 256 train and 64 test images of 6x6x1, 3 classes' in outputs['train']
  assert 'own_model:TinyNet: 67 parameters' in outputs['train']
  config = json.loads((folder / 'run' / 'config.json').read_text())
  assert config['augment']['own'] == ['own_augmentation:brighten']
  assert config['loss']['distance_weight'] == 2
  names = {line.split(',')[1] for line in values(folder, 'run')}
  assert {'train/distance', 'test/distance', 'test/accuracy', 'test/far_misses'} <= names


def test_a_killed_run_goes_on_to_the_same_numbers(folder, outputs):
  assert 'killed: going on after step 3' in outputs['resume']
  assert values(folder, 'killed') == values(folder, 'run')


def test_steps_are_traced(folder, outputs):
  (trace,) = (folder / 'killed' / 'profile').rglob('perfetto_trace.json.gz')
  assert f'steps 5 to 6 are traced: {trace.relative_to(folder)} for' in outputs['resume']


def test_the_run_is_evaluated(folder, outputs):
  results = json.loads((folder / 'run' / 'results.json').read_text())
  assert f'test/distance {results["best"]["test/distance"]:.4g}' in outputs['evaluate']


def test_a_run_starts_from_one_of_an_own_model(folder, outputs, monkeypatch):
  from configs import finetune
  from vit_jax.train.experiment import Experiment

  monkeypatch.syspath_prepend(folder)
  config = finetune.get_config('own_data:load')
  changes = {'num_steps': 2, 'batch_size': 16, 'init_from': str(folder / 'run')}
  config.data.update(image_size=(6, 6), channels=1)
  config.schedule.warmup_steps = 0
  config.update(changes)
  assert Experiment(config).config.model.to_dict() == {'name': 'own_model:TinyNet', 'width': 8}


def test_predict_and_explain_know_the_parts(folder, outputs):
  lines = [json.loads(line) for line in outputs['predict'].splitlines()]
  assert [line['image'] for line in lines] == ['0.png', '1.png', '2.png']
  assert {entry['class'] for entry in lines[0]['predictions']} == {'square', 'cross', 'stripes'}
  assert {path.stem for path in (folder / 'run/plots/explain').iterdir()} == {'confusion', 'curves'}


def test_features_are_read_of_an_own_model_and_data_set(folder, outputs):
  found = np.load(folder / 'features.npz')
  assert found['features'].shape == (64, 8)  # width
  assert found['class_names'].tolist() == ['square', 'cross', 'stripes']
  assert 'each of 64 by the 20 nearest others' in outputs['features']


def test_an_own_model_and_task_are_exported(folder, outputs):
  exported = jax.export.deserialize((folder / 'own.stablehlo').read_bytes())
  images = np.stack([np.asarray(Image.open(folder / f'{i}.png')) for i in range(3)])
  rows = exported.call(images[..., None])['probabilities']
  for line, row in zip(outputs['predict'].splitlines(), rows, strict=True):
    predicted = [entry['probability'] for entry in json.loads(line)['predictions']]
    np.testing.assert_allclose(predicted, np.sort(row)[::-1], atol=1e-4)
