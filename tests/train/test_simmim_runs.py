"""Runs of the task simmim: resumed, on several devices, fine-tuned, and mistakes."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import tiny_config
from explain.helpers import make_context

from configs import finetune, simmim
from vit_jax import config_fields, weights
from vit_jax.errors import FieldError, UsageError
from vit_jax.explain import runs
from vit_jax.explain.pictures import PICTURES
from vit_jax.run.writers import read_history
from vit_jax.train import loop
from vit_jax.train.experiment import Experiment

pytestmark = pytest.mark.usefixtures('brief_ends')

SWIN = {
  'model.embed_dim': 8,
  'model.depths': (1, 1),
  'model.num_heads': (1, 2),
  'model.patches.size': (2, 2),
  'model.window_size': (2,),
}


def pretraining(model='vit', **changes):
  """Of digits of 8 pixels, in 4 blocks."""
  config = tiny_config()
  config_fields.set_model(config, model)
  config_fields.set_task(config, 'simmim')
  config.monitor, config.loss.mask_patch_size = 'test/loss', 4
  config.update_from_flattened_dict((SWIN if model == 'swin' else {}) | changes)
  return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Six steps of a Swin."""
  workdir = tmp_path_factory.mktemp('simmim') / 'run'
  config = pretraining('swin', num_steps=6, eval_every=3)
  loop.train_and_evaluate(config, workdir)
  return workdir, config


def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path):
  workdir, config = run
  shutil.copytree(workdir, tmp_path / 'part')
  (tmp_path / 'part' / 'checkpoints' / '6').rename(tmp_path / 'gone')
  (tmp_path / 'part' / 'results.json').unlink()
  loop.train_and_evaluate(config, tmp_path / 'part')
  whole, part = (weights.load(path)[0] for path in (workdir, tmp_path / 'part'))
  jax.tree.map(np.testing.assert_array_equal, part, whole)
  results = [json.loads((p / 'results.json').read_text()) for p in (workdir, tmp_path / 'part')]
  assert results[0]['final'] == results[1]['final']
  assert results[0]['final'].keys() >= {'test/loss', 'test/mse'}


def test_a_classifier_starts_from_the_encoder(run):
  config = finetune.get_config('digits')
  config.update(init_from=str(run[0]), num_steps=2)
  config.schedule.warmup_steps = 0
  experiment = Experiment(config)
  notes = experiment.describe()
  for note in ('head: new, 10 classes', 'decoder: left out', 'mask_token: left out'):
    assert note in notes
  params, (before, _) = experiment.initial_state().params, weights.load(run[0])
  del params['output_projection']
  jax.tree.map(np.testing.assert_array_equal, params, before['params']['backbone'])


def test_what_is_hidden_in_pictures_is_what_the_run_hides(run):
  variables, config = weights.load(run[0])
  options = runs.task_options(run[0], config)
  assert options == {'mask_ratio': 0.6, 'mask_patch_size': 4}
  context = make_context(config.to_dict(), 2, variables=variables, task_options=options)
  figure = PICTURES['reconstructions'](context)
  original, masked, drawn = (axis.images[0].get_array() for axis in figure.axes[:3])
  hidden = masked != original
  assert 2 / 4 <= hidden.mean() <= 3 / 4  # three of four blocks, but for pixels of that grey
  np.testing.assert_array_equal(drawn[~hidden], original[~hidden])
  assert np.any(drawn != original)
  context = make_context(config.to_dict(), 2, variables=variables)
  with pytest.raises(FieldError, match='mask_patch_size: 32'):
    PICTURES['reconstructions'](context)


def test_eight_devices_and_micro_batches_give_the_losses_of_one(train, tmp_path):
  changes = {'num_steps': 3, 'eval_every': 3, 'log_every': 1, 'loss.mask_patch_size': 4}
  loop.train_and_evaluate(pretraining(**changes), tmp_path / 'one')
  fields = {'task': 'simmim', 'monitor': 'test/loss', 'grad_accum_steps': 2, **changes}
  flags = [f'--config.{name}={value}' for name, value in fields.items()]
  done = train(*flags, f'--workdir={tmp_path}/eight', devices=8)
  assert done.returncode == 0, done.stderr
  one, eight = (read_history(tmp_path / name / 'metrics.jsonl') for name in ('one', 'eight'))
  assert len(one) == len(eight) == 4
  for line, expected in zip(eight, one, strict=True):
    for name in expected:
      if name.startswith(('train/', 'test/', 'grad_norm')):
        np.testing.assert_allclose(line[name], expected[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'loss.mask_patch_size': 3}, r'config\.loss\.mask_patch_size: 3 is not a multiple of patches'),
    (
      {'loss.mask_patch_size': 8},
      r'config\.loss\.mask_patch_size: 8, but mask_ratio=0\.6 hides all of the 1 that images of',
    ),
    ({'data.crop_area': (0.5, 1.0)}, r"config\.data\.crop_area: \(0\.5, 1\.0\), but crop 'resize'"),
  ],
)
def test_mistakes(changes, message):
  with pytest.raises(UsageError, match=f'^{message}'):
    Experiment(pretraining(num_steps=2, **changes))


def test_a_backbone_without_patches_is_refused():
  with pytest.raises(
    UsageError, match=r"^config\.model\.head\.name: 'simmim' hides patches, and R"
  ):
    Experiment(pretraining('resnet18', num_steps=2))


@pytest.mark.parametrize(
  ('arg', 'image', 'window', 'rate'),
  [
    ('swin-B,imagenet2012', 192, (6,), 8e-4),
    ('swin-B/12,imagenet2012', 192, (12,), 8e-4),
    ('B/16,./photos', 224, None, 8e-4),
    ('swin-T,cifar10', None, (4,), 1e-3),
    ('Ti/4,mnist', None, None, 3e-3),
  ],
)
def test_configs(arg, image, window, rate):
  config = simmim.get_config(arg)
  config.batch_size = 2048
  assert config.data.image_size == ((image, image) if image else ())
  assert config.data.crop_area == ((0.67, 1.0) if image else None)
  assert config.model.get('window_size') == window
  assert config.optimizer.learning_rate == pytest.approx(rate)


def test_the_config_names_its_backbones():
  with pytest.raises(FieldError, match=r"^--config: SimMIM backbone: 'bit' is not one of swin"):
    simmim.get_config('bit-R50x1,cifar10')
