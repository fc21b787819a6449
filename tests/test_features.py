"""python -m vit_jax.features as a user runs it; what it writes against the model itself."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from command_server import command_server
from conftest import ROOT
from explain.helpers import VIT, random_variables
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from vit_jax import features, weights
from vit_jax.data import decode_image, load_source
from vit_jax.feature_reader import FeatureReader
from vit_jax.models import ModelConfig

KEPT = ROOT / 'tests' / 'kept_runs' / 'run'
MEAN, STD = 0.25, 0.5
CLASSES = ('ant', 'bee')


@pytest.fixture(scope='module')
def extract():
  with command_server('vit_jax.features', 'RUN_OR_WEIGHTS', '[IMAGE_OR_FOLDER...]') as run:
    yield run


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """Weights of a ViT with a class token, and images of its size in two folders, some damaged."""
  root = tmp_path_factory.mktemp('features')
  config = ModelConfig.from_dict(VIT | {'preprocess': {'mean': (MEAN,), 'std': (STD,)}})
  weights.save(random_variables(config), config, root / 'w.msgpack', format='scenic')
  rng = np.random.default_rng(0)
  for name in CLASSES:
    (root / 'images' / name).mkdir(parents=True)
    for i in range(5):
      pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(root / 'images' / name / f'{i}.png')
  shutil.copytree(root / 'images', root / 'damaged')
  (root / 'damaged' / 'ant' / '1.png').write_text('no image')
  return root


def expected(place, files, layer=None):
  """Features by the model itself, of the images as they are stored."""
  variables, config = weights.load(str(place / 'w.msgpack'))
  images = np.stack([decode_image(file) for file in files])
  inputs = jnp.float32((images / 255 - MEAN) / STD)
  layers = () if layer is None else (layer,)
  return config.model.apply(variables, inputs, train=False, layers=layers, method='features')


def test_features_are_the_models_own(extract, place, tmp_path):
  files = sorted((place / 'images').glob('*/*.png'))
  right, first = expected(place, files), expected(place, files, 0).layers[0]
  cases = {
    (): right.tokens[:, 0],  # what a head on the class token reads
    ('--pooling=mean',): right.tokens[:, 1:].mean(axis=1),
    ('--pooling=all', '--batch_size=3'): right.tokens,
    ('--pooling=token', '--layer=0'): first[:, 0],
  }
  for flags, values in cases.items():
    result = extract(place / 'w.msgpack', place / 'images', tmp_path / 'f.npz', *flags)
    assert (result.returncode, result.stderr) == (0, '')
    found = np.load(tmp_path / 'f.npz')
    assert found['features'].dtype == np.float32
    np.testing.assert_allclose(found['features'], values, atol=1e-5)
    assert found['files'].tolist() == [str(file) for file in files]
    assert found['class_names'][found['labels']].tolist() == [file.parent.name for file in files]
    assert ('k-NN' in result.stdout) == (values.ndim == 2)
  assert [path.name for path in tmp_path.iterdir()] == ['f.npz']


def test_damaged_files_are_named_and_left_out(extract, place, tmp_path):
  result = extract(place / 'w.msgpack', place / 'damaged', tmp_path / 'f.npz')
  assert result.returncode == 1
  assert result.stderr.startswith(f'{place}/damaged/ant/1.png: cannot be decoded (')
  assert result.stderr.count('\n') == 1
  found = np.load(tmp_path / 'f.npz')
  files = [Path(file) for file in found['files']]
  assert len(files) == 9
  np.testing.assert_allclose(found['features'], expected(place, files).tokens[:, 0], atol=1e-5)
  assert found['labels'].tolist() == [0] * 4 + [1] * 5


def test_images_of_one_folder_have_no_labels(extract, place, tmp_path):
  result = extract(place / 'w.msgpack', place / 'images' / 'ant', tmp_path / 'f.npz')
  assert sorted(np.load(tmp_path / 'f.npz')) == ['features', 'files']
  assert 'k-NN' not in result.stdout


def test_the_data_of_a_run(extract, tmp_path):
  variables, config = weights.load(str(KEPT))
  source = load_source('digits', 'test')
  result = extract(KEPT, tmp_path / 'f.npz', '--k=5')
  assert (result.returncode, result.stderr) == (0, '')
  assert 'each of 360 by the 5 nearest others' in result.stdout
  found = np.load(tmp_path / 'f.npz')
  assert sorted(found) == ['class_names', 'features', 'labels']
  assert found['labels'].tolist() == [source[i]['label'] for i in range(len(source))]
  reader = FeatureReader(variables, config)
  ((_, row),) = reader.map(lambda i: source[i]['image'], [7])
  np.testing.assert_allclose(found['features'][7], row, atol=1e-5)


def test_a_map_is_drawn(extract, place, tmp_path):
  flags = f'--map={tmp_path}/map.png', '--k=100'
  result = extract(place / 'w.msgpack', place / 'images', tmp_path / 'f.npz', *flags)
  assert (result.returncode, result.stderr) == (0, '')
  assert 'by the 9 nearest others' in result.stdout
  assert result.stdout.splitlines()[-1] == f'{tmp_path}/map.png'
  with Image.open(tmp_path / 'map.png') as image:
    assert 800 < image.width < 1000, 'as wide as a README'


class OnDisk:
  """Features of which no more than some can be read at once."""

  def __init__(self, values, most):
    self.values, self.most = values, most

  def __len__(self):
    return len(self.values)

  def __getitem__(self, index):
    assert len(self.values[index]) <= self.most
    return self.values[index]


@pytest.mark.parametrize('block', [1000, 45])
def test_each_example_is_classified_by_others(monkeypatch, block):
  monkeypatch.setattr(features, '_BANK', block)
  rng = np.random.default_rng(0)
  values = rng.normal(size=(90, 4)).astype(np.float32)
  values[1] = values[0]  # at a distance of 0, and of another class
  labels = rng.integers(0, 3, 90)
  labels[0], labels[1] = 0, 1
  units = values / np.linalg.norm(values, axis=1, keepdims=True)
  nearest = NearestNeighbors(metric='cosine').fit(units)
  distances, indices = nearest.kneighbors(n_neighbors=5)  # without the example itself
  votes = np.zeros((90, 3))
  for row, (distance, index) in enumerate(zip(distances, indices, strict=True)):
    np.add.at(votes[row], labels[index], np.exp((1 - distance) / 0.07))
  judged = np.arange(0, 90, 2)
  right = (votes.argmax(axis=1) == labels)[judged].mean()
  found = features.leave_one_out(OnDisk(values, block), labels, judged, k=5, num_classes=3)
  assert found == pytest.approx(right, abs=1e-6)
  assert features.leave_one_out(values[:2], labels[:2], np.arange(2), 1, 3) == 0


MISTAKES = {
  'nothing': ([], 'RUN_OR_WEIGHTS is missing'),
  'no output': (['WEIGHTS', 'IMAGES'], 'give RUN_OR_WEIGHTS [IMAGE_OR_FOLDER...] FEATURES.npz'),
  'no images': (['WEIGHTS', 'OUT'], 'w.msgpack is no run, which would have data of its own'),
  'split of images': (['WEIGHTS', 'IMAGES', 'OUT', '--split=train'], '--split: train, but images'),
  'split': (['RUN', 'OUT', '--split=tset'], 'tset'),
  'pooling': (['WEIGHTS', 'IMAGES', 'OUT', '--pooling=max'], 'max'),
  'no class token': (['RUN', 'OUT', '--pooling=token'], '--pooling: '),
  'layer': (['WEIGHTS', 'IMAGES', 'OUT', '--layer=2'], '--layer: 2 is not from 0 to 1'),
  'no folder': (['WEIGHTS', 'IMAGES', 'NEW/f.npz'], 'there is no such folder to write to'),
  'map of tokens': (['WEIGHTS', 'IMAGES', 'OUT', '--map=a.png', '--pooling=all'], '--map: needs'),
  'k of tokens': (['WEIGHTS', 'IMAGES', 'OUT', '--k=3', '--pooling=all'], '--k: needs one vector'),
  'k of nothing': (['WEIGHTS', 'FEW', 'OUT', '--k=3'], '--k: k-NN needs one label of each image,'),
  'form of the map': (['WEIGHTS', 'IMAGES', 'OUT', '--map=a.tif'], '--map: a.tif does not end in'),
  'small map': (['WEIGHTS', 'FEW', 'OUT', '--map=MAP'], '--map: 1 examples; a map needs 4 or more'),
  'no such images': (['WEIGHTS', 'NEW', 'OUT'], 'no such image or folder'),
  'all damaged': (['WEIGHTS', 'DAMAGED', 'OUT'], 'no image can be decoded'),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_end_in_one_line_and_exit_code_2(extract, place, tmp_path, mistake):
  names = {
    'RUN': KEPT,
    'WEIGHTS': place / 'w.msgpack',
    'IMAGES': place / 'images',
    'FEW': place / 'images' / 'ant' / '0.png',
    'DAMAGED': place / 'damaged' / 'ant' / '1.png',
    'NEW': tmp_path / 'new',
    'OUT': tmp_path / 'f.npz',
    'MAP': tmp_path / 'map.png',
  }
  args, message = MISTAKES[mistake]
  for name, path in names.items():
    args = [str(path) + arg.removeprefix(name) if arg.startswith(name) else arg for arg in args]
    args = [arg.replace('=MAP', f'={path}') if name == 'MAP' else arg for arg in args]
  result = extract(*args)
  assert result.returncode == 2
  last = result.stderr.splitlines()[-1]
  assert last.startswith('features.py: ')
  assert message in last
  assert result.stderr.count('\n') == (2 if mistake == 'all damaged' else 1)
