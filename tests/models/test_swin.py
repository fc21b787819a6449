"""Swin Transformer: published shapes, parameters and operations, and windows against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

from vit_jax import models
from vit_jax.errors import FieldError
from vit_jax.models import layers, swin
from vit_jax.models.swin import SIZES, Swin
from vit_jax.train import flops
from vit_jax.weights.adapt import adapt

SMALL = {'embed_dim': 12, 'depths': (2, 2), 'num_heads': (2, 3), 'window_size': 3}


def count(size, image=224):
  """Parameters, and multiply-adds of one image, of a published size."""
  embed_dim, depths, num_heads = SIZES[size]
  model = Swin(num_classes=1000, embed_dim=embed_dim, depths=depths, num_heads=num_heads)
  x = jax.ShapeDtypeStruct((1, image, image, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  return parameters, flops.count(lambda v, x: model.apply(v, x), shapes, x) / 2


# arXiv 2103.14030, table 1: millions of parameters, 10^9 multiply-adds.
@pytest.mark.parametrize(
  ('size', 'parameters', 'operations'),
  [('T', 28, 4.5), ('S', 50, 8.7), ('B', 88, 15.4), ('L', 197, 34.5)],
)
def test_parameters_and_operations_are_the_papers(size, parameters, operations):
  ours = count(size)
  assert round(ours[0] / 1e6) == parameters
  assert round(ours[1] / 1e9, 1) == operations


def test_operations_grow_with_the_area():
  small, large = count('T', 224)[1], count('T', 448)[1]
  assert large == pytest.approx(4 * small, rel=1e-3)


def test_shapes_are_the_papers():
  model = Swin(num_classes=10)
  shapes = jax.eval_shape(
    lambda: model.init_with_output(
      jax.random.key(0), jnp.zeros((1, 224, 224, 3)), method='features'
    )
  )[0]
  assert [m.shape for m in shapes.maps] == [
    (1, 56, 56, 96),  # 3136 x 96
    (1, 28, 28, 192),  # 784 x 192
    (1, 14, 14, 384),
    (1, 7, 7, 768),
  ]
  assert shapes.strides == ((4, 4), (8, 8), (16, 16), (32, 32))
  assert shapes.normed.shape == (1, 7, 7, 768)
  assert shapes.pooled.shape == (1, 768)


@pytest.mark.parametrize('window', [(2, 3), (3, 3)])
def test_windows_go_back_where_they_were(window):
  x = np.random.default_rng(0).normal(size=(2, 6, 9, 4))
  if 6 % window[0] or 9 % window[1]:
    pytest.fail('the sizes of this test have to divide')
  windows = layers.window_partition(x, window)
  assert windows.shape == (2, 54 // (window[0] * window[1]), window[0] * window[1], 4)
  np.testing.assert_array_equal(
    np.asarray(windows)[1, 1].reshape(*window, 4), x[1, : window[0], window[1] : 2 * window[1]]
  )
  np.testing.assert_array_equal(layers.window_reverse(windows, window, (6, 9)), x)


def test_windows_whose_pairs_fill_the_memory_are_refused():
  attention = swin.WindowAttention(num_heads=1, window=(129, 129))
  with pytest.raises(FieldError, match=r'^window_size: 16641 positions, more than 4096'):
    attention.init(jax.random.key(0), jnp.zeros((1, 1, 1, 4)), None, True)


@pytest.mark.parametrize('window', [(1, 1), (2, 3), (4, 4)])
def test_relative_positions_are_those_of_a_loop(window):
  height, width = window
  index = layers.relative_position_index(window)
  places = [(i, j) for i in range(height) for j in range(width)]
  for a, (i, j) in enumerate(places):
    for b, (k, m) in enumerate(places):
      assert index[a, b] == (i - k + height - 1) * (2 * width - 1) + (j - m + width - 1)


@pytest.mark.parametrize('shift', [(1, 1), (2, 1), (0, 1)])
def test_places_that_a_shift_brings_together_do_not_see_each_other(shift):
  """Two places see each other where the roll moved both alike."""
  size, window = (8, 6), (4, 3)
  mask = swin.shift_bias(size, window, shift)
  source = np.stack(np.mgrid[: size[0], : size[1]], axis=-1)
  rolled = np.roll(source, (-shift[0], -shift[1]), axis=(0, 1))
  moved = np.asarray(layers.window_partition((rolled - source)[None], window))[0]  # [windows, N, 2]
  together = (moved[:, :, None] == moved[:, None]).all(-1)
  np.testing.assert_array_equal(mask[:, 0] == 0, together)
  assert set(np.unique(mask)) == {-100.0, 0.0}


def attention_by_loops(x, params, bias, window, shift, heads):
  """Window attention of [H, W, C], for each position over those of its window, in float64."""
  height, width, channels = x.shape
  flat = {k: np.asarray(v, np.float64) for k, v in models.flatten({'params': params}).items()}
  project = {
    n: np.einsum('hwc,cnd->hwnd', x, flat[f'{n}/kernel']) + flat[f'{n}/bias']
    for n in ('query', 'key', 'value')
  }
  out = np.zeros((height, width, heads, channels // heads))
  for i in range(height):
    for j in range(width):
      row, column = (i - shift[0]) // window[0], (j - shift[1]) // window[1]
      seen = [
        (k, m)
        for k in range(height)
        for m in range(width)
        if (k - shift[0]) // window[0] == row and (m - shift[1]) // window[1] == column
      ]
      for head in range(heads):
        logits = [
          project['query'][i, j, head] @ project['key'][k, m, head] / (channels // heads) ** 0.5
          + bias[head, i - k + window[0] - 1, j - m + window[1] - 1]
          for k, m in seen
        ]
        weights = np.exp(logits - np.max(logits))
        values = [project['value'][k, m, head] for k, m in seen]
        out[i, j, head] = (weights / weights.sum()) @ values
  return np.einsum('hwnd,ndc->hwc', out, flat['proj/kernel']) + flat['proj/bias']


@pytest.mark.parametrize('shift', [(0, 0), (1, 1)])
def test_window_attention_is_that_of_a_loop(shift):
  window, heads, x = (3, 3), 2, np.random.default_rng(0).normal(size=(1, 6, 9, 8))
  block = swin.SwinBlock(num_heads=heads, window=window, shift=shift)
  variables = block.init(jax.random.key(0), jnp.float32(x), True)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda a: 0.5 * rng.normal(size=a.shape).astype(np.float32), variables)
  params = variables['params']
  params['mlp_fc2'] = jax.tree.map(np.zeros_like, params['mlp_fc2'])  # attention alone is left
  attention = dict(params['attn'])
  bias = attention.pop('relative_position_bias_table').T.reshape(heads, 5, 5)
  normed = (x[0] - x[0].mean(-1, keepdims=True)) / np.sqrt(x[0].var(-1, keepdims=True) + 1e-5)
  normed = normed * params['norm1']['scale'] + params['norm1']['bias']
  expected = x[0] + attention_by_loops(normed, attention, bias, window, shift, heads)
  ours = block.apply(variables, jnp.float32(x), True)[0]
  np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('old', 'new'), [((5, 5), (9, 9)), ((13, 13), (7, 7)), ((5, 3), (4, 8))])
def test_tables_are_resized_as_in_pytorch(old, new):
  table = np.random.default_rng(0).normal(size=(*old, 3)).astype(np.float32)
  theirs = torch.nn.functional.interpolate(
    torch.from_numpy(table.transpose(2, 0, 1)[None].copy()), size=new, mode='bicubic'
  )[0].numpy()
  np.testing.assert_allclose(
    swin.resize_bicubic(table, new), theirs.transpose(1, 2, 0), rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize(
  ('windowing', 'grid', 'expected'),
  [
    ('microsoft', (14, 14), ((7, 7), (3, 3))),
    ('microsoft', (7, 14), ((7, 7), (0, 0))),
    ('microsoft', (5, 14), ((5, 5), (0, 0))),
    ('timm', (7, 14), ((7, 7), (0, 3))),
    ('timm', (5, 14), ((5, 7), (0, 3))),
  ],
)
def test_windows_of_maps_that_are_no_larger(windowing, grid, expected):
  assert Swin(num_classes=1, windowing=windowing).window_and_shift(grid) == expected


@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('windowing', ['microsoft', 'timm'])
def test_any_image_goes_through_and_has_gradients(version, windowing):
  model = Swin(num_classes=4, version=version, windowing=windowing, **SMALL)
  images = jax.random.normal(jax.random.key(0), (2, 30, 45, 1))
  variables = jax.jit(model.init)(jax.random.key(1), images)
  logits = jax.jit(model.apply)(variables, images)
  assert logits.shape == (2, 4)
  grads = jax.jit(jax.grad(lambda v: jnp.cos(model.apply(v, images)).sum()))(variables)
  for path, grad in models.flatten(grads).items():
    # A constant added to all keys changes no weight.
    assert (np.abs(grad).max() > 1e-9) != path.endswith('key/bias'), path


def test_the_gradient_of_cosine_attention():
  attention = swin.WindowAttention(num_heads=2, window=(2, 2), version=2)
  x = jax.random.normal(jax.random.key(0), (1, 1, 4, 6))
  variables = attention.init(jax.random.key(1), x, None, True)
  check_grads(lambda x: attention.apply(variables, x, None, True), (x,), order=1, modes=['rev'])


def test_dropout_and_stochastic_depth_in_training_alone():
  rates = {'dropout_rate': 0.5, 'attention_dropout_rate': 0.5, 'stochastic_depth': 0.5}
  images = jax.random.normal(jax.random.key(0), (4, 24, 24, 1))
  plain = Swin(num_classes=4, **SMALL)
  variables = jax.jit(plain.init)(jax.random.key(1), images)
  expected = plain.apply(variables, images)
  for name, rate in rates.items():
    model = Swin(num_classes=4, **SMALL, **({'stochastic_depth': 0.0} | {name: rate}))
    np.testing.assert_array_equal(model.apply(variables, images), expected)
    draws = [
      model.apply(variables, images, train=True, rngs={'dropout': jax.random.key(i)})
      for i in range(2)
    ]
    assert (draws[0] != draws[1]).any(), name


@pytest.mark.parametrize('version', [1, 2])
def test_bfloat16_reaches_every_projection_and_norm(version):
  model = Swin(num_classes=4, version=version, dtype=jnp.bfloat16, **SMALL)
  shapes = jax.eval_shape(
    lambda: model.init_with_output(
      jax.random.key(0), jnp.zeros((1, 24, 24, 1)), capture_intermediates=True
    )
  )
  assert shapes[0].dtype == jnp.float32
  outputs = models.flatten({'params': shapes[1]['intermediates']})
  wide = {
    name
    for name, leaves in outputs.items()
    if jnp.dtype('float32') in {leaf.dtype for leaf in jax.tree.leaves(leaves)}
  }
  allowed = ('attention_weights', 'output_projection/__call__')
  assert {n for n in wide if not n.endswith(allowed) and 'cpb_mlp' not in n} == {'__call__'}


@pytest.mark.parametrize('windowing', ['microsoft', 'timm'])
@pytest.mark.parametrize('layer', [0, 1, 3])
def test_attention_is_drawn_where_it_lies(layer, windowing):
  """Weights that say where their key is in the map come out as that map."""
  model = Swin(num_classes=4, windowing=windowing, **SMALL)
  size, stage = (28, 40), layer // 2
  grid = model.grid(size, stage)
  window, shift = model.window_and_shift(grid)
  shift = shift if layer % 2 else (0, 0)
  places = np.arange(1, 1 + grid[0] * grid[1], dtype=np.float32).reshape(1, *grid, 1)
  padding = swin.padding_to(grid, window)
  padded = [(0, 0), (0, padding[0]), (0, padding[1]), (0, 0)]
  if windowing == 'microsoft':
    places = np.roll(np.pad(places, padded), (-shift[0], -shift[1]), axis=(1, 2))
  else:
    places = np.pad(np.roll(places, (-shift[0], -shift[1]), axis=(1, 2)), padded)
  keys = np.asarray(layers.window_partition(places, window))[..., 0]  # [1, windows, N]
  weights = np.broadcast_to(keys[:, :, None, None], (*keys.shape[:2], 2, *(keys.shape[-1],) * 2))
  tree = {f'layers_{stage}': {f'blocks_{layer % 2}': {'attn': {'attention_weights': weights}}}}
  maps = model.attention_maps(tree, size, layer)
  assert maps.maps.shape == (1, 2, *grid)
  expected = np.arange(1, 1 + grid[0] * grid[1]).reshape(grid)
  np.testing.assert_allclose(maps.maps[0, 1], expected, rtol=1e-6)
  assert maps.stride == (4 * 2**stage,) * 2


def test_layers_are_counted_as_in_the_reference():
  model = Swin(num_classes=4)
  layers = {
    'patch_embed_proj/kernel': 0,
    'absolute_pos_embed': 0,
    'layers_0/blocks_0/norm1/scale': 1,
    'layers_0/downsample/reduction/kernel': 2,
    'layers_2/blocks_5/attn/query/kernel': 10,
    'layers_3/blocks_1/mlp_fc1/bias': 12,
    'norm/scale': 13,
    'output_projection/kernel': 13,
  }
  assert {path: model.layer_of(path) for path in layers} == layers


def test_fine_tuning_version_2_keeps_the_scale_of_positions():
  theirs = {'window_size': 8, 'depths': (2, 2), 'version': 2}
  fields = dict.fromkeys((*theirs, 'pretrained_window_sizes'))
  same = Swin.complete(fields, theirs)
  assert same['pretrained_window_sizes'] is None
  larger = Swin.complete(fields | {'window_size': 16}, theirs)
  assert larger['pretrained_window_sizes'] == (8, 8)
  again = Swin.complete(fields | {'window_size': 24}, {**larger})
  assert again['pretrained_window_sizes'] == (8, 8)


FIELDS = {
  'name': 'swin',
  'embed_dim': 12,
  'depths': (1, 2),
  'num_heads': (2, 3),
  'window_size': 4,
  'num_classes': 3,
  'image_size': (64, 64),
}


def swin_config(**changes):
  return models.ModelConfig.from_dict(FIELDS | changes)


def random_variables(config, seed=0):
  rng = np.random.default_rng(seed)
  shapes = config.variable_shapes()
  flat = {n: rng.normal(size=shapes[n]).astype(np.float32) for n in sorted(shapes)}
  return models.unflatten(flat)


def interpolated(table, size):
  """[h, w, C] by PyTorch's bicubic interpolation."""
  channels_first = torch.from_numpy(table.transpose(2, 0, 1)[None].copy())
  resized = torch.nn.functional.interpolate(channels_first, size=size, mode='bicubic')
  return resized[0].numpy().transpose(1, 2, 0)


@pytest.mark.parametrize(
  ('changes', 'windows'),
  [
    ({'window_size': 7, 'image_size': (112, 112)}, (7, 7)),
    ({'image_size': (96, 160)}, (4, 4)),
    ({'image_size': (24, 24)}, (4, 3)),  # maps of 6 and 3 positions
  ],
)
def test_position_biases_go_to_other_windows(changes, windows):
  old, new = swin_config(), swin_config(**changes)
  variables = random_variables(old)
  fitted, notes = adapt(variables, old, new, 'swin.pth')
  before, after = models.flatten(variables), models.flatten(fitted)
  assert after.keys() == new.variable_shapes().keys()
  for name, array in after.items():
    if not name.endswith('relative_position_bias_table'):
      np.testing.assert_array_equal(array, before[name])
      continue
    side = 2 * windows[int(name[len('layers_')])] - 1
    expected = before[name]
    if side != 7:
      expected = interpolated(expected.reshape(7, 7, -1), (side, side)).reshape(side**2, -1)
    np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-5)
  resized = [note for note in notes if 'resized' in note]
  assert len(resized) == len({w for w in enumerate(windows) if w[1] != 4})


def test_absolute_positions_and_the_patch_kernel_go_along():
  old = swin_config(absolute_positions=True)
  new = swin_config(absolute_positions=True, image_size=(32, 48), channels=1)
  variables = random_variables(old)
  fitted, notes = adapt(variables, old, new, 'swin.pth')
  before, after = models.flatten(variables), models.flatten(fitted)
  table = before['absolute_pos_embed'].reshape(16, 16, -1)
  np.testing.assert_allclose(
    after['absolute_pos_embed'].reshape(8, 12, -1), interpolated(table, (8, 12)), atol=1e-5
  )
  kernel = before['patch_embed_proj/kernel'].sum(axis=2, keepdims=True)
  np.testing.assert_allclose(after['patch_embed_proj/kernel'], kernel, rtol=1e-5)
  assert 'position embeddings: resized from 16x16 to 8x12' in notes


def test_equal_numbers_of_places_are_resized_too():
  old = swin_config(absolute_positions=True, image_size=(32, 64))
  new = swin_config(absolute_positions=True, image_size=(64, 32))
  variables = random_variables(old)
  fitted = models.flatten(adapt(variables, old, new, 'swin.pth')[0])
  table = models.flatten(variables)['absolute_pos_embed'].reshape(8, 16, -1)
  np.testing.assert_allclose(
    fitted['absolute_pos_embed'].reshape(16, 8, -1), interpolated(table, (16, 8)), atol=1e-5
  )


def test_a_file_that_knows_no_image_goes_to_another_window():
  old = swin_config(image_size=None)
  new = swin_config(window_size=7, image_size=(112, 112))
  variables = random_variables(old)
  fitted, notes = adapt(variables, old, new, 'swin.pth')
  assert 'position biases of stage 0: resized from windows of 4x4 to 7x7' in notes
  assert models.flatten(fitted).keys() == new.variable_shapes().keys()


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  [
    (
      {'windowing': 'timm'},
      {'image_size': (40, 40)},
      r"^windowing: 'microsoft', but swin\.pth has weights for 'timm', which pads",
    ),
    (
      {'version': 2},
      {'version': 2, 'window_size': 8},
      r'^pretrained_window_sizes: None, but .* in windows of \(4, 4\); give these',
    ),
    (
      {'version': 2, 'image_size': (16, 16)},
      {'version': 2, 'image_size': (64, 64)},
      r'^pretrained_window_sizes: None, but .* in windows of \(4, 2\); give these',
    ),
  ],
)
def test_windows_that_would_compute_something_else_are_refused(old, new, message):
  old, new = swin_config(**old), swin_config(**new)
  with pytest.raises(FieldError, match=message):
    adapt(random_variables(old), old, new, 'swin.pth')


def test_version_2_has_nothing_to_resize():
  old = swin_config(version=2)
  new = swin_config(version=2, window_size=8, pretrained_window_sizes=(4, 4), image_size=(128, 128))
  variables = random_variables(old)
  fitted, _ = adapt(variables, old, new, 'swin.pth')
  before, after = models.flatten(variables), models.flatten(fitted)
  assert before.keys() == after.keys()
  for name in before:
    np.testing.assert_array_equal(before[name], after[name])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'depths': (2, 0)}, r'^depths: \(2, 0\) is not a tuple of whole numbers'),
    ({'num_heads': (3, 6)}, r'^num_heads: \(3, 6\) is not one for each'),
    ({'num_heads': (5, 6, 12, 24)}, r'^num_heads: 5 heads do not divide the 96 channels'),
    ({'window_size': (7, 8)}, r"^window_size: \(7, 8\) is not square, .*windowing='timm'"),
    ({'window_size': 0}, r'^window_size: 0 is not a whole number from 1 on or a tuple'),
    ({'version': 3}, r'^version: 3 is not 1 or 2'),
    ({'windowing': 'tim'}, r"^windowing: 'tim' is not one of microsoft, timm; did you mean 'timm'"),
    ({'pretrained_window_sizes': (7,) * 4}, r'^pretrained_window_sizes: .* version 2'),
    ({'mlp_ratio': 0.0}, r'^mlp_ratio: 0\.0 is not a number above 0 and up to 1000'),
    ({'stochastic_depth': 1.0}, r'^stochastic_depth: 1\.0 is not a number from 0 to below 1'),
    ({'activation': 'swish'}, r"^activation: 'swish' is not one of"),
    ({'patches': {'size': (4, 4, 4)}}, r'^patches\.size: \(4, 4, 4\) is not \(height, width\)'),
  ],
)
def test_mistakes_name_their_field(fields, message):
  with pytest.raises(FieldError, match=message):
    models.build({'name': 'swin', **fields}, num_classes=5)
