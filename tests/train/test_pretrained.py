"""Runs that start from weights: what they take, what they leave, and what they refuse."""

import json

import jax
import numpy as np
import pytest
from conftest import ROOT, tiny_config
from small_vits import SQUARE, random_variables

from vit_jax import config_fields, models, weights
from vit_jax.errors import UsageError, UsageWarning
from vit_jax.models import Preprocessing
from vit_jax.models.vit import TOKENIZER
from vit_jax.train import loop
from vit_jax.train.experiment import Experiment

pytestmark = pytest.mark.usefixtures('brief_ends')

SOURCE = SQUARE.replace(activation='gelu_exact', norm_epsilon=1e-5, image_size=(12, 16), channels=1)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A weight file of two layers, three classes and 12x16 grey images."""
  path = tmp_path_factory.mktemp('weights') / 'm.npz'
  weights.save(random_variables(SOURCE), SOURCE, path, format='augreg')
  return path


def finetuning(init_from, arg='digits', **changes):
  from configs import finetune

  config = finetune.get_config(arg)
  config.update(batch_size=64, num_steps=4, init_from=str(init_from))
  config.schedule.warmup_steps = 0
  config.update_from_flattened_dict(changes)
  return config


def initial_params(config):
  return models.flatten(Experiment(config).initial_state().eval_variables)


def test_open_fields_are_those_of_the_weights(source):
  experiment = Experiment(finetuning(source))
  for name in ('hidden_size', 'num_layers', 'num_heads', 'activation', 'norm_epsilon'):
    assert experiment.config.model[name] == getattr(SOURCE.backbone, name)
  assert experiment.config.model.patches.size == SOURCE.backbone.patches['size']
  assert experiment.config.data.mean == experiment.config.data.std == (0.5,)
  assert f'starting from {source}' in experiment.describe()


def test_fields_that_weights_say_nothing_of_are_the_model_s_defaults_in_experiments(source):
  """Which for dropout aren't those of the module."""
  model = Experiment(finetuning(source)).config.model
  assert (model.dropout_rate, model.attention_dropout_rate, model.remat) == (0.0, 0.0, False)
  assert 'num_filters' not in model
  assert model.tokenizer.to_dict() == {**TOKENIZER, 'tokenlearner_loc': None}


def test_steps_that_stand_instead_of_epochs_are_told(source):
  texts = [Experiment(finetuning(source, num_epochs=n)).describe() for n in (0.0, 3.0)]
  assert [' epochs\n' in text for text in texts] == [True, False]
  assert 'epochs (config.num_steps stands instead of config.num_epochs, 3)' in texts[1]


def test_a_run_starts_with_the_weights_and_a_new_head(source):
  params, before = initial_params(finetuning(source)), models.flatten(random_variables(SOURCE))
  resized = 'Transformer/posembed_input/pos_embedding'
  for name, value in params.items():
    if name.startswith('output_projection'):
      assert not value.any()
    elif name != resized:
      np.testing.assert_array_equal(value, before[name])
  assert params[resized].shape == (1, 1 + 2 * 2, 8)
  np.testing.assert_array_equal(params[resized][:, 0], before[resized][:, 0])


def test_positions_are_resized_as_config_says(source):
  name = 'Transformer/posembed_input/pos_embedding'
  linear, bicubic = (
    initial_params(finetuning(source, **{'init_options.resize': resize}))[name]
    for resize in ('big_vision', 'timm')
  )
  assert np.abs(linear - bicubic).max() > 0.01
  with pytest.raises(UsageError, match=r"^config\.init_options\.resize: 'cubic' is not one of"):
    Experiment(finetuning(source, **{'init_options.resize': 'cubic'}))
  with pytest.raises(UsageError, match=r"^config\.init_from: not set, but .*\.resize='timm' needs"):
    Experiment(tiny_config(**{'init_options.resize': 'timm'}))


def test_fields_that_are_set_win_where_they_may(source):
  params = initial_params(finetuning(source, **{'model.classifier': 'gap'}))
  assert 'cls' not in params
  with pytest.raises(UsageError, match=r"config\.model\.activation: .*'relu'.*'gelu_exact'"):
    Experiment(finetuning(source, **{'model.activation': 'relu'}))


@pytest.mark.parametrize(('channels', 'mean'), [(1, (0.2,)), (3, (0.5,))])
def test_the_mean_of_pixels_is_that_of_the_weights_for_like_images(tmp_path, channels, mean):
  said = SOURCE.replace(preprocess=Preprocessing(mean=(0.2,), std=(0.3,)))
  weights.save(random_variables(said), said, tmp_path / 'm.npz', format='augreg')
  config = finetuning(tmp_path / 'm.npz', **{'data.image_size': (8, 8), 'data.channels': channels})
  assert Experiment(config).config.data.mean == mean


@pytest.mark.parametrize(
  ('changes', 'fraction'),
  [
    ({'data.crop': 'inception'}, 0.9),
    ({'data.crop': 'central', 'data.crop_fraction': 0.7}, 0.7),
    ({}, None),
  ],
)
def test_the_margin_of_a_crop_is_that_of_the_weights_unless_it_is_set(tmp_path, changes, fraction):
  preprocess = Preprocessing(mean=(0.2,), std=(0.3,), crop='central', crop_fraction=0.9)
  config = SOURCE.replace(preprocess=preprocess)
  weights.save(random_variables(config), config, tmp_path / 'm.npz', format='augreg')
  changes |= {'data.image_size': (8, 8), 'data.channels': 1}
  experiment = Experiment(finetuning(tmp_path / 'm.npz', **changes))
  assert experiment.config.data.crop_fraction == fraction
  assert experiment.model_config.preprocess.crop_fraction == fraction


def test_the_moving_average_starts_there_too(source):
  state = Experiment(finetuning(source, ema_decay=0.9)).initial_state()
  jax.tree.map(np.testing.assert_array_equal, state.ema_params, state.params)


def test_a_run_goes_on_without_its_weights(source, tmp_path):
  copy = tmp_path / 'm.npz'
  copy.write_bytes(source.read_bytes())
  config = finetuning(copy, checkpoint_every=2, eval_every=2)
  whole = loop.train_and_evaluate(config, tmp_path / 'run')
  (tmp_path / 'run' / 'checkpoints' / '4').rename(tmp_path / 'gone')
  (tmp_path / 'run' / 'results.json').unlink()
  copy.unlink()
  resumed = loop.train_and_evaluate(config, tmp_path / 'run')
  assert resumed['final'] == whole['final']
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['model']['num_layers'] == 2


def test_a_run_starts_from_a_run():
  run = ROOT / 'tests' / 'kept_runs' / 'run'
  before, _ = weights.load(run)
  config = finetuning(run)
  params = initial_params(config)
  for name, value in models.flatten(before).items():  # the same classes: the head as well
    np.testing.assert_array_equal(params[name], value)
  config.init_options.head = 'new'
  assert not initial_params(config)['output_projection/kernel'].any()


@pytest.fixture(scope='module')
def token_learner(tmp_path_factory):
  """A run of a TokenLearner, and what it ended with."""
  workdir = tmp_path_factory.mktemp('token_learner')
  config = tiny_config(num_steps=2, **{'model.posemb_init_stddev': 0.5})
  config_fields.set_model(config, 'token_learner')
  config.model.classifier = 'gap'
  config.model.tokenizer.num_tokens = 3
  loop.train_and_evaluate(config, workdir)
  return workdir, models.flatten(weights.load(workdir)[0])


def test_a_token_learner_goes_on_as_one(token_learner, tmp_path):
  workdir, before = token_learner
  experiment = Experiment(finetuning(workdir))
  model = experiment.config.model
  assert (model.name, model.tokenizer.num_tokens) == ('token_learner', 3)
  params = models.flatten(experiment.initial_state().params)
  assert params.keys() == before.keys()
  for name, value in before.items():
    np.testing.assert_array_equal(params[name], value)
  whole = loop.train_and_evaluate(finetuning(workdir), tmp_path / 'run')
  (tmp_path / 'run' / 'results.json').unlink()
  assert loop.train_and_evaluate(finetuning(workdir), tmp_path / 'run')['final'] == whole['final']


def test_a_token_learner_without_its_tokenizer_where_the_config_is_of_a_vit(token_learner):
  workdir, before = token_learner
  assert any('TokenLearner' in name for name in before)
  config = finetuning(workdir, **{'model.name': 'vit', 'model.tokenizer.type': 'patch'})
  assert not any('TokenLearner' in name for name in initial_params(config))


@pytest.mark.parametrize(
  ('arg', 'size', 'padding', 'shift'),
  [
    ('B/16,cifar10', (224, 224), 28, 0),
    ('B/16,mnist', (224, 224), 0, 16),
    ('Ti/4,cifar10', (), 4, 0),
    ('cifar10', (), 4, 0),
    ('B/32,oxford_iiit_pet', (224, 224), 0, 0),
  ],
)
def test_small_images_are_enlarged_for_large_patches(arg, size, padding, shift):
  from configs import finetune

  config = finetune.get_config(arg)
  assert config.data.image_size == size
  assert (config.augment.crop_padding, config.augment.shift) == (padding, shift)


def test_frozen_blocks_stay_as_the_weights_have_them(source, tmp_path):
  freeze = ('embedding', 'Transformer/encoderblock_0')
  loop.train_and_evaluate(finetuning(source, freeze=freeze), tmp_path / 'run')
  before, (after, _) = models.flatten(random_variables(SOURCE)), weights.load(tmp_path / 'run')
  for name, value in models.flatten(after).items():
    if name.startswith(freeze):
      np.testing.assert_array_equal(value, before[name])
    elif name.startswith('Transformer/encoderblock_1/MlpBlock_0'):
      assert (value != before[name]).any()


def test_a_linear_probe_trains_the_head_alone(source, tmp_path):
  from configs import linear_probe

  config = linear_probe.get_config('digits')
  config.update(batch_size=64, num_steps=3, init_from=str(source))
  config.schedule.warmup_steps = 0
  loop.train_and_evaluate(config, tmp_path / 'run')
  before, (after, _) = initial_params(config), weights.load(tmp_path / 'run')
  changed = {name for name, value in models.flatten(after).items() if (value != before[name]).any()}
  assert changed == {'output_projection/kernel', 'output_projection/bias'}


def test_overlapping_patches_of_a_run_go_on_overlapping(tmp_path):
  run = tiny_config(num_steps=1, **{'model.stride': (2, 2)})
  loop.train_and_evaluate(run, tmp_path / 'run')
  for changes, stride in (
    ({}, (2, 2)),
    ({'model.patches.size': (2, 2)}, None),
    ({'model.stride': (4, 4)}, (4, 4)),
  ):
    assert Experiment(finetuning(tmp_path / 'run', **changes)).config.model.stride == stride


def test_what_the_weights_lack_cannot_stay_frozen(source):
  config = finetuning(source, freeze=('(?!output_projection).*',))
  config.model.update(classifier='gap', fc_norm=True)
  Experiment(config)
  config.model.update(classifier='map', fc_norm=False)
  with pytest.raises(UsageError, match=r'config\.freeze: MAPHead_0/.* is frozen, but .*m\.npz has'):
    Experiment(config)


def test_without_weights_open_fields_are_the_defaults(tmp_path):
  config = finetuning('', 'Ti/4,digits', **{'model.num_layers': 1})
  model = Experiment(config).model
  assert (model.classifier, model.activation, model.norm_epsilon) == ('gap', 'gelu', 1e-6)


def test_what_is_allowed_to_be_missing_starts_anew(source, tmp_path):
  tensors = {n: a for n, a in np.load(source).items() if not n.startswith('cls')}
  np.savez(tmp_path / 'm.npz', **tensors)
  known = {name: SOURCE[name] for name in ('image_size', 'classifier', 'activation')}
  options = {f'init_options.{name}': value for name, value in known.items()}
  options['init_options.norm_epsilon'] = SOURCE.backbone.norm_epsilon
  config = finetuning(tmp_path / 'm.npz', **options)
  with pytest.raises(UsageError, match=r'tensors that do not fit: 1\n.*\nmissing +cls '):
    Experiment(config)
  config.init_options.allow = 'cls'
  with pytest.warns(UsageWarning, match=r'm\.npz: tensors left out, as allowed: 1 \(cls\);'):
    experiment = Experiment(config)
  assert 'cls: new, as allowed' in experiment.describe()


def test_what_a_file_does_not_say_is_asked_for_as_a_field(tmp_path):
  odd = SOURCE.replace(image_size=(12, 8))
  weights.save(random_variables(odd), odd, tmp_path / 'full.npz', format='augreg')
  np.savez(tmp_path / 'm.npz', **np.load(tmp_path / 'full.npz'))  # without its own config
  with pytest.raises(UsageError, match=r'^config\.init_options\.image_size: .* HEIGHT,WIDTH'):
    Experiment(finetuning(tmp_path / 'm.npz'))
  options = {'init_options.image_size': (12, 8), 'init_options.norm_epsilon': 1e-5}
  model = Experiment(finetuning(tmp_path / 'm.npz', **options)).model
  assert (model.norm_epsilon, model.activation) == (1e-5, 'gelu')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'init_from': ''}, r'config\.init_from: not set, and config\.model\.mlp_dim is left to'),
    (
      {'init_from': '', 'model.name': 'resnet18'},
      r'config\.init_from: not set, and config\.model\.num_filters is left to',
    ),
    (
      {'init_from': '', 'init_options.head': 'new'},
      r"not set, but config\.init_options\.head='new'",
    ),
    ({'init_from': 'm.onnx'}, r'config\.init_from: m\.onnx: no such file or folder'),
    ({'init_from': __file__}, r'config\.init_from: .*test_pretrained\.py: .*; give its format'),
    ({'init_from': 'nowhere.npz'}, r'config\.init_from: nowhere\.npz: no such file'),
    ({'init_options.head': 'keep'}, r"config\.init_options\.head: 'keep', but the head"),
    ({'init_options.head': 'kept'}, r"config\.init_options\.head: 'kept' is not one of"),
    ({'init_options.format': 'tf'}, r"config\.init_options\.format: 'tf' is not one of"),
    ({'model.hidden_size': 12}, r'config\.init_from: .*tensors that do not fit'),
    ({'model.num_filters': 3}, r'config\.model\.num_filters: no such field of ViT'),
    ({'model.mlp_ratio': 3.0}, r'config\.model\.mlp_ratio: no such field of ViT'),
    (
      {'model.stride': (1.5, 2.0)},
      r'config\.model\.stride: \(1\.5, 2\.0\) is not a whole number',
    ),
  ],
)
def test_mistakes(source, changes, message):
  config = finetuning(source)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UsageError, match=message):
    Experiment(config)
