"""Runs on videos, with a small backbone of the tests' own: data, training, resuming, prediction."""

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
from conftest import ROOT
from video_files import write_video
from video_models import SIZE, Motion, register

from vit_jax import models, weights
from vit_jax.comparison.images import DatasetImages, RandomImages
from vit_jax.data import load_source
from vit_jax.data import videos as videos_lib
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import BACKBONES, ModelConfig, Preprocessing
from vit_jax.predictor import Predictor, preparation
from vit_jax.train import loop
from vit_jax.train.experiment import Experiment

PREDICT = """
import video_models
from vit_jax import cli, predict
video_models.register()
cli.run(predict.main, arguments=('[FILE...]',))
"""


@pytest.fixture(scope='module', autouse=True)
def _motion_is_registered():
  register()
  yield
  del BACKBONES['motion']


def bar(label, start, count=9):
  """A bright column that moves to the right (0) or left (1)."""
  step = (1, -1)[label]
  video = np.full((count, *SIZE, 3), 30, np.uint8)
  for i in range(count):
    video[i, :, (start + step * i) % 12] = 220
  return video


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('videos')
  for s, (split, count) in enumerate({'train': 16, 'test': 8}.items()):
    for label, name in enumerate(('right', 'left')):
      for i in range(count):
        video = bar(label, start=i + s, count=9 + i % 3)
        write_video(root / split / name / (f'{i}.gif' if i % 2 else f'{i}'), video)
  return root


def make_config(folder, **changes):
  from configs import common

  config = common.get_config('vit')
  with config.unlocked():
    config.model = {'name': 'motion', 'hidden_size': 8}
  config.batch_size, config.num_steps, config.eval_every = 16, 40, 20
  config.schedule.warmup_steps, config.optimizer.learning_rate = 0, 1e-2
  config.data.update(name='video_folder', dir=str(folder), num_frames=4, frame_stride=2)
  config.data.num_threads = 2
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope='module')
def run(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  return workdir, loop.train_and_evaluate(make_config(folder), workdir)


def test_a_run_on_videos_learns_their_order(run, folder):
  workdir, results = run
  assert results['final']['test/accuracy'] > 0.9, 'chance is one half'
  entries = json.loads((workdir / 'model.json').read_text())
  assert (entries['num_frames'], entries['image_size'], entries['channels']) == (4, [8, 12], 3)
  assert entries['preprocess']['frame_stride'] == 2
  text = Experiment(make_config(folder)).describe()
  assert f'{folder.name}: 32 train and 16 test videos of 4x8x12x3, 2 classes, streamed' in text
  per_video = 2 * 3 * 12**2 * 8 + 2 * 3 * 8 * 2
  assert results['flops_per_image']['forward'] == per_video


def test_a_resumed_run_ends_with_the_same_bits(run, folder, tmp_path):
  workdir = shutil.copytree(run[0], tmp_path / 'run')
  (workdir / 'checkpoints' / '40').rename(tmp_path / 'gone')
  (workdir / 'results.json').unlink()
  loop.train_and_evaluate(make_config(folder), workdir)
  ours, theirs = (weights.load(path)[0] for path in (run[0], workdir))
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_predictor_computes_what_the_evaluation_did(run, folder):
  workdir, results = run
  variables, config = weights.load(workdir)
  predictor = Predictor(variables, config)
  right = []
  for label, name in enumerate(('left', 'right')):
    paths = predictor._kind.find_files(folder / 'test' / name)
    assert len(paths) == 8
    for path, row in predictor.map(predictor._kind.decode, paths, 4):
      right.append(row.argmax() == label)
      video = np.asarray(predictor._kind.decode(path))
      start = (len(video) - 8) // 2
      frames = video[[start + 2 * i for i in range(4)]]
      logits = config.model.apply(variables, (np.float32(frames)[None] / 255 - 0.5) / 0.5)
      np.testing.assert_allclose(row, scipy.special.softmax(logits[0]), atol=1e-5)
      np.testing.assert_array_equal(predictor.picture(video), frames[2])
  assert np.mean(right) == results['best']['test/accuracy']


def test_logits_of_several_views_are_averaged(run, folder):
  """In the evaluation of a run, and in the predictions of its model."""
  variables, config = weights.load(run[0])
  options = {'data.temporal_views': 3, 'data.spatial_crops': 3, 'data.crop': 'central'}
  views = make_config(folder, **options, **{'data.image_size': SIZE, 'data.crop_fraction': 0.8})
  experiment = Experiment(views)
  assert experiment.model_config['preprocess'] == {
    'mean': (0.5,),
    'std': (0.5,),
    'crop': 'central',
    'crop_fraction': 0.8,
    'frame_stride': 2,
    'temporal_views': 3,
    'spatial_crops': 3,
  }
  config = experiment.model_config
  source, preprocess = experiment.sets['test']
  logits, labels = [], []
  for record in source:
    clips = preprocess(record)['video/evaluation']
    assert clips.shape == (9, 4, *SIZE, 3)
    logits.append(config.model.apply(variables, (np.float32(clips) / 255 - 0.5) / 0.5).mean(axis=0))
    labels.append(record['label'])
  state = experiment.initial_state().replace(params=variables['params'])
  (total, count) = experiment.eval_feed('test')(state.eval_variables)[0]['loss']
  losses = -np.log(scipy.special.softmax(logits, axis=1)[np.arange(len(labels)), labels])
  np.testing.assert_allclose(total / count, losses.mean(), rtol=1e-4)
  rows = Predictor(variables, config)([record['video'] for record in source])
  np.testing.assert_allclose(rows, scipy.special.softmax(logits, axis=1), atol=1e-5)
  one = experiment.flops_per_image(state)['forward']
  assert one == Experiment(make_config(folder)).flops_per_image(state)['forward']


def test_a_path_is_a_folder_of_what_the_model_takes(folder):
  from configs import datasets

  config = make_config(folder)
  datasets.apply(config, './clips')
  assert (config.data.name, config.data.dir) == ('video_folder', './clips')
  datasets.apply(config, 'moving_mnist')
  assert config.data.options.to_dict() == {'size': 64, 'num_frames': 8, 'speeds': (2, 4)}


def predict(*args):
  """Runs the command with the backbone in the registry."""
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, (ROOT, ROOT / 'tests')))}
  return subprocess.run(
    [sys.executable, '-c', PREDICT, *map(str, args)],
    env=environment,
    capture_output=True,
    text=True,
  )


def test_predict_takes_video_files_and_folders_of_frames(run, folder, tmp_path):
  (tmp_path / 'bad.mp4').write_text('no video')
  flags = f'--workdir={run[0]}', '--json', '--temporal_views=2', '--frame_stride=1'
  result = predict(*flags, folder / 'test' / 'left', tmp_path / 'bad.mp4')
  assert result.returncode == 1, 'one was damaged'
  *lines, bad = [json.loads(line) for line in result.stdout.splitlines()]
  variables, config = weights.load(run[0])
  pixels = dataclasses.replace(config.preprocess, temporal_views=2, frame_stride=1)
  predictor = Predictor(variables, config.replace(preprocess=pixels))
  videos = videos_lib.find_videos(folder / 'test' / 'left')
  assert [line['video'] for line in lines] == [str(path) for path in videos]
  rows = predictor([videos_lib.open_video(path) for path in videos])
  for line, row in zip(lines, rows, strict=True):
    best = line['predictions'][0]
    assert (best['label'], best['class']) == (row.argmax(), ('left', 'right')[row.argmax()])
    assert abs(best['probability'] - row.max()) < 1e-5
  assert bad == {
    'video': f'{tmp_path}/bad.mp4',
    'error': 'Invalid data found when processing input',
  }
  assert result.stderr.splitlines() == [f'{bad["video"]}: {bad["error"]}']
  with pytest.raises(FieldError, match=r'num_frames: 8, but .* says 4'):
    weights.load(run[0], num_frames=8)


def test_a_comparison_is_made_on_clips_of_a_folder_or_random_ones(run, folder):
  _, config = weights.load(run[0])
  opened = DatasetImages(config, f'{folder}/', 'test', '', 0)
  ((clips, labels),) = opened.batches(16)
  assert clips.shape == (16, 4, *SIZE, 3)
  source = load_source('video_folder', 'test', str(folder))
  np.testing.assert_array_equal(labels, [record['label'] for record in source])
  video = np.float32(source[3]['video'])
  start = (len(video) - 8) // 2
  np.testing.assert_allclose(clips[3], (video[start : start + 8 : 2] / 255 - 0.5) / 0.5, atol=1e-6)
  random = RandomImages(config, 3)
  assert (random.name, random.shape) == ('random videos', (4, *SIZE, 3))
  with pytest.raises(FieldError, match="dataset: 'digits' has no videos, which the model takes"):
    DatasetImages(config, 'digits', 'test', '', 0)
  with pytest.raises(FieldError, match='num_frames: the weights do not say'):
    RandomImages(config.replace(num_frames=None), 0)


def test_models_and_data_that_do_not_fit_are_refused(folder, tmp_path):
  def message(**changes):
    with pytest.raises(UsageError) as error:
      Experiment(make_config(folder, **changes))
    assert '\n' not in str(error.value)
    return str(error.value)

  images = {'data.name': 'digits', 'data.num_frames': 0, 'data.frame_stride': 1}
  assert message(**images) == (
    "config.model.name: 'motion' takes videos, and the records of config.data.name='digits' have "
    'image, label alone'
  )
  with_vit = make_config(folder)
  with with_vit.unlocked():
    with_vit.model = models.default_config('vit')
    with_vit.model.update(hidden_size=8, mlp_dim=8, num_layers=1, num_heads=2)
    with_vit.model.patches.size = (4, 4)
  with pytest.raises(UsageError, match=r"'vit' takes images, and the records of .*'video_folder'"):
    Experiment(with_vit)
  stored = {'data.num_frames': 0, 'data.frame_stride': 1}
  assert 'config.data.num_frames: 0 leaves videos as they are stored' in message(**stored)
  assert 'config.data.resident: ' in message(**{'data.resident': 'yes'})


def test_a_config_says_how_many_frames_a_model_takes():
  model = Motion(num_classes=2)
  config = ModelConfig(model, image_size=SIZE, num_frames=4)
  assert config.input_size == (4, *SIZE)
  assert config.variable_shapes()['output_projection/kernel'] == (24, 2)
  assert (
    ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))).to_dict() == config.to_dict()
  )
  unknown = dataclasses.replace(config, num_frames=None)
  assert unknown.input_size is None
  assert 'num_frames' not in unknown.to_dict()
  with pytest.raises(FieldError, match='num_frames: the weights do not say'):
    preparation(unknown)
  vit = ModelConfig.from_dict(models.default_config('vit').to_dict() | {'image_size': SIZE})
  with pytest.raises(FieldError, match=r'num_frames: 4, but the model takes single images'):
    vit.replace(num_frames=4)
  with pytest.raises(
    FieldError, match=r'preprocess\.frame_stride: set, but the model takes single'
  ):
    vit.replace(preprocess=Preprocessing(frame_stride=2))
  for frames in (0, 2.0, True):
    with pytest.raises(FieldError, match=r'num_frames: .* is not a whole number from 1 on'):
      dataclasses.replace(config, num_frames=frames)
