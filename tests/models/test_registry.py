"""build: every field reaches the model, every mistake names its field."""

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from vit_jax.errors import FieldError, UsageError
from vit_jax.models import build as build_model
from vit_jax.models.token_learner import TokenLearnerViT
from vit_jax.models.vit import ViT

BASE = {
  'name': 'vit',
  'hidden_size': 8,
  'mlp_dim': 12,
  'num_layers': 2,
  'num_heads': 2,
  'patches': {'size': (4, 2)},
}
TOKENIZER = {
  'type': 'dynamic',
  'num_tokens': 3,
  'tokenlearner_loc': 1,
  'use_tokenfuse': True,
  'use_v11': False,
}
OPTIONS = {
  'positional_embedding': 'sinusoidal_2d',
  'representation_size': 6,
  'dropout_rate': 0.2,
  'attention_dropout_rate': 0.3,
  'stochastic_depth': 0.4,
  'classifier': 'map',
  'stride': 2,
  'patch_embedding': 'linear',
  'posemb_init_stddev': 0.5,
  'norm_epsilon': 1e-5,
  'activation': 'relu',
  'remat': True,
  'remat_policy': 'dots_saveable',
  'scan': True,
  'class_token': True,
  'fc_norm': True,
}


def config(**fields):
  return ml_collections.ConfigDict({**BASE, **fields})


@pytest.mark.parametrize(
  ('kind', 'more'),
  [(ViT, {}), (TokenLearnerViT, {'name': 'token_learner', 'tokenizer': TOKENIZER})],
)
def test_every_field_reaches_the_model(kind, more):
  model = build_model(config(**OPTIONS, **more), num_classes=5, dtype=jnp.bfloat16)
  assert type(model) is kind
  assert {field: getattr(model, field) for field in OPTIONS} == OPTIONS
  sizes = ('hidden_size', 'mlp_dim', 'num_layers', 'num_heads')
  assert {field: getattr(model, field) for field in sizes} == {f: BASE[f] for f in sizes}
  assert (model.num_classes, model.dtype) == (5, jnp.bfloat16)
  logits, _ = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), jnp.zeros((3, 8, 8, 1)), train=False)
  )
  assert (logits.shape, logits.dtype) == ((3, 5), jnp.float32)


def test_defaults_are_those_of_the_classes():
  expected = ViT(
    num_classes=5,
    mlp_dim=12,
    num_layers=2,
    num_heads=2,
    hidden_size=8,
    patches={'size': (4, 2)},
  )
  assert build_model(config(), num_classes=5) == expected


def test_patches_are_the_models_or_as_in_scenic_the_tokenizers():
  model = build_model(config(name='token_learner', tokenizer=TOKENIZER), num_classes=5)
  assert {name: model.tokenizer[name] for name in TOKENIZER} == TOKENIZER
  fields = config(name='token_learner', tokenizer=TOKENIZER | {'patches': {'size': (2, 4)}})
  assert model.patch_size == (4, 2)
  del fields.patches
  assert build_model(fields, num_classes=5).patch_size == (2, 4)


def test_fields_of_other_backbones_are_refused():
  with pytest.raises(FieldError, match=r'^num_filters: no such field of ViT;'):
    build_model(config(num_filters=64), num_classes=5)
  with pytest.raises(
    FieldError, match=r"^num_head: no such field of ViT; did you mean 'num_heads'"
  ):
    build_model(config(num_head=1), num_classes=5)
  with pytest.raises(FieldError, match=r'^patches: no such field of ResNet18$'):
    build_model({'name': 'resnet18', 'patches': {'size': (4, 4)}}, num_classes=5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_heads': 2.0}, r'^num_heads: 2\.0 is not a whole number from 1 on$'),
    ({'num_heads': True}, r'^num_heads: True is not a whole number from 1 on$'),
    ({'dropout_rate': float('nan')}, r'^dropout_rate: nan is not a number from 0 to below 1$'),
    ({'remat': 1}, r'^remat: 1 is not True or False$'),
    ({'classifier': 3}, r'^classifier: 3 is not a text$'),
    ({'patches': (4, 4)}, r'^patches: \(4, 4\) is not a dict$'),
    ({'stride': 'x'}, r"^stride: 'x' is not a whole number from 1 on or a tuple"),
  ],
)
def test_fields_have_types(fields, message):
  with pytest.raises(FieldError, match=message):
    build_model(config(**fields), num_classes=5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'name': 'vitt'}, r"^name: 'vitt' is not one of .*did you mean 'vit'"),
    ({'num_heads': 3}, r'num_heads: 3 heads do not divide .*hidden_size=8'),
    ({'num_heads': 0}, r'num_heads: 0 is not a whole number from 1 on'),
    ({'num_layers': 0}, r'num_layers: 0 is not a whole number from 1 to'),
    ({'hidden_size': -8}, r'hidden_size: -8 is not a whole number from 1 to'),
    ({'mlp_dim': 0}, r'mlp_dim: 0 is not a whole number from 1 to'),
    ({'classifier': 'tokens'}, r"classifier: .*did you mean 'token'"),
    ({'positional_embedding': 'learned_2d'}, r'positional_embedding: .*learned_1d'),
    (
      {'classifier': 'token', 'class_token': False},
      r"class_token: False, but classifier is 'token'",
    ),
    ({'classifier': 'none', 'fc_norm': True}, r"fc_norm: classifier 'none'"),
    ({'patch_embedding': 'cnv'}, r"patch_embedding: .*did you mean 'conv'"),
    ({'activation': 'rele'}, r"activation: .*did you mean 'relu'"),
    ({'dropout_rate': 1.0}, r'dropout_rate: 1\.0 is not a number from 0 to below 1'),
    ({'attention_dropout_rate': -0.1}, r'attention_dropout_rate: -0\.1'),
    ({'stochastic_depth': 2}, r'stochastic_depth: 2 is not a number from 0 to below 1'),
    (
      {'hidden_size': 6, 'positional_embedding': 'sinusoidal_2d'},
      r"positional_embedding: 'sinusoidal_2d' .* multiple of 4, not 6",
    ),
    (
      {'hidden_size': 5, 'num_heads': 1, 'positional_embedding': 'sinusoidal_1d'},
      r"positional_embedding: 'sinusoidal_1d' .* multiple of 2, not 5",
    ),
    (
      {'patches': {'size': (4, 2, 1)}},
      r'patches\.size: \(4, 2, 1\) is not \(',
    ),
    ({'patches': {'size': (4, 0)}}, r'patches\.size: \(4, 0\)'),
    ({'stride': 3}, r'stride: 3 is not between 1 and the patch, \(4, 2\)'),
    ({'stride': (0, 1)}, r'stride: \(0, 1\)'),
    ({'stride': (1, 1, 1)}, r'stride: \(1, 1, 1\)'),
    ({'name': 'token_learner'}, r'^tokenizer: not set'),
  ],
)
def test_mistakes_name_their_field(fields, message):
  with pytest.raises(UsageError, match=message):
    build_model(config(**fields), num_classes=5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'type': 'video'}, r"tokenizer\.type: 'video' needs clips"),
    ({'type': 'dynamc'}, r"tokenizer\.type: .*did you mean 'dynamic'"),
    ({'num_tokens': 0}, r'tokenizer\.num_tokens: 0 is less than 1'),
    ({'tokenlearner_loc': 2}, r'tokenizer\.tokenlearner_loc: 2 .* 0 to 1'),
    ({'tokenlearner_loc': -1}, r'tokenizer\.tokenlearner_loc: -1'),
  ],
)
def test_mistakes_in_the_tokenizer_name_their_field(fields, message):
  with pytest.raises(UsageError, match=message):
    build_model(config(name='token_learner', tokenizer={**TOKENIZER, **fields}), num_classes=5)


@pytest.mark.parametrize('name', ['vit', 'token_learner'])
@pytest.mark.parametrize(
  ('fields', 'message'),
  [({}, r'patches\.size: 4x2 .* 10x8'), ({'stride': 2}, r'stride')],
)
def test_images_that_the_patches_do_not_tile(name, fields, message):
  more = {'tokenizer': TOKENIZER} if name == 'token_learner' else {}
  model = build_model(config(name=name, **fields, **more), num_classes=5)
  size = (9, 8) if fields else (10, 8)
  with pytest.raises(UsageError, match=message):
    jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False))
