"""ViTs whose positions are one table for images of any size."""

import jax
import numpy as np
import pytest
from small_vits import SQUARE, random_images, random_variables

from vit_jax import models
from vit_jax.errors import FieldError
from vit_jax.models import layers
from vit_jax.weights.adapt import adapt

TABLE = {'grid': (2, 3), 'method': 'bicubic', 'antialias': True, 'align_corners': False}
TABLE |= {'keep_aspect': False, 'factorized': False}
POSITIONS = 'Transformer/posembed_input/pos_embedding'
CONFIG = SQUARE.replace(position_table=TABLE, position_tokens='patches')


def test_images_of_other_sizes_have_the_same_parameters():
  variables = random_variables(CONFIG)
  larger = CONFIG.replace(image_size=(12, 20))
  assert larger.variable_shapes() == CONFIG.variable_shapes()
  assert CONFIG.variable_shapes()[POSITIONS] == (1, 6, 8)
  fitted, notes = adapt(variables, CONFIG, larger, 'a.npz')
  assert notes == []
  jax.tree.map(np.testing.assert_array_equal, fitted, variables)
  shown = CONFIG.model.positions(variables['params'], (12, 20))
  table = layers.PositionTable(TABLE, 8)
  expected = table.apply({'params': variables['params']['Transformer']['posembed_input']}, (3, 5))
  np.testing.assert_array_equal(shown.embeddings.reshape(15, 8), expected)
  # Positions stand for nothing but what is added to patches.
  zeros = models.flatten(variables) | {POSITIONS: np.zeros((1, 6, 8), np.float32)}
  images = random_images(larger)
  with_zeros, without = (
    config.model.apply(models.unflatten(flat), images)
    for config, flat in (
      (larger, zeros),
      (
        larger.replace(positional_embedding='none', position_table=None),
        {n: a for n, a in zeros.items() if n != POSITIONS},
      ),
    )
  )
  np.testing.assert_allclose(with_zeros, without, atol=1e-5)
  assert np.abs(larger.model.apply(variables, images) - without).max() > 1e-3


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'positional_embedding': 'none'}, "position_table: set, but positional_embedding is 'none'"),
    ({'position_tokens': 'all'}, "position_table: set, but position_tokens is not 'patches'"),
    ({'position_table': TABLE | {'method': 'area'}}, "position_table.method: 'area' is not one of"),
  ],
)
def test_options_that_do_not_fit(changes, message):
  with pytest.raises(FieldError, match=message):
    CONFIG.replace(**changes)
