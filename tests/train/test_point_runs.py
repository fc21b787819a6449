"""Runs on points, with a small backbone of the tests' own: data, training, resuming, prediction."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.special
from conftest import ROOT, virtual_devices
from point_models import Cloud, register

from vit_jax import models, weights
from vit_jax.data import clouds
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import BACKBONES, ModelConfig, Preprocessing
from vit_jax.predictor import Predictor, preparation
from vit_jax.train import loop
from vit_jax.train.experiment import Experiment

EIGHT = """
import json, sys
import point_models
from pathlib import Path
from test_point_runs import make_config
from vit_jax import cli, predict
from vit_jax.train import loop
point_models.register()
folder, workdir, changes, bad = sys.argv[1:]
loop.train_and_evaluate(make_config(folder, **json.loads(changes)), Path(workdir))
sys.argv[1:] = [f'--workdir={workdir}', '--json', f'{folder}/rod/test', bad]
cli.run(predict.main, arguments=('[FILE...]',))
"""
EXPLAIN = """
import point_models
from vit_jax import cli
from vit_jax.explain import __main__ as explain
point_models.register()
cli.run(explain.main)
"""
CLASSES = ('ball', 'rod')
# Everything that is random in a run.
RANDOM = {
  'augment.rotation': 'so3',
  'augment.point_scale': 0.25,
  'augment.point_shift': 0.1,
  'augment.point_jitter': 0.01,
  'data.test_rotation': 'so3',
}


@pytest.fixture(scope='module', autouse=True)
def _cloud_is_registered():
  register()
  yield
  del BACKBONES['cloud']


def shape(label, seed, count=40):
  """A ball or a rod along y, somewhere, of some size."""
  rng = np.random.default_rng(seed)
  points = rng.normal(size=(count, 3))
  points /= np.linalg.norm(points, axis=1, keepdims=True)
  return rng.uniform(1, 9) * points * ((1, 1, 1), (0.1, 1, 0.1))[label] + rng.normal(size=3)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('points')
  for s, (split, count) in enumerate({'train': 16, 'test': 8}.items()):
    for label, name in enumerate(CLASSES):
      (root / name / split).mkdir(parents=True, exist_ok=True)
      for i in range(count):
        points = shape(label, seed=100 * s + i, count=40 + i % 3)
        np.savetxt(root / name / split / f'{i}.{("xyz", "txt")[i % 2]}', points)
  return root


def make_config(folder, **changes):
  from configs import common

  config = common.get_config('vit')
  with config.unlocked():
    config.model = {'name': 'cloud', 'hidden_size': 8}
  config.batch_size, config.num_steps, config.eval_every, config.log_every = 16, 20, 10, 1
  config.schedule.warmup_steps, config.optimizer.learning_rate = 0, 5e-2
  config.data.update(name='point_folder', dir=str(folder), num_points=24, num_threads=2)
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope='module')
def run(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  return workdir, loop.train_and_evaluate(make_config(folder, **RANDOM), workdir)


def column(workdir, name):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [line[name] for line in lines if name in line]


def test_a_run_on_points_learns_their_shapes(run, folder):
  workdir, results = run
  assert results['final']['test/accuracy'] > 0.9, 'chance is one half'
  entries = json.loads((workdir / 'model.json').read_text())
  assert (entries['num_points'], entries['image_size'], entries['channels']) == (24, None, 3)
  assert entries['preprocess'] is None
  text = Experiment(make_config(folder)).describe()
  assert f'{folder.name}: 32 train and 16 test points of 24x3, 2 classes, streamed' in text
  assert results['flops_per_image']['forward'] == 2 * 24 * (3 * 8 + 8 * 8) + 2 * 8 * 2


def test_a_resumed_run_ends_with_the_same_bits(run, folder, tmp_path):
  workdir = shutil.copytree(run[0], tmp_path / 'run')
  (workdir / 'checkpoints' / '20').rename(tmp_path / 'gone')
  (workdir / 'results.json').unlink()
  loop.train_and_evaluate(make_config(folder, **RANDOM), workdir)
  ours, theirs = (weights.load(path)[0] for path in (run[0], workdir))
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope='module')
def eight_devices(folder, tmp_path_factory):
  """A run like that of `run` on eight devices, and what predict did with it in the same process."""
  root = tmp_path_factory.mktemp('eight')
  (root / 'bad.off').write_text('OFF\n9 9 9\n')
  paths = os.pathsep.join(map(str, (ROOT, ROOT / 'tests', ROOT / 'tests' / 'train')))
  command = [
    sys.executable,
    '-c',
    EIGHT,
    folder,
    root / 'run',
    json.dumps(RANDOM),
    root / 'bad.off',
  ]
  environment = virtual_devices(8) | {'PYTHONPATH': paths}
  result = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
  return root, result


def test_eight_devices_give_the_losses_of_one(run, eight_devices):
  for name, count in (('train/loss', 20), ('test/loss', 2)):
    expected, found = (column(path, name) for path in (run[0], eight_devices[0] / 'run'))
    assert len(found) == count
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_rotations_of_the_test_are_part_of_it_alone(run, folder, tmp_path):
  """The same checkpoint, evaluated as it is stored and turned; every evaluation turns alike."""
  workdir = shutil.copytree(run[0], tmp_path / 'run')
  losses = {}
  for rotation in ('none', 'z', 'so3', 'so3'):
    config = make_config(folder, **RANDOM | {'data.test_rotation': rotation})
    loss = loop.evaluate(config, workdir)['test/loss']
    assert losses.setdefault(rotation, loss) == loss
  assert len(set(losses.values())) == 3
  assert losses['so3'] in column(workdir, 'test/loss')
  model, variables = (weights.load(workdir)[i] for i in (1, 0))
  logits, labels = [], []
  source, preprocess = Experiment(make_config(folder)).sets['test']
  for record in source:
    points = preprocess(record)['points'].astype(float)
    points -= points.mean(axis=0)
    points /= np.linalg.norm(points, axis=1).max()
    logits.append(model.model.apply(variables, np.float32(points[None]))[0])
    labels.append(record['label'])
  expected = -scipy.special.log_softmax(logits, axis=1)[np.arange(16), labels].mean()
  np.testing.assert_allclose(losses['none'], expected, rtol=1e-5)


def test_the_predictor_computes_what_the_evaluation_did(run, folder, tmp_path):
  workdir, _ = run
  variables, config = weights.load(workdir)
  predictor = Predictor(variables, config)
  results = loop.evaluate(
    make_config(folder, **RANDOM | {'data.test_rotation': 'none'}),
    shutil.copytree(workdir, tmp_path / 'run'),
  )
  losses = []
  for label, name in enumerate(CLASSES):
    paths = clouds.find_clouds(folder / name / 'test')
    for _, row in predictor.map(clouds.decode_points, paths, 4):
      losses.append(-np.log(row[label]))
  np.testing.assert_allclose(np.mean(losses), results['test/loss'], rtol=1e-4)
  points = clouds.decode_points(paths[0])
  assert predictor.picture(points).shape == (224, 224, 3)


def test_predict_takes_files_of_points(eight_devices, folder):
  root, result = eight_devices
  assert result.returncode == 1, 'one file was damaged'
  *lines, bad = [json.loads(line) for line in result.stdout.splitlines() if line[0] == '{']
  files = list(map(str, clouds.find_clouds(folder / 'rod' / 'test')))
  assert [line['points'] for line in lines] == files
  predictor = Predictor(*weights.load(root / 'run'))
  for line, row in zip(lines, predictor(list(map(clouds.decode_points, files))), strict=True):
    best = line['predictions'][0]
    assert (best['label'], best['class']) == (row.argmax(), CLASSES[row.argmax()])
    assert abs(best['probability'] - row.max()) < 1e-5
  reason = 'it is damaged: fewer vertices or faces than it says'
  assert bad == {'points': f'{root}/bad.off', 'error': reason}
  assert f'{root}/bad.off: {reason}' in result.stderr.splitlines()


def test_a_run_is_explained(run, tmp_path):
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(map(str, (ROOT, ROOT / 'tests')))}
  args = f'--workdir={run[0]}', f'--out={tmp_path}', '--pictures=confusion,wrong,attention'
  command = [sys.executable, '-c', EXPLAIN, *args]
  result = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert result.returncode == 2, result.stderr
  assert 'attention: not of this model' in result.stderr
  assert (tmp_path / 'confusion.png').stat().st_size > 1000
  assert (tmp_path / 'wrong.png').exists() or 'wrong: ' in result.stdout


def test_models_and_data_that_do_not_fit_are_refused(folder):
  def message(**changes):
    with pytest.raises(UsageError) as error:
      Experiment(make_config(folder, **changes))
    assert '\n' not in str(error.value)
    return str(error.value)

  stored = {'data.num_points': 0}
  assert message(**stored) == (
    'config.data.num_points: 0 leaves points as they are stored, and their number differs; give one'
  )
  assert 'config.data.num_points: -1 is not a whole number from 0 to ' in message(
    **{'data.num_points': -1}
  )
  assert message(**{'data.image_size': (8, 8)}) == (
    'config.data.image_size: (8, 8), but the records have no pictures'
  )
  assert message(**{'data.mean': (0.1,)}) == ('config.data.mean: (0.1,), but points have no pixels')
  views = {'data.image_size': (8, 8), 'data.crop': 'central', 'data.spatial_crops': 3}
  assert 'config.data.image_size: (8, 8), but the records have no' in message(**views)
  assert message(**{'augment.flip': True}).startswith('config.augment.flip: True, but the task has')
  assert message(**{'augment.rotation': 'x'}) == (
    "config.augment.rotation: 'x' is not one of none, z, so3"
  )
  assert message(**{'data.test_rotation': 'SO3'}) == (
    "config.data.test_rotation: 'SO3' is not one of none, z, so3; did you mean 'so3'?"
  )
  digits = {'data.name': 'digits', 'data.num_points': 0}
  assert "'cloud' takes points, and the records of config.data.name='digits' have image" in message(
    **digits
  )


def part_config(folder, **changes):
  from vit_jax import config_fields

  config = make_config(folder)
  config_fields.set_task(config, 'part_segmentation')
  config.data.update(name='shapenet_part', num_points=16)
  config.monitor, config.model.head.hidden_size = 'test/mean_iou', 8
  config.update_from_flattened_dict(changes)
  return config


def test_a_run_learns_parts_and_predicts_those_of_all_points(folder, tmp_path):
  h5py = pytest.importorskip('h5py')
  (tmp_path / 'all_object_categories.txt').write_text('Ball 1\nRod 2')
  parts = [['1', 0], ['1', 1], ['2', 0], ['2', 1]]
  (tmp_path / 'overallid_to_catid_partid.json').write_text(json.dumps(parts))
  for split in ('train', 'test'):
    labels = np.arange(16) % 2
    points = np.float32([shape(c, i) for i, c in enumerate(labels)])
    upper = points[..., 1] > points[..., 1].mean(axis=1, keepdims=True)
    with h5py.File(tmp_path / f'ply_data_{split}0.h5', 'w') as file:
      file['data'], file['label'], file['pid'] = points, labels, 2 * labels[:, None] + upper
  changes = {'model.head.category': True, 'num_steps': 40, 'eval_every': 40}
  workdir = tmp_path / 'run'
  results = loop.train_and_evaluate(part_config(tmp_path, **changes), workdir)
  assert results['final']['test/mean_iou'] > 0.6, 'by chance it is a third'
  assert results['final'].keys() >= {'test/loss', 'test/category_iou', 'test/accuracy'}
  predictor = Predictor(*weights.load(workdir))
  assert predictor.class_names == ('Ball 0', 'Ball 1', 'Rod 0', 'Rod 1')
  found = predictor([points[0], points[1]])
  assert found['parts'].shape == (2, 40)
  assert found['probabilities'].shape == (2, 4)
  np.testing.assert_allclose(found['probabilities'].sum(axis=1), 1, rtol=1e-5)
  with pytest.raises(UsageError, match='needs parts, and the records of'):
    Experiment(part_config(folder, **{'data.name': 'point_folder'}))


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('data.num_points', 8),
    ('data.test_rotation', 'z'),
    ('augment.rotation', 'so3'),
    ('augment.point_scale', 0.5),
    ('augment.point_shift', 0.1),
    ('augment.point_jitter', 0.1),
  ],
)
def test_fields_of_points_are_refused_with_images(field, value):
  from configs import digits

  config = digits.get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(FieldError, match=rf'^config\.{field}: {value!r}, but the .* no points$'):
    Experiment(config)


def test_a_config_says_how_many_points_a_model_takes():
  config = ModelConfig(Cloud(num_classes=2), num_points=24)
  assert config.input_size == (24,)
  shapes = config.variable_shapes()
  assert shapes['embedding/kernel'] == (3, 16)
  entries = json.loads(json.dumps(config.to_dict()))
  assert ModelConfig.from_dict(entries).to_dict() == config.to_dict()
  unknown = dataclasses.replace(config, num_points=None)
  assert unknown.input_size is None
  assert unknown.variable_shapes() == shapes
  with pytest.raises(FieldError, match='num_points: the weights do not say how many points'):
    preparation(unknown)
  with pytest.raises(FieldError, match=r'image_size: \(8, 8\), but the model takes points'):
    config.replace(image_size=(8, 8))
  with pytest.raises(FieldError, match=r'preprocess\.frame_stride: set, but the model takes point'):
    config.replace(preprocess=Preprocessing(frame_stride=2))
  vit = ModelConfig.from_dict(models.default_config('vit').to_dict() | {'image_size': (32, 32)})
  with pytest.raises(FieldError, match='num_points: 4, but the model takes single images'):
    vit.replace(num_points=4)
  with pytest.raises(FieldError, match='num_points: 0 is not a whole number from 1 on'):
    config.replace(num_points=0)
