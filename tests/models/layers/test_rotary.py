"""Rotary position embeddings, against timm's, transformers', and statements of the papers."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from vit_jax.errors import FieldError
from vit_jax.models import layers

# Options here, and timm's arguments for the same: every combination that its models have, and more.
CAT = {'in_pixels': False}
SAME = {
  'axial': ({'type': 'axial'}, CAT),
  'naver': (
    {'type': 'axial', 'grid_indexing': 'xy', 'temperature': 100.0},
    CAT | {'grid_indexing': 'xy', 'temperature': 100.0},
  ),
  'EVA-02': (
    {'type': 'axial', 'reference_grid': (4, 5)},
    CAT | {'ref_feat_shape': [4, 5]},
  ),
  'PE': (
    {'type': 'axial', 'grid_indexing': 'xy', 'grid_offset': 1.0, 'reference_grid': (4, 5)},
    CAT | {'grid_indexing': 'xy', 'grid_offset': 1.0, 'ref_feat_shape': [4, 5]},
  ),
  'halves': ({'type': 'axial', 'rotate_half': True}, CAT | {'rotate_half': True}),
  'DINOv3': (
    {'type': 'dinov3', 'rotate_half': True},
    {'rope_type': 'dinov3', 'temperature': 100, 'rotate_half': True},
  ),
  'DINOv3 xy': (
    {'type': 'dinov3', 'grid_indexing': 'xy', 'grid_offset': 0.25, 'temperature': 50},
    {'rope_type': 'dinov3', 'temperature': 50, 'grid_indexing': 'xy', 'grid_offset': 0.25}
    | {'rotate_half': False},
  ),
}
GRID = (3, 5)
X = np.random.default_rng(0).normal(size=(2, 15, 3, 8)).astype(np.float32)  # [B, N, heads, d]


def make(options, num_layers=2, num_heads=3, head_dim=8):
  return layers.RotaryEmbedding(options, num_layers, num_heads, head_dim)


@pytest.mark.parametrize('name', SAME)
def test_as_timm(name):
  torch, create, apply = timm_functions()
  options, arguments = SAME[name]
  theirs = create(**{'rope_type': 'cat', **arguments}, dim=24, num_heads=3)
  embedding = theirs.get_embed(list(GRID))  # as of any grid, with dynamic_img_size
  half = arguments.get('rotate_half', False)
  expected = apply(torch.tensor(X).swapaxes(1, 2), embedding, half=half).swapaxes(1, 2)
  rotation = make(options).apply({}, GRID)
  assert isinstance(rotation.sin, np.ndarray)  # a constant
  np.testing.assert_allclose(rotation(X), expected, atol=3e-6)
  assert np.abs(rotation(X) - X).max() > 0.5


def test_learned_frequencies_as_timm():
  torch, create, apply = timm_functions()
  theirs = create(rope_type='mixed', dim=24, num_heads=3, depth=2, grid_indexing='xy')
  freqs = theirs.freqs.detach()
  module = make({'type': 'mixed', 'grid_indexing': 'xy'})
  rotation = module.apply({'params': {'freqs': freqs.numpy()}}, GRID)
  embeddings = theirs.get_embed(list(GRID)).detach()  # [layers, heads, N, 2 d]
  for layer, embedding in enumerate(embeddings):
    expected = apply(torch.tensor(X).swapaxes(1, 2), embedding).swapaxes(1, 2)
    np.testing.assert_allclose(rotation.of_layer(layer)(X), expected, atol=3e-6)
  ours = module.init(jax.random.key(0), GRID)['params']['freqs']
  assert ours.shape == freqs.shape
  np.testing.assert_allclose((ours**2).sum(0), (freqs**2).sum(0), rtol=1e-5)


def timm_functions():
  torch = pytest.importorskip('torch')
  import torchvision_operators  # noqa: F401  before timm

  timm_layers = pytest.importorskip('timm.layers', exc_type=ImportError)
  return torch, timm_layers.create_rope_embed, timm_layers.apply_rot_embed_cat


def test_dinov3_as_transformers():
  torch = pytest.importorskip('torch')
  import torchvision_operators  # noqa: F401  before transformers

  theirs = pytest.importorskip('transformers.models.dinov3_vit.modeling_dinov3_vit')
  config = theirs.DINOv3ViTConfig(hidden_size=24, num_attention_heads=3, patch_size=2)
  cos, sin = theirs.DINOv3ViTRopePositionEmbedding(config).eval()(torch.zeros(1, 3, 6, 10))
  x = np.pad(X, ((0, 0), (3, 0), (0, 0), (0, 0)), mode='reflect')  # class and register tokens
  given = torch.tensor(x).swapaxes(1, 2)
  expected, _ = theirs.apply_rotary_pos_emb(given, given, cos, sin)
  rotation = make({'type': 'dinov3', 'rotate_half': True}).apply({}, GRID, 3)
  np.testing.assert_allclose(rotation(x), expected.swapaxes(1, 2), atol=3e-6)
  np.testing.assert_array_equal(rotation(x)[:, :3], x[:, :3])


# Angles of the patch in row 2, column 1 of 3 x 4: of the pair with frequency 1 of each axis.
@pytest.mark.parametrize(
  ('options', 'first', 'second'),
  [
    ({'type': 'axial'}, 2, 1),
    ({'type': 'axial', 'grid_indexing': 'xy'}, 1, 2),
    ({'type': 'axial', 'reference_grid': (6, 2), 'grid_offset': 1}, 3 / 3 * 6, 2 / 4 * 2),
    ({'type': 'dinov3'}, 2 * np.pi * 2 / 3, 2 * np.pi * -1 / 4),
  ],
)
@pytest.mark.parametrize('halves', [False, True])
def test_pairs_are_complex_numbers_times_those_of_their_angles(options, first, second, halves):
  slow = 100**-0.5
  angles = np.array([first, first * slow, second, second * slow])
  options = options | {'temperature': 100, 'rotate_half': halves}
  x = X[:, :12]
  turned = np.asarray(make(options).apply({}, (3, 4))(x))[:, 9]
  order = (2, 4) if halves else (4, 2)
  split = [a.reshape(2, 3, *order) for a in (x[:, 9], turned)]
  given, found = (np.moveaxis(a, -2, -1) if halves else a for a in split)
  expected = (given @ [1, 1j]) * np.exp(1j * angles)
  np.testing.assert_allclose(found @ [1, 1j], expected, atol=1e-5)


def test_learned_frequencies_turn_each_pair_by_a_sum_and_are_learned():
  module = make({'type': 'mixed', 'temperature': 5.0})
  variables = module.init(jax.random.key(1), GRID)
  freqs = np.asarray(variables['params']['freqs'])
  assert freqs.shape == (2, 2, 3, 4)
  np.testing.assert_allclose((freqs**2).sum(0)[..., :2], np.tile([1, 1 / 5], (2, 3, 1)), rtol=1e-5)
  np.testing.assert_allclose((freqs[..., :2] * freqs[..., 2:]).sum(0), 0, atol=1e-6)
  assert np.unique(np.asarray(freqs[0, ..., 0])).size == 6  # a direction for each layer and head
  x = np.pad(X, ((0, 0), (1, 0), (0, 0), (0, 0)))
  turned = np.asarray(module.apply(variables, GRID, 1).of_layer(1)(x))
  expected = (X[:, 13, 2].reshape(2, 4, 2) @ [1, 1j]) * np.exp(1j * (freqs[:, 1, 2].T @ [2, 3]))
  np.testing.assert_allclose(turned[:, 14, 2].reshape(2, 4, 2) @ [1, 1j], expected, atol=1e-5)

  def squares(variables):
    return jnp.sum(module.apply(variables, GRID).of_layer(jnp.int32(1))(X)[:, 7, 0, 0] ** 2)

  gradient = jax.grad(squares)(variables)['params']['freqs']
  assert np.abs(gradient[:, 1]).max() > 0.1
  assert not np.any(gradient[:, 0])


def test_training_changes_coordinates_by_as_much_as_allowed():
  module = make({'type': 'dinov3', 'rotate_half': True})

  def angles(options, seed):
    changed = module.clone(options=module.options | options)
    rngs = {'dropout': jax.random.key(seed)}
    rotation = changed.apply({}, GRID, deterministic=False, rngs=rngs)
    # The slower frequency of each axis: [N, 2], below half a turn.
    return np.arctan2(rotation.sin, rotation.cos)[:, 0, 1::2]

  plain = angles({}, 0)
  np.testing.assert_array_equal(plain, angles({'shift_coords': 0.0}, 0))
  draws = range(8)
  shifts = np.array([angles({'shift_coords': 0.1}, i) - plain for i in draws])
  assert np.ptp(shifts, axis=1).max() < 1e-5  # all patches alike
  assert 0.03 < np.abs(shifts).max() < 0.1 * 2 * np.pi / 10
  inner = np.abs(plain).min(-1) > 0.01
  for option in ('jitter_coords', 'rescale_coords'):
    factors = np.array([angles({option: 2.0}, i)[inner] / plain[inner] for i in draws])
    assert np.ptp(factors, axis=1).max() < 1e-4
    assert 0.5 <= factors.min() < 0.8 < 1.3 < factors.max() <= 2
    assert (np.ptp(factors, axis=2).max() > 0.1) == (option == 'jitter_coords')
  # Not where it's deterministic, and no rng is asked for.
  still = module.clone(options=module.options | {'rescale_coords': 2.0}).apply({}, GRID)
  np.testing.assert_array_equal(np.arctan2(still.sin, still.cos)[:, 0, 1::2], plain)


def test_the_result_has_the_dtype_of_what_is_turned():
  rotation = make({'type': 'axial'}).apply({}, GRID)
  turned = rotation(X.astype(jnp.bfloat16))
  assert turned.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    turned, rotation(X.astype(jnp.bfloat16).astype(np.float32)).astype(jnp.bfloat16)
  )


def test_no_rotation_without_a_type():
  assert layers.resolve_rotary(None) is None
  assert layers.resolve_rotary(ml_collections.ConfigDict(layers.ROTARY).to_dict()) is None
  resolved = layers.resolve_rotary({'type': 'axial', 'reference_grid': [4, 5]})
  assert resolved['reference_grid'] == (4, 5)
  assert resolved['temperature'] == 10_000


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ('axial', "rotary: 'axial' is not a dict"),
    ({'type': 'axial', 'temprature': 1}, "rotary.temprature: no such option; did you mean 'temper"),
    ({'temperature': 10.0}, 'rotary.type: not set; it is one of axial, mixed, dinov3'),
    ({'type': 'mrope'}, "rotary.type: 'mrope' is not one of axial, mixed, dinov3"),
    ({'type': 'mixed', 'rotate_half': True}, "rotary.rotate_half: True, but type 'mixed' has no"),
    ({'type': 'dinov3', 'reference_grid': (2, 2)}, "rotary.reference_grid: .* type 'dinov3' has"),
    ({'type': 'axial', 'reference_grid': (2, 0)}, 'rotary.reference_grid: .* not .rows, columns.'),
    ({'type': 'axial', 'grid_indexing': 'yx'}, "rotary.grid_indexing: 'yx' is not one of ij, xy"),
    ({'type': 'axial', 'rotate_half': 1}, 'rotary.rotate_half: 1 is not True or False'),
    ({'type': 'axial', 'temperature': 0}, 'rotary.temperature: 0 is not a number of at least 1'),
    ({'type': 'axial', 'grid_offset': np.nan}, 'rotary.grid_offset: nan is not a number'),
    ({'type': 'axial', 'jitter_coords': 0.5}, 'rotary.jitter_coords: 0.5 is not a number of at l'),
  ],
)
def test_impossible_options(options, message):
  with pytest.raises(FieldError, match=message):
    layers.resolve_rotary(options)


def test_heads_have_pairs_for_both_axes():
  with pytest.raises(FieldError, match='rotary: heads have 6 channels, no multiple of 4'):
    make({'type': 'axial'}, head_dim=6).apply({}, GRID)
