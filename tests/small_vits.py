"""Small ViTs with random parameters, for tests of formats."""

import functools
import math
import zlib

import jax
import numpy as np

from vit_jax import models
from vit_jax.models import ModelConfig
from vit_jax.weights import rules

_FIELDS = {
  'name': 'vit',
  'hidden_size': 8,
  'mlp_dim': 12,
  'num_layers': 2,
  'num_heads': 2,
  'patches': {'size': (4, 4)},
  'classifier': 'token',
  'class_token': None,
  'fc_norm': False,
  'positional_embedding': 'learned_1d',
  'representation_size': None,
  'norm_epsilon': 1e-6,
  'activation': 'gelu',
  'num_classes': 3,
  'channels': 3,
  'image_size': (8, 8),
  'class_names': None,
  'preprocess': None,
}
SQUARE = ModelConfig.from_dict(_FIELDS)
WIDE = ModelConfig.from_dict(
  _FIELDS
  | {
    'patches': {'size': (4, 2)},
    'image_size': (8, 6),
    'channels': 1,
    'num_layers': 1,
    'activation': 'gelu_exact',
    'norm_epsilon': 1e-12,
    'class_names': ['cat', 'dög', 'cat'],
    'preprocess': {'mean': (0.4567,), 'std': (0.3,), 'crop': 'resize'},
  }
)


def random_variables(config, seed=0):
  """Variables of this config, normally distributed; variances are above 0."""
  rng = np.random.default_rng(seed)
  shapes = config.variable_shapes()
  flat = {name: 0.3 * rng.normal(size=s).astype(np.float32) for name, s in sorted(shapes.items())}
  return models.unflatten({n: abs(x) + 0.1 if n.endswith('/var') else x for n, x in flat.items()})


def random_tensor(name, shape):
  """Values of a tensor of PyTorch, by its name alone: scales about 1, all else about 0."""
  noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)
  if name.endswith('running_var'):
    return 1 + 0.3 * abs(noise)
  if len(shape) > 1 and name.endswith('weight'):
    return noise * np.float32(1.5 / math.prod(shape[1:]) ** 0.5)
  return 0.5 * noise + np.float32(name.endswith(('norm.weight', 'gamma')))


def logits(variables, config, images):
  """What the model computes."""
  apply = functools.partial(config.model.apply, train=False)
  quick = {'xla_backend_optimization_level': 0}  # to compile, which is all the time that it takes
  return np.asarray(jax.jit(apply, compiler_options=quick)(variables, images))


def random_images(config, seed=0):
  """Two images that fit."""
  shape = (2, *config.image_size, config.channels)
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_same(first, second):
  """The same names, and the same bits under each."""
  first, second = rules.flatten(first), rules.flatten(second)
  assert first.keys() == second.keys()
  for name in first:
    assert first[name].dtype == second[name].dtype == np.float32
    assert first[name].tobytes() == second[name].tobytes(), name


def assert_same_tensors(model, other):
  """The same names in two PyTorch models, and the same bits under each."""
  first, second = model.state_dict(), other.state_dict()
  assert first.keys() == second.keys()
  for name in first:
    assert first[name].dtype == second[name].dtype
    assert first[name].numpy().tobytes() == second[name].numpy().tobytes(), name
