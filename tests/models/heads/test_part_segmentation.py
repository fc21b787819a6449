"""The head part_segmentation against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_models import Cloud, register

from vit_jax import models
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import BACKBONES
from vit_jax.models.heads.part_segmentation import PartSegmenter

POINTS = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
LABEL = np.float32([[1, 1, 0, 0], [0, 0, 1, 1]])


class Unpooled(Cloud):
  def features(self, x, *, train=False, layers=()):
    return super().features(x, train=train).replace(pooled=None)


class Fewer(Cloud):
  def features(self, x, *, train=False, layers=()):
    return super().features(x[:, ::2], train=train)


def make(backbone=Cloud, **options):
  head = PartSegmenter(
    backbone=backbone(num_classes=0, hidden_size=5), num_classes=4, hidden_size=6, **options
  )
  variables = jax.eval_shape(lambda: head.init(jax.random.key(0), POINTS))
  rng = np.random.default_rng(1)
  return head, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), variables)


@pytest.mark.parametrize(
  ('backbone', 'category', 'label'),
  [(Cloud, False, LABEL), (Cloud, True, LABEL), (Cloud, True, None), (Unpooled, False, None)],
)
def test_outputs_are_those_of_numpy(backbone, category, label):
  head, variables = make(backbone, category=category)
  params = variables['params']
  x = POINTS
  for name in ('embedding', 'layer'):
    layer = params['backbone'][name]
    x = np.maximum(x @ layer['kernel'] + layer['bias'], 0)
  cloud = np.repeat(x.max(axis=1, keepdims=True), 7, axis=1)  # which the backbone pools as well
  kernels = [params[n]['kernel'] for n in ('token_layer', 'cloud_layer')]
  read = [x, cloud]
  if category:
    read.append(np.repeat((LABEL * (label is not None))[:, None], 7, axis=1))
  y = np.concatenate(read, axis=-1) @ np.concatenate(kernels) + params['token_layer']['bias']
  y = np.maximum(y, 0) @ params['hidden_layer']['kernel'] + params['hidden_layer']['bias']
  y = np.maximum(y, 0) @ params['part_projection']['kernel'] + params['part_projection']['bias']
  found = head.apply(variables, POINTS, label=label)
  assert found.keys() == {'logits'}
  np.testing.assert_allclose(found['logits'], y, rtol=1e-4, atol=1e-4)


def test_dropout_in_training_alone_and_bfloat16():
  head, variables = make(dropout_rate=0.5)
  first, again = (
    head.apply(variables, POINTS, train=True, rngs={'dropout': jax.random.key(i)})['logits']
    for i in (0, 1)
  )
  assert np.abs(first - again).max() > 0.1
  plain = head.apply(variables, POINTS)['logits']
  np.testing.assert_array_equal(plain, make()[0].apply(variables, POINTS)['logits'])
  half = head.clone(dtype=jnp.bfloat16).apply(variables, POINTS)['logits']
  assert half.dtype == jnp.float32
  scale = np.abs(plain).max()
  assert 0 < np.abs(half - plain).max() < 0.05 * scale


def test_a_config_builds_it_and_mistakes_are_named():
  register()
  fields = {'name': 'cloud', 'head': {'name': 'part_segmentation', 'hidden_size': 6}}
  head = models.build(fields, num_classes=4)
  del BACKBONES['cloud']
  assert (type(head), head.hidden_size, head.INPUT) == (PartSegmenter, 6, 'points')
  with pytest.raises(UsageError, match='a token of each point, and the model gives none'):
    make(Fewer)
  with pytest.raises(FieldError, match='hidden_size: 0 is not a whole number from 1 to'):
    head.clone(hidden_size=0)
  with pytest.raises(FieldError, match=r'dropout_rate: 1 is not a number from 0 to below 1'):
    head.clone(dropout_rate=1)
