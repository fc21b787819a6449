"""Weights fitted to other models, against independent statements of what each change computes."""

import flax
import jax
import numpy as np
import pytest
import scipy.ndimage
from small_vits import SQUARE, WIDE, assert_same, logits, random_images, random_params

from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.models import MODELS
from vit_jax.weights import table
from vit_jax.weights.adapt import (
  adapt,
  adapt_channels,
  resample_patch_kernel,
  resize_position_embeddings,
)

POSITIONS = 'Transformer/posembed_input/pos_embedding'
GAP = SQUARE | {'classifier': 'gap'}
TOKEN_LEARNER = GAP | {
  'name': 'token_learner',
  'tokenizer': {
    'type': 'dynamic',
    'num_tokens': 2,
    'tokenlearner_loc': None,
    'use_tokenfuse': False,
    'use_v11': True,
  },
}


def shapes_of(config):
  """Path -> shape of all parameters of a model of any name."""
  images = jax.ShapeDtypeStruct((1, *config['image_size'], config['channels']), np.float32)
  variables = jax.eval_shape(MODELS[config['name']].from_config(config).init, jax.random.key(0),
                             images)  # fmt: skip
  flat = flax.traverse_util.flatten_dict(variables['params'], sep='/')
  return {name: leaf.shape for name, leaf in flat.items()}


def random_tree(shapes, seed=0):
  rng = np.random.default_rng(seed)
  flat = {name: 0.3 * rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  return flax.traverse_util.unflatten_dict(flat, sep='/')


def fit(config, target, params=None, **options):
  """Flat parameters that come from the source, and the notes."""
  params = random_tree(shapes_of(config)) if params is None else params
  tree, notes = adapt(params, config, shapes_of(target), target, 'a.npz', **options)
  return table.flatten(tree), notes


def aligned(grid, rows, columns):
  """Bilinear interpolation of [h, w, D], corners on corners, by np.interp along each axis."""
  for axis, size in ((0, rows), (1, columns)):
    there = np.linspace(0, grid.shape[axis] - 1, size)
    here = np.arange(grid.shape[axis])
    grid = np.apply_along_axis(lambda v, x=there, xp=here: np.interp(x, xp, v), axis, grid)
  return grid


def bilinear_matrix(old, new):
  """[new pixels, old pixels] of resizing a patch, from the images that JAX resizes."""
  basis = np.eye(old[0] * old[1], dtype=np.float32).reshape(-1, *old)
  resized = jax.image.resize(basis, (len(basis), *new), 'bilinear', antialias=False)
  return np.asarray(resized, np.float64).reshape(len(basis), -1).T


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
  resized = resize_position_embeddings(embeddings, old, new, num_prefix)
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
  resized = resize_position_embeddings(embeddings, (old, old), (new, new))
  np.testing.assert_array_equal(resized, expected.reshape(1, -1, 3))


def test_a_plane_of_positions_stays_a_plane():
  rows, columns = np.mgrid[0:5, 0:9]
  plane = (2 * rows / 4 - 3 * columns / 8 + 1).astype(np.float32)
  resized = resize_position_embeddings(plane.reshape(1, -1, 1), (5, 9), (7, 4))
  rows, columns = np.mgrid[0:7, 0:4]
  expected = 2 * rows / 6 - 3 * columns / 3 + 1
  np.testing.assert_allclose(resized.reshape(7, 4), expected, atol=1e-6)


GROWING = [((4, 4), (8, 8)), ((3, 5), (4, 7)), ((8, 8), (9, 16)), ((16, 16), (32, 32))]
SHRINKING = [((8, 8), (4, 4)), ((16, 16), (4, 4)), ((7, 5), (4, 3)), ((14, 14), (8, 3))]
MIXED = [((4, 8), (8, 4)), ((6, 5), (6, 3))]


@pytest.mark.parametrize(('old', 'new'), GROWING)
def test_a_kernel_computes_on_larger_patches_what_it_did(old, new):
  """The property that defines it (arXiv 2212.08013): patches, resized, have the same tokens."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(*old, 3, 6)).astype(np.float32)
  patches = rng.normal(size=(5, *old, 3)).astype(np.float32)
  resampled = resample_patch_kernel(kernel, new)
  assert resampled.shape == (*new, 3, 6)
  assert resampled.dtype == np.float32
  larger = np.asarray(jax.image.resize(patches, (5, *new, 3), 'bilinear', antialias=False))
  tokens = np.einsum('nhwc,hwcd->nd', patches, kernel)
  np.testing.assert_allclose(np.einsum('nhwc,hwcd->nd', larger, resampled), tokens, atol=1e-4)
  assert np.abs(tokens).max() > 1


@pytest.mark.parametrize(('old', 'new'), GROWING[:3] + SHRINKING + MIXED)
def test_a_kernel_is_the_least_squares_solution(old, new):
  kernel = np.random.default_rng(0).normal(size=(*old, 2, 3)).astype(np.float32)
  flat = kernel.reshape(-1, 6).astype(np.float64)
  solution, *_ = np.linalg.lstsq(bilinear_matrix(old, new).T, flat, rcond=1e-9)
  resampled = resample_patch_kernel(kernel, new)
  np.testing.assert_allclose(resampled, solution.reshape(*new, 2, 3), atol=2e-5)


def test_a_kernel_of_half_the_size_sums_what_such_a_patch_averages():
  """A resize to half the size is the mean over 2x2 pixels: its pseudo-inverse is known."""
  kernel = np.random.default_rng(0).normal(size=(8, 4, 3, 5)).astype(np.float32)
  sums = kernel.reshape(4, 2, 2, 2, 3, 5).sum(axis=(1, 3))
  np.testing.assert_allclose(resample_patch_kernel(kernel, (4, 2)), sums, atol=1e-5)


def test_grey_images_have_the_same_tokens_in_one_channel_and_in_three():
  rng = np.random.default_rng(0)
  grey = rng.normal(size=(5, 4, 2, 1)).astype(np.float32)
  colour = np.repeat(grey, 3, axis=-1)

  def tokens(images, kernel):
    return np.einsum('nhwc,hwcd->nd', images, kernel)

  one = rng.normal(size=(4, 2, 1, 6)).astype(np.float32)
  np.testing.assert_allclose(tokens(colour, adapt_channels(one, 3)), tokens(grey, one), atol=1e-5)
  three = rng.normal(size=(4, 2, 3, 6)).astype(np.float32)
  np.testing.assert_allclose(
    tokens(grey, adapt_channels(three, 1)), tokens(colour, three), atol=1e-5
  )
  assert adapt_channels(three, 1).shape == one.shape
  assert len(np.unique(adapt_channels(one, 3)[0, 0, :, 0])) == 1


@pytest.mark.parametrize(('old', 'new'), [(3, 4), (4, 3), (2, 1)])
def test_other_numbers_of_channels_are_refused(old, new):
  with pytest.raises(UsageError, match=rf'^config\.data\.channels: {new}, .* images of {old};'):
    adapt_channels(np.zeros((2, 2, old, 1), np.float32), new)


def test_the_same_sizes_give_the_same_bits():
  array = np.random.default_rng(0).normal(size=(4, 2, 3, 8)).astype(np.float32)
  assert resample_patch_kernel(array, (4, 2)).tobytes() == array.tobytes()
  assert adapt_channels(array, 3).tobytes() == array.tobytes()
  positions = array.reshape(1, 24, 8)
  same = resize_position_embeddings(positions, (4, 6), (4, 6))
  assert same.tobytes() == positions.tobytes()


@pytest.mark.parametrize(
  'config',
  [SQUARE, WIDE, SQUARE | {'classifier': 'map', 'representation_size': 5}, TOKEN_LEARNER],
  ids=['token', 'wide', 'map', 'token_learner'],
)
def test_the_same_model_keeps_every_bit(config):
  params = random_tree(shapes_of(config))
  tree, notes = adapt(params, config, shapes_of(config), config, 'a.npz', head='auto')
  assert notes == []
  assert_same(tree, params)


TI16 = {'hidden_size': 192, 'mlp_dim': 768, 'num_layers': 12, 'num_heads': 3}


@pytest.fixture(scope='module')
def augreg_file(tmp_path_factory):
  """A Ti/16 for 224x224 pixels and 21 classes, with the names of the published files."""
  rng = np.random.default_rng(0)
  block = {
    **{f'LayerNorm_{i}/{leaf}': (192,) for i in (0, 2) for leaf in ('scale', 'bias')},
    **{f'MultiHeadDotProductAttention_1/{part}/kernel': (192, 3, 64)
       for part in ('query', 'key', 'value')},
    **{f'MultiHeadDotProductAttention_1/{part}/bias': (3, 64)
       for part in ('query', 'key', 'value')},
    'MultiHeadDotProductAttention_1/out/kernel': (3, 64, 192),
    'MultiHeadDotProductAttention_1/out/bias': (192,),
    'MlpBlock_3/Dense_0/kernel': (192, 768),
    'MlpBlock_3/Dense_0/bias': (768,),
    'MlpBlock_3/Dense_1/kernel': (768, 192),
    'MlpBlock_3/Dense_1/bias': (192,),
  }  # fmt: skip
  shapes = {
    'embedding/kernel': (16, 16, 3, 192),
    'embedding/bias': (192,),
    'cls': (1, 1, 192),
    POSITIONS: (1, 197, 192),
    **{
      f'Transformer/encoderblock_{i}/{name}': shape
      for i in range(12)
      for name, shape in block.items()
    },
    'Transformer/encoder_norm/scale': (192,),
    'Transformer/encoder_norm/bias': (192,),
    'head/kernel': (192, 21),
    'head/bias': (21,),
  }
  path = tmp_path_factory.mktemp('augreg') / 'Ti_16.npz'
  np.savez(path, **{n: 0.05 * rng.normal(size=s).astype(np.float32) for n, s in shapes.items()})
  return path


@pytest.mark.parametrize(('image', 'grid'), [((64, 64), (4, 4)), ((160, 96), (10, 6))])
def test_an_augreg_checkpoint_for_224_pixels_fits_other_images(augreg_file, image, grid):
  params, config = weights.load(augreg_file)
  target = SQUARE | TI16 | {'patches': {'size': (16, 16)}, 'image_size': image, 'num_classes': 21}
  flat, notes = fit(config, target, params)
  size = f'{grid[0]}x{grid[1]}'
  assert notes == [f'position embeddings: resized from 14x14 to {size}']
  stored = np.load(augreg_file)
  positions = stored[POSITIONS]
  np.testing.assert_array_equal(flat[POSITIONS][:, 0], positions[:, 0])
  expected = aligned(positions[0, 1:].reshape(14, 14, 192), *grid).reshape(-1, 192)
  np.testing.assert_allclose(flat[POSITIONS][0, 1:], expected, atol=1e-6)
  np.testing.assert_array_equal(flat['embedding/kernel'], stored['embedding/kernel'])
  np.testing.assert_array_equal(flat['output_projection/kernel'], stored['head/kernel'])

  tree = flax.traverse_util.unflatten_dict(flat, sep='/')
  outputs = logits(tree, target, random_images(target))
  assert outputs.shape == (2, 21)
  assert np.isfinite(outputs).all()
  assert outputs.std() > 0.01


def test_twice_the_image_in_patches_twice_as_large_has_the_same_logits():
  """Each patch resized by itself, as the property of the kernel has it."""
  config = SQUARE | {'num_layers': 1}
  target = config | {'patches': {'size': (8, 8)}, 'image_size': (16, 16)}
  params = random_params(config)
  tree, notes = adapt(params, config, shapes_of(target), target, 'a.npz')
  assert notes == ['patch kernel: resampled from 4x4 to 8x8']
  images = random_images(config)
  patches = images.reshape(2, 2, 4, 2, 4, 3)
  larger = jax.image.resize(patches, (2, 2, 8, 2, 8, 3), 'bilinear', antialias=False)
  larger = np.asarray(larger).reshape(2, 16, 16, 3)
  np.testing.assert_allclose(
    logits(tree, target, larger), logits(params, config, images), atol=1e-4
  )


@pytest.mark.parametrize(('old', 'new'), [(1, 3), (3, 1)])
def test_grey_images_have_the_same_logits_in_one_channel_and_in_three(old, new):
  config, target = (SQUARE | {'num_layers': 1, 'channels': channels} for channels in (old, new))
  params = random_params(config)
  tree, notes = adapt(params, config, shapes_of(target), target, 'a.npz')
  assert notes == [f'patch kernel: from {old} to {new} channels']
  grey = random_images(SQUARE | {'channels': 1})
  expected = logits(params, config, np.repeat(grey, old, axis=-1))
  got = logits(tree, target, np.repeat(grey, new, axis=-1))
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_channels_come_before_the_patch_size_and_both_are_said():
  target = SQUARE | {'channels': 1, 'patches': {'size': (2, 4)}, 'image_size': (4, 8)}
  params = random_params(SQUARE)
  flat, notes = fit(SQUARE, target, params)
  assert notes == [
    'patch kernel: from 3 to 1 channels',
    'patch kernel: resampled from 4x4 to 2x4',
  ]
  summed = params['embedding']['kernel'].sum(axis=2, keepdims=True)
  halved = summed.reshape(2, 2, 4, 1, 8).sum(axis=1)
  np.testing.assert_allclose(flat['embedding/kernel'], halved, atol=1e-5)


def test_constant_images_and_positions_have_the_same_logits_at_any_size():
  config = GAP | {'num_layers': 1}
  target = config | {'image_size': (12, 20)}
  params = random_params(config)
  params['Transformer']['posembed_input']['pos_embedding'][:] = np.arange(8) / 8
  tree, notes = adapt(params, config, shapes_of(target), target, 'a.npz')
  assert notes == ['position embeddings: resized from 2x2 to 3x5']
  image = np.array([0.3, -1.0, 2.0], np.float32)
  small, large = (np.tile(image, (1, *c['image_size'], 1)) for c in (config, target))
  expected = logits(params, config, small)
  np.testing.assert_allclose(logits(tree, target, large), expected, atol=1e-5)


def test_a_grid_of_as_many_patches_is_another_grid():
  """Counting positions doesn't tell that they must be resized."""
  config, target = (GAP | {'image_size': size} for size in ((4, 16), (8, 8)))
  flat, notes = fit(config, target)
  assert notes == ['position embeddings: resized from 1x4 to 2x2']
  positions = random_tree(shapes_of(config))['Transformer']['posembed_input']['pos_embedding']
  expected = aligned(positions.reshape(1, 4, 8), 2, 2).reshape(1, 4, 8)
  np.testing.assert_allclose(flat[POSITIONS], expected, atol=1e-6)


@pytest.mark.parametrize('stride', [2, (2, 2)])
def test_overlapping_patches_count_into_the_grid(stride):
  config = GAP | {'stride': stride}
  _, notes = fit(config, GAP)
  assert notes == ['position embeddings: resized from 3x3 to 2x2']
  _, notes = fit(GAP, config)
  assert notes == ['position embeddings: resized from 2x2 to 3x3']


def test_an_unknown_image_size_means_a_square_or_the_same_grid():
  wide = GAP | {'image_size': (4, 16)}
  _, notes = fit(GAP | {'image_size': None}, GAP | {'image_size': (12, 12)}, random_params(GAP))
  assert notes == ['position embeddings: resized from 2x2 to 3x3']
  params = random_params(wide)
  flat, notes = fit(wide | {'image_size': None}, wide, params)
  assert notes == []
  assert flat[POSITIONS].tobytes() == table.flatten(params)[POSITIONS].tobytes()
  three = GAP | {'image_size': (4, 12)}
  with pytest.raises(UsageError, match=r'^a\.npz: 3 patches are no square grid'):
    fit(three | {'image_size': None}, GAP, random_params(three))


def test_positions_of_more_than_one_image_are_refused():
  with pytest.raises(UsageError, match=r'^a\.npz: 4 position embeddings, but 3x2 patches .*12x8$'):
    fit(GAP | {'image_size': (12, 8)}, SQUARE, random_params(GAP))


def test_a_class_token_is_left_out_with_its_position():
  params = random_params(SQUARE)
  flat, notes = fit(SQUARE, GAP, params)
  assert notes == ['position of the class token: left out', 'cls: left out']
  assert 'cls' not in flat
  np.testing.assert_array_equal(flat[POSITIONS], table.flatten(params)[POSITIONS][:, 1:])


def test_a_new_class_token_has_a_position_of_zeros():
  params = random_params(GAP)
  target = SQUARE | {'image_size': (12, 8)}
  flat, notes = fit(GAP, target, params)
  assert notes == [
    'position embeddings: resized from 2x2 to 3x2',
    'position of the class token: zeros',
    'cls: new',
  ]
  assert 'cls' not in flat
  assert not flat[POSITIONS][:, 0].any()
  grid = table.flatten(params)[POSITIONS].reshape(2, 2, 8)
  np.testing.assert_allclose(
    flat[POSITIONS][0, 1:].reshape(3, 2, 8), aligned(grid, 3, 2), atol=1e-6
  )


def test_attention_pooling_comes_and_goes_and_takes_the_head_with_it():
  pooled = SQUARE | {'classifier': 'map'}
  flat, notes = fit(GAP, pooled)
  assert notes == ['MAPHead_0: new', 'head: new, 3 classes']
  assert shapes_of(pooled).keys() - flat.keys() == {
    n for n in shapes_of(pooled) if n.startswith(('MAPHead_0/', 'output_projection/'))
  }
  flat, notes = fit(pooled, GAP, head='keep')
  assert notes == ['MAPHead_0: left out']
  assert flat.keys() == shapes_of(GAP).keys()


def test_sinusoidal_positions_have_no_parameter_to_resize():
  config = GAP | {'positional_embedding': 'sinusoidal_2d', 'image_size': None}
  target = config | {'image_size': (12, 20)}
  flat, notes = fit(config, target, random_tree(shapes_of(config | {'image_size': (8, 8)})))
  assert notes == []
  assert flat.keys() == shapes_of(target).keys()


CATS, BIRDS = ['cat', 'dog', 'cow'], ['owl', 'emu', 'jay']


@pytest.mark.parametrize(
  ('old', 'new', 'head', 'kept'),
  [
    ((3, CATS), (3, tuple(CATS)), 'auto', True),
    ((3, CATS), (3, CATS[::-1]), 'auto', False),
    ((3, CATS), (3, BIRDS), 'auto', False),
    ((3, CATS), (3, None), 'auto', True),
    ((3, None), (3, CATS), 'auto', True),
    ((3, None), (3, None), 'auto', True),
    ((3, None), (5, None), 'auto', False),
    ((3, CATS), (3, CATS), 'new', False),
    ((3, CATS), (3, BIRDS), 'keep', True),
    ((0, None), (3, None), 'auto', False),
    ((0, None), (3, None), 'new', False),
  ],
)
def test_the_head_is_kept_for_the_same_classes_or_as_told(old, new, head, kept):
  config, target = (SQUARE | {'num_classes': k, 'class_names': names} for k, names in (old, new))
  flat, notes = fit(config, target, head=head)
  assert notes == ([] if kept else [f'head: new, {new[0]} classes'])
  assert ('output_projection/kernel' in flat) == kept


@pytest.mark.parametrize('head', ['auto', 'new'])
def test_a_model_for_features_leaves_the_head_out(head):
  assert fit(SQUARE, SQUARE | {'num_classes': 0}, head=head)[1] == ['head: left out']
  without = SQUARE | {'num_classes': 0}
  assert fit(without, without, head=head)[1] == []


@pytest.mark.parametrize(
  ('change', 'found', 'expected'),
  [
    ({'num_classes': 5}, '8x3', '8x5'),
    ({'num_classes': 0}, '8x3', 'none'),
    ({'representation_size': 4}, '8x3', '4x3'),
  ],
)
def test_a_head_to_keep_must_fit(change, found, expected):
  message = rf"^config\.init_options\.head: 'keep', but the head in a\.npz is {found}, that .*"
  with pytest.raises(UsageError, match=rf'{message} {expected}$'):
    fit(SQUARE, SQUARE | change, head='keep')


def test_what_to_do_with_the_head_is_one_of_three():
  with pytest.raises(UsageError, match=r"^config\.init_options\.head: 'Keep' is .*'keep'\?$"):
    fit(SQUARE, SQUARE, head='Keep')


def test_pre_logits_are_kept_alike_or_the_head_starts_anew_with_them():
  five, eight = (SQUARE | {'representation_size': size} for size in (5, 8))
  assert fit(five, five)[1] == []
  assert fit(five, eight)[1] == ['pre_logits: new', 'head: new, 3 classes']
  assert fit(five, SQUARE)[1] == ['pre_logits: left out', 'head: new, 3 classes']
  assert fit(SQUARE, eight)[1] == ['pre_logits: new', 'head: new, 3 classes']
  flat, notes = fit(eight, SQUARE, head='keep')
  assert notes == ['pre_logits: left out']
  assert flat.keys() == shapes_of(SQUARE).keys()


def test_a_norm_after_pooling_and_one_before_it_are_not_each_other():
  before = shapes_of(GAP)
  after = {n.replace('Transformer/encoder_norm', 'fc_norm'): s for n, s in before.items()}
  for ours, theirs, notes in (
    (after, before, ['fc_norm: left out', 'Transformer/encoder_norm: new']),
    (before, after, ['fc_norm: new', 'Transformer/encoder_norm: left out']),
  ):
    tree, its_notes = adapt(random_tree(ours), GAP, theirs, GAP, 'a.npz')
    assert its_notes == [*notes, 'head: new, 3 classes']
    kept = {n for n in ours.keys() & theirs.keys() if not n.startswith('output_projection')}
    assert table.flatten(tree).keys() == kept
  assert adapt(random_tree(after), GAP, after, GAP, 'a.npz')[1] == []


def tokenizer(**changes):
  return TOKEN_LEARNER | {'tokenizer': TOKEN_LEARNER['tokenizer'] | changes}


@pytest.mark.parametrize(
  ('target', 'modules'),
  [
    (TOKEN_LEARNER, ['TokenLearnerModuleV11_0']),
    (tokenizer(use_v11=False), ['TokenLearnerModule_0']),
    (
      tokenizer(use_tokenfuse=True, tokenlearner_loc=0),
      ['TokenFuser_0', 'TokenFuser_1', 'TokenLearnerModuleV11_0', 'TokenLearnerModuleV11_1'],
    ),
    (tokenizer(type='patch'), []),
  ],
  ids=['v1.1', 'v1', 'fuser', 'patch'],
)
def test_a_vit_s_weights_start_a_token_learner_and_the_other_way_round(target, modules):
  params = random_params(SQUARE)
  token = target | {'classifier': 'token', 'image_size': (12, 8)}
  flat, notes = fit(SQUARE, token, params)
  news = [f'Transformer/{module}: new' for module in modules]
  assert notes == ['position embeddings: resized from 2x2 to 3x2', *news]
  assert flat.keys() == table.flatten(params).keys()
  flat, notes = fit(token, SQUARE)
  outs = [f'Transformer/{module}: left out' for module in modules]
  assert notes == ['position embeddings: resized from 3x2 to 2x2', *outs]
  assert flat.keys() == table.flatten(params).keys()


@pytest.mark.parametrize(
  ('change', 'notes'),
  [
    ({'tokenlearner_loc': 1}, []),
    ({'tokenlearner_loc': 0}, ['Transformer/TokenLearnerModuleV11_0: new']),
    ({'num_tokens': 3}, ['Transformer/TokenLearnerModuleV11_0: new']),
    (
      {'use_v11': False},
      ['Transformer/TokenLearnerModuleV11_0: left out', 'Transformer/TokenLearnerModule_0: new'],
    ),
  ],
)
def test_a_token_learner_is_kept_by_one_alike(change, notes):
  assert sorted(fit(TOKEN_LEARNER, tokenizer(**change))[1]) == sorted(notes)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'activation': 'gelu_exact'}, r"activation: 'gelu_exact', but a\.npz has .* 'gelu'$"),
    ({'norm_epsilon': 1e-12}, r'norm_epsilon: 1e-12, but a\.npz has weights for 1e-06$'),
    ({'num_heads': 4}, r'num_heads: 4, but a\.npz has weights for 2$'),
    ({'positional_embedding': 'none'}, r"positional_embedding: 'none', but .* 'learned_1d'$"),
  ],
)
def test_another_function_of_the_same_parameters_is_refused(change, message):
  with pytest.raises(UsageError, match=rf'^config\.model\.{message}'):
    fit(SQUARE, SQUARE | change)


def test_what_one_side_does_not_say_and_rounding_are_no_difference():
  rounded = SQUARE | {'norm_epsilon': float(np.float32(1e-6))}
  assert fit(SQUARE, rounded)[1] == []
  silent = {k: v for k, v in SQUARE.items() if k not in ('activation', 'norm_epsilon')}
  assert fit(silent, WIDE | SQUARE | {'activation': 'relu'})[1] == []


def test_another_architecture_is_refused_in_one_table():
  target = SQUARE | {'num_layers': 1, 'mlp_dim': 16, 'image_size': (12, 8)}
  with pytest.raises(UsageError) as error:
    fit(SQUARE, target)
  title, header, *rows = str(error.value).splitlines()
  assert title.startswith('a.npz: tensors that do not fit: 19; config.init_options.allow=REGEX')
  assert header.split() == ['tensor', 'found', 'expected']
  assert len(rows) == 19
  block = 'Transformer/encoderblock_{}/MlpBlock_0/Dense_0/kernel'
  assert ['misshapen', block.format(0), '8x12', '8x16'] in [row.split() for row in rows]
  assert ['unexpected', block.format(1), '8x12'] in [row.split() for row in rows]


def test_what_is_missing_is_refused_where_both_should_have_it():
  params = random_params(SQUARE)
  del params['cls'], params['Transformer']['encoder_norm']
  with pytest.raises(UsageError, match='do not fit: 3') as error:
    fit(SQUARE, SQUARE, params)
  assert [row.split()[:2] for row in str(error.value).splitlines()[2:]] == [
    ['missing', 'Transformer/encoder_norm/bias'],
    ['missing', 'Transformer/encoder_norm/scale'],
    ['missing', 'cls'],
  ]


def test_allow_lets_named_ones_through_and_says_so():
  target = SQUARE | {'num_layers': 1, 'mlp_dim': 16}
  allow = r'Transformer/encoderblock_(1/.*|0/MlpBlock_0/.*)'
  flat, notes = fit(SQUARE, target, allow=allow)
  block = 'Transformer/encoderblock_0/MlpBlock_0'
  assert notes == [
    f'{block}/Dense_0/bias, {block}/Dense_0/kernel, {block}/Dense_1/kernel: new, '
    'allowed by config.init_options.allow',
    'Transformer/encoderblock_1/LayerNorm_0/bias, Transformer/encoderblock_1/LayerNorm_0/scale, '
    'Transformer/encoderblock_1/LayerNorm_1/bias and 13 more: left out, '
    'allowed by config.init_options.allow',
  ]
  assert all(flat[name].shape == shape for name, shape in shapes_of(target).items() if name in flat)
  with pytest.raises(UsageError, match='do not fit: 3'):
    fit(SQUARE, target, allow=r'Transformer/encoderblock_1/.*')


def test_what_to_allow_must_be_a_regular_expression():
  with pytest.raises(UsageError, match=r"^config\.init_options\.allow: '\[' is not a regular "):
    fit(SQUARE, SQUARE, allow='[')
