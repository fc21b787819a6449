"""Runs of the task localization: what they learn, keep, start from, predict, and refuse."""

import json
import os
import re
import shutil

import jax
import numpy as np
import pytest
import yolo_folders
from accuracies import assert_accuracy
from command_server import command_server
from conftest import tiny_config
from small_vits import random_variables

from vit_jax import config_fields, models, weights
from vit_jax.data import decode_image, make_preprocess
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig, Preprocessing
from vit_jax.predictor import Predictor
from vit_jax.run import directory
from vit_jax.train import loop
from vit_jax.train.experiment import Experiment
from vit_jax.train.optimizers import learning_rate_factors

pytestmark = pytest.mark.usefixtures('brief_ends')

SIX_BLOCKS = r'backbone/(embedding|cls|Transformer/(posembed_input|encoderblock_[0-5]))'


def localizing(root, **changes):
  config = tiny_config()
  config_fields.set_task(config, changes.pop('task', 'localization'))
  fields = {
    'data.name': 'yolo',
    'data.dir': str(root),
    'data.resident': 'no',
    'model.patches.size': (4, 4),
    'batch_size': 32,
    'augment.shift': 2,
    'monitor': 'test/loss',
  }
  if 'head' in config.model:
    fields['model.head.hidden_size'] = 32
  config.update_from_flattened_dict(fields | changes)
  return config


def initial_params(config):
  return models.flatten({'params': Experiment(config).initial_state().params})


def metrics(workdir):
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [line for line in lines if 'test/loss' in line]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return yolo_folders.write(tmp_path_factory.mktemp('yolo') / 'set', {'train': 256, 'test': 64})


@pytest.fixture(scope='module')
def run(folder, tmp_path_factory):
  """A run that is long enough to learn something."""
  workdir = tmp_path_factory.mktemp('localization') / 'run'
  changes = {
    'num_steps': 400,
    'eval_every': 100,
    'data.resident': 'yes',
    'model.num_layers': 2,
    'model.hidden_size': 32,
    'model.mlp_dim': 64,
    'optimizer.learning_rate': 3e-3,
    'loss.class_divisor': 20.0,
  }
  loop.train_and_evaluate(localizing(folder, **changes), workdir)
  return workdir


def test_a_run_learns_to_find_rectangles(run):
  first, *_, last = metrics(run)
  assert last['test/loss'] < 0.5 * first['test/loss'] or last['test/loss'] < 0.005
  assert last['test/accuracy'] > 0.95
  assert last['test/iou'] > max(0.6, first['test/iou'])
  assert last['test/iou50'] > max(0.8, first['test/iou50'])
  assert {'test/iou75', 'test/iou90', 'test/class_loss', 'test/box_loss'} <= last.keys()


def test_predictions_of_a_run_have_boxes(run, folder):
  experiment = Experiment(localizing(folder))
  source, _ = experiment.sets['test']
  records = list(source.read(range(64)))
  variables, config = weights.load(run)
  predictor = Predictor(variables, config)
  found = predictor([record['image'] for record in records], batch_size=16)
  assert {name: x.shape for name, x in found.items()} == {'probabilities': (64, 3), 'box': (64, 4)}
  labels, boxes = (np.stack([record[name] for record in records]) for name in ('label', 'box'))
  best = min(metrics(run), key=lambda line: line['test/loss'])
  assert_accuracy(best['test/accuracy'], found['probabilities'], labels)
  error = np.square(found['box'] - boxes).mean()
  assert error == pytest.approx(best['test/box_loss'], rel=1e-3)
  np.testing.assert_allclose(found['probabilities'].sum(1), 1, atol=1e-5)
  assert {name: x.shape for name, x in predictor([]).items()} == {
    'probabilities': (0, 3),
    'box': (0, 4),
  }


def test_boxes_are_of_the_image_and_not_of_its_central_crop(run):
  variables, config = weights.load(run)
  rng = np.random.default_rng(0)
  wide = rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)
  whole = Predictor(variables, config.replace(preprocess=None))
  central = Predictor(variables, config.replace(preprocess=Preprocessing(crop='central')))
  crop = make_preprocess((16, 16), 3, 'central', False)({'image': wide})['image']
  inside = whole([crop])['box'][0]
  size = 224 / 256 * np.array([32 / 64, 1])  # of the crop, in fractions of the image
  expected = np.concatenate([(1 - size) / 2 + inside[:2] * size, inside[2:] * size])
  np.testing.assert_allclose(central([wide])['box'][0], expected, atol=0.03)


def test_a_resumed_run_ends_with_the_same_bits(folder, tmp_path):
  changes = {'num_steps': 6, 'eval_every': 3, 'ema_decay': 0.5}
  config = localizing(folder, **changes)
  config.augment.flip = True
  loop.train_and_evaluate(config, tmp_path / 'whole')
  shutil.copytree(tmp_path / 'whole', tmp_path / 'part')
  (tmp_path / 'part' / 'checkpoints' / '6').rename(tmp_path / 'gone')
  (tmp_path / 'part' / 'results.json').unlink()
  loop.train_and_evaluate(config, tmp_path / 'part')
  assert metrics(tmp_path / 'part') == metrics(tmp_path / 'whole')
  whole, part = (weights.load(tmp_path / name)[0] for name in ('whole', 'part'))
  jax.tree.map(np.testing.assert_array_equal, part, whole)


def test_another_folder_is_another_run(run, tmp_path):
  other = Experiment(localizing(yolo_folders.write(tmp_path / 'other', {'train': 9, 'test': 2})))
  with pytest.raises(UsageError, match=r'another configuration \(.*data\.dir '):
    directory.check(run, other.config)


PLAIN = ModelConfig.from_dict(
  {
    'name': 'vit',
    'hidden_size': 16,
    'mlp_dim': 16,
    'num_layers': 7,
    'num_heads': 2,
    'patches': {'size': (4, 4)},
    'classifier': 'token',
    'num_classes': 5,
    'channels': 3,
    'image_size': (16, 16),
  }
)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """A file of the weights of a plain ViT, and these."""
  path, variables = tmp_path_factory.mktemp('weights') / 'm.npz', random_variables(PLAIN)
  weights.save(variables, PLAIN, path, format='augreg')
  return path, models.flatten(variables)


def from_plain(folder, path, **changes):
  fields = {'init_from': str(path), 'model.num_layers': 7, 'model.classifier': 'token'}
  return localizing(folder, **fields | changes)


def test_a_plain_vit_becomes_the_backbone_and_its_first_blocks_stay(folder, plain, tmp_path):
  path, before = plain
  config = from_plain(folder, path, freeze=(SIX_BLOCKS,), num_steps=1)
  experiment = Experiment(config)
  text = experiment.describe()
  for note in ('head: left out', 'class_head: new, 3 classes', 'box_head: new'):
    assert f'  {note}\n' in f'{text}\n'
  start = models.flatten(experiment.initial_state().eval_variables)
  head = {name for name in before if name.startswith('output_projection')}
  for name in before.keys() - head:
    np.testing.assert_array_equal(start[f'backbone/{name}'], before[name])
  assert not any('output_projection' in name for name in start)

  loop.train_and_evaluate(config, tmp_path / 'run')
  after = models.flatten(weights.load(tmp_path / 'run')[0])
  assert after.keys() == start.keys()
  unchanged = {name for name in after if (after[name] == start[name]).all()}
  blocks = tuple(f'Transformer/encoderblock_{i}/' for i in range(6))
  frozen = ('embedding', 'cls', 'Transformer/posembed_input', *blocks)
  expected = {f'backbone/{name}' for name in before if name.startswith(frozen)}
  assert expected <= unchanged
  assert 'backbone/Transformer/encoderblock_6/MlpBlock_0/Dense_0/kernel' not in unchanged
  assert {'class_head/Dense_0/kernel', 'box_head/Dense_1/bias'}.isdisjoint(unchanged)


def test_a_localization_run_goes_on_as_another(run, folder, tmp_path):
  before, changes = models.flatten(weights.load(run)[0]), {}
  for name in ('num_layers', 'hidden_size', 'mlp_dim'):
    changes[f'model.{name}'] = getattr(weights.load(run)[1].backbone, name)
  changes['init_from'] = str(run)

  same = initial_params(localizing(folder, **changes))
  for name, value in before.items():
    np.testing.assert_array_equal(same[name], value)

  new = initial_params(localizing(folder, **changes, **{'init_options.head': 'new'}))
  plain = initial_params(localizing(folder, **changes, **{'model.head.box_sigmoid': False}))
  wide = initial_params(localizing(folder, **changes, **{'model.head.hidden_size': 8}))
  other = yolo_folders.write(tmp_path / 'other', {'train': 32, 'test': 4})
  yaml = (other / 'data.yaml').read_text().replace('red', 'orange')
  (other / 'data.yaml').write_text(yaml)
  others = initial_params(localizing(other, **changes))
  for params, kept in (
    (new, ('backbone',)),
    (plain, ('backbone', 'class_head')),
    (wide, ('backbone',)),
    (others, ('backbone', 'box_head')),
  ):
    for name in before:
      is_kernel, is_kept = name.endswith('kernel'), name.startswith(kept)
      if is_kept:
        np.testing.assert_array_equal(params[name], before[name])
      elif is_kernel and params[name].shape == before[name].shape:
        assert (params[name] != before[name]).any()
  message = r"config\.init_options\.head: 'keep', but the head in .* 32x32, 32x3, .* 32x8, 8x3"
  options = {'init_options.head': 'keep', 'model.head.hidden_size': 8}
  with pytest.raises(UsageError, match=message):
    Experiment(localizing(folder, **changes, **options))


def test_a_localization_run_goes_on_as_a_classification(run, folder):
  from configs import finetune

  before, config = models.flatten(weights.load(run)[0]), finetune.get_config('yolo')
  config.update(batch_size=32, init_from=str(run))
  config.data.update(dir=str(folder), image_size=(16, 16), crop='resize')
  experiment = Experiment(config)
  text = experiment.describe()
  for note in ('head: new, 3 classes', 'class_head: left out', 'box_head: left out'):
    assert f'  {note}\n' in f'{text}\n'
  params = models.flatten(experiment.initial_state().eval_variables)
  for name, value in params.items():
    if not name.startswith('output_projection'):
      np.testing.assert_array_equal(value, before[f'backbone/{name}'])
  assert experiment.config.model.hidden_size == 32
  config.init_options.head = 'keep'
  with pytest.raises(UsageError, match=r"'keep', but the head in .* is none, that of this"):
    Experiment(config)


def test_formats_without_a_place_for_boxes_refuse_them(run, tmp_path):
  variables, config = weights.load(run)
  for format in ('augreg', 'timm', 'huggingface', 'scenic'):
    with pytest.raises(UsageError, match='a model for localization has no place there'):
      weights.save(variables, config, tmp_path / format, format=format)


def test_layers_have_the_learning_rates_of_a_plain_vit(folder, plain):
  config = from_plain(folder, plain[0])
  experiment = Experiment(config)
  factors = learning_rate_factors(experiment.model, experiment._param_shapes, 0.5, 10.0)
  params = models.unflatten(plain[1])['params']
  expected = learning_rate_factors(PLAIN.model, params, 0.5, 10.0)
  for name, factor in factors.items():
    inner = name.removeprefix('backbone/')
    assert factor == (expected[inner] if inner != name else 10.0), name
  assert factors['backbone/embedding/kernel'] == 0.5**8


def test_classification_ignores_boxes(folder):
  experiment = Experiment(localizing(folder, task='classification', **{'augment.mixup_alpha': 0.2}))
  assert 'head' not in experiment.model_config.to_dict()
  assert 'output_projection' in experiment.initial_state().params


MISTAKES = {
  'no boxes': (
    {'data.name': 'digits', 'data.dir': ''},
    r"config\.task: 'localization' needs boxes, .*config\.data\.name='digits'",
  ),
  'mixup': ({'augment.mixup_alpha': 0.2}, r'config\.augment\.mixup_alpha: 0\.2, but the task has'),
  'no folder': ({'data.dir': ''}, r"config\.data\.dir: '' is not a folder with a data\.yaml"),
  'monitor': ({'monitor': 'test/iou80'}, r"config\.monitor: 'test/iou80' is not one of .*iou90"),
  'features': (
    {'model.classifier': 'none'},
    r'config\.model: class and box are read from one vector',
  ),
  'freeze': ({'freeze': ('embedding',)}, r"config\.freeze: 'embedding' matches no parameter"),
  'box loss': ({'loss.box': 'mes'}, r"config\.loss\.box: 'mes' is not one of"),
}


def test_the_command_shows_boxes(run, folder):
  image = folder / 'test/images/0.png'
  variables, config = weights.load(run)
  found = Predictor(variables, config)([decode_image(image)])
  with command_server('vit_jax.predict', 'IMAGE_OR_FOLDER...') as predict:
    line = json.loads(predict(f'--workdir={run}', image, '--json').stdout)
    text = predict(f'--workdir={run}', image).stdout
  assert line.keys() == {'image', 'predictions', 'box'}
  np.testing.assert_allclose(line['box'], found['box'][0], atol=1e-5)
  assert line['predictions'][0]['label'] == found['probabilities'][0].argmax()
  numbers = re.search(r'box \(centre x, y, width, height\): (.*) %$', text, re.MULTILINE)[1]
  shown = [float(number) for number in numbers.split(' % ')]
  np.testing.assert_allclose(shown, 100 * found['box'][0], atol=0.01)


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes(folder, name):
  changes, message = MISTAKES[name]
  with pytest.raises(UsageError, match=f'^{message}') as e:
    Experiment(localizing(folder, **changes))
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('arg', ['vit', 'vit-small'])
def test_the_config_of_the_letters_builds_what_it_says(folder, arg):
  from configs import asl_letters

  config = asl_letters.get_config(arg)
  config.data.dir = str(folder)
  config.data.test_split = 'test'
  experiment = Experiment(config)
  side = 64 if 'small' in arg else 224
  assert experiment.model_config.image_size == (side, side)
  assert experiment.model.hidden_size == 512
  assert experiment.model_config.backbone.hidden_size == (128 if 'small' in arg else 768)


def test_the_config_of_the_letters_freezes_six_blocks_of_a_pretrained_vit(folder, plain):
  from configs import asl_letters

  config = asl_letters.get_config('vit-pretrained-small')
  config.data.update(dir=str(folder), test_split='test')
  with pytest.raises(UsageError, match=r'config\.init_from: not set, and config\.model'):
    Experiment(config)
  config.init_from = str(plain[0])
  experiment = Experiment(config)
  assert experiment.config.model.num_layers == 7
  trainable = models.flatten({'params': experiment._trainable})
  blocks = {name.split('/')[2] for name, x in trainable.items() if x and 'encoderblock' in name}
  assert blocks == {'encoderblock_6'}


def test_the_config_of_the_letters_puts_the_heads_on_a_resnet(folder):
  from configs import asl_letters

  config = asl_letters.get_config('resnet18-small')
  config.data.update(dir=str(folder), test_split='test')
  shapes = Experiment(config)._param_shapes
  for name in ('class_head', 'box_head'):
    assert shapes[name]['Dense_0']['kernel'].shape == (512, 512)


def test_the_config_of_the_letters_with_and_without_a_divisor():
  from configs import asl_letters

  for arg, divisor, accuracy in (('vit', 100, 0.8819), ('vit-pretrained-undivided', 1, 0.9097)):
    for size in ('', '-small'):
      config = asl_letters.get_config(arg + size)
      assert config.loss.class_divisor == divisor
      assert config.reference['test/accuracy'] == accuracy


def test_the_config_of_the_letters_asks_for_their_folder():
  from configs import asl_letters

  with pytest.raises(UsageError, match=r"^config\.data\.dir: '' is not a folder with a data\.yaml"):
    Experiment(asl_letters.get_config('vit-small'))
  with pytest.raises(UsageError, match=r"asl_letters: 'vitt' is not one of .*did you mean 'vit'"):
    asl_letters.get_config('vitt')


def test_a_step_on_the_letters(tmp_path):
  from configs import asl_letters

  config = asl_letters.get_config('vit-small')
  config.data.dir = os.environ.get('ASL_LETTERS_DIR', '')
  if not config.data.dir:
    pytest.skip('needs the letters of public.roboflow.com, in YOLO format, in $ASL_LETTERS_DIR')
  config.data.train_split = 'train[:64]'
  config.update(num_steps=2)
  config.schedule.warmup_steps = 0
  config.model.num_layers = 1
  results = loop.train_and_evaluate(config, tmp_path / 'run')
  assert results['final'].keys() >= {'test/accuracy', 'test/iou50', 'test/iou75', 'test/iou90'}
