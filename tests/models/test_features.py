"""Which numbers of a backbone are read as features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.errors import FieldError
from vit_jax.models import features


@pytest.mark.parametrize('classifier', ['gap', 'none'])
def test_what_is_read_of_tokens(classifier):
  sizes = {'hidden_size': 16, 'mlp_dim': 16, 'num_layers': 1, 'num_heads': 2}
  fields = {'name': 'vit', 'patches': {'size': (4, 4)}, 'classifier': classifier, **sizes}
  model = models.build({**fields, 'class_token': True, 'dropout_rate': 0.0}, num_classes=0)
  images = jax.random.normal(jax.random.key(0), (3, 8, 12, 1))
  asked = [('head', None), ('token', None), ('mean', None), ('head', 0), ('mean', 0)]

  @jax.jit
  def compute(images):
    variables = model.init(jax.random.key(1), images)
    answer = model.apply(variables, images, layers=(0,), method='features')
    read = [features.read_features(model, variables, images, *options) for options in asked]
    read += [features.read_tokens(model, variables, images, layer) for layer in (None, 0)]
    return answer, read

  answer, read = compute(images)
  tokens, first = answer.tokens, answer.layers[0]
  mean = tokens[:, 1:].mean(axis=1)
  head = mean if classifier == 'gap' else tokens[:, 0]
  expected = head, tokens[:, 0], mean, first[:, 0], first[:, 1:].mean(axis=1), tokens, first
  for found, right in zip(read, expected, strict=True):
    np.testing.assert_allclose(found, right, atol=1e-6)


def test_registers_are_no_class_token():
  sizes = {'hidden_size': 8, 'mlp_dim': 8, 'num_layers': 1, 'num_heads': 2}
  fields = {'name': 'vit', 'patches': {'size': (4, 4)}, 'num_registers': 2, **sizes}
  model = models.build({**fields, 'classifier': 'none', 'dropout_rate': 0.0}, num_classes=0)
  images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
  variables = model.init(jax.random.key(1), images)
  tokens = model.apply(variables, images, method='features').tokens
  assert tokens.shape == (2, 2 + 4, 8)
  found = features.read_features(model, variables, images, 'head', None)
  np.testing.assert_allclose(found, tokens[:, 2:].mean(axis=1), atol=1e-6)
  with pytest.raises(FieldError, match=r"^pooling: 'token', but the model has no class token"):
    features.read_features(model, variables, images, 'token', None)


class Pyramid(models.Backbone, kw_only=True):
  """Two maps of an image, of which the head reads the largest values."""

  def features(self, x, *, train=False, layers=()):
    coarse = x[:, ::2, ::2].astype(jnp.bfloat16)
    return models.Features(pooled=coarse.max(axis=(1, 2)), maps=(x, coarse))


def test_what_is_read_of_maps():
  images = jnp.arange(96.0).reshape(2, 4, 6, 2)
  coarse = images[:, ::2, ::2]
  for pooling, expected in (('head', coarse.max((1, 2))), ('mean', coarse.mean((1, 2)))):
    found = features.read_features(Pyramid(), {}, images, pooling, None)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected)
  every = features.read_tokens(Pyramid(), {}, images, None)
  np.testing.assert_allclose(every, coarse.reshape(2, 6, 2))
