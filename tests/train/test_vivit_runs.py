"""Runs of ViViT on moving digits: trained, resumed, begun with weights of images, explained."""

import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT

from configs import vivit
from vit_jax import models, weights
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.models import fields as fields_lib
from vit_jax.train import loop
from vit_jax.train.experiment import Experiment

pytestmark = pytest.mark.usefixtures('brief_ends')

SIZES = {'mlp_dim': 16, 'num_layers': 1, 'num_heads': 2}
SMALL = {'hidden_size': 8, **SIZES} | {
  f'{part}_{name}': size for part in ('spatial', 'temporal') for name, size in SIZES.items()
}
IMAGES = {
  'name': 'vit', 'hidden_size': 8, **SIZES, 'channels': 1,
  'patches': {'size': (8, 8)}, 'classifier': 'token', 'num_classes': 3, 'image_size': (24, 24),
}  # fmt: skip


def make_config(number, **changes):
  config = vivit.get_config(f'{number},moving_mnist')
  config.model.update({name: n for name, n in SMALL.items() if name in config.model})
  config.num_steps, config.eval_every, config.batch_size = 4, 2, 8
  config.schedule.warmup_steps = 0
  config.data.update(train_split='train[:32]', test_split='test[:16]', num_threads=2)
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope='module')
def run(tfds_dir, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  options = {'optimizer.layer_decay': 0.8, 'freeze': ('SpatialTransformer/.*',)}
  options |= {'evaluators.knn.enabled': True, 'evaluators.knn.k': 3}
  return workdir, options, loop.train_and_evaluate(make_config('2', **options), workdir)


def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path):
  workdir, options, results = run
  part = shutil.copytree(workdir, tmp_path / 'run')
  (part / 'checkpoints' / '4').rename(tmp_path / 'gone')
  (part / 'results.json').unlink()
  assert loop.train_and_evaluate(make_config('2', **options), part)['final'] == results['final']
  ours, theirs = (weights.load(path)[0] for path in (workdir, part))
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_features_of_videos_are_judged(run):
  _, _, results = run
  assert {results[name]['knn/accuracy'] * 16 % 1 for name in ('start', 'final')} == {0}


def test_a_run_is_explained(run, tmp_path):
  workdir, _, _ = run
  command = [sys.executable, '-m', 'vit_jax.explain', f'--workdir={workdir}', f'--out={tmp_path}']
  pictures = '--pictures=attention,filters,positions,rollout'
  done = subprocess.run(
    [*command, pictures, '--num_images=2'], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 2, done.stderr
  for name in ('attention', 'filters', 'positions'):
    assert (tmp_path / f'{name}.png').stat().st_size > 5000
  assert 'rollout: not of this model' in done.stderr


def test_a_run_begins_with_weights_of_images(tfds_dir, tmp_path):
  config = ModelConfig.from_dict(IMAGES)
  rng = np.random.default_rng(0)
  variables = models.unflatten(
    {
      name: rng.normal(size=shape).astype(np.float32)
      for name, shape in config.variable_shapes().items()
    }
  )
  weights.save(variables, config, tmp_path / 'w.msgpack', format='scenic')
  config = make_config('3', init_from=str(tmp_path / 'w.msgpack'))
  config.model.temporal_encoding_config.kernel_init_method = 'average_frame_initializer'
  experiment = Experiment(config)
  text = experiment.describe()
  assert 'attention over time: as over space at first' in text
  assert 'embedding: from 8x8x1 to 2x8x8x1' in text
  params = experiment.initial_state().params
  kernel = variables['params']['embedding']['kernel']
  for frame in params['embedding']['kernel']:
    np.testing.assert_allclose(frame, kernel / 2)


@pytest.mark.parametrize('number', '1234')
def test_the_configs_of_moving_digits(number):
  """The paper's models, as published but for their sizes; a tubelet has 8 x 8 x 2 pixels."""
  config = vivit.get_config(f'{number},moving_mnist')
  model = models.build(fields_lib.plain(config.model), num_classes=8)
  assert model.grid((8, 32, 32)) == (4, 4, 4)
  assert (model.classifier == 'token') == (number in '12')
  block = 4 * (64 * 64 + 64) + 2 * 64 + 2 * 64 + 64 * 128 + 128 + 128 * 64 + 64
  blocks = {'1': 4, '2': 6, '3': 4, '4': 4}[number] * block
  blocks += 4 * (4 * (64 * 64 + 64) + 2 * 64) if number == '3' else 0
  positions = {'1': 65, '2': 17 + 5, '3': 64, '4': 64}[number] * 64
  tokens = {'1': 1, '2': 2}.get(number, 0) * 64
  norms = (2 if number == '2' else 1) * 2 * 64
  total = 8 * 8 * 2 * 64 + 64 + tokens + positions + blocks + norms + 64 * 8 + 8
  assert sum(np.prod(shape) for shape in model.variable_shapes((8, 32, 32), 1).values()) == total


def test_configs_of_published_sizes():
  config = vivit.get_config('B/16x2-2,ucf101')
  assert (config.data.name, config.data.num_frames, config.data.temporal_views) == ('ucf101', 32, 4)
  model = config.model
  assert model.patches.size == (16, 16, 2)
  assert (model.spatial_num_layers, model.temporal_num_layers) == (12, 4)
  assert model.temporal_mlp_dim == model.spatial_mlp_dim == 3072
  folder = vivit.get_config('Ti/8x4-4,./clips')
  assert (folder.data.name, folder.data.dir) == ('video_folder', './clips')
  assert folder.model.attention_config.type == 'factorized_dot_product_attention'
  assert folder.model.num_heads == 3


@pytest.mark.parametrize('arg', ['B/16-1,ucf101', '5,moving_mnist', '1,ucf101', 'B/16x2,ucf101'])
def test_mistaken_arguments(arg):
  with pytest.raises(UsageError, match=rf"--config: '{arg}' is not 'SIZE-MODEL,DATASET', as in"):
    vivit.get_config(arg)
