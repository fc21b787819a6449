"""Run directories as weights: what was evaluated best, whatever the model."""

import json
import shutil

import jax
import numpy as np
import pytest
from accuracies import assert_accuracy
from conftest import tiny_config
from small_vits import assert_same, logits, random_images

from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.train import loop


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A finished run of a ViT whose evaluation parameters are a moving average."""
  workdir = tmp_path_factory.mktemp('runs') / 'vit'
  config = tiny_config(num_steps=6, ema_decay=0.9)
  config.model.update(activation='gelu_exact', norm_epsilon=1e-5, classifier='token')
  return workdir, loop.train_and_evaluate(config, workdir)


def test_a_run_says_all_about_its_model(run):
  variables, config = weights.load(run[0])
  assert weights.detect(run[0]) == 'run'
  expected = {
    'name': 'vit',
    'hidden_size': 16,
    'patches': {'size': (4, 4)},
    'activation': 'gelu_exact',
    'norm_epsilon': 1e-5,
    'classifier': 'token',
    'image_size': (8, 8),
    'channels': 1,
    'num_classes': 10,
    'class_names': [str(i) for i in range(10)],
    'preprocess': {'mean': (0.5,), 'std': (0.5,), 'crop': 'resize'},
  }
  assert {name: config[name] for name in expected} == expected
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == run[1]['parameters']


def test_what_a_run_says_cannot_be_otherwise(run):
  assert weights.load(run[0], num_heads=2)[1].backbone.num_heads == 2
  with pytest.raises(UsageError, match=r'^num_heads: 4, but .* says 2$'):
    weights.load(run[0], num_heads=4)


def test_loading_a_run_is_silent(run, caplog, capfd):
  weights.load(run[0])
  assert not caplog.records
  assert capfd.readouterr() == ('', '')


def test_what_is_loaded_has_the_accuracy_that_was_reported(run):
  from vit_jax.data import load_source

  variables, config = weights.load(run[0])
  source = load_source('digits', 'test')
  images = np.stack([record['image'] for record in source.read(range(len(source)))])
  labels = [record['label'] for record in source.read(range(len(source)))]
  scores = logits(variables, config, (images / 255 - 0.5) / 0.5)
  assert_accuracy(run[1]['final']['test/accuracy'], scores, labels)


@pytest.mark.parametrize('format', sorted(weights.WRITABLE.keys() - {'torchvision'}))
def test_a_run_goes_into_every_format_for_vits(run, tmp_path, format):
  name = {'timm': 'm.safetensors', 'augreg': 'm.npz', 'scenic': 'm.msgpack'}.get(format, 'folder')
  variables, config = weights.load(run[0])
  weights.save(variables, config, tmp_path / name, format=format)
  again, its_config = weights.load(tmp_path / name)
  assert_same(again, variables)
  images = random_images(config)
  assert np.array_equal(logits(again, its_config, images), logits(variables, config, images))


def test_a_token_learner_run_loads_too(tmp_path):
  from configs import token_learner

  config = token_learner.get_config('Ti/4,digits')
  config.model.update(hidden_size=16, mlp_dim=16, num_layers=2, num_heads=2)
  config.model.tokenizer.num_tokens = 2
  config.update(batch_size=64, num_steps=1)
  loop.train_and_evaluate(config, tmp_path / 'run')
  variables, config = weights.load(tmp_path / 'run')
  assert config.model.apply(variables, random_images(config)).shape == (2, 10)
  with pytest.raises(UsageError, match="a model 'token_learner' has no place there"):
    weights.save(variables, config, tmp_path / 'm.npz', format='augreg')


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda run: shutil.rmtree(run / 'checkpoints'), r'checkpoints: no checkpoint yet'),
    (lambda run: (run / 'model.json').write_text('{'), r'model\.json: cannot be read as'),
    (lambda run: change(run, mlp_dim=17), r'tensors that do not fit: 3'),
    (lambda run: change(run, name='cnn'), r"model\.json: name: 'cnn' is not one of"),
    (lambda run: change(run, name=['vit']), r"model\.json: name: \['vit'\] is not one of"),
    (lambda run: change(run, patches={}), r'model\.json: patches\.size: None is not \(height'),
    (lambda run: change(run, patches={'size': None}), r'patches\.size: None is not \(height'),
    (lambda run: change(run, patches={'size': 'x'}), r"patches\.size: 'x' is not \(height"),
    (lambda run: change(run, num_classes='10'), r"num_classes: '10' is not a whole number"),
    (lambda run: change(run, num_classes=2.5), r'num_classes: 2\.5 is not a whole number'),
    (lambda run: change(run, head={'hidden_size': 3}), r'head\.name: None is not one of'),
    (lambda run: change(run, head=3), r'model\.json: head: 3 is not a dict'),
    (lambda run: change(run, class_names=3), r'class_names: 3 is not a list of texts'),
    (lambda run: change(run, class_names={'a': 1}), r'class_names: .* is not a list of texts'),
    (lambda run: change(run, class_names=['a', None]), r'class_names: .* is not a list of texts'),
    (lambda run: change(run, class_names=['a']), r'class_names: 1 names for 10 classes'),
    (lambda run: change(run, image_size=8), r'image_size: 8 is not \(height, width\)'),
    (lambda run: change(run, preprocess=3), r'preprocess: 3 is not a dict'),
    (lambda run: change(run, preprocess={'mean': 'x'}), r"preprocess\.mean: 'x' is not"),
  ],
)
def test_damaged_runs_end_in_one_line(run, tmp_path, damage, message):
  shutil.copytree(run[0], tmp_path / 'run')
  damage(tmp_path / 'run')
  with pytest.raises(UsageError, match=message):
    weights.load(tmp_path / 'run')


def test_a_run_without_names_of_classes_opens(run, tmp_path):
  shutil.copytree(run[0], tmp_path / 'run')
  path = tmp_path / 'run' / 'model.json'
  entries = json.loads(path.read_text())
  del entries['class_names']
  for changed in (entries, entries | {'class_names': None}):
    path.write_text(json.dumps(changed))
    assert weights.load(tmp_path / 'run')[1].class_names is None


def change(run, **entries):
  """Changes entries of model.json."""
  path = run / 'model.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | entries))
