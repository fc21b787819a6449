"""MobileNetV3: published sizes, strides and widths, mistakes."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax import models
from vit_jax.errors import FieldError, UsageError
from vit_jax.train import flops


def shapes_of(model, side=224, method='__call__'):
  x = jnp.zeros((1, side, side, 3))
  return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x, method=method))


# Parameters as torchvision counts them (arXiv 1905.02244, table 3: 5.4 and 2.5 millions), and
# millions of multiply-adds (table 3: 219 and 56; torchvision: 217 and 57).
@pytest.mark.parametrize(
  ('size', 'parameters', 'operations'), [('large', 5_483_032, 217), ('small', 2_542_856, 57)]
)
def test_published_sizes(size, parameters, operations):
  model = models.build({'name': f'mobilenet_v3_{size}'}, num_classes=1000)
  logits, shapes = shapes_of(model)
  assert (logits.shape, logits.dtype) == ((1, 1000), jnp.float32)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])) == parameters
  x = jnp.zeros((1, 224, 224, 3))
  assert round(flops.count(lambda v, x: model.apply(v, x), shapes, x) / 2e6) == operations


def test_features_are_the_last_map_of_each_size():
  model = models.build({'name': 'mobilenet_v3_large'}, num_classes=5)
  features, _ = shapes_of(model, method='features')
  assert [m.shape[1:] for m in features.maps] == [
    (112, 112, 16),
    (56, 56, 24),
    (28, 28, 40),
    (14, 14, 112),
    (7, 7, 160),
  ]
  assert features.strides == ((2, 2), (4, 4), (8, 8), (16, 16), (32, 32))
  assert features.pooled.shape == (1, 1280)
  with pytest.raises(UsageError, match='has maps of its blocks, and no layers of tokens'):
    model.features(jnp.zeros((1, 32, 32, 3)), layers=(1,))


@pytest.mark.parametrize('size', ['large', 'small'])
def test_small_images_keep_4x4_positions(size):
  from configs.mobilenet import get_config

  model = models.build(get_config(f'{size},cifar10').model, num_classes=10)
  features, _ = shapes_of(model, side=32, method='features')
  assert features.maps[-1].shape[1:3] == (4, 4)
  assert features.strides[-1] == (8, 8)


def test_bfloat16_reaches_every_convolution_and_norm():
  fields = {'name': 'mobilenet_v3_small', 'width_multiplier': 0.25}
  model = models.build(fields, num_classes=0, dtype=jnp.bfloat16)
  _, state = jax.eval_shape(
    lambda: model.init_with_output(
      jax.random.key(0), jnp.zeros((1, 32, 32, 3)), capture_intermediates=True
    )
  )
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(state.pop('intermediates'))}
  assert dtypes == {jnp.dtype('bfloat16')}
  assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'width_multiplier': 0.0}, r'^width_multiplier: 0\.0 is not a number above 0 and up to 1000'),
    ({'strides': (2, 2)}, r'^strides: \(2, 2\) is not 5 numbers that are 1 or 2'),
    ({'strides': (2, 2, 3, 2, 2)}, r'^strides: \(2, 2, 3, 2, 2\) is not 5 numbers'),
    ({'dropout_rate': 1.0}, r'^dropout_rate: 1\.0 is not a number from 0 to below 1'),
  ],
)
def test_mistakes_name_their_field(fields, message):
  with pytest.raises(FieldError, match=message):
    models.build({'name': 'mobilenet_v3_small', **fields}, num_classes=5)


def test_layers_are_counted():
  model = models.build({'name': 'mobilenet_v3_small'}, num_classes=5)
  layers = {
    'conv_stem/conv/kernel': 0,
    'block_0/depthwise/conv/kernel': 1,
    'block_10/project/norm/scale': 11,
    'conv_last/conv/kernel': 12,
    'output_projection/kernel': 12,
  }
  assert {path: model.layer_of(path) for path in layers} == layers
