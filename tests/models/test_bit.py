"""BiT: published sizes, features, dtypes, layers, images of other channels, and its fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_vits import logits, random_variables

from vit_jax import models
from vit_jax.errors import FieldError
from vit_jax.models import ModelConfig
from vit_jax.models.bit import SIZES, BiT
from vit_jax.weights.adapt import adapt

SMALL = {'depths': (1, 2), 'width_factor': 0.5}


def config_of(**more):
  return ModelConfig.from_dict({'name': 'bit', 'num_classes': 5, **SMALL, **more})


# Millions, as timm counts them: results/benchmark-infer-amp-nchw-pt112-cu113-rtx3090.csv of its
# repository.
@pytest.mark.parametrize(
  ('size', 'parameters'),
  [
    ('R50x1', 25.55),
    ('R50x3', 217.32),
    ('R101x1', 44.54),
    ('R101x3', 387.93),
    ('R152x2', 236.34),
    ('R152x4', 936.53),
  ],
)
def test_published_sizes(size, parameters):
  depths, width_factor = SIZES[size]
  model = BiT(num_classes=1000, depths=depths, width_factor=width_factor)
  shapes = model.variable_shapes(None, 3)
  count = sum(np.prod(shape, dtype=np.int64) for shape in shapes.values())
  assert round(count / 1e6, 2) == parameters


def test_shapes_are_those_of_the_variables():
  """Of units that are copied, too."""
  model = BiT(num_classes=5, depths=(1, 4, 2), width_factor=0.5)
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  expected = {name: leaf.shape for name, leaf in models.flatten(variables).items()}
  assert model.variable_shapes(None, 3) == expected


def test_features_are_the_maps_of_the_stages():
  config = config_of()
  variables = random_variables(config)
  images = jax.random.normal(jax.random.key(0), (2, 40, 64, 3))
  apply = config.model.apply
  found, ours = jax.jit(lambda v, x: (apply(v, x, method='features'), apply(v, x)))(
    variables, images
  )
  assert [m.shape for m in found.maps] == [(2, 10, 16, 128), (2, 5, 8, 256)]
  assert found.strides == ((4, 4), (8, 8))
  np.testing.assert_allclose(found.pooled, found.maps[-1].mean(axis=(1, 2)), rtol=1e-5)
  head = variables['params']['output_projection']
  expected = np.asarray(found.pooled) @ head['kernel'] + head['bias']
  np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('num_classes', [5, 0])
def test_bfloat16_reaches_every_convolution_and_norm(num_classes):
  model = BiT(num_classes=num_classes, dtype=jnp.bfloat16, **SMALL)
  outputs, shapes = jax.eval_shape(
    lambda: model.init_with_output(
      jax.random.key(0), jnp.zeros((2, 32, 32, 3)), capture_intermediates=True
    )
  )
  assert outputs.dtype == (jnp.float32 if num_classes else jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes['params'])} == {jnp.dtype('float32')}
  inner = models.flatten({'params': shapes['intermediates']})
  wide = {
    name
    for name, leaves in inner.items()
    if jnp.dtype('float32') in {leaf.dtype for leaf in jax.tree.leaves(leaves)}
  }
  assert wide == ({'__call__', 'output_projection/__call__'} if num_classes else set())


def test_layers_are_counted_unit_by_unit():
  model = config_of().model
  layers = {name: model.layer_of(name) for name in model.variable_shapes(None, 3)}
  assert layers['root_block/conv_root/kernel'] == 0
  assert layers['block1/unit01/conv_proj/kernel'] == 1
  assert layers['block2/unit01/gn1/scale'] == 2
  assert layers['block2/unit02/conv3/kernel'] == 3
  after = {name for name, layer in layers.items() if layer == 4}
  assert {name.partition('/')[0] for name in after} == {'norm-pre-head', 'output_projection'}
  assert {*layers.values()} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(('before', 'after'), [(3, 1), (1, 3)])
def test_grey_images_give_the_same_logits_stored_as_colour(before, after):
  """The scale of a filter is lost in its standardization, and of its map in the norms."""
  old, new = config_of(channels=before), config_of(channels=after)
  variables = random_variables(old)
  adapted, notes = adapt(variables, old, new, 'm.npz')
  assert notes == [f'first convolution: from {before} to {after} channels']
  grey = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype(np.float32)
  images = {1: grey, 3: np.repeat(grey, 3, axis=-1)}
  expected = logits(variables, old, images[before])
  np.testing.assert_allclose(logits(adapted, new, images[after]), expected, rtol=1e-4, atol=1e-4)


def test_weights_may_lack_the_first_convolution():
  root, config = 'root_block/conv_root/kernel', config_of()
  flat = models.flatten(random_variables(config))
  rest = models.unflatten({name: array for name, array in flat.items() if name != root})
  adapted, notes = adapt(rest, config, config, 'm.npz', allow=root)
  assert notes == [f'{root}: new, as allowed']
  assert models.flatten(adapted).keys() == flat.keys() - {root}


def test_weights_for_another_epsilon_are_refused():
  old, new = config_of(), config_of(weight_epsilon=1e-8)
  with pytest.raises(FieldError, match=r'^weight_epsilon: 1e-08, but m\.npz has weights for 1e-10'):
    adapt(random_variables(old), old, new, 'm.npz')


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'depths': ()}, r'^depths: \(\) has no stage'),
    ({'depths': (1, 0)}, r'^depths: '),
    ({'width_factor': 0.3}, r'^width_factor: 0\.3 gives 19\.2 filters'),
    ({'width_factor': 0.25}, r'^width_factor: 0\.25 gives 16 filters'),
    ({'weight_epsilon': 0.0}, r'^weight_epsilon: 0\.0 is not a number above 0'),
    ({'num_filters': 64}, r'^num_filters: no such field of BiT'),
  ],
)
def test_wrong_fields_are_named(fields, message):
  with pytest.raises(FieldError, match=message):
    models.build({'name': 'bit', **fields}, num_classes=5)
