"""Biases by relative position, against loops, timm's modules and transformers'."""

import itertools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from vit_jax.errors import FieldError
from vit_jax.models import layers

GRID = (2, 3)
PLACES = list(itertools.product(range(2), range(3)))
RNG = np.random.default_rng(0)


def make(heads=2, head_dim=4, **options):
  return layers.RelativePositions(options, heads, head_dim)


def random_params(module, grid=GRID, num_prefix=0):
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), grid, num_prefix))['params']
  return jax.tree.map(lambda s: np.float32(RNG.normal(size=s.shape)), shapes)


def pairs():
  """Places of query and key by their numbers."""
  return ((a, b, *PLACES[a], *PLACES[b]) for a in range(6) for b in range(6))


def test_table_has_an_entry_for_each_distance_and_three_for_the_class_token():
  module = make(type='bias')
  table = random_params(module, num_prefix=1)['relative_position_bias_table']
  assert table.shape == (3 * 5 + 3, 2)
  bias = module.apply({'params': {'relative_position_bias_table': table}}, GRID, 1)
  for a, b, i, j, k, m in pairs():
    np.testing.assert_array_equal(bias[:, 1 + a, 1 + b], table[(i - k + 1) * 5 + j - m + 2])
  np.testing.assert_array_equal(bias[:, 0, 1:], np.tile(table[15, :, None], 6))
  np.testing.assert_array_equal(bias[:, 1:, 0], np.tile(table[16, :, None], 6))
  np.testing.assert_array_equal(bias[:, 0, 0], table[17])
  without = module.apply({'params': {'relative_position_bias_table': table[:15]}}, GRID)
  np.testing.assert_array_equal(without, bias[:, 1:, 1:])


@pytest.mark.parametrize('coordinates', ['cr', 'swin'])
def test_network_reads_logarithms_of_distances(coordinates):
  module = make(type='mlp', hidden_dim=5, coordinates=coordinates)
  params = random_params(module)
  assert ('bias' in params['Dense_1']) == (coordinates == 'cr')
  bias = module.apply({'params': params}, GRID, 2)
  assert not np.any(bias[:, :2])
  assert not np.any(bias[:, :, :2])
  first, second = params['Dense_0'], params['Dense_1']
  for a, b, i, j, k, m in pairs():
    distance = np.array([i - k, j - m], float)
    if coordinates == 'cr':
      read = np.sign(distance) * np.log(1 + np.abs(distance))
    else:
      distance *= [8 / 1, 8 / 2]
      read = np.sign(distance) * np.log2(1 + np.abs(distance)) / 3
    hidden = np.maximum(read @ first['kernel'] + first['bias'], 0)
    expected = hidden @ second['kernel'] + second.get('bias', 0)
    if coordinates == 'swin':
      expected = 16 / (1 + np.exp(-expected))
    np.testing.assert_allclose(bias[:, 2 + a, 2 + b], expected, atol=1e-5)


def test_decomposed_is_of_the_query_and_the_distance_along_each_axis():
  module = make(type='decomposed')
  params = random_params(module)
  assert {name: x.shape for name, x in params.items()} == {'rel_pos_h': (3, 4), 'rel_pos_w': (5, 4)}
  query = RNG.normal(size=(2, 6, 2, 4)).astype(np.float32)  # [B, N, heads, d]
  positions = module.apply({'params': params}, GRID)
  bias = positions(query)
  for a, b, i, j, k, m in pairs():
    vector = params['rel_pos_h'][i - k + 1] + params['rel_pos_w'][j - m + 2]
    np.testing.assert_allclose(bias[:, :, a, b], query[:, a] @ vector, atol=1e-5)
  windows = positions(jnp.bfloat16(query)[:, None])  # [B, windows, N, heads, d]
  assert windows.dtype == jnp.float32
  np.testing.assert_allclose(windows[:, 0], bias, atol=0.1)


def test_all_kinds_are_learned():
  for options in ({'type': 'bias'}, {'type': 'mlp'}, {'type': 'decomposed'}):
    module = make(**options)

    def loss(params, module=module):
      bias = module.apply({'params': params}, GRID)
      if module.options['type'] == 'decomposed':
        bias = bias(jnp.arange(48.0).reshape(1, 6, 2, 4))
      return jnp.sum(bias * np.arange(bias.size).reshape(bias.shape) ** 2)

    gradients = jax.grad(loss)(random_params(module))
    assert all(np.any(g) for g in jax.tree.leaves(gradients)), options


@pytest.mark.parametrize(
  ('options', 'prefix'), [({'type': 'bias'}, 2), ({'type': 'decomposed'}, 1)]
)
def test_tokens_before_the_patches_that_a_kind_does_not_know(options, prefix):
  message = (
    f'relative_positions.type: .* {prefix} tokens stand before the patches, not {prefix - 1}'
  )
  with pytest.raises(FieldError, match=message):
    make(**options).init(jax.random.key(0), GRID, prefix)


def test_no_positions_without_a_type():
  assert layers.resolve_relative_positions(None) is None
  config = ml_collections.ConfigDict(layers.RELATIVE_POSITIONS)
  assert layers.resolve_relative_positions(config.to_dict()) is None
  assert layers.resolve_relative_positions({'type': 'mlp'})['hidden_dim'] == 128


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ('bias', "relative_positions: 'bias' is not a dict"),
    ({'type': 'bias', 'share': True}, 'relative_positions.share: .* did you mean .shared'),
    ({'shared': True}, 'relative_positions.type: not set; it is one of bias, mlp, decomposed'),
    ({'type': 'table'}, "relative_positions.type: 'table' is not one of"),
    ({'type': 'mlp', 'coordinates': 'log'}, "relative_positions.coordinates: 'log' is not one of"),
    ({'type': 'mlp', 'hidden_dim': 0}, 'relative_positions.hidden_dim: 0 is not a positive'),
    ({'type': 'bias', 'hidden_dim': 64}, "relative_positions.hidden_dim: 64, but type 'bias' has"),
    ({'type': 'bias', 'shared': 1}, 'relative_positions.shared: 1 is not True or False'),
    ({'type': 'decomposed', 'shared': True}, "relative_positions.shared: True, but type 'decomp"),
  ],
)
def test_impossible_options(options, message):
  with pytest.raises(FieldError, match=message):
    layers.resolve_relative_positions(options)


def test_resized_tables_keep_what_is_linear_and_the_class_token():
  rows, columns = np.mgrid[-2:3, -3:4].astype(np.float32)
  table = np.stack([3 + 0 * rows, 10 * rows, columns], axis=-1).reshape(35, 3)
  table = np.concatenate([table, RNG.normal(size=(3, 3)).astype(np.float32)])
  assert layers.resize_bias_table(table, (3, 4), (3, 4)) is table
  larger = layers.resize_bias_table(table, (3, 4), (5, 6), 'bilinear')
  assert larger.dtype == np.float32
  np.testing.assert_array_equal(larger[-3:], table[-3:])
  cells = larger[:-3].reshape(9, 11, 3)
  np.testing.assert_allclose(cells[..., 0], 3, rtol=1e-6)
  even = np.clip((np.arange(9) + 0.5) * 5 / 9 - 0.5, 0, 4) - 2
  np.testing.assert_allclose(cells[:, 4, 1], 10 * even, atol=1e-5)
  cells = layers.resize_bias_table(table, (3, 4), (5, 5))[:-3].reshape(9, 9, 3)
  # Steps of 1 and f make up 4 rows, of 1, f and f f as many columns; but f is at most 1.5.
  places = np.array([0, 1, 2.5])
  np.testing.assert_allclose(cells[4:, 4, 1], 10 * np.interp(range(5), places, range(3)), atol=1e-4)
  factor = (np.sqrt(13) - 1) / 2
  places = np.array([0, 1, 1 + factor, 4])
  np.testing.assert_allclose(cells[4, 4:, 2], np.interp(range(5), places, range(4)), atol=1e-4)
  vectors = np.arange(5, dtype=np.float32)[:, None] * [1.0, 2.0]
  assert layers.resize_distances(vectors, 3) is vectors
  np.testing.assert_allclose(layers.resize_distances(vectors, 5)[:, 1], 2 * (even + 2), atol=1e-6)


# The same as other libraries compute.


def imported(name):
  torch = pytest.importorskip('torch')
  import torchvision_operators  # noqa: F401  before timm

  return torch, pytest.importorskip(name, exc_type=ImportError)


@pytest.mark.parametrize('prefix', [0, 1])
def test_table_as_timm(prefix):
  torch, rel = imported('timm.layers.pos_embed_rel')
  theirs = rel.RelPosBias(GRID, 2, prefix).requires_grad_(False)
  module = make(type='bias')
  params = random_params(module, num_prefix=prefix)
  theirs.relative_position_bias_table.copy_(torch.tensor(*params.values()))
  bias = module.apply({'params': params}, GRID, prefix)
  np.testing.assert_array_equal(bias, theirs.get_bias()[0])
  if prefix:
    _, beit = imported('timm.models.beit')
    theirs = beit.RelativePositionBias(GRID, 2).requires_grad_(False)
    theirs.relative_position_bias_table.copy_(torch.tensor(*params.values()))
    np.testing.assert_array_equal(bias, theirs())


@pytest.mark.parametrize(('coordinates', 'prefix'), [('cr', 1), ('swin', 0)])
def test_network_as_timm(coordinates, prefix):
  torch, rel = imported('timm.layers.pos_embed_rel')
  theirs = rel.RelPosMlp(GRID, 2, 5, prefix, mode=coordinates).eval().requires_grad_(False)
  module = make(type='mlp', hidden_dim=5, coordinates=coordinates)
  params = random_params(module)
  for layer, ours in ((theirs.mlp.fc1, params['Dense_0']), (theirs.mlp.fc2, params['Dense_1'])):
    layer.weight.copy_(torch.tensor(ours['kernel'].T))
    if layer.bias is not None:
      layer.bias.copy_(torch.tensor(ours['bias']))
  bias = module.apply({'params': params}, GRID, prefix)
  np.testing.assert_allclose(bias, theirs.get_bias()[0], atol=1e-5)


def test_decomposed_as_timm():
  torch, sam = imported('timm.models.vision_transformer_sam')
  module = make(type='decomposed')
  params = random_params(module)
  query = RNG.normal(size=(2, 6, 2, 4)).astype(np.float32)
  theirs = sam.get_decomposed_rel_pos_bias(
    torch.tensor(query).swapaxes(1, 2).reshape(4, 6, 4),
    *map(torch.tensor, params.values()),
    GRID,
    GRID,
  )
  ours = module.apply({'params': params}, GRID)(query)
  np.testing.assert_allclose(ours.reshape(4, 6, 6), theirs, atol=1e-5)
  for length in (2, 5):
    vectors = RNG.normal(size=(7, 4)).astype(np.float32)
    theirs = sam.get_rel_pos(length, length, torch.tensor(vectors))
    ours = layers.resize_distances(vectors, length)
    steps = np.arange(length)
    np.testing.assert_allclose(ours[steps[:, None] - steps + length - 1], theirs, atol=1e-6)


@pytest.mark.parametrize(('old', 'new'), [((4, 4), (6, 9)), ((5, 3), (2, 7)), ((1, 4), (3, 3))])
def test_tables_are_resized_as_by_timm(old, new):
  torch, rel = imported('timm.layers.pos_embed_rel')
  size = [(2 * h - 1) * (2 * w - 1) + 3 for h, w in (old, new)]
  table = RNG.normal(size=(size[0], 2)).astype(np.float32)
  theirs = rel.resize_rel_pos_bias_table(torch.tensor(table), new, (size[1], 2), old)
  np.testing.assert_allclose(layers.resize_bias_table(table, old, new), theirs, atol=1e-5)


def test_tables_are_resized_as_by_transformers():
  torch, beit = imported('transformers.models.beit.modeling_beit')
  config = beit.BeitConfig(image_size=8, patch_size=2, num_attention_heads=2, hidden_size=8)
  theirs = beit.BeitRelativePositionBias(config).requires_grad_(False)
  table = RNG.normal(size=(7 * 7 + 3, 2)).astype(np.float32)
  theirs.relative_position_bias_table.copy_(torch.tensor(table))
  for grid in ((4, 4), (3, 6)):
    resized = layers.resize_bias_table(table, (4, 4), grid, 'bilinear')
    params = {'relative_position_bias_table': resized}
    ours = make(type='bias').apply({'params': params}, grid, 1)
    np.testing.assert_allclose(ours, theirs(grid)[0], atol=1e-6)
