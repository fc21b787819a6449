"""Backbones and heads of the user's own, as 'module:Class'."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from vit_jax import config_fields, models
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import Backbone, ModelConfig
from vit_jax.models.heads.head import Head


class Mean(Backbone, kw_only=True):
  num_classes: int
  width: int = 4
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, *, train=False):
    x = nn.Dense(self.width, dtype=self.dtype)(x.mean(axis=(1, 2)))
    return nn.Dense(self.num_classes, name='output_projection')(x)


class Scores(Head, kw_only=True):
  size: int = 5

  @nn.compact
  def __call__(self, x, *, train=False):
    return {'scores': nn.Dense(self.size)(self.backbone.features(x, train=train).pooled)}


class NoCall(Backbone, kw_only=True):
  num_classes: int


class NoClasses(Backbone, kw_only=True):
  def __call__(self, x, *, train=False):
    return x


def name_of(cls):
  return f'{__name__}:{cls.__name__}'


@pytest.mark.parametrize('head', [{}, {'head': {'name': name_of(Scores), 'size': 3}}])
def test_a_model_s_description_becomes_the_model_again(head):
  model = models.build({'name': name_of(Mean), 'width': 7, **head}, num_classes=2)
  config = ModelConfig(model=model, image_size=(4, 4))
  assert config.name == name_of(Mean)
  entries = config.to_dict()
  assert (entries['name'], entries['width'], entries.get('head', {})) == (
    name_of(Mean),
    7,
    head.get('head', {}),
  )
  assert ModelConfig.from_dict(entries) == config


def test_a_config_gets_the_fields_with_their_defaults():
  config = ConfigDict({'model': models.default_config('vit')})
  config_fields.set_model(config, name_of(Mean))
  assert config.model.to_dict() == {'name': name_of(Mean), 'width': 4}
  assert models.head_config(name_of(Scores)).to_dict() == {'name': name_of(Scores), 'size': 5}


def test_fields_are_open_where_the_model_was():
  config = ConfigDict({'model': models.open_config()})
  config_fields.set_model(config, name_of(Mean))
  assert config.model.to_dict() == {'name': name_of(Mean), 'width': None}


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'name': name_of(NoCall)}, r'^name: .* lacks __call__$'),
    ({'name': name_of(NoClasses)}, r'^name: .* lacks num_classes$'),
    ({'name': name_of(Scores)}, r'^name: .* is not a subclass of .*\.Backbone$'),
    ({'name': name_of(Mean), 'head': {'name': name_of(Mean)}}, r'^head\.name: .*\.Head$'),
    ({'name': name_of(Mean), 'widht': 3}, r"^widht: .* did you mean 'width'"),
    ({'name': name_of(Mean), 'width': 'x'}, r"^width: 'x' is not a whole number"),
  ],
)
def test_mistakes_name_the_field(fields, message):
  with pytest.raises(FieldError, match=message):
    models.build(fields, num_classes=2)


def test_a_backbone_without_features_takes_no_head():
  with pytest.raises(UsageError, match=r'^Mean: has no method `features`'):
    Mean(num_classes=2).features(jnp.zeros((1, 4, 4, 3)))
