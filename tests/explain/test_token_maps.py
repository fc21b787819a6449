"""TokenLearner's maps: a model with planted weights looks at the planted pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UsageError
from vit_jax.explain.token_maps import token_maps
from vit_jax.models.token_learner import TokenLearnerViT

GRID = (2, 5)
BRIGHT = (1, 3)  # row and column of the only bright patch
NUM_TOKENS = 2


def make_model(**tokenizer):
  return TokenLearnerViT(
    num_classes=3,
    mlp_dim=4,
    num_layers=2,
    num_heads=1,
    hidden_size=4,
    classifier='token',
    positional_embedding='none',
    tokenizer={
      'type': 'dynamic',
      'patches': {'size': (2, 4)},
      'num_tokens': NUM_TOKENS,
      'tokenlearner_loc': 0,
      **tokenizer,
    },
  )


def make_images():
  images = np.zeros((1, 4, 20, 1), np.float32)
  images[0, 2:4, 12:16] = 1
  return images


def capture(model, plant=lambda params: params):
  """Intermediates of the model, its parameters changed by `plant`."""
  params = model.init(jax.random.key(0), make_images())['params']
  params = plant(jax.tree.map(np.array, params))
  _, state = model.apply({'params': params}, make_images(), mutable=['intermediates'])
  return state['intermediates']


def plant_embedding(params):
  """Feature 0 is 5 where the image is bright; the others are the same everywhere."""
  params['embedding']['kernel'][:] = 0
  params['embedding']['kernel'][..., 0] = 5 / 8
  params['embedding']['bias'][:] = [0, 1, 0, 0]
  return params


def plant_v11(params):
  """Token 0 seeks feature 0, token 1 avoids it."""
  mlp = plant_embedding(params)['Transformer']['TokenLearnerModuleV11_0']['token_masking']
  for dense in mlp.values():
    dense['kernel'][:] = dense['bias'][:] = 0
  mlp['Dense_0']['kernel'][0, 0] = 1
  mlp['Dense_1']['kernel'][0] = [30, -30]
  return params


def plant_v1(params):
  """The same; the convolutions look at their own position alone."""
  convolutions = plant_embedding(params)['Transformer']['TokenLearnerModule_0']
  taps = [convolutions[f'Conv_{i}']['kernel'] for i in range(4)]
  for kernel in taps:
    kernel[:] = 0
  taps[0][1, 1, 0] = [20, -20]
  taps[1][1, 1] = taps[2][1, 1] = np.eye(2)
  taps[3][1, 1] = [[1, -1], [-1, 1]]
  return params


def planted():
  bright = np.zeros(GRID)
  bright[BRIGHT] = 1
  return bright


def test_tokens_of_version_1_1_look_at_the_planted_pixels():
  (maps,) = token_maps(capture(make_model(use_v11=True), plant_v11), GRID)
  assert maps.shape == (1, NUM_TOKENS, *GRID)
  assert maps.dtype == np.float32
  np.testing.assert_allclose(maps[0, 0], planted(), atol=1e-4)
  np.testing.assert_allclose(maps[0, 1], (1 - planted()) / 9, atol=1e-4)


def test_tokens_of_version_1_look_at_the_planted_pixels():
  (maps,) = token_maps(capture(make_model(use_v11=False), plant_v1), GRID)
  assert maps.shape == (1, NUM_TOKENS, *GRID)
  np.testing.assert_allclose(maps[0, 0], planted(), atol=1e-4)
  np.testing.assert_allclose(maps[0, 1], 1 - planted(), atol=1e-4)


def test_with_a_fuser_every_layer_has_its_maps():
  maps = token_maps(capture(make_model(use_tokenfuse=True), plant_v11), GRID)
  assert [m.shape for m in maps] == [(1, NUM_TOKENS, *GRID)] * 2
  np.testing.assert_allclose(maps[0][0, 0], planted(), atol=1e-4)
  assert np.abs(maps[1] - maps[0]).max() > 0.1


def test_maps_come_in_the_order_of_the_layers():
  scopes = {
    f'TokenLearnerModuleV11_{i}': {'token_maps': (jnp.full((1, 3, 4), i),)} for i in range(12)
  }
  maps = token_maps({'Transformer': dict(sorted(scopes.items()))}, (2, 2))
  assert [m[0, 0, 0, 0] for m in maps] == list(range(12))


def test_a_model_that_learns_no_tokens_is_refused():
  intermediates = capture(make_model(type='patch'))
  with pytest.raises(UsageError, match=r'config\.model: learns no tokens'):
    token_maps(intermediates, GRID)
