"""TokenLearner's maps: a model with planted weights looks at the planted pixels; the figure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explain.helpers import assert_fits_into_readme, random_images, words

from vit_jax.explain.attention import apply_with_intermediates
from vit_jax.explain.token_maps import token_maps_figure
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


def token_maps(model, plant=lambda params: params):
  """The model's maps, its parameters changed by `plant`."""
  params = model.init(jax.random.key(0), make_images())['params']
  variables = {'params': plant(jax.tree.map(np.array, params))}
  _, intermediates = apply_with_intermediates(model, variables, make_images())
  return model.token_maps(intermediates, (4, 20))


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
  ((maps, _),) = token_maps(make_model(use_v11=True), plant_v11)
  assert maps.shape == (1, NUM_TOKENS, *GRID)
  assert maps.dtype == np.float32
  np.testing.assert_allclose(maps[0, 0], planted(), atol=1e-4)
  np.testing.assert_allclose(maps[0, 1], (1 - planted()) / 9, atol=1e-4)


def test_tokens_of_version_1_look_at_the_planted_pixels():
  ((maps, _),) = token_maps(make_model(use_v11=False), plant_v1)
  assert maps.shape == (1, NUM_TOKENS, *GRID)
  np.testing.assert_allclose(maps[0, 0], planted(), atol=1e-4)
  np.testing.assert_allclose(maps[0, 1], 1 - planted(), atol=1e-4)


def test_with_a_fuser_every_layer_has_its_maps():
  first, second = token_maps(make_model(use_tokenfuse=True), plant_v11)
  assert first.maps.shape == second.maps.shape == (1, NUM_TOKENS, *GRID)
  assert first.source == 'TokenLearner before layer 0'
  assert second.source == 'TokenLearner before layer 1'
  np.testing.assert_allclose(first.maps[0, 0], planted(), atol=1e-4)
  assert np.abs(second.maps - first.maps).max() > 0.1


def test_maps_come_in_the_order_of_the_layers():
  scopes = {
    f'TokenLearnerModuleV11_{i}': {'token_maps': jnp.full((1, 3, 10), i)} for i in range(12)
  }
  model = make_model(use_tokenfuse=True)
  found = model.token_maps({'Transformer': dict(sorted(scopes.items()))}, (4, 20))
  assert [maps[0, 0, 0, 0] for maps, _ in found] == list(range(12))


def test_a_model_that_learns_no_tokens_has_no_maps():
  assert token_maps(make_model(type='patch')) == []


def random(*shape):
  return np.random.default_rng(sum(shape)).uniform(size=shape)


@pytest.mark.parametrize(
  ('images', 'maps', 'caption'),
  [((2, 8, 8, 1), (2, 8, 8, 8), 'a\nb'), ((1, 4, 8, 3), (1, 2, 4, 8), 'true: cat')],
)
def test_a_figure_of_token_maps_is_not_cut_off(images, maps, caption):
  captions = [caption] * len(random(*maps))
  assert_fits_into_readme(token_maps_figure(random_images(*images), random(*maps), captions))


def test_token_maps_are_drawn_row_by_row_on_one_scale():
  images = np.zeros((2, 2, 3, 3), np.uint8)
  images[1] = [0, 90, 255]
  maps = random(2, 2, 2, 3) / 2
  maps[0, 1, 0, 2] = 0.5
  figure = token_maps_figure(images, maps, ['first', 'second'])
  panels = [[drawn.get_array() for drawn in axis.images] for axis in figure.axes[:6]]
  for row, image in enumerate(images):
    (shown,), *heats = panels[3 * row : 3 * row + 3]
    np.testing.assert_array_equal(shown, image)
    for (grey, heat), values in zip(heats, maps[row], strict=True):
      np.testing.assert_array_equal(grey, np.full((2, 3), 115 * row))  # (0 + 90 + 255) / 3
      np.testing.assert_array_equal(heat, values)
  norms = [axis.images[1].norm for axis in figure.axes[:6] if len(axis.images) > 1]
  assert {(norm.vmin, norm.vmax) for norm in norms} == {(0, 0.5)}
  assert {'first', 'second', 'token 0', 'token 1'} <= set(words(figure))
