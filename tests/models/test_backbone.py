"""What every backbone in the registry offers: the answers agree with what the model is."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.errors import FieldError

SMALL = {
  'vit': {'hidden_size': 8, 'mlp_dim': 12, 'num_layers': 3, 'num_heads': 2},
  'token_learner': {'hidden_size': 8, 'mlp_dim': 12, 'num_layers': 3, 'num_heads': 2},
  'resnet18': {'num_filters': 2},
  'resnet34': {'num_filters': 2},
  'vivit': {'hidden_size': 8, 'mlp_dim': 12, 'num_layers': 3, 'num_heads': 2},
  'space_time_vivit': {
    'hidden_size': 8,
    'spatial_mlp_dim': 12,
    'spatial_num_layers': 2,
    'spatial_num_heads': 2,
    'temporal_mlp_dim': 12,
    'temporal_num_layers': 3,
    'temporal_num_heads': 2,
  },
  'resnet50': {'num_filters': 2},
}
DEEPER = {'resnet101', 'resnet152'}  # than resnet50, and nothing else
SIZE = (32, 48)
SIZES = {
  'image': {'image_size': SIZE, 'channels': 1},
  'video': {'image_size': SIZE, 'num_frames': 4, 'channels': 1},
  'points': {'num_points': 32, 'channels': 3},
}


def config_of(name, **changes):
  fields = models.default_config(name).to_dict() | SMALL.get(name, {}) | changes
  size = SIZES[models.backbone(name).INPUT]
  return models.ModelConfig.from_dict(fields | {'num_classes': 5} | size)


@pytest.fixture(scope='module', params=[name for name in models.BACKBONES if name not in DEEPER])
def config(request):
  """One of each backbone, small where its test knows how."""
  return config_of(request.param)


@pytest.fixture(scope='module')
def images(config):
  return jnp.zeros((2, *config.input_size, config.channels))


@pytest.fixture(scope='module')
def variables(config, images):
  return jax.eval_shape(lambda: config.model.init(jax.random.key(0), images, train=False))


def test_the_shapes_are_those_of_init(config, variables):
  shapes = {name: leaf.shape for name, leaf in models.flatten(variables).items()}
  assert config.variable_shapes() == shapes


def test_a_config_is_enough_to_build_the_model_again(config):
  entries = json.loads(json.dumps(config.to_dict()))
  assert models.ModelConfig.from_dict(entries).to_dict() == config.to_dict()
  assert config['num_classes'] == config.num_classes == 5
  assert type(config.model).from_config(config).config() == config.model.config()


def test_logits_are_float32_and_features_are_what_the_head_reads(config, variables, images):
  apply = config.model.apply
  logits = jax.eval_shape(lambda v: apply(v, images, train=False), variables)
  assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
  features = jax.eval_shape(lambda v: apply(v, images, method='features'), variables)
  headless = config.model.clone(num_classes=0)
  pooled = jax.eval_shape(lambda v: headless.apply(v, images), variables)
  assert features.pooled.shape == pooled.shape == (2, pooled.shape[-1])
  assert (features.tokens is None) == bool(features.maps)
  for feature_map, stride in zip(features.maps, features.strides, strict=True):
    sides = zip(SIZE, stride, strict=True)
    assert feature_map.shape[1:3] == tuple(-(-side // step) for side, step in sides)


def test_every_parameter_has_a_layer_and_the_head_the_last(config, variables):
  layers = {name: config.model.layer_of(name) for name in models.flatten(variables)}
  assert min(layers.values()) == 0
  head = [name for name in layers if config.model.is_head(name)]
  assert {'output_projection/bias', 'output_projection/kernel'} <= {*head}
  assert {layers[name] for name in head} == {max(layers.values())}
  assert set(layers.values()) == set(range(max(layers.values()) + 1))


def test_fitting_to_the_same_model_changes_nothing(config, variables):
  backbone, shapes = config.backbone, config.variable_shapes()
  arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
  assert backbone.takes_weights_of(type(backbone))
  fitted = backbone.fit(arrays, shapes, config, config, 'a.npz')
  assert fitted.replaced == fitted.notes == []
  assert fitted.arrays.keys() == arrays.keys()
  assert all(fitted.arrays[name] is arrays[name] for name in arrays)


def test_fields_left_open_come_from_the_weights(config):
  fields = dict.fromkeys(config.backbone.config())
  completed = config.backbone.complete(fields, config.backbone.config())
  theirs = config.backbone.config()
  assert completed == {
    name: theirs[name] if name in config.backbone.WEIGHT_FIELDS else None for name in fields
  }


@pytest.mark.parametrize('select', [lambda x: x[:, ::2], lambda x: x.at[:, 1].set(0)])
@pytest.mark.parametrize('name', ['vit', 'token_learner'])
def test_tokens_can_be_dropped_after_the_positions_are_added(name, select):
  changes = {'classifier': 'gap', 'patches': {'size': (8, 8)}}
  model = config_of(name, **changes, stochastic_depth=0.0).model
  images = jax.random.normal(jax.random.key(0), (2, *SIZE, 1))
  variables = model.init(jax.random.key(1), images)
  seen = []

  def record(tokens):
    seen.append((tokens.shape, select(tokens).shape))
    return select(tokens)

  features = model.apply(variables, images, features=True, select_tokens=record)
  assert seen[0][0] == (2, 24, 8)
  assert features.grid is None
  plain = model.apply(variables, images, method='features')
  assert np.abs(plain.pooled - features.pooled).max() > 0
  if name == 'vit':
    assert features.tokens.shape == seen[0][1]
    # As if the model had been given the tokens that are left.
    half = model.apply(variables, images, features=True, select_tokens=lambda x: select(x) * 1.0)
    np.testing.assert_allclose(half.tokens, features.tokens, atol=1e-6)


@pytest.mark.parametrize('name', ['vit', 'swin'])
def test_patches_can_be_replaced_before_the_positions_are_added(name):
  changes = {'embed_dim': 8, 'depths': (1, 1), 'num_heads': (2, 2)} if name == 'swin' else {}
  model = config_of(name, **changes).model
  images = jax.random.normal(jax.random.key(0), (2, *SIZE, 1))
  variables = model.init(jax.random.key(1), images)

  def pooled(x, **hooks):
    return model.apply(variables, x, method='features', **hooks).pooled

  hidden = [pooled(x, map_patches=jnp.ones_like) for x in (images, images + 1)]
  np.testing.assert_array_equal(*hidden)
  assert np.abs(pooled(images) - hidden[0]).max() > 0


def test_features_of_layers_in_the_order_asked_for():
  model = config_of('vit').model
  images = jax.random.normal(jax.random.key(0), (1, *SIZE, 1))
  variables = model.init(jax.random.key(1), images)
  found = model.apply(variables, images, method='features', layers=(2, 0))
  _, state = model.apply(variables, images, capture_intermediates=True, mutable=['intermediates'])
  blocks = state['intermediates']['Transformer']
  for layer, tokens in zip((2, 0), found.layers, strict=True):
    np.testing.assert_array_equal(tokens, blocks[f'encoderblock_{layer}']['__call__'][0])
  assert found.grid == (2, 3)
  assert found.num_prefix == 1


def test_weights_of_other_backbones_are_not_taken():
  kinds = {name: models.backbone(name) for name in models.BACKBONES}
  assert kinds['vit'].takes_weights_of(kinds['token_learner'])
  assert kinds['token_learner'].takes_weights_of(kinds['vit'])
  assert not kinds['vit'].takes_weights_of(kinds['resnet18'])
  assert not kinds['resnet18'].takes_weights_of(kinds['resnet34'])
  assert kinds['vivit'].takes_weights_of(kinds['vit'])
  assert not kinds['vivit'].takes_weights_of(kinds['space_time_vivit'])
  assert not kinds['vit'].takes_weights_of(kinds['vivit'])


@pytest.mark.parametrize(
  ('entries', 'message'),
  [
    ({'image_size': (8,)}, r'^image_size: \(8,\) is not \(height, width\)'),
    ({'channels': 0}, r'^channels: 0 is not a whole number from 1 on'),
    ({'class_names': ['a', 'b']}, r'^class_names: 2 names for 5 classes'),
    ({'class_names': 'abcde'}, r"^class_names: 'abcde' is not a list of texts"),
    ({'preprocess': {'mean': [0.5, 0.5], 'std': [1.0]}}, r'^preprocess\.mean: 2 values, .* 1 chan'),
    (
      {'preprocess': {'std': [0.0]}},
      r'^preprocess\.std: \(0\.0,\) is not a tuple of numbers above 0',
    ),
    ({'preprocess': {'crop': 'centre'}}, r"^preprocess\.crop: 'centre' is not one of"),
    ({'preprocess': {'crop_fraction': 0.9}}, r"^preprocess\.crop_fraction: crop 'resize' has none"),
    ({'preprocess': {'means': [1.0]}}, r"^preprocess\.means: no such field .*did you mean 'mean'"),
    ({'preprocess': [1]}, r'^preprocess: \[1\] is not a dict'),
    ({'name': 'vitt'}, r"^name: 'vitt' is not one of .*did you mean 'vit'"),
  ],
)
def test_mistakes_in_a_model_config_name_their_field(entries, message):
  with pytest.raises(FieldError, match=message):
    models.ModelConfig.from_dict(config_of('vit').to_dict() | entries)


def test_a_model_config_is_frozen():
  config = config_of('vit')
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.channels = 3
  changed = config.replace(channels=3, num_heads=4)
  assert (changed.channels, changed.model.num_heads, config.model.num_heads) == (3, 4, 2)
