"""Two heads on any model, against NumPy."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.errors import UsageError
from vit_jax.models.token_learner import TokenLearnerViT

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)


def model_config(**changes):
  config = models.default_config('vit')
  config.update(hidden_size=16, mlp_dim=16, num_layers=1, num_heads=2, classifier='gap')
  config.patches.size = (4, 4)
  config.head = models.head_config('localization')
  config.head.update(name='localization', hidden_size=5)
  config.update_from_flattened_dict(changes)
  return config.to_dict()


def initialised(config, num_classes=4, **options):
  model = models.build(config, num_classes=num_classes, **options)
  variables = jax.jit(lambda key: model.init(key, IMAGES))(jax.random.key(0))
  rng = np.random.default_rng(1)
  return model, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), variables)


def two_layers(params, x):
  hidden = np.maximum(x @ params['Dense_0']['kernel'] + params['Dense_0']['bias'], 0)
  return hidden @ params['Dense_1']['kernel'] + params['Dense_1']['bias']


@pytest.mark.parametrize('box_sigmoid', [True, False])
@pytest.mark.parametrize('classifier', ['token', 'gap'])
def test_outputs_are_those_of_numpy_on_the_backbones_features(classifier, box_sigmoid):
  config = model_config(**{'head.box_sigmoid': box_sigmoid, 'classifier': classifier})
  model, variables = initialised(config)
  params = variables['params']
  assert params.keys() == {'backbone', 'class_head', 'box_head'}
  backbone = model.backbone
  features = np.asarray(backbone.apply({'params': params['backbone']}, IMAGES))
  assert features.shape == (3, 16)
  box = two_layers(params['box_head'], features)
  expected = {
    'logits': two_layers(params['class_head'], features),
    'box': 1 / (1 + np.exp(-box)) if box_sigmoid else box,
  }
  outputs = model.apply(variables, IMAGES)
  assert outputs.keys() == expected.keys()
  for name, value in expected.items():
    assert outputs[name].dtype == jnp.float32
    np.testing.assert_allclose(outputs[name], value, rtol=1e-4, atol=1e-4)


def test_dropout_in_training_alone():
  model, variables = initialised(model_config(**{'head.dropout_rate': 0.5}))
  first, second = (
    model.apply(variables, IMAGES, train=True, rngs={'dropout': jax.random.key(i)})
    for i in range(2)
  )
  assert (first['logits'] != second['logits']).any()
  assert (first['box'] != second['box']).any()
  plain, _ = initialised(model_config(**{'head.dropout_rate': 0.0}))
  for name, value in plain.apply(variables, IMAGES, train=True, rngs={}).items():
    np.testing.assert_array_equal(value, model.apply(variables, IMAGES)[name])


def test_the_compute_dtype_reaches_everything_but_the_outputs():
  model, variables = initialised(model_config(), dtype=jnp.bfloat16)
  outputs, state = model.apply(
    variables, IMAGES, capture_intermediates=True, mutable=['intermediates']
  )
  assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype('float32')}
  inner = flax.traverse_util.flatten_dict(state['intermediates'], sep='/')
  assert inner['backbone/__call__'][0].pooled.dtype == jnp.bfloat16
  for name in ('class_head/Dense_0/__call__', 'box_head/Dense_0/__call__'):
    assert inner[name][0].dtype == jnp.bfloat16


def test_any_model_can_be_the_backbone():
  tokenizer = {'type': 'dynamic', 'num_tokens': 2, 'tokenlearner_loc': 0}
  config = model_config() | {'name': 'token_learner', 'tokenizer': tokenizer}
  model, variables = initialised(config)
  assert isinstance(model.backbone, TokenLearnerViT)
  assert model.apply(variables, IMAGES)['box'].shape == (3, 4)


def test_a_description_is_enough_to_build_the_model_again():
  model, _ = initialised(model_config(**{'head.box_sigmoid': False}))
  config = models.ModelConfig(model, channels=1, image_size=(8, 8))
  description = config.to_dict()
  assert description['head'] == {
    'name': 'localization',
    'hidden_size': 5,
    'dropout_rate': 0.2,
    'box_sigmoid': False,
  }
  assert models.ModelConfig.from_dict(description) == config


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'head.hidden_size': 0}, r'^head\.hidden_size: 0 is not a whole number from 1 to'),
    ({'head.dropout_rate': 1.0}, r'^head\.dropout_rate: 1\.0 is not a number from 0 to below 1'),
    ({'classifier': 'none'}, r'read from one vector, and the model pools no'),
  ],
)
def test_mistakes(changes, message):
  with pytest.raises(UsageError, match=message):
    initialised(model_config(**changes))
