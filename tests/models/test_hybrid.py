"""Hybrids: published sizes, grids, layers, fitting to other images, attention, and their fields."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_vits import logits, random_variables

from vit_jax import models
from vit_jax.errors import FieldError
from vit_jax.models import ModelConfig, build, hybrid
from vit_jax.models.hybrid import HybridViT
from vit_jax.models.layers import resize_position_embeddings
from vit_jax.models.vit import ViT
from vit_jax.weights.adapt import adapt

FIELDS = {
  'name': 'hybrid',
  'hidden_size': 16,
  'mlp_dim': 24,
  'num_layers': 2,
  'num_heads': 2,
  'patches': {'size': (1, 1)},
  'resnet': {'num_layers': (1, 1), 'width_factor': 0.5},
  'classifier': 'token',
  'num_classes': 5,
  'channels': 3,
}
POSITIONS = 'Transformer/posembed_input/pos_embedding'


def config_of(size=(32, 32), **more):
  return ModelConfig.from_dict({**FIELDS, 'image_size': size, **more})


# Millions at 384 pixels, as timm counts them: results/benchmark-infer-amp-nchw-pt112-cu113-
# rtx3090.csv of its repository.
@pytest.mark.parametrize(
  ('size', 'parameters'),
  [('R+Ti/16', 6.36), ('R26+S/32', 36.47), ('R50+B/16', 98.95), ('R50+L/32', 329.09)],
)
def test_published_sizes(size, parameters):
  fields = {'name': 'hybrid', 'classifier': 'token', **hybrid.parse(size)}
  shapes = build(fields, num_classes=1000).variable_shapes((384, 384), 3)
  count = sum(np.prod(shape, dtype=np.int64) for shape in shapes.values())
  assert round(count / 1e6, 2) == parameters


@pytest.mark.parametrize(
  ('num_layers', 'patch', 'size', 'grid'),
  [
    ((3, 4, 9), 1, (224, 224), (14, 14)),
    ((2, 2, 2, 2), 1, (224, 384), (7, 12)),
    ((), 8, (224, 224), (7, 7)),
    ((1, 1), 1, (33, 47), (5, 6)),
  ],
)
def test_the_grid_is_that_of_the_maps(num_layers, patch, size, grid):
  resnet = {'num_layers': num_layers, 'width_factor': 0.5}
  config = config_of(size, resnet=resnet, patches={'size': (patch, patch)})
  pixels = patch * config.backbone.reduction
  layout = config.backbone.layout(size)
  assert (layout.grid, layout.patch, layout.stride) == (grid, (pixels,) * 2, (pixels,) * 2)
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  features, _ = jax.eval_shape(
    lambda x: config.model.init_with_output(jax.random.key(0), x, method='features'), images
  )
  assert (features.grid, features.num_prefix) == (grid, 1)
  assert features.tokens.shape == (1, 1 + grid[0] * grid[1], 16)


def test_layer_0_is_the_resnet_and_what_embeds():
  model = config_of().model
  layers = {name: model.layer_of(name) for name in model.variable_shapes((32, 32), 3)}
  first = {name.partition('/')[0] for name, layer in layers.items() if layer == 0}
  assert first == {'conv_root', 'gn_root', 'block1', 'block2', 'embedding', 'cls', 'Transformer'}
  assert layers['Transformer/encoderblock_1/LayerNorm_0/scale'] == 2
  assert layers['output_projection/kernel'] == 3


def test_positions_are_resized_for_other_images():
  old, new = config_of((32, 32)), config_of((48, 40), num_classes=3)
  variables = random_variables(old)
  adapted, notes = adapt(variables, old, new, 'm.npz')
  assert notes == ['position embeddings: resized from 4x4 to 6x5', 'head: new, 3 classes']
  before, after = models.flatten(variables), models.flatten(adapted)
  expected = resize_position_embeddings(before[POSITIONS], (4, 4), (6, 5), 1)
  np.testing.assert_array_equal(after[POSITIONS], expected)
  same = after.keys() - {POSITIONS}
  assert same == before.keys() - {POSITIONS, 'output_projection/kernel', 'output_projection/bias'}
  assert all(np.array_equal(after[name], before[name]) for name in same)


@pytest.mark.parametrize(('before', 'after'), [(3, 1), (1, 3)])
def test_grey_images_give_the_same_logits_stored_as_colour(before, after):
  old, new = config_of(channels=before), config_of(channels=after)
  variables = random_variables(old)
  adapted, notes = adapt(variables, old, new, 'm.npz')
  assert notes == [f'first convolution: from {before} to {after} channels']
  grey = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype(np.float32)
  images = {1: grey, 3: np.repeat(grey, 3, axis=-1)}
  expected = logits(variables, old, images[before])
  ours = logits(adapted, new, images[after])
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_other_weights_are_refused():
  old = config_of()
  variables = random_variables(old)
  for field, value in (
    ('numerics', 'timm'),
    ('resnet', {'num_layers': (1, 2), 'width_factor': 0.5}),
  ):
    with pytest.raises(FieldError, match=f'^{field}: '):
      adapt(variables, old, config_of(**{field: value}), 'm.npz')
  assert not HybridViT.takes_weights_of(ViT)
  assert not ViT.takes_weights_of(HybridViT)
  assert ViT.takes_weights_of(models.backbone('token_learner'))


def test_attention_is_drawn_over_the_grid():
  config = config_of((32, 48))
  variables = random_variables(config)
  images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 48, 3)), jnp.float32)
  apply = functools.partial(config.model.apply, mutable=['intermediates'])
  _, state = jax.jit(apply)(variables, images)
  tree = jax.tree.map(
    lambda captured: captured[0], state['intermediates'], is_leaf=lambda t: isinstance(t, tuple)
  )
  maps = config.backbone.attention_maps(tree, (32, 48))
  assert (maps.maps.shape, maps.patch, maps.stride) == ((2, 2, 4, 6), (8, 8), (8, 8))
  assert config.backbone.attention(tree).layers.shape == (2, 2, 2, 25, 25)
  assert config.backbone.patch_kernel(variables['params']) is None
  assert config.backbone.positions(variables['params'], (32, 48)).embeddings.shape == (4, 6, 16)


def test_bfloat16_reaches_every_convolution_and_norm():
  model = config_of().model.clone(dtype=jnp.bfloat16)
  outputs, shapes = jax.eval_shape(
    lambda: model.init_with_output(
      jax.random.key(0), jnp.zeros((1, 32, 32, 3)), capture_intermediates=True
    )
  )
  assert outputs.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes['params'])} == {jnp.dtype('float32')}
  inner = models.flatten({'params': shapes['intermediates']})
  wide = {
    name
    for name, leaves in inner.items()
    if jnp.dtype('float32') in {leaf.dtype for leaf in jax.tree.leaves(leaves)}
  }
  allowed = ('attention_weights', 'output_projection/__call__')
  assert {name for name in wide if not name.endswith(allowed)} == {'__call__'}


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'numerics': 'google'}, r"^numerics: 'google' is not one of"),
    ({'resnet': {'num_layers': (1,)}}, r'^resnet\.width_factor: not set'),
    ({'resnet': {'num_layers': (1,), 'width_factor': 1, 'depth': 1}}, r'^resnet\.depth: no such'),
    ({'resnet': {'num_layers': (0,), 'width_factor': 1}}, r'^resnet\.num_layers: \(0,\)'),
    ({'resnet': {'num_layers': 3, 'width_factor': 1}}, r'^resnet\.num_layers: 3'),
    ({'resnet': {'num_layers': (1,), 'width_factor': 'x'}}, r"^resnet\.width_factor: 'x'"),
    ({'resnet': {'num_layers': (1,), 'width_factor': 0.1}}, r'^resnet\.width_factor: 0\.1 gives'),
  ],
)
def test_wrong_fields_are_named(fields, message):
  with pytest.raises(FieldError, match=message):
    build({**FIELDS, **fields}, num_classes=5)


def test_patches_that_do_not_divide_the_maps_are_refused():
  model = config_of(patches={'size': (2, 2)}).model
  with pytest.raises(FieldError, match=r'^patches\.size: 2x2 positions do not divide the 5x4'):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 40, 32, 3)))


def test_or_left_out():
  config = config_of((40, 32), patches={'size': (2, 2)}, drop_remainder=True)
  variables, images = random_variables(config), np.random.default_rng(0).normal(size=(1, 40, 32, 3))
  assert config.backbone.grid((40, 32)) == (2, 2)
  assert variables['params']['Transformer']['posembed_input']['pos_embedding'].shape == (1, 5, 16)
  assert np.isfinite(logits(variables, config, images)).all()
