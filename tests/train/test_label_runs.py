"""Runs on images with several classes each, from a CSV file and from TFDS."""

import csv
import json

import numpy as np
import pytest
from conftest import tiny_config
from image_files import save
from sklearn.metrics import f1_score
from tfds_files import image_feature, labels_feature, png, write_tfds

from vit_jax import config_fields, weights
from vit_jax.data import load_source
from vit_jax.errors import UsageError
from vit_jax.predictor import Predictor
from vit_jax.run.writers import read_history
from vit_jax.train import loop
from vit_jax.train.experiment import Experiment

CLASSES = range(3)


def pairs(count=240):
  """Two digits side by side, or one, of three classes: uint8 [8, 16] and the classes."""
  digits = [r for r in load_source('digits', 'train') if r['label'] in CLASSES]
  rng, blank = np.random.default_rng(0), {'image': np.zeros((8, 8, 1), np.uint8), 'label': None}
  for left, right in rng.integers(-1, len(digits), (count, 2)):
    two = [digits[i] if i >= 0 and i % 3 else blank for i in (left, right)]
    image = np.concatenate([record['image'] for record in two], axis=1)[..., 0]
    yield image, sorted({record['label'] for record in two} - {None})


def write(root, form):
  """Writes the pairs; returns what config.data says of them."""
  if form == 'tfds':
    features = {'image': image_feature(8, 16, 1), 'labels': labels_feature(len(CLASSES))}
    examples = [{'image': png(image), 'labels': classes} for image, classes in pairs()]
    return 'tiny', write_tfds(root, examples, features)
  rows = [('image', 'labels')]
  for i, (image, classes) in enumerate(pairs()):
    save(root / 'images' / f'{i}.png', image)
    rows.append((i, ';'.join(map(str, classes))))
  with open(root / 'labels.csv', 'w', newline='') as file:
    csv.writer(file).writerows(rows)
  return 'csv', str(root)


def make_config(name, folder, **changes):
  config = tiny_config()
  config_fields.set_data(config, name)
  config.data.update(dir=folder, train_split='train[:80%]', test_split='train[80%:]')
  config.loss.name, config.monitor = 'sigmoid', 'test/micro_f1'
  config.optimizer.learning_rate = 0.01
  config.augment.shift = 0
  config.update(num_steps=40, eval_every=20, batch_size=32)
  config.update_from_flattened_dict(changes)
  return config


def test_several_classes_an_image_are_learned(tmp_path):
  learn(tmp_path, 'csv')


def test_several_classes_an_image_of_tfds_are_learned(tmp_path):
  learn(tmp_path, 'tfds')


def learn(tmp_path, form):
  config = make_config(
    *write(tmp_path / 'data', form), **{'loss.class_weights': ('balanced',), 'loss.threshold': 0.6}
  )
  results = loop.train_and_evaluate(config, tmp_path / 'run')
  history = read_history(tmp_path / 'run' / 'metrics.jsonl')
  losses = [line['train/loss'] for line in history if 'train/loss' in line]
  assert losses[-1] < 0.9 * losses[0]
  found = json.loads((tmp_path / 'run' / 'config.json').read_text())['loss']['class_weights']
  sets = Experiment(config).sets
  source, _ = sets['train']
  counts = source.labels().sum(axis=0)
  np.testing.assert_allclose(found, (len(source) - counts) / counts, rtol=1e-6)
  assert loop.train_and_evaluate(config, tmp_path / 'run') == results  # the same configuration

  test, _ = sets['test']
  predictor = Predictor(*weights.load(tmp_path / 'run'), loss='sigmoid', threshold=0.6)
  records = list(test)
  rows = predictor([record['image'] for record in records])
  guesses = np.zeros(rows.shape)
  for guess, row in zip(guesses, rows, strict=True):
    guess[predictor.task.predicted_classes(row)] = 1
  expected = f1_score([record['label'] for record in records], guesses, average='micro')
  assert 0 < expected == pytest.approx(results['best']['test/micro_f1'], abs=1e-6)


def test_what_needs_one_class_is_refused(tmp_path):
  name, folder = write(tmp_path, 'csv')
  for changes, problem in (
    ({'loss.name': 'softmax'}, r"^config\.loss\.name: 'softmax' learns one class of each image"),
    ({'data.sampling': 'balanced'}, r"^config\.data\.sampling: 'balanced' needs one class of each"),
  ):
    with pytest.raises(UsageError, match=problem):
      Experiment(make_config(name, folder, **changes))
