"""Small ViTs with random parameters, for tests of formats."""

import functools

import flax
import jax
import numpy as np

from vit_jax.models.vit import ViT
from vit_jax.weights import model_config, table

SQUARE = {
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
WIDE = SQUARE | {
  'patches': {'size': (4, 2)},
  'image_size': (8, 6),
  'channels': 1,
  'num_layers': 1,
  'activation': 'gelu_exact',
  'norm_epsilon': 1e-12,
  'class_names': ['cat', 'dög', 'cat'],
  'preprocess': {'mean': (0.4567,), 'std': (0.3,), 'crop': 'resize'},
}


def random_params(config, seed=0):
  """A parameter tree of this config, normally distributed."""
  rng = np.random.default_rng(seed)
  shapes = model_config.parameter_shapes(config)
  flat = {name: 0.3 * rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
  return flax.traverse_util.unflatten_dict(flat, sep='/')


def logits(params, config, images):
  """What the model computes."""
  apply = functools.partial(ViT.from_config(config).apply, train=False)
  quick = {'xla_backend_optimization_level': 0}  # to compile, which is all the time that it takes
  return np.asarray(jax.jit(apply, compiler_options=quick)({'params': params}, images))


def random_images(config, seed=0):
  """Two images that fit."""
  shape = (2, *config['image_size'], config['channels'])
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_same(first, second):
  """The same names, and the same bits under each."""
  first, second = table.flatten(first), table.flatten(second)
  assert first.keys() == second.keys()
  for name in first:
    assert first[name].dtype == second[name].dtype == np.float32
    assert first[name].tobytes() == second[name].tobytes(), name
