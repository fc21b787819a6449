"""Weights fitted to other models, against independent statements of what each change computes."""

import math

import jax
import numpy as np
import pytest
from small_vits import SQUARE, WIDE, assert_same, logits, random_images, random_variables

from vit_jax import models, weights
from vit_jax.errors import FieldError, UsageError, UsageWarning
from vit_jax.models import ModelConfig, layers
from vit_jax.weights import rules
from vit_jax.weights.adapt import adapt

POSITIONS = 'Transformer/posembed_input/pos_embedding'
GAP = SQUARE.replace(classifier='gap')
TOKENIZER = {
  'type': 'dynamic',
  'num_tokens': 2,
  'tokenlearner_loc': None,
  'use_tokenfuse': False,
  'use_v11': True,
}
TOKEN_LEARNER = ModelConfig.from_dict(
  GAP.to_dict() | {'name': 'token_learner', 'tokenizer': TOKENIZER}
)


def fit(config, target, variables=None, **options):
  """Flat variables that come from the source, and the notes."""
  variables = random_variables(config) if variables is None else variables
  fitted, notes = adapt(variables, config, target, 'a.npz', **options)
  return rules.flatten(fitted), notes


def aligned(grid, rows, columns):
  """Bilinear interpolation of [h, w, D], corners on corners, by np.interp along each axis."""
  for axis, size in ((0, rows), (1, columns)):
    there = np.linspace(0, grid.shape[axis] - 1, size)
    here = np.arange(grid.shape[axis])
    grid = np.apply_along_axis(lambda v, x=there, xp=here: np.interp(x, xp, v), axis, grid)
  return grid


@pytest.mark.parametrize(
  'config',
  [SQUARE, WIDE, SQUARE.replace(classifier='map', representation_size=5), TOKEN_LEARNER],
  ids=['token', 'wide', 'map', 'token_learner'],
)
def test_the_same_model_keeps_every_bit(config):
  variables = random_variables(config)
  fitted, notes = adapt(variables, config, config, 'a.npz', head='auto')
  assert notes == []
  assert_same(fitted, variables)


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
  variables, config = weights.load(augreg_file)
  target = config.replace(image_size=image)
  flat, notes = fit(config, target, variables)
  size = f'{grid[0]}x{grid[1]}'
  assert notes == [f'position embeddings: resized from 14x14 to {size}']
  stored = np.load(augreg_file)
  positions = stored[POSITIONS]
  np.testing.assert_array_equal(flat[POSITIONS][:, 0], positions[:, 0])
  expected = aligned(positions[0, 1:].reshape(14, 14, 192), *grid).reshape(-1, 192)
  np.testing.assert_allclose(flat[POSITIONS][0, 1:], expected, atol=1e-6)
  np.testing.assert_array_equal(flat['embedding/kernel'], stored['embedding/kernel'])
  np.testing.assert_array_equal(flat['output_projection/kernel'], stored['head/kernel'])

  fitted = models.unflatten(flat)
  outputs = logits(fitted, target, random_images(target))
  assert outputs.shape == (2, 21)
  assert np.isfinite(outputs).all()
  assert outputs.std() > 0.01


def test_twice_the_image_in_patches_twice_as_large_has_the_same_logits():
  """Each patch resized by itself, as the property of the kernel has it."""
  config = SQUARE.replace(num_layers=1)
  target = config.replace(patches={'size': (8, 8)}, image_size=(16, 16))
  variables = random_variables(config)
  fitted, notes = adapt(variables, config, target, 'a.npz')
  assert notes == ['patch kernel: resampled from 4x4 to 8x8']
  images = random_images(config)
  patches = images.reshape(2, 2, 4, 2, 4, 3)
  larger = jax.image.resize(patches, (2, 2, 8, 2, 8, 3), 'cubic')
  larger = np.asarray(larger).reshape(2, 16, 16, 3)
  np.testing.assert_allclose(
    logits(fitted, target, larger), logits(variables, config, images), atol=1e-4
  )


@pytest.mark.parametrize(('old', 'new'), [(1, 3), (3, 1)])
def test_grey_images_have_the_same_logits_in_one_channel_and_in_three(old, new):
  config, target = (SQUARE.replace(num_layers=1, channels=channels) for channels in (old, new))
  variables = random_variables(config)
  fitted, notes = adapt(variables, config, target, 'a.npz')
  assert notes == [f'patch kernel: from {old} to {new} channels']
  grey = random_images(SQUARE.replace(channels=1))
  expected = logits(variables, config, np.repeat(grey, old, axis=-1))
  got = logits(fitted, target, np.repeat(grey, new, axis=-1))
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_channels_come_before_the_patch_size_and_both_are_said():
  target = SQUARE.replace(channels=1, patches={'size': (2, 4)}, image_size=(4, 8))
  variables = random_variables(SQUARE)
  flat, notes = fit(SQUARE, target, variables)
  assert notes == [
    'patch kernel: from 3 to 1 channels',
    'patch kernel: resampled from 4x4 to 2x4',
  ]
  summed = variables['params']['embedding']['kernel'].sum(axis=2, keepdims=True)
  halved = layers.resample_patch_kernel(summed, (2, 4))
  np.testing.assert_allclose(flat['embedding/kernel'], halved, atol=1e-5)


def test_constant_images_and_positions_have_the_same_logits_at_any_size():
  config = GAP.replace(num_layers=1)
  target = config.replace(image_size=(12, 20))
  variables = random_variables(config)
  variables['params']['Transformer']['posembed_input']['pos_embedding'][:] = np.arange(8) / 8
  fitted, notes = adapt(variables, config, target, 'a.npz')
  assert notes == ['position embeddings: resized from 2x2 to 3x5']
  image = np.array([0.3, -1.0, 2.0], np.float32)
  small, large = (np.tile(image, (1, *c.image_size, 1)) for c in (config, target))
  expected = logits(variables, config, small)
  np.testing.assert_allclose(logits(fitted, target, large), expected, atol=1e-5)


def test_a_grid_of_as_many_patches_is_another_grid():
  """Counting positions doesn't tell that they must be resized."""
  config, target = (GAP.replace(image_size=size) for size in ((4, 16), (8, 8)))
  flat, notes = fit(config, target)
  assert notes == ['position embeddings: resized from 1x4 to 2x2']
  positions = random_variables(config)['params']['Transformer']['posembed_input']['pos_embedding']
  expected = aligned(positions.reshape(1, 4, 8), 2, 2).reshape(1, 4, 8)
  np.testing.assert_allclose(flat[POSITIONS], expected, atol=1e-6)


@pytest.mark.parametrize('stride', [2, (2, 2)])
def test_overlapping_patches_count_into_the_grid(stride):
  config = GAP.replace(stride=stride)
  _, notes = fit(config, GAP)
  assert notes == ['position embeddings: resized from 3x3 to 2x2']
  _, notes = fit(GAP, config)
  assert notes == ['position embeddings: resized from 2x2 to 3x3']


def test_an_unknown_image_size_means_a_square_or_the_same_grid():
  wide = GAP.replace(image_size=(4, 16))
  _, notes = fit(
    GAP.replace(image_size=None), GAP.replace(image_size=(12, 12)), random_variables(GAP)
  )
  assert notes == ['position embeddings: resized from 2x2 to 3x3']
  variables = random_variables(wide)
  flat, notes = fit(wide.replace(image_size=None), wide, variables)
  assert notes == []
  assert flat[POSITIONS].tobytes() == rules.flatten(variables)[POSITIONS].tobytes()
  three = GAP.replace(image_size=(4, 12))
  with pytest.raises(UsageError, match=r'^image_size: a\.npz has 3 patches, no square grid'):
    fit(three.replace(image_size=None), GAP, random_variables(three))


def test_positions_of_more_than_one_image_are_refused():
  with pytest.raises(UsageError, match=r'^a\.npz: 4 position embeddings, but 3x2 patches .*12x8$'):
    fit(GAP.replace(image_size=(12, 8)), SQUARE, random_variables(GAP))


def test_a_class_token_is_left_out_with_its_position():
  variables = random_variables(SQUARE)
  flat, notes = fit(SQUARE, GAP, variables)
  assert notes == ['position of the class token: left out', 'cls: left out']
  assert 'cls' not in flat
  np.testing.assert_array_equal(flat[POSITIONS], rules.flatten(variables)[POSITIONS][:, 1:])


def test_a_new_class_token_has_a_position_of_zeros():
  variables = random_variables(GAP)
  target = SQUARE.replace(image_size=(12, 8))
  flat, notes = fit(GAP, target, variables)
  assert notes == [
    'position embeddings: resized from 2x2 to 3x2',
    'position of the class token: zeros',
    'cls: new',
  ]
  assert 'cls' not in flat
  assert not flat[POSITIONS][:, 0].any()
  grid = rules.flatten(variables)[POSITIONS].reshape(2, 2, 8)
  np.testing.assert_allclose(
    flat[POSITIONS][0, 1:].reshape(3, 2, 8), aligned(grid, 3, 2), atol=1e-6
  )


def test_attention_pooling_comes_and_goes_and_takes_the_head_with_it():
  pooled = SQUARE.replace(classifier='map')
  flat, notes = fit(GAP, pooled)
  assert notes == ['MAPHead_0: new', 'head: new, 3 classes']
  assert pooled.variable_shapes().keys() - flat.keys() == {
    n for n in pooled.variable_shapes() if n.startswith(('MAPHead_0/', 'output_projection/'))
  }
  flat, notes = fit(pooled, GAP, head='keep')
  assert notes == ['MAPHead_0: left out']
  assert flat.keys() == GAP.variable_shapes().keys()


def test_sinusoidal_positions_have_no_parameter_to_resize():
  config = GAP.replace(positional_embedding='sinusoidal_2d', image_size=None)
  target = config.replace(image_size=(12, 20))
  flat, notes = fit(config, target, random_variables(config.replace(image_size=(8, 8))))
  assert notes == []
  assert flat.keys() == target.variable_shapes().keys()


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
  config, target = (SQUARE.replace(num_classes=k, class_names=names) for k, names in (old, new))
  flat, notes = fit(config, target, head=head)
  assert notes == ([] if kept else [f'head: new, {new[0]} classes'])
  assert ('output_projection/kernel' in flat) == kept


@pytest.mark.parametrize('head', ['auto', 'new'])
def test_a_model_for_features_leaves_the_head_out(head):
  assert fit(SQUARE, SQUARE.replace(num_classes=0), head=head)[1] == ['head: left out']
  without = SQUARE.replace(num_classes=0)
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
  message = rf"^head: 'keep', but the head in a\.npz is {found}, that .*"
  with pytest.raises(UsageError, match=rf'{message} {expected}$'):
    fit(SQUARE, SQUARE.replace(**change), head='keep')


def test_positions_are_resized_as_timm_does_where_that_is_asked_for():
  target, variables = WIDE.replace(image_size=(20, 12)), random_variables(WIDE)
  before = rules.flatten(variables)[POSITIONS]
  flat, notes = fit(WIDE, target, variables, resize='timm')
  old, new = (config.backbone.grid(config.image_size) for config in (WIDE, target))
  assert notes == ['position embeddings: resized from {}x{} to {}x{}'.format(*old, *new)]
  num_prefix = before.shape[1] - math.prod(old)
  expected = layers.resize_position_embeddings(before, old, new, num_prefix, 'timm')
  np.testing.assert_array_equal(flat[POSITIONS], expected)
  assert np.abs(expected - fit(WIDE, target, variables)[0][POSITIONS]).max() > 0.01
  swin = ModelConfig.from_dict(
    {'name': 'swin', 'embed_dim': 4, 'depths': (1,), 'num_heads': (1,), 'image_size': (16, 16)}
  )
  for config in (SQUARE, swin):
    with pytest.raises(FieldError, match=r"^resize: 'bilinear' is not one of big_vision"):
      fit(config, config, resize='bilinear')
  with pytest.raises(FieldError, match=r"^resize: 'timm' is not one of big_vision$"):
    fit(swin, swin, resize='timm')


def test_what_to_do_with_the_head_is_one_of_three():
  with pytest.raises(UsageError, match=r"^head: 'Keep' is .*'keep'\?$"):
    fit(SQUARE, SQUARE, head='Keep')


def test_pre_logits_are_kept_alike_or_the_head_starts_anew_with_them():
  five, eight = (SQUARE.replace(representation_size=size) for size in (5, 8))
  assert fit(five, five)[1] == []
  assert fit(five, eight)[1] == ['pre_logits: new', 'head: new, 3 classes']
  assert fit(five, SQUARE)[1] == ['pre_logits: left out', 'head: new, 3 classes']
  assert fit(SQUARE, eight)[1] == ['pre_logits: new', 'head: new, 3 classes']
  flat, notes = fit(eight, SQUARE, head='keep')
  assert notes == ['pre_logits: left out']
  assert flat.keys() == SQUARE.variable_shapes().keys()


def test_a_norm_after_pooling_and_one_before_it_are_not_each_other():
  before, after = GAP, GAP.replace(fc_norm=True)
  for ours, theirs, notes in (
    (after, before, ['fc_norm: left out', 'Transformer/encoder_norm: new']),
    (before, after, ['fc_norm: new', 'Transformer/encoder_norm: left out']),
  ):
    flat, its_notes = fit(ours, theirs)
    assert its_notes == [*notes, 'head: new, 3 classes']
    both = ours.variable_shapes().keys() & theirs.variable_shapes().keys()
    assert flat.keys() == {n for n in both if not n.startswith('output_projection')}
  assert fit(after, after)[1] == []


def tokenizer(**changes):
  return TOKEN_LEARNER.replace(tokenizer=TOKENIZER | changes)


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
  variables = random_variables(SQUARE)
  token = target.replace(classifier='token', image_size=(12, 8))
  flat, notes = fit(SQUARE, token, variables)
  news = [f'Transformer/{module}: new' for module in modules]
  assert notes == ['position embeddings: resized from 2x2 to 3x2', *news]
  assert flat.keys() == rules.flatten(variables).keys()
  flat, notes = fit(token, SQUARE)
  outs = [f'Transformer/{module}: left out' for module in modules]
  assert notes == ['position embeddings: resized from 3x2 to 2x2', *outs]
  assert flat.keys() == rules.flatten(variables).keys()


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
  with pytest.raises(UsageError, match=rf'^{message}'):
    fit(SQUARE, SQUARE.replace(**change))


def test_rounding_is_no_difference():
  rounded = SQUARE.replace(norm_epsilon=float(np.float32(1e-6)))
  assert fit(SQUARE, rounded)[1] == []


def test_weights_of_another_backbone_are_refused():
  resnet = ModelConfig.from_dict({'name': 'resnet18', 'num_classes': 3, 'num_filters': 2})
  with pytest.raises(FieldError, match=r"^name: 'vit', but a\.npz has weights of a 'resnet18'$"):
    fit(resnet, SQUARE)
  with pytest.raises(FieldError, match=r"^name: 'resnet18', but a\.npz has weights of a 'vit'$"):
    fit(SQUARE, resnet)


def test_another_architecture_is_refused_in_one_table():
  target = SQUARE.replace(num_layers=1, mlp_dim=16, image_size=(12, 8))
  with pytest.raises(UsageError) as error:
    fit(SQUARE, target)
  title, header, *rows = str(error.value).splitlines()
  assert title == 'a.npz: tensors that do not fit: 19'
  assert header.split() == ['tensor', 'found', 'expected']
  assert len(rows) == 19
  block = 'Transformer/encoderblock_{}/MlpBlock_0/Dense_0/kernel'
  assert ['misshapen', block.format(0), '8x12', '8x16'] in [row.split() for row in rows]
  assert ['unexpected', block.format(1), '8x12'] in [row.split() for row in rows]


def test_what_is_missing_is_refused_where_both_should_have_it():
  variables = random_variables(SQUARE)
  del variables['params']['cls'], variables['params']['Transformer']['encoder_norm']
  with pytest.raises(UsageError, match='do not fit: 3') as error:
    fit(SQUARE, SQUARE, variables)
  assert [row.split()[:2] for row in str(error.value).splitlines()[2:]] == [
    ['missing', 'Transformer/encoder_norm/bias'],
    ['missing', 'Transformer/encoder_norm/scale'],
    ['missing', 'cls'],
  ]


def test_allow_lets_named_ones_through_and_says_so():
  target = SQUARE.replace(num_layers=1, mlp_dim=16)
  allow = r'Transformer/encoderblock_(1/.*|0/MlpBlock_0/.*)'
  with pytest.warns(UsageWarning, match=r'^a\.npz: tensors left out, as allowed: 19 \('):
    flat, notes = fit(SQUARE, target, allow=allow)
  block = 'Transformer/encoderblock_0/MlpBlock_0'
  assert notes == [
    f'{block}/Dense_0/bias, {block}/Dense_0/kernel, {block}/Dense_1/kernel: new, as allowed',
    'Transformer/encoderblock_1/LayerNorm_0/bias, Transformer/encoderblock_1/LayerNorm_0/scale, '
    'Transformer/encoderblock_1/LayerNorm_1/bias and 13 more: left out, '
    'as allowed',
  ]
  assert all(
    flat[name].shape == shape for name, shape in target.variable_shapes().items() if name in flat
  )
  with pytest.raises(UsageError, match='do not fit: 3'):
    fit(SQUARE, target, allow=r'Transformer/encoderblock_1/.*')


def test_what_to_allow_must_be_a_regular_expression():
  with pytest.raises(UsageError, match=r"^allow: '\[' is not a regular "):
    fit(SQUARE, SQUARE, allow='[')


def test_positions_are_resized_beside_those_of_registers():
  config = SQUARE.replace(num_registers=2, num_layers=1)
  target = config.replace(image_size=(12, 8))
  variables = random_variables(config)
  flat, notes = fit(config, target, variables)
  assert notes == ['position embeddings: resized from 2x2 to 3x2']
  old, new = rules.flatten(variables)[POSITIONS], flat[POSITIONS]
  np.testing.assert_array_equal(new[:, :3], old[:, :3])
  expected = aligned(old[0, 3:].reshape(2, 2, 8), 3, 2).reshape(-1, 8)
  np.testing.assert_allclose(new[0, 3:], expected, atol=1e-6)


def test_tokens_before_the_patches_keep_their_positions_by_what_they_are():
  all_tokens = SQUARE.replace(num_registers=2, num_layers=1)
  variables = random_variables(all_tokens)
  stored = rules.flatten(variables)[POSITIONS][0]
  flat, notes = fit(all_tokens, all_tokens.replace(position_tokens='class'), variables)
  assert notes == [f'position of the register {i}: left out' for i in (0, 1)]
  np.testing.assert_array_equal(flat[POSITIONS][0], stored[[0, 3, 4, 5, 6]])
  gap = all_tokens.replace(classifier='gap')
  flat, notes = fit(all_tokens, gap, variables)
  assert 'position of the class token: left out' in notes
  np.testing.assert_array_equal(flat[POSITIONS][0], stored[1:])
  patches = all_tokens.replace(position_tokens='patches')
  flat, notes = fit(patches, all_tokens, random_variables(patches))
  assert [note.partition(':')[2] for note in notes] == [' zeros'] * 3
  assert not flat[POSITIONS][0, :3].any()


@pytest.mark.parametrize('class_token', [False, True])
def test_relative_positions_of_another_grid_are_beits(class_token):
  options = {'type': 'bias', 'shared': False}
  config = SQUARE.replace(relative_positions=options, image_size=(12, 8), num_layers=1)
  target = config.replace(
    image_size=(8, 16), classifier='gap', class_token=class_token, num_classes=3
  )
  variables = random_variables(config)
  name = 'Transformer/encoderblock_0/relative_positions/relative_position_bias_table'
  stored = rules.flatten(variables)[name]
  flat, notes = fit(config, target, variables)
  assert 'relative_position_bias_table of each layer: resized' in notes
  expected = layers.resize_bias_table(stored, (3, 2), (2, 4))
  assert len(expected) == 3 * 7 + 3
  np.testing.assert_array_equal(flat[name], expected if class_token else expected[:-3])


def test_windows_keep_their_distances_and_layers_without_get_others():
  options = {'window_size': 2, 'global_layers': (1,), 'relative_positions': {'type': 'decomposed'}}
  config = GAP.replace(**options, image_size=(16, 16))
  variables = random_variables(config)
  flat, notes = fit(config, config.replace(image_size=(8, 24)), variables)
  assert {'rel_pos_h of each layer: resized', 'rel_pos_w of each layer: resized'} < {*notes}
  for layer, length in ((0, 2), (1, 6)):
    name = f'Transformer/encoderblock_{layer}/relative_positions/rel_pos_w'
    stored = rules.flatten(variables)[name]
    np.testing.assert_array_equal(flat[name], layers.resize_distances(stored, length))


@pytest.mark.parametrize(
  'options',
  [
    {'block': 'post'},
    {'norm': 'rmsnorm'},
    {'mlp': 'glu'},
    {'num_registers': 1},
    {'rotary': {'type': 'axial'}},
    {'pre_norm': True},
  ],
)
def test_weights_of_other_layers_are_refused(options):
  field = next(iter(options))
  with pytest.raises(FieldError, match=f'^{field}: .* a.npz has weights for '):
    fit(SQUARE.replace(**options), SQUARE)
  video = ModelConfig.from_dict(
    {
      'name': 'vivit',
      **{n: SQUARE[n] for n in ('hidden_size', 'mlp_dim', 'num_layers', 'num_heads')},
      'patches': {'size': (4, 4, 2)},
      'temporal_encoding_config': {
        'method': '3d_conv',
        'kernel_init_method': 'central_frame_initializer',
      },
      'attention_config': {'type': 'spacetime'},
      'classifier': 'token',
      'num_classes': 3,
      'image_size': (8, 8),
      'num_frames': 4,
    }
  )
  with pytest.raises(UsageError, match=f'^a.npz: {field} .* has no place in a plain ViT'):
    fit(SQUARE.replace(**options), video)


def test_a_distilled_model_may_lose_its_second_token():
  config = SQUARE.replace(distillation=True, num_layers=1)
  variables = random_variables(config)
  flat, notes = fit(config, config.replace(distillation=False), variables, head='auto')
  assert {'dist: left out', 'position of the distillation token: left out'} < {*notes}
  assert any(note.startswith('output_projection_dist') for note in notes)
  stored = rules.flatten(variables)
  np.testing.assert_array_equal(flat[POSITIONS], np.delete(stored[POSITIONS], 1, axis=1))
  assert flat.keys() == {n for n in stored if n != 'dist' and '_dist/' not in n}


@pytest.mark.parametrize(
  ('classifier', 'kept'),
  [
    (None, {'classifier': 'map', 'map_num_heads': 4, 'map_mlp_dim': 6, 'pool_prefix': True}),
    ('gap', {'map_num_heads': None, 'map_mlp_dim': None, 'pool_prefix': True}),
    ('token', {'map_num_heads': None, 'map_mlp_dim': None, 'pool_prefix': None}),
  ],
)
def test_options_of_a_head_are_taken_with_the_head(classifier, kept):
  theirs = {'map_num_heads': 4, 'map_mlp_dim': 6, 'pool_prefix': True, 'classifier': 'map'}
  fields = models.default_config('vit', all_open=True).to_dict() | {'classifier': classifier}
  completed = models.backbone('vit').complete(fields, SQUARE.to_dict() | theirs)
  assert completed.items() >= kept.items()
