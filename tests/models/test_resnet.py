"""ResNets: sizes, dtypes, initialisation, running statistics, and their fields."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UsageError
from vit_jax.models import build
from vit_jax.models.resnet import ResNet, ResNet18, ResNet50
from vit_jax.train import flops


def shapes_of(model, image=(32, 32, 3)):
  """Outputs and variables, as shapes and dtypes."""
  return jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, *image)), train=False)
  )


# As torchvision counts them: https://docs.pytorch.org/vision/stable/models.html
@pytest.mark.parametrize(
  ('name', 'count', 'num_statistics', 'operations'),
  [
    ('resnet18', 11_689_512, 2 * 4_800, 1.81),
    ('resnet34', 21_797_672, 2 * 8_512, 3.66),
    ('resnet50', 25_557_032, 2 * 26_560, 4.09),
    ('resnet101', 44_549_160, 2 * 52_672, 7.80),
    ('resnet152', 60_192_808, 2 * 75_712, 11.51),
  ],
)
def test_published_sizes(name, count, num_statistics, operations):
  model = build({'name': name}, num_classes=1000)
  logits, shapes = shapes_of(model, (224, 224, 3))
  image = jnp.zeros((1, 224, 224, 3))
  found = flops.count(lambda v, x: model.apply(v, x), shapes, image) / 2e9
  assert round(found, 2) == operations  # 10^9 multiply-adds
  assert (logits.shape, logits.dtype) == ((2, 1000), jnp.float32)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])) == count
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes['batch_stats'])) == num_statistics


@pytest.mark.parametrize(('num_classes', 'dtype'), [(5, jnp.float32), (0, jnp.bfloat16)])
def test_features_have_the_compute_dtype_and_all_else_is_float32(num_classes, dtype):
  model = ResNet18(num_classes=num_classes, num_filters=4, dtype=jnp.bfloat16)
  outputs, shapes = shapes_of(model)
  assert (outputs.shape, outputs.dtype) == ((2, num_classes or 32), dtype)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('kind', [ResNet18, ResNet50])
def test_bfloat16_reaches_every_convolution_and_norm(kind):
  model = kind(num_classes=0, num_filters=4, dtype=jnp.bfloat16)
  _, shapes = jax.eval_shape(
    lambda: model.init_with_output(
      jax.random.key(0), jnp.zeros((2, 32, 32, 3)), capture_intermediates=True
    )
  )
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(shapes['intermediates'])}
  assert dtypes == {jnp.dtype('bfloat16')}


def test_initial_values_are_torchvision_s():
  model = ResNet(num_classes=40, stage_sizes=(1, 1), num_filters=32)
  start = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  flat = flax.traverse_util.flatten_dict(start['params'], sep='/')
  for name, value in flat.items():
    if value.ndim == 4:  # normal, of standard deviation sqrt(2 / fan-out), not truncated
      deviation = np.sqrt(2 / (value.shape[0] * value.shape[1] * value.shape[3]))
      assert np.std(value) == pytest.approx(deviation, rel=0.06), name
      if value.size > 4000:
        assert np.abs(value).max() > 3 * deviation
    elif name.startswith('output_projection'):  # uniform
      assert np.abs(value).max() <= 64**-0.5
      assert np.std(value) == pytest.approx(64**-0.5 / np.sqrt(3), rel=0.2)
    else:
      np.testing.assert_array_equal(value, float(name.endswith('scale')))
  for path, value in flax.traverse_util.flatten_dict(start['batch_stats']).items():
    np.testing.assert_array_equal(value, float(path[-1] == 'var'))


def test_a_single_value_has_no_variance():
  model = ResNet(num_classes=2, stage_sizes=(1,), num_filters=2)
  image = jnp.zeros((1, 4, 4, 3))
  start = model.init(jax.random.key(0), image)
  with pytest.raises(UsageError, match='batch normalisation has a single value'):
    model.apply(start, image, train=True, mutable=['batch_stats'])
  model.apply(start, image, train=False)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'hidden_size': 8}, r'^hidden_size: no such field of ResNet18'),
    ({'patches': {'size': (4, 4)}}, r'^patches: no such field'),
    ({'tokenizer': {}}, r'^tokenizer: no such field'),
    ({'dropout_rate': 0.0}, r'^dropout_rate: no such field'),
    ({'num_filters': 0}, r'^num_filters: 0 is not a whole number from 1 to'),
  ],
)
def test_fields_of_vits_are_refused(fields, message):
  with pytest.raises(UsageError, match=message):
    build({'name': 'resnet18', **fields}, num_classes=5)
