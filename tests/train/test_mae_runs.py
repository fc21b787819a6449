"""Runs of the task mae: what they keep, draw, refuse, and give to a classifier."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import tiny_config

from configs import mae
from vit_jax import config_fields, weights
from vit_jax.errors import UsageError
from vit_jax.predictor import Predictor
from vit_jax.run.writers import read_history
from vit_jax.train import loop
from vit_jax.train.experiment import Experiment

pytestmark = pytest.mark.usefixtures('brief_ends')

HEAD = {
  'model.head.hidden_size': 8,
  'model.head.num_layers': 1,
  'model.head.num_heads': 2,
}
FIELDS = HEAD | {
  'task': 'mae',
  'loss.mask_ratio': 0.5,
  'model.classifier': 'token',
  'model.positional_embedding': 'sinusoidal_2d',
  'monitor': 'test/loss',
  'num_steps': 4,
  'eval_every': 2,
  'log_every': 1,
}


def masking(**changes):
  config = tiny_config()
  config_fields.set_task(config, 'mae')
  config.update_from_flattened_dict(FIELDS | changes)
  return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Four steps on digits."""
  workdir = tmp_path_factory.mktemp('mae') / 'run'
  loop.train_and_evaluate(masking(), workdir)
  return workdir


def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path):
  shutil.copytree(run, tmp_path / 'part')
  (tmp_path / 'part' / 'checkpoints' / '4').rename(tmp_path / 'gone')
  (tmp_path / 'part' / 'results.json').unlink()
  loop.train_and_evaluate(masking(), tmp_path / 'part')
  whole, part = (weights.load(path)[0] for path in (run, tmp_path / 'part'))
  jax.tree.map(np.testing.assert_array_equal, part, whole)
  results = [json.loads((p / 'results.json').read_text()) for p in (run, tmp_path / 'part')]
  assert results[0]['final'] == results[1]['final']
  assert results[0]['final'].keys() >= {'test/loss', 'test/pixel_error'}


def test_eight_devices_give_the_losses_of_one(run, train, tmp_path):
  flags = [f'--config.{name}={value}' for name, value in FIELDS.items()]
  done = train(*flags, f'--workdir={tmp_path}', devices=8)
  assert done.returncode == 0, done.stderr
  one, eight = (read_history(path / 'metrics.jsonl') for path in (run, tmp_path))
  assert len(one) == len(eight)
  for line, expected in zip(eight, one, strict=True):
    for name in expected:
      if name.startswith(('train/', 'test/', 'grad_norm')):
        np.testing.assert_allclose(line[name], expected[name], rtol=1e-4, err_msg=name)


def test_a_classifier_starts_from_the_encoder(run):
  """As that code fine-tunes: an average of the patches is normed, with a class token beside."""
  config = tiny_config(init_from=str(run))
  config.model.update(classifier='gap', class_token=True, fc_norm=True)
  config.model.positional_embedding = 'sinusoidal_2d'
  experiment = Experiment(config)
  described = experiment.describe()
  for note in ('decoder: left out', 'fc_norm: new', 'Transformer/encoder_norm: left out'):
    assert note in described
  params = experiment.initial_state().params
  encoder = weights.load(run)[0]['params']['backbone']
  del encoder['Transformer']['encoder_norm']
  jax.tree.map(np.testing.assert_array_equal, params['Transformer'], encoder['Transformer'])
  np.testing.assert_array_equal(params['cls'], encoder['cls'])
  assert params['output_projection']['kernel'].shape == (16, 10)


def test_a_model_without_classes_predicts_none(run):
  variables, config = weights.load(run)
  assert (config.num_classes, config.class_names) == (0, None)
  with pytest.raises(UsageError, match='no classes to predict'):
    Predictor(variables, config)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'loss.mask_ratio': 1.0},
      r'config\.loss\.mask_ratio: 1\.0 is not a number above 0',
    ),
    ({'loss.mask_ratio': 0.99}, r'config\.model: a mask ratio of 0\.99 leaves 0 of 4 patches'),
    ({'model.head.num_heads': 3}, r'config\.model\.head\.num_heads: 3 heads do not divide'),
    (
      {'model.tokenizer.type': 'dynamic'},
      r'config\.model: a masked autoencoder reads tokens of patches, and the model learns others',
    ),
    ({'monitor': 'test/accuracy'}, r"config\.monitor: 'test/accuracy' is not one of test/loss"),
  ],
)
def test_mistakes(changes, message):
  with pytest.raises(UsageError, match=f'^{message}'):
    Experiment(masking(**changes))


def test_a_backbone_of_maps_is_refused():
  config = masking()
  config_fields.set_model(config, 'resnet18')
  with pytest.raises(UsageError, match=r'^config\.model: .* alone, which ResNet18 does not'):
    Experiment(config)


def test_the_config_is_the_published_recipe_for_imagenet():
  config = mae.get_config()
  assert config.model.head.to_dict() == {
    'name': 'mae',
    'hidden_size': 512,
    'num_layers': 8,
    'num_heads': 16,
    'mlp_dim': None,
    'positional_embedding': 'sinusoidal_2d',
    'norm_epsilon': 1e-6,
    'activation': 'gelu_exact',
    'norm_pixels': True,
  }
  assert config.optimizer.learning_rate == pytest.approx(2.4e-3)
  config.batch_size = 512
  assert config.optimizer.learning_rate == pytest.approx(3e-4)  # as the batch


def test_the_config_of_small_images_builds(tfds_dir):
  config = mae.get_config('Ti/4,mnist')
  config.data.update(train_split='train[:512]', test_split='test[:8]', dir=tfds_dir)
  config.num_steps = 1000
  config.model.num_layers = 1  # of what is traced
  experiment = Experiment(config)
  assert 'test images of 28x28x1, resident' in experiment.describe()
  assert experiment.config.model.head.hidden_size == 64
