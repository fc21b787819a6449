"""MobileViT: published sizes, patches against loops, maps that patches don't divide, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vit_jax import models
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import mobilevit
from vit_jax.models.mobilevit import SIZES, MobileViT
from vit_jax.train import flops

TINY = {
  'neck_hidden_sizes': (4, 4, 4, 8, 8, 8, 12),
  'hidden_sizes': (8, 8, 8),
  'depths': (1, 1, 2),
  'num_heads': 2,
  'expand_ratio': 2.0,
}


def sized(size, **changes):
  neck_hidden_sizes, hidden_sizes, expand_ratio = SIZES[size]
  return MobileViT(
    neck_hidden_sizes=neck_hidden_sizes,
    hidden_sizes=hidden_sizes,
    expand_ratio=expand_ratio,
    **{'num_classes': 1000} | changes,
  )


# Millions of parameters: arXiv 2110.02178, table 4; 10^9 multiply-adds of images of 256 pixels.
@pytest.mark.parametrize(
  ('size', 'parameters', 'operations'), [('XXS', 1.3, 0.4), ('XS', 2.3, 1.0), ('S', 5.6, 2.0)]
)
def test_parameters_and_operations(size, parameters, operations):
  model, x = sized(size), jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
  assert round(count / 1e6, 1) == parameters
  found = flops.count(lambda v, x: model.apply(v, x), shapes, x) / 2
  assert round(found / 1e9, 1) == operations
  assert model.summary().startswith(f'MobileViT-{size}, transformers of widths ')


def test_shapes_are_the_paper_s():
  features, _ = jax.eval_shape(
    lambda: sized('S').init_with_output(
      jax.random.key(0), jnp.zeros((1, 256, 256, 3)), method='features'
    )
  )
  assert [m.shape for m in features.maps] == [
    (1, 128, 128, 32),
    (1, 64, 64, 64),
    (1, 32, 32, 96),
    (1, 16, 16, 128),
    (1, 8, 8, 160),
  ]
  assert features.strides == ((2, 2), (4, 4), (8, 8), (16, 16), (32, 32))
  assert features.pooled.shape == (1, 640)


def test_small_images_keep_4x4_positions():
  from configs.mobilevit import get_config

  model = models.build(get_config('XXS,cifar10').model, num_classes=10)
  features, _ = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), method='features')
  )
  assert [m.shape[1] for m in features.maps] == [32, 16, 8, 4, 4]
  assert features.strides == ((1, 1), (2, 2), (4, 4), (8, 8), (8, 8))


def test_patches_are_those_of_a_loop():
  x = np.random.default_rng(0).normal(size=(2, 6, 9, 4))
  found = np.asarray(mobilevit.unfold(x, 3))  # [2, 9, 6, 4]
  for row in range(6):
    for column in range(9):
      pixel, patch = row % 3 * 3 + column % 3, row // 3 * 3 + column // 3
      np.testing.assert_array_equal(found[:, pixel, patch], x[:, row, column])
  np.testing.assert_array_equal(mobilevit.fold(found, 3, (6, 9)), x)


@pytest.mark.parametrize(('old', 'new'), [((5, 7), (6, 8)), ((6, 8), (5, 7)), ((1, 1), (2, 2))])
def test_maps_are_resized_as_in_pytorch(old, new):
  x = np.random.default_rng(0).normal(size=(2, *old, 3)).astype(np.float32)
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), size=new, mode='bilinear'
  )
  found = mobilevit.resize_maps(jnp.asarray(x), new)
  np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


def test_bfloat16_reaches_every_convolution_and_norm():
  model = MobileViT(num_classes=4, dtype=jnp.bfloat16, **TINY)
  logits, state = jax.eval_shape(
    lambda: model.init_with_output(
      jax.random.key(0), jnp.zeros((1, 72, 40, 1)), capture_intermediates=True
    )
  )
  assert logits.dtype == jnp.float32
  outputs = models.flatten({'params': state['intermediates']})
  wide = {
    name
    for name, leaves in outputs.items()
    if jnp.dtype('float32') in {leaf.dtype for leaf in jax.tree.leaves(leaves)}
  }
  allowed = ('attention_weights', 'output_projection/__call__')
  dropped = 'Dropout_0/__call__'  # of what the head reads, in the compute dtype
  assert {n for n in wide if not n.endswith(allowed)} == {'__call__'}
  assert outputs[dropped][0].dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(state['params'])} == {jnp.dtype('float32')}


@pytest.mark.parametrize(('layer', 'number', 'stage'), [(0, 0, 3), (2, 0, 5), (None, 1, 5)])
@pytest.mark.parametrize('size', [(64, 128), (72, 40)])
def test_attention_is_drawn_where_it_lies(size, layer, number, stage):
  """Weights that say where their key is in the map come out as that map."""
  model = MobileViT(num_classes=4, **TINY)
  step = 2**stage
  grid = tuple(-(-side // step) for side in size)
  whole = tuple(-(-side // 2) * 2 for side in grid)
  places = np.arange(1.0, 1 + whole[0] * whole[1], dtype=np.float32).reshape(1, *whole, 1)
  keys = np.asarray(mobilevit.unfold(places, 2))[..., 0]  # [1, pixels, patches]
  weights = np.broadcast_to(keys[:, :, None, None], (1, 4, 2, keys.shape[-1], keys.shape[-1]))
  tree = {f'layer_{stage}_1': {f'global_rep_{number}': {'attn': {'attention_weights': weights}}}}
  found = model.attention_maps(tree, size, layer)
  assert found.maps.shape == (1, 2, *grid)
  assert (found.patch, found.stride) == ((step, step),) * 2
  expected = mobilevit.resize_maps(jnp.asarray(places), grid)[0, ..., 0]
  np.testing.assert_allclose(found.maps[0, 1], expected, rtol=1e-6)
  assert model.num_attention_layers == 4


def test_layers_are_counted():
  model = MobileViT(num_classes=4)
  layers = {
    'conv_1/conv/kernel': 0,
    'layer_1_0/exp_1x1/conv/kernel': 1,
    'layer_2_2/red_1x1/norm/scale': 4,
    'layer_3_0/conv_3x3/conv/kernel': 5,
    'layer_3_1/global_rep_1/attn/query/kernel': 6,
    'layer_5_1/fusion/conv/kernel': 10,
    'conv_1x1_exp/conv/kernel': 11,
    'output_projection/kernel': 11,
  }
  assert {path: model.layer_of(path) for path in layers} == layers


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'neck_hidden_sizes': (8, 8)}, r'^neck_hidden_sizes: \(8, 8\) is not 7 numbers'),
    (
      {'depths': (2, 4, 0)},
      r'^depths: \(2, 4, 0\) is not a tuple',
    ),
    ({'strides': (2, 1, 2, 2, 2, 4)}, r'^strides: .* has one that is not 1 or 2'),
    ({'num_heads': 5}, r'^num_heads: 5 heads do not divide the width 144'),
    ({'mlp_ratio': 0.0}, r'^mlp_ratio: 0\.0 is not a number above 0 and up to 1000'),
    ({'conv_kernel_size': 2}, r'^conv_kernel_size: 2 is not odd'),
    ({'patch_size': 0}, r'^patch_size: 0 is not a whole number from 1 on'),
    ({'dropout_rate': 1.0}, r'^dropout_rate: 1\.0 is not a number from 0 to below 1'),
    ({'activation': 'relu'}, r'^activation: no such field of MobileViT'),
  ],
)
def test_mistakes_name_their_field(fields, message):
  with pytest.raises(FieldError, match=message):
    models.build({'name': 'mobilevit', **fields}, num_classes=5)


def test_there_are_no_layers_of_tokens():
  model = MobileViT(num_classes=4, **TINY)
  with pytest.raises(UsageError, match='MobileViT: has maps of its layers, and no layers of tok'):
    model.features(jnp.zeros((1, 32, 32, 3)), layers=(1,))
