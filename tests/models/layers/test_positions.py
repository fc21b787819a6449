"""Position tables."""

import math

import jax
import numpy as np
import pytest
import scipy.ndimage
import torch
from small_vits import SQUARE, random_variables

from vit_jax.errors import UsageError
from vit_jax.models import layers


def test_sinusoids_have_unit_norm_per_pair_and_depend_on_distance_alone():
  one = layers.sinusoidal_1d(10, 8).astype(np.float64)
  np.testing.assert_allclose((one**2).sum(-1), 4, rtol=1e-6)
  gram = one @ one.T
  for offset in range(1, 10):
    np.testing.assert_allclose(np.ptp(np.diagonal(gram, offset)), 0, atol=1e-5)


def test_2d_sinusoids_put_columns_first():
  table = layers.sinusoidal_2d(2, 3, 8)
  assert table.shape == (2, 3, 8)
  assert table.dtype == np.float32
  np.testing.assert_array_equal(table[0, :, :4], table[1, :, :4])
  np.testing.assert_array_equal(table[:, 0, 4:], table[:, 2, 4:])
  np.testing.assert_allclose(table[0, 2, [0, 2]], [np.sin(2), np.cos(2)], rtol=1e-6)
  hot = layers.sinusoidal_2d(2, 3, 8, temperature=100.0)
  np.testing.assert_allclose(hot[0, 2, 1], np.sin(2 * 0.1), rtol=1e-6)
  added = layers.AddFixedSinCosPositionEmbedding(temperature=100.0).apply({}, np.ones((1, 2, 3, 8)))
  np.testing.assert_allclose(added[0], 1 + hot, rtol=1e-6)


def test_resolve_grid():
  assert layers.resolve_grid(12, (3, 4)) == (3, 4)
  assert layers.resolve_grid(9, None) == (3, 3)
  with pytest.raises(ValueError, match='12 tokens do not fill a 3x3 grid'):
    layers.resolve_grid(12, None)
  with pytest.raises(ValueError, match='12 tokens do not fill a 2x4 grid'):
    layers.resolve_grid(12, (2, 4))


def aligned(grid, rows, columns):
  """Bilinear interpolation of [h, w, D], corners on corners, by np.interp along each axis."""
  for axis, size in ((0, rows), (1, columns)):
    there = np.linspace(0, grid.shape[axis] - 1, size)
    here = np.arange(grid.shape[axis])
    grid = np.apply_along_axis(lambda v, x=there, xp=here: np.interp(x, xp, v), axis, grid)
  return grid


# 8 to 26, 15 to 42: where SciPy's default mode loses the last row.
@pytest.mark.parametrize('num_prefix', [0, 1])
@pytest.mark.parametrize(
  ('old', 'new'),
  [
    ((4, 4), (8, 8)),
    ((14, 14), (4, 4)),
    ((14, 14), (10, 6)),
    ((5, 3), (3, 7)),
    ((8, 15), (26, 42)),
    ((4, 9), (6, 6)),
    ((1, 3), (2, 5)),
    ((3, 3), (1, 2)),
  ],
)
def test_positions_are_interpolated_corner_to_corner(old, new, num_prefix):
  rng = np.random.default_rng(0)
  embeddings = rng.normal(size=(1, num_prefix + old[0] * old[1], 3)).astype(np.float32)
  resized = layers.resize_position_embeddings(embeddings, old, new, num_prefix)
  assert resized.shape == (1, num_prefix + new[0] * new[1], 3)
  assert resized.dtype == np.float32
  np.testing.assert_array_equal(resized[:, :num_prefix], embeddings[:, :num_prefix])
  expected = aligned(embeddings[0, num_prefix:].reshape(*old, 3), *new)
  np.testing.assert_allclose(resized[0, num_prefix:].reshape(*new, 3), expected, atol=1e-6)


@pytest.mark.parametrize(('old', 'new'), [(14, 24), (24, 14), (7, 16)])
def test_positions_are_big_vision_s_for_squares(old, new):
  embeddings = np.random.default_rng(0).normal(size=(1, old**2, 3)).astype(np.float32)
  grid = embeddings.reshape(old, old, 3)
  expected = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
  resized = layers.resize_position_embeddings(embeddings, (old, old), (new, new))
  np.testing.assert_array_equal(resized, expected.reshape(1, -1, 3))


@pytest.mark.parametrize('num_prefix', [0, 2])
@pytest.mark.parametrize(
  ('old', 'new'), [((14, 14), (24, 24)), ((24, 24), (14, 10)), ((7, 5), (3, 16)), ((1, 3), (2, 2))]
)
def test_positions_are_timm_s(old, new, num_prefix):
  """timm's resample_abs_pos_embed is PyTorch's interpolation of what follows the prefix."""
  rng = np.random.default_rng(0)
  embeddings = rng.normal(size=(1, num_prefix + math.prod(old), 3)).astype(np.float32)
  resized = layers.resize_position_embeddings(embeddings, old, new, num_prefix, 'timm')
  cells = torch.tensor(embeddings)[:, num_prefix:].reshape(1, *old, 3).permute(0, 3, 1, 2)
  cells = torch.nn.functional.interpolate(cells, new, mode='bicubic', antialias=True)
  np.testing.assert_array_equal(resized[:, :num_prefix], embeddings[:, :num_prefix])
  expected = cells.permute(0, 2, 3, 1).reshape(1, -1, 3)
  np.testing.assert_allclose(resized[:, num_prefix:], expected, rtol=1e-5, atol=5e-6)
  assert resized.dtype == np.float32


def test_a_plane_of_positions_stays_a_plane():
  rows, columns = np.mgrid[0:5, 0:9]
  plane = (2 * rows / 4 - 3 * columns / 8 + 1).astype(np.float32)
  resized = layers.resize_position_embeddings(plane.reshape(1, -1, 1), (5, 9), (7, 4))
  rows, columns = np.mgrid[0:7, 0:4]
  expected = 2 * rows / 6 - 3 * columns / 3 + 1
  np.testing.assert_allclose(resized.reshape(7, 4), expected, atol=1e-6)


def test_the_same_grid_gives_the_same_bits():
  embeddings = np.random.default_rng(0).normal(size=(1, 24, 8)).astype(np.float32)
  same = layers.resize_position_embeddings(embeddings, (4, 6), (4, 6))
  assert same.tobytes() == embeddings.tobytes()


def pytorch_positions(embeddings, grid, num_prefix):
  """What facebookresearch/dino's interpolate_pos_encoding does."""
  side = int(math.sqrt(embeddings.shape[1] - num_prefix))
  cells = torch.tensor(embeddings)[:, num_prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
  scales = tuple((length + 0.1) / side for length in grid)
  cells = torch.nn.functional.interpolate(cells, scale_factor=scales, mode='bicubic')
  assert cells.shape[2:] == grid
  cells = cells.permute(0, 2, 3, 1).reshape(1, math.prod(grid), -1)
  return torch.cat([torch.tensor(embeddings)[:, :num_prefix], cells], dim=1).numpy()


@pytest.mark.parametrize('num_prefix', [0, 1])
@pytest.mark.parametrize(
  ('side', 'grid'), [(14, (6, 6)), (7, (3, 3)), (14, (30, 20)), (5, (4, 11)), (1, (2, 3))]
)
def test_positions_of_other_images_are_dino_s(side, grid, num_prefix):
  rng = np.random.default_rng(0)
  embeddings = rng.normal(size=(1, num_prefix + side**2, 3)).astype(np.float32)
  found = layers.interpolate_positions(embeddings, grid, num_prefix)
  expected = pytorch_positions(embeddings, grid, num_prefix)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_vit_interpolates_its_positions_and_learns_through_them():
  changes = {'num_classes': 0, 'num_layers': 1, 'patches': {'size': (2, 2)}}
  config = SQUARE.replace(model=SQUARE.backbone.clone(**changes))
  params = random_variables(config)['params']
  x = np.random.default_rng(1).normal(size=(2, 6, 4, 3)).astype(np.float32)
  positions = params['Transformer']['posembed_input']['pos_embedding']
  assert positions.shape == (1, 17, 8)

  @jax.jit
  def features(positions):
    encoder = params['Transformer'] | {'posembed_input': {'pos_embedding': positions}}
    found = config.model.apply({'params': params | {'Transformer': encoder}}, x)
    return found[0, 0], found

  (_, found), gradient = jax.value_and_grad(features, has_aux=True)(positions)
  _, expected = features(pytorch_positions(positions, (3, 2), 1))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert np.abs(gradient[0]).max(axis=-1).min() > 0
  with pytest.raises(UsageError, match=r'^pos_embedding: 12 positions, of no square grid, and'):
    features(positions[:, :13])
