"""Runs of the task segmentation: what they keep, predict, draw and refuse."""

import json
import shutil

import jax
import mask_folders
import numpy as np
import pytest
from command_server import command_server
from conftest import tiny_config
from PIL import Image
from small_vits import SQUARE, random_variables

from configs import segmentation
from vit_jax import config_fields, weights
from vit_jax.data import load_source
from vit_jax.errors import UsageError
from vit_jax.explain import masks
from vit_jax.models import Preprocessing
from vit_jax.models.layers import resize_position_embeddings
from vit_jax.predictor import Predictor
from vit_jax.run.writers import read_history
from vit_jax.train import loop
from vit_jax.train.experiment import Experiment

pytestmark = pytest.mark.usefixtures('brief_ends')

SEGVIT = {
  'model.head.layers': (0,),
  'model.head.num_heads': 1,
  'model.head.num_layers': 1,
  'model.head.dropout_rate': 0.0,
}


def segmenting(root, head='linear', **changes):
  config = tiny_config()
  config_fields.set_task(config, changes.pop('task', 'segmentation'))
  if 'head' in config.model:
    config_fields.set_head(config, head)
  fields = {
    'data.name': 'masks',
    'data.dir': str(root),
    'batch_size': 8,
    'monitor': 'test/mean_iou',
    'augment.shift': 0,
  }
  config.update_from_flattened_dict(fields | (SEGVIT if head == 'segvit' else {}) | changes)
  return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('masks') / 'set'
  return mask_folders.write(root, {'train': 16, 'test': 12}, size=(16, 24))


@pytest.fixture(scope='module')
def run(folder, tmp_path_factory):
  """Six steps with SegViT."""
  workdir = tmp_path_factory.mktemp('segmentation') / 'run'
  changes = {'num_steps': 6, 'eval_every': 3, 'augment.flip': True, 'augment.crop_padding': 2}
  config = segmenting(folder, 'segvit', **changes)
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
  assert results[0]['final'].keys() >= {f'test/iou/{name}' for name in mask_folders.CLASSES}


def test_eight_devices_and_micro_batches_give_the_losses_of_one(folder, train, tmp_path):
  """Of SegViT, whose loss is a mean over the queries and objects of the whole batch."""
  changes = {'num_steps': 2, 'eval_every': 2, 'log_every': 1, 'eval_batch_size': 8}
  changes |= {'batch_size': 16}
  loop.train_and_evaluate(segmenting(folder, 'segvit', **changes), tmp_path / 'one')
  fields = {'task': 'segmentation', 'model.head.name': 'segvit', **SEGVIT, **changes}
  fields |= {'data.name': 'masks', 'data.dir': folder, 'monitor': 'test/mean_iou'}
  fields |= {'grad_accum_steps': 2, 'augment.shift': 0}
  flags = [f'--config.{name}={value}' for name, value in fields.items()]
  done = train(*flags, f'--workdir={tmp_path}/eight', devices=8)
  assert done.returncode == 0, done.stderr
  one, eight = (read_history(tmp_path / name / 'metrics.jsonl') for name in ('one', 'eight'))
  assert len(one) == len(eight)
  for line, expected in zip(eight, one, strict=True):
    for name in expected:
      if name.startswith(('train/', 'test/', 'grad_norm')):
        np.testing.assert_allclose(line[name], expected[name], rtol=1e-3, err_msg=name)


def test_the_masks_of_a_run_in_windows_are_those_that_it_reported(folder, tmp_path):
  windows = {
    'data.crop': 'scale',
    'data.train_size': (8, 8),
    'data.image_size': (16, 24),
    'model.head.window': (8, 8),
    'model.head.stride': (6, 8),
  }
  config = segmenting(folder, num_steps=2, eval_every=2, **windows)
  results = loop.train_and_evaluate(config, tmp_path / 'run')
  variables, config = weights.load(tmp_path / 'run')
  assert config.image_size == (16, 24)
  predictor = Predictor(variables, config)
  test = load_source('masks', 'test', str(folder))
  found = masks.evaluate(predictor, test, 'set, test')
  hits, either = found.hits.sum(0), found.either.sum(0)
  reported = [results['final'].get(f'test/iou/{name}') for name in mask_folders.CLASSES]
  np.testing.assert_allclose(hits / either, reported, atol=0.002)  # a tie may be settled otherwise
  crops = Preprocessing(crop='central', spatial_crops=3)
  with pytest.raises(UsageError, match=r'^spatial_crops: .* averaged, and a mask has one'):
    Predictor(variables, config.replace(preprocess=crops))
  with pytest.raises(UsageError, match='images that differ in size have no common shape'):
    predictor([np.zeros((16, 24, 3), np.uint8), np.zeros((16, 20, 3), np.uint8)])
  assert predictor([np.zeros((10, 20, 3), np.uint8)])['mask'].shape == (1, 10, 20)


def test_a_run_in_windows_starts_from_weights_whose_positions_are_resized(folder, tmp_path):
  variables = random_variables(SQUARE)
  weights.save(variables, SQUARE, tmp_path / 'vit.msgpack', format='scenic')
  changes = {name: SQUARE[name] for name in ('hidden_size', 'mlp_dim', 'num_layers', 'classifier')}
  changes = {f'model.{name}': value for name, value in changes.items()} | {
    'init_from': str(tmp_path / 'vit.msgpack'),
    'num_steps': 2,
    'data.crop': 'scale',
    'data.train_size': (8, 16),
    'data.image_size': (16, 24),
    'model.head.window': (8, 16),
  }
  experiment = Experiment(segmenting(folder, **changes))
  assert 'position embeddings: resized from 2x2 to 2x4' in experiment.describe()
  params = experiment.initial_state().params['backbone']['Transformer']['posembed_input']
  before = variables['params']['Transformer']['posembed_input']['pos_embedding']
  expected = resize_position_embeddings(before, (2, 2), (2, 4), 1)
  np.testing.assert_allclose(params['pos_embedding'], expected, rtol=1e-6)


def test_predict_writes_masks_and_drawings(run, folder, tmp_path):
  image = folder / 'test/images/0.png'
  with command_server('vit_jax.predict', 'IMAGE...') as predict:
    found = predict(f'--workdir={run[0]}', f'--out={tmp_path}/out', '--json', image, image)
    text = predict(f'--workdir={run[0]}', image)
    refused = predict('--weights=tests/kept_runs/run', f'--out={tmp_path}/no', image)
    same = predict(f'--workdir={run[0]}', f'--out={image.parent}', image)
  assert found.returncode == 0, found.stderr
  names = ['0.png', '0_1.png', '0_1_mask.png', '0_mask.png']
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == names
  with Image.open(tmp_path / 'out' / '0.png') as mask:
    assert (mask.mode, mask.size) == ('P', (24, 16))
    counts = np.bincount(np.asarray(mask).ravel(), minlength=3)
  line = json.loads(found.stdout.splitlines()[0])
  shares = {entry['label']: entry['share'] for entry in line['classes']}
  assert shares == {i: count / counts.sum() for i, count in enumerate(counts) if count}
  assert '% of pixels  ' in text.stdout
  assert refused.returncode == 2
  assert '--out: the model predicts no mask or box, and nothing else is drawn' in refused.stderr
  assert same.returncode == 2
  assert 'test/images holds the images, and their masks would' in same.stderr


def test_explain_draws_masks_and_names_what_does_not_apply(run, folder, tmp_path):
  with command_server('vit_jax.explain.__main__', '[IMAGE...]') as explain:
    pictures = '--pictures=masks,class_iou,worst_masks,confusion'
    drawn = explain(f'--workdir={run[0]}', f'--out={tmp_path}', '--num_images=2', pictures)
    image = folder / 'test/images/0.png'
    given = explain(f'--workdir={run[0]}', f'--out={tmp_path}', image, pictures)
  assert (drawn.returncode, given.returncode) == (2, 2)
  names = [f'{tmp_path}/{name}.png' for name in ('masks', 'class_iou', 'worst_masks')]
  assert drawn.stdout.splitlines() == names
  assert '--pictures: confusion: not of this model; of this model there are ' in drawn.stderr
  refused = [f'{name}: the images have no masks' for name in ('class_iou', 'worst_masks')]
  assert given.stdout.splitlines() == names[:1]
  assert f'--pictures: {"; ".join(refused)}; confusion: not of this model; ' in given.stderr


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data.name': 'digits', 'data.dir': ''}, r"config\.task: 'segmentation' needs masks, and"),
    (
      {'data.train_size': (8, 8)},
      r'config\.data\.train_size: \(8, 8\), but the model has',
    ),
    ({'augment.mixup_alpha': 0.2}, r'config\.augment\.mixup_alpha: 0\.2, but the task has masks'),
    ({'model.head.window': (32, 32)}, r'config\.model\.head\.window: \(32, 32\) is larger than'),
    ({'data.num_frames': 2}, r'config\.data\.num_frames: 2, but the records have no videos'),
    ({'loss.no_object': 0.5}, r'config\.loss\.no_object: 0\.5, but the head has no queries'),
    ({'loss.dice': -1.0}, r'config\.loss\.dice: -1\.0 is not a number from 0 on'),
  ],
)
def test_mistakes(folder, changes, message):
  with pytest.raises(UsageError, match=f'^{message}'):
    Experiment(segmenting(folder, num_steps=2, **{'data.image_size': (16, 24), **changes}))


@pytest.mark.parametrize('arg', ['linear,small', 'segvit,B/16'])
def test_the_config_builds_what_it_says(folder, arg):
  config = segmentation.get_config(f'{arg},{folder}')
  config.num_steps = 2000
  if arg == 'segvit,B/16':
    assert (config.model.head.num_heads, config.model.hidden_size) == (12, 768)
    assert config.model.head.stride == (341, 341)
    config.model.update(hidden_size=64, mlp_dim=16, num_layers=3, num_heads=1)
    config.model.head.num_heads = 1
  experiment = Experiment(config)
  assert type(experiment.model).__name__ == {'l': 'LinearSegmenter', 's': 'SegViT'}[arg[0]]
  side = (96, 128) if 'small' in arg else (512, 683)
  assert experiment.model_config.image_size == side


@pytest.mark.parametrize('arg', ['linear,small', 'linear,camvid', 'linear,small,camvid'])
def test_the_config_asks_for_a_folder(arg):
  with pytest.raises(UsageError, match=r"^--config: .* is not 'HEAD,SIZE,DATASET'"):
    segmentation.get_config(arg)
