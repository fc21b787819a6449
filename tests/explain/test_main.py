"""python -m vit_jax.explain as a user runs it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yolo_folders
from accuracies import assert_accuracy
from command_server import command_server
from conftest import ROOT, tiny_config
from explain.helpers import VIT, random_variables
from PIL import Image

from vit_jax import config_fields, weights
from vit_jax.data import load_source
from vit_jax.explain.evaluation import evaluate
from vit_jax.models import ModelConfig
from vit_jax.predictor import Predictor
from vit_jax.train import loop

ATTENTION = ['attention', 'attention_masks', 'rollout', 'gradient_rollout', 'attention_distance']
LEARNT = ['filters', 'positions']
FOUND = ['boxes', 'masks', 'class_iou', 'worst_masks', 'reconstructions']
MISTAKEN = ['confusion', 'wrong']
KEPT = ROOT / 'tests' / 'kept_runs'


@pytest.fixture(scope='module')
def explain():
  """Runs the command; returns its exit code, output and errors."""
  with command_server('vit_jax.explain.__main__', '[IMAGE_OR_FOLDER...]') as run:
    yield run


def save(variables, config, path):
  weights.save(variables, config, path, format='scenic')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder of weights, images and a finished run."""
  root = tmp_path_factory.mktemp('explain')
  for classifier in ('token', 'gap'):
    entries = {'classifier': classifier, 'class_names': ['cat', 'dög', '1']}
    config = ModelConfig.from_dict(VIT | entries)
    save(random_variables(config), config, root / f'{classifier}.msgpack')
  config = ModelConfig.from_dict(VIT)
  variables = random_variables(config)
  variables['params']['cls'][:] = np.nan
  save(variables, config, root / 'nan.msgpack')
  resnet = ModelConfig.from_dict({'name': 'resnet18', 'num_filters': 4, 'num_classes': 3})
  weights.save(random_variables(resnet), resnet, root / 'resnet.safetensors', format='torchvision')
  (root / 'images').mkdir()
  for i in range(3):
    pixels = np.random.default_rng(i).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / 'images' / f'{i}.png')
  (root / 'text.png').write_text('no image')
  changes = {'model.classifier': 'token', 'num_steps': 2, 'log_every': 1, 'eval_every': 2}
  loop.train_and_evaluate(tiny_config(**changes), root / 'run')
  return root


def drawn(result):
  """The lines of the output, paths as the names of their pictures."""
  assert (result.returncode, result.stderr) == (0, '')
  return [Path(line).stem if line.endswith('.png') else line for line in result.stdout.splitlines()]


def lacking(result):
  """What is drawn, and the one line on what is asked for by name and isn't."""
  assert result.returncode == 2
  (line,) = result.stderr.splitlines()
  return [Path(path).stem for path in result.stdout.splitlines()], line.partition(': ')[2]


def test_help_shows_all_flags(explain):
  result = explain('--help')
  assert (result.returncode, result.stderr) == (0, '')
  for text in ('python -m vit_jax.explain', '--pictures: ', '--head_fusion=mean|', '--mean: '):
    assert text in result.stdout


def test_a_run_is_explained_on_its_test_images(place):
  command = [sys.executable, '-m', 'vit_jax.explain', f'--workdir={place}/run', '--num_images=3']
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  written = [*ATTENTION, *LEARNT, *MISTAKEN, 'curves']
  skipped = [f'{name}: not of this model' for name in ('token_maps', *FOUND)]
  assert drawn(result) == [*ATTENTION, skipped[0], *LEARNT, *skipped[1:], *MISTAKEN, 'curves']
  for name in written:
    with Image.open(place / 'run' / 'plots' / 'explain' / f'{name}.png') as image:
      assert 500 <= image.width <= 1000, 'as wide as a README'
      assert np.ptp(np.asarray(image.convert('L'))) > 200, 'something is drawn'


def test_the_mistakes_of_a_run_are_those_that_it_reported(place):
  """In this process, where what is drawn can be asked."""
  variables, config = weights.load(str(place / 'run'))
  test = load_source('digits', 'test')
  evaluation = evaluate(Predictor(variables, config), test, 'digits, test')
  reported = json.loads((place / 'run' / 'results.json').read_text())['best']['test/accuracy']
  assert len(evaluation.labels) == 360
  assert_accuracy(reported, evaluation.probabilities, evaluation.labels)


def test_pictures_are_chosen_and_those_of_weights_need_no_images(explain, place, tmp_path):
  out = f'--out={tmp_path}'
  result = explain(f'--workdir={place}/run', out, '--pictures=curves,filters,curves')
  assert drawn(result) == ['curves', 'filters']
  result = explain(f'--weights={place}/gap.msgpack', out, '--pictures=positions,rollout,curves')
  needs = '--pictures: rollout: needs images; give some; curves: only of a run, as --workdir'
  assert lacking(result) == (['positions'], needs)
  assert sorted(path.stem for path in tmp_path.iterdir()) == ['curves', 'filters', 'positions']


def test_the_training_data_of_a_run_are_drawn_where_they_are_asked_for(explain, place, tmp_path):
  flags = f'--out={tmp_path}', '--pictures=data,classes'
  assert drawn(explain(f'--workdir={place}/run', *flags)) == ['data', 'classes']
  assert sorted(path.stem for path in tmp_path.iterdir()) == ['classes', 'data']
  result = explain(f'--weights={place}/gap.msgpack', *flags)
  reasons = '; '.join(f'{name}: only of a run, as --workdir' for name in ('data', 'classes'))
  assert lacking(result) == ([], f'--pictures: {reasons}')


def test_data_are_not_read_for_pictures_without_images(explain, place, tmp_path):
  shutil.copytree(place / 'run', tmp_path / 'run')
  path = tmp_path / 'run' / 'config.json'
  path.write_text(path.read_text().replace('"digits"', '"nowhere"'))
  pictures = '--pictures=filters,positions,curves'
  assert len(drawn(explain(f'--workdir={tmp_path}/run', pictures))) == 3
  assert explain(f'--workdir={tmp_path}/run').returncode == 2


def test_folders_with_names_of_classes_are_labels(explain, place, tmp_path):
  for name in ('cat', '1', 'other'):
    (tmp_path / name).mkdir()
    shutil.copy(place / 'images' / '0.png', tmp_path / name)
  args = f'--weights={place}/gap.msgpack', f'--out={tmp_path}/out', '--pictures=confusion,wrong'
  # All images are the same, so that one of the two is wrong.
  assert drawn(explain(*args, tmp_path / 'cat', tmp_path / '1')) == MISTAKEN
  unknown = 'the images are not in folders of the names of classes'
  reasons = '; '.join(f'{name}: {unknown}' for name in MISTAKEN)
  result = explain(*args, tmp_path / 'cat', tmp_path / 'other')
  assert lacking(result) == ([], f'--pictures: {reasons}')


def test_flags_add_what_a_file_lacks(explain, place, tmp_path):
  preprocess = {'mean': (0.1,), 'std': (0.3, 0.2, 0.5), 'crop': 'central'}
  names = {'class_names': ['ant', 'bee', 'fly']}
  config = ModelConfig.from_dict(VIT | {'preprocess': preprocess} | names)
  save(random_variables(config), config, tmp_path / 'complete.msgpack')
  (tmp_path / 'names').write_text('ant\nbee\nfly')
  flags = '--mean=0.1', '--std=0.3,0.2,0.5', '--crop=central', f'--class_names={tmp_path}/names'
  pictures = []
  bare = place / 'token.msgpack'
  runs = ((bare, ()), (bare, flags[:3]), (bare, flags), (tmp_path / 'complete.msgpack', ()))
  for path, given in runs:
    args = f'--weights={path}', *given, place / 'images', '--pictures=rollout'
    assert drawn(explain(*args, f'--out={tmp_path}')) == ['rollout']
    pictures.append((tmp_path / 'rollout.png').read_bytes())
  assert pictures[2] == pictures[3]
  assert len(set(pictures)) == 3


def test_a_token_learner_is_explained(explain, tmp_path):
  tokenizer = {'type': 'dynamic', 'num_tokens': 2, 'tokenlearner_loc': 0}
  changes = {'num_steps': 1, 'model.name': 'token_learner', 'model.classifier': 'gap'}
  config = tiny_config()
  config.model.tokenizer = tokenizer | {'use_v11': True, 'use_tokenfuse': False}
  config.update_from_flattened_dict(changes)
  loop.train_and_evaluate(config, tmp_path / 'run')
  lines = drawn(explain(f'--workdir={tmp_path}/run', '--num_images=2'))
  skipped, found = (
    [f'{name}: not of this model' for name in names] for names in (ATTENTION, FOUND)
  )
  assert lines == [*skipped, 'token_maps', *LEARNT, *found, *MISTAKEN, 'curves']


@pytest.mark.parametrize('model', ['vit', 'resnet18'])
def test_a_model_that_localizes_is_explained(explain, tmp_path, model):
  folder = yolo_folders.write(tmp_path / 'images', {'train': 8, 'test': 5}, size=(16, 24))
  config = tiny_config(num_steps=2, batch_size=8, eval_batch_size=5)
  config_fields.set_task(config, 'localization')
  config.data.update(name='yolo', dir=str(folder), image_size=(16, 16), channels=3)
  config.augment.shift, config.monitor = 0, 'test/loss'
  config.loss.name = 'softmax'
  if model == 'resnet18':
    config_fields.set_model(config, model)
    config.model.num_filters = 4
  loop.train_and_evaluate(config, tmp_path / 'run')
  lines = drawn(explain(f'--workdir={tmp_path}/run'))
  of_vits = ['rollout', 'attention_distance', *LEARNT]
  assert [line for line in lines if line in [*of_vits, 'boxes', *MISTAKEN, 'curves']] == [
    *(of_vits if model == 'vit' else ()),
    'boxes',
    *MISTAKEN,
    'curves',
  ]
  assert 'gradient_rollout: not of this model' in lines
  image = folder / 'test' / 'images' / '0.png'
  assert drawn(explain(f'--workdir={tmp_path}/run', image, '--pictures=boxes')) == ['boxes']
  result = explain(f'--workdir={tmp_path}/run', '--class=red')
  assert (result.returncode, result.stderr.split(':')[1]) == (2, ' --class')


def test_files_are_explained_with_weights_and_damaged_ones_named(explain, place, tmp_path):
  result = explain(
    f'--weights={place}/token.msgpack',
    place / 'text.png',
    place / 'images',
    f'--out={tmp_path}/new/folder',
    '--num_images=3',
    '--layer=0',
    '--class=dög',
    '--head_fusion=min',
    '--discard_ratio=0.5',
  )
  assert result.returncode == 1
  assert result.stderr.startswith(f'{place}/text.png: cannot be decoded (')
  assert result.stderr.count('\n') == 1
  assert result.stdout.startswith('taking 3 of 4 images; --num_images says how many\n')
  for name in ATTENTION:
    assert (tmp_path / 'new' / 'folder' / f'{name}.png').stat().st_size > 1000


def test_of_several_folders_about_as_many_are_taken(explain, place, tmp_path):
  """Files that can't be decoded are named, and so tell which are taken."""
  for name, count in {'cat': 9, 'ant': 2, 'dog': 5}.items():
    (tmp_path / name).mkdir()
    for i in range(count):
      (tmp_path / name / f'{i}.png').write_text('no image')
  folders = (tmp_path / name for name in ('cat', 'ant', 'dog'))
  result = explain(f'--weights={place}/gap.msgpack', *folders, f'--out={tmp_path}/out')
  assert result.returncode == 2
  taken = [line.partition('.png')[0] for line in result.stderr.splitlines()[:-1]]
  expected = {'cat': range(3), 'ant': range(2), 'dog': range(3)}
  assert taken == [f'{tmp_path}/{name}/{i}' for name in expected for i in expected[name]]


def test_pictures_that_a_model_lacks_are_named(explain, place, tmp_path):
  images = place / 'images'
  result = explain(f'--weights={place}/gap.msgpack', images, f'--out={tmp_path}')
  assert 'attention: not of this model' in drawn(result)
  assert not (tmp_path / 'attention.png').exists()
  assert (tmp_path / 'rollout.png').exists()
  named = '--pictures=token_maps,rollout,attention'
  pictures, message = lacking(
    explain(f'--weights={place}/gap.msgpack', images, f'--out={tmp_path}', named)
  )
  assert pictures == ['rollout']
  assert message == (
    '--pictures: token_maps: not of this model; attention: not of this model; of this model there '
    'are rollout, gradient_rollout, attention_distance, filters, positions, confusion, wrong'
  )


def test_a_class_is_found_by_its_name_before_its_index(explain, place, tmp_path):
  pictures = {}
  for given in ('0', '1', '2', 'cat'):
    args = place / 'images' / '0.png', f'--out={tmp_path}', f'--class={given}'
    result = explain(f'--weights={place}/token.msgpack', *args)
    assert (result.returncode, result.stderr) == (0, '')
    with Image.open(tmp_path / 'gradient_rollout.png') as image:
      title = image.height // 10  # differs: '1' is a name
      pictures[given] = np.asarray(image)[title:].tobytes()
  assert pictures['0'] == pictures['cat']
  assert pictures['1'] == pictures['2']
  assert pictures['0'] != pictures['1']


MISTAKES = {
  'no model': (['IMAGE'], 'give one of --workdir='),
  'both': (['--workdir=RUN', '--weights=WEIGHTS'], 'give one of --workdir='),
  'no out': (['--weights=WEIGHTS', 'IMAGE'], '--weights: give --out=DIR, too'),
  'picture': (
    ['--workdir=RUN', '--pictures=curves,rolout'],
    "--pictures: 'rolout' is not one of attention, ",
  ),
  'not finite': (['--weights=NAN', '--out=OUT'], 'NAN: the weights have numbers that are not fin'),
  'mean': (['--weights=WEIGHTS', '--out=OUT', '--mean=0,1'], '--mean: 2 values, but images have 3'),
  'no run': (['--workdir=OUT'], 'OUT'),
  'no file': (['--workdir=RUN', 'OUT'], 'OUT: no such image or folder'),
  'damaged': (['--workdir=RUN', 'TEXT'], 'no image can be decoded'),
  'layer': (['--workdir=RUN', '--layer=1'], '--layer: 1 is not a layer; the model has 0 to 0'),
  'no choice of layers': (
    ['--weights=GAP', '--out=OUT', 'IMAGE', '--layer=0'],
    '--layer: vit has no choice of layers for the picture `attention`',
  ),
  'class': (
    ['--weights=WEIGHTS', '--out=OUT', 'IMAGE', '--class=dog'],
    "--class: 'dog' is neither the name nor the index of one of the 3 classes; did you mean 'dög'?",
  ),
  'index': (['--workdir=RUN', '--class=10'], "'10' is neither the name nor the index"),
  'class of a ResNet': (
    [f'--workdir={KEPT}/resnet', '--class=1'],
    '--class: for the gradients of models that only classify',
  ),
  'class of a TokenLearner': (
    [f'--workdir={KEPT}/token_learner', '--class=1'],
    '--class: for the gradients of models that only classify',
  ),
  'no image size': (
    ['--weights=UNSIZED', '--out=OUT', 'IMAGE'],
    '--image_size: the weights do not say how large their images are; give HEIGHT,WIDTH',
  ),
  'fusion': (['--workdir=RUN', '--head_fusion=median'], '--head_fusion'),
  'ratio': (['--workdir=RUN', '--discard_ratio=1'], '--discard_ratio'),
  'out': (['--workdir=RUN', '--out=TEXT'], '--out: TEXT cannot be written (File exists)'),
  'flag': (['--workdir=RUN', '--leyer=1'], "Unknown command line flag 'leyer'"),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_end_in_one_line_and_exit_code_2(explain, place, tmp_path, mistake):
  names = {
    'RUN': place / 'run',
    'WEIGHTS': place / 'token.msgpack',
    'GAP': place / 'gap.msgpack',
    'NAN': place / 'nan.msgpack',
    'UNSIZED': place / 'resnet.safetensors',
    'IMAGE': place / 'images' / '0.png',
    'TEXT': place / 'text.png',
    'OUT': tmp_path / 'out',
  }
  args, message = MISTAKES[mistake]
  for name, path in names.items():
    args = [arg.replace(name, str(path)) for arg in args]
    message = message.replace(name, str(path))
  result = explain(*args)
  assert result.returncode == 2
  lines = result.stderr.splitlines()
  assert lines[-1].startswith('explain: ')
  assert message in lines[-1]
  assert len(lines) == (2 if mistake == 'damaged' else 1), result.stderr
  assert not (tmp_path / 'out').exists()
