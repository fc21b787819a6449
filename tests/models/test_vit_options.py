"""What ViT's layers, and what stands before and after them, may be made of, against PyTorch."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vit_jax.errors import FieldError
from vit_jax.models import ModelConfig, layers
from vit_jax.models.vit import ViT
from vit_jax.weights.adapt import adapt

FIELDS = {
  'num_classes': 5,
  'mlp_dim': 12,
  'num_layers': 2,
  'num_heads': 2,
  'hidden_size': 8,
  'patches': {'size': (4, 4)},
  'norm_epsilon': 1e-3,
  'dropout_rate': 0.0,
  'attention_dropout_rate': 0.0,
}
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
GRID = (2, 3)
ACTIVATIONS = {
  'gelu': lambda x: F.gelu(x, approximate='tanh'),
  'gelu_exact': F.gelu,
  'quick_gelu': lambda x: x * torch.sigmoid(1.702 * x),
  'silu': F.silu,
}


def random_params(model, images=IMAGES):
  """Parameters none of which is zero, so that every one of them matters."""
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))['params']
  return jax.tree.map(lambda a: (0.4 * rng.normal(size=a.shape)).astype(np.float32), shapes)


def logits(model, params, images):
  quick = {'xla_backend_optimization_level': 0}  # to compile, which is all the time that it takes
  return np.asarray(jax.jit(model.apply, compiler_options=quick)({'params': params}, images))


def dense(x, p):
  return torch.tensordot(x, p['kernel'], 1) + p.get('bias', 0)


def norm(x, p, model):
  if model.norm == 'rmsnorm':
    return F.rms_norm(x, x.shape[-1:], p['scale'], model.norm_epsilon)
  return F.layer_norm(x, x.shape[-1:], p['scale'], p['bias'], model.norm_epsilon)


def attention(x, p, model, keys=None, bias=0, angles=None):
  """Softmax attention of [B, Q, D], or the difference of two; bias is added to the logits."""
  keys = x if keys is None else keys
  q, k, v = (
    dense(a, p[n]).transpose(1, 2) for n, a in (('query', x), ('key', keys), ('value', keys))
  )
  k, v = (a.repeat_interleave(q.shape[1] // a.shape[1], 1) for a in (k, v))
  if model.differential:
    q, k = (a.unflatten(-1, (2, -1)).transpose(2, 3).flatten(1, 2) for a in (q, k))
    v = v.repeat_interleave(2, 1)
  if 'query_norm' in p:
    q, k = norm(q, p['query_norm'], model), norm(k, p['key_norm'], model)
  if angles is not None:
    q, k = turn(q, angles), turn(k, angles)
  logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
  x = (logits + (bias(q) if callable(bias) else bias)).softmax(-1) @ v
  if model.differential:
    start = 0.8 - 0.6 * math.exp(-0.3 * p['layer'])
    first, second = (torch.exp(p[f'lambda_q{i}'] @ p[f'lambda_k{i}']) for i in (1, 2))
    x = x[:, ::2] - (first - second + start) * x[:, 1::2]
    x = F.rms_norm(x, x.shape[-1:], p['sub_norm']['scale'], 1e-5) * (1 - start)
  x = x.transpose(1, 2).flatten(2)
  if 'norm' in p:
    x = norm(x, p['norm'], model)
  return dense(x, {**p['out'], 'kernel': p['out']['kernel'].flatten(0, 1)})


def turn(x, angles):
  """Turns pairs of channels of the patches of [B, heads, N, d]; angles are [..., h * w, d / 2]."""
  first, x = x.split([x.shape[2] - angles.shape[-2], angles.shape[-2]], 2)
  pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
  return torch.cat([first, torch.view_as_real(pairs * torch.exp(1j * angles)).flatten(-2)], 2)


def angles_of(model, encoder, grid, layer):
  """Angles of each patch, for heads of 4 channels."""
  places = torch.cartesian_prod(*(torch.arange(float(side)) for side in grid))  # [N, 2]
  if model.rotary['type'] == 'axial':
    return places
  return torch.einsum('na,ahi->hni', places, encoder['rotary']['freqs'][:, layer])


def bias_of(model, p, grid):
  """What relative positions add, [heads, N, N], or make of queries [B, heads, N, d]."""
  places = list(itertools.product(*map(range, grid)))
  kind, (height, width), count = model.relative_positions['type'], grid, len(places)
  if kind == 'decomposed':
    down, right = (p[f'rel_pos_{axis}'] for axis in 'hw')
    rows = [
      [down[a - b + height - 1] + right[c - d + width - 1] for b, d in places] for a, c in places
    ]
    vectors = torch.stack([torch.stack(row) for row in rows])  # [N, N, d]
    return lambda q: torch.einsum('bhqd,qkd->bhqk', q, vectors)
  table = p['relative_position_bias_table']
  bias = torch.empty(count + 1, count + 1, table.shape[1])
  bias[0], bias[1:, 0], bias[0, 0] = table[-3], table[-2], table[-1]
  for q, (a, c) in enumerate(places):
    for k, (b, d) in enumerate(places):
      bias[1 + q, 1 + k] = table[(a - b + height - 1) * (2 * width - 1) + c - d + width - 1]
  return bias.permute(2, 0, 1)


def in_windows(f, x, grid, side):
  """Applies f to each window of tokens [B, h * w, D], zeros beyond the grid."""
  x = x.unflatten(1, grid)
  result = torch.zeros_like(x)
  for row, column in itertools.product(*(range(0, length, side) for length in grid)):
    part = x[:, row : row + side, column : column + side]
    size = part.shape[1:3]
    part = F.pad(part, (0, 0, 0, side - size[1], 0, side - size[0]))
    y = f(part.flatten(1, 2)).unflatten(1, (side, side))
    result[:, row : row + side, column : column + side] = y[:, : size[0], : size[1]]
  return result.flatten(1, 2)


def mlp(x, p, model):
  activation, hidden = ACTIVATIONS[model.activation], dense(x, p['Dense_0'])
  hidden = activation(dense(x, p['gate'])) * hidden if 'gate' in p else activation(hidden)
  if 'norm' in p:
    hidden = norm(hidden, p['norm'], model)
  return dense(hidden, p['Dense_1'])


def block(x, encoder, model, layer, grid):
  p, inputs = encoder[f'encoderblock_{layer}'], {}
  side = None if layer in model.global_layers else model.window_size
  if model.rotary:
    inputs['angles'] = angles_of(model, encoder, grid, layer)
  if model.relative_positions:
    owner = encoder if model.relative_positions['shared'] else p
    inputs['bias'] = bias_of(model, owner['relative_positions'], (side, side) if side else grid)

  def attend(x, i=0):
    own = p.get(f'MultiHeadDotProductAttention_{i}') or p['DifferentialAttention_0'] | {
      'layer': layer
    }
    if side:
      return in_windows(lambda part: attention(part, own, model, **inputs), x, grid, side)
    return attention(x, own, model, **inputs)

  def feed(x, i=0):
    return mlp(x, p[f'MlpBlock_{i}'], model)

  def branch(i, f, x, *args):
    p_norm, scale = p[f'LayerNorm_{i}'], p.get(f'LayerScale_{i}', {'gamma': 1})['gamma']
    if model.block == 'post':
      return norm(f(x, *args), p_norm, model)
    return f(norm(x, p_norm, model), *args) * scale

  if model.block == 'parallel_scaling':
    return x + branch(0, lambda y: attend(y) + feed(y), x)
  if model.block == 'parallel':
    x = x + branch(0, attend, x, 0) + branch(1, attend, x, 1)
    return x + branch(2, feed, x, 0) + branch(3, feed, x, 1)
  x = x + branch(0, attend, x)
  return x + branch(1, feed, x)


def embed(images, p, model):
  """[B, P + N, D] with positions."""
  kernel = p['embedding']['kernel'].permute(3, 2, 0, 1)
  x = F.conv2d(images.permute(0, 3, 1, 2), kernel, stride=model.patch_size)
  x = x.flatten(2).transpose(1, 2) + p['embedding'].get('bias', 0)
  if model.patch_norm:
    x = norm(x, p['embedding_norm'], model)
  prefix = [p[n].expand(len(x), -1, -1) for n in ('cls', 'dist', 'registers') if n in p]
  count = sum(tokens.shape[1] for tokens in prefix)
  if model.positional_embedding == 'none':
    return torch.cat([*prefix, x], 1)
  table = p['Transformer']['posembed_input']['pos_embedding']
  placed = {'all': count, 'class': count - model.num_registers, 'patches': 0}
  placed = placed[model.position_tokens]
  without = torch.zeros(1, count - placed, table.shape[-1])
  return torch.cat([*prefix, x], 1) + torch.cat([table[:, :placed], without, table[:, placed:]], 1)


def head(x, p, model):
  count = model.num_prefix
  if model.distillation:
    return (
      dense(x[:, 0], p['output_projection']) + dense(x[:, 1], p['output_projection_dist'])
    ) / 2
  x = x[:, 0] if model.classifier == 'token' else x if model.pool_prefix else x[:, count:]
  if model.classifier == 'gap':
    x = x.mean(1)
  if model.classifier == 'map':
    p_map, heads = p['MAPHead_0'], model.map_num_heads or model.num_heads
    assert p_map['MultiHeadDotProductAttention_0']['query']['kernel'].shape[1] == heads
    probe = p_map['probe'].expand(len(x), -1, -1)
    y = attention(probe, p_map['MultiHeadDotProductAttention_0'], model, x)
    x = (y + mlp(norm(y, p_map['LayerNorm_0'], model), p_map['MlpBlock_0'], model))[:, 0]
  if model.fc_norm:
    x = norm(x, p['fc_norm'], model)
  return dense(x, p['output_projection'])


def forward(p, images, model):
  x, encoder = embed(images, p, model), p['Transformer']
  if model.pre_norm:
    x = norm(x, encoder['pre_norm'], model)
  for layer in range(model.num_layers):
    x = block(x, encoder, model, layer, model.grid(images.shape[1:3]))
  if model.neck:
    x = x.unflatten(1, model.grid(images.shape[1:3])).permute(0, 3, 1, 2)
    for i in range(2):
      kernel, p_norm = (
        p['neck'][f'Conv_{i}']['kernel'].permute(3, 2, 0, 1),
        p['neck'][f'LayerNorm_{i}'],
      )
      x = F.conv2d(x, kernel, padding=i).permute(0, 2, 3, 1)
      x = F.layer_norm(x, x.shape[-1:], p_norm['scale'], p_norm['bias'], 1e-6).permute(0, 3, 1, 2)
    x = x.permute(0, 2, 3, 1).flatten(1, 2)
  elif model.final_norm and not model.fc_norm:
    x = norm(x, encoder['encoder_norm'], model)
  return head(x, p, model)


def check(model, images=IMAGES, atol=5e-5):
  """Compares logits; returns the parameters' names, and their shapes."""
  params = random_params(model, images)
  found = logits(model, params, images)
  p = jax.tree.map(torch.tensor, params)
  expected = forward(p, torch.tensor(images), model).numpy()
  assert np.std(expected) > 0.01
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol)
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): a.shape for path, a in leaves}


BLOCK = 'Transformer/encoderblock_1/'
ATTENTION = f'{BLOCK}MultiHeadDotProductAttention_0/'


@pytest.mark.parametrize(
  ('options', 'there', 'not_there'),
  [
    (
      {'norm': 'rmsnorm', 'layer_scale': 0.1},
      {f'{BLOCK}LayerScale_0/gamma': (8,), f'{BLOCK}LayerScale_1/gamma': (8,)},
      [f'{BLOCK}LayerNorm_0/bias', 'Transformer/encoder_norm/bias'],
    ),
    (
      {'layer_scale': 0.1, 'layer_scale_mlp': False, 'patch_bias': False, 'pre_norm': True},
      {f'{BLOCK}LayerScale_0/gamma': (8,), 'Transformer/pre_norm/bias': (8,)},
      [f'{BLOCK}LayerScale_1/gamma', 'embedding/bias'],
    ),
    (
      {'qkv_bias': 'qv', 'use_bias': False, 'activation': 'quick_gelu', 'final_norm': False},
      {f'{ATTENTION}query/bias': (2, 4), f'{ATTENTION}value/bias': (2, 4)},
      [
        f'{ATTENTION}key/bias',
        f'{ATTENTION}out/bias',
        f'{BLOCK}MlpBlock_0/Dense_0/bias',
        f'{BLOCK}MlpBlock_0/Dense_1/bias',
        'Transformer/encoder_norm/scale',
      ],
    ),
    (
      {'qkv_bias': False, 'qk_norm': True, 'attention_norm': True, 'norm': 'rmsnorm'},
      {f'{ATTENTION}query_norm/scale': (4,), f'{ATTENTION}norm/scale': (8,)},
      [f'{ATTENTION}{part}/bias' for part in ('query', 'key', 'value')],
    ),
    (
      {'mlp': 'glu', 'mlp_norm': True, 'activation': 'silu', 'patch_norm': True},
      {
        f'{BLOCK}MlpBlock_0/gate/kernel': (8, 12),
        f'{BLOCK}MlpBlock_0/norm/bias': (12,),
        'embedding_norm/scale': (8,),
      },
      [],
    ),
    ({'block': 'post', 'classifier': 'token', 'fc_norm': True}, {'fc_norm/bias': (8,)}, []),
    (
      {'classifier': 'map', 'map_num_heads': 4, 'map_mlp_dim': 6, 'pool_prefix': True}
      | {'num_registers': 2, 'norm': 'rmsnorm'},
      {'MAPHead_0/MlpBlock_0/Dense_0/kernel': (8, 6), 'registers': (1, 2, 8)},
      ['MAPHead_0/LayerNorm_0/bias', 'cls'],
    ),
    (
      {'class_token': True, 'num_registers': 3, 'position_tokens': 'class'},
      {'Transformer/posembed_input/pos_embedding': (1, 7, 8)},
      [],
    ),
    (
      {'classifier': 'token', 'num_registers': 1, 'position_tokens': 'patches'},
      {'Transformer/posembed_input/pos_embedding': (1, 6, 8)},
      [],
    ),
    (
      {'classifier': 'token', 'distillation': True},
      {
        'dist': (1, 1, 8),
        'output_projection_dist/kernel': (8, 5),
        'Transformer/posembed_input/pos_embedding': (1, 8, 8),
      },
      [],
    ),
    ({'class_token': True, 'pool_prefix': True, 'num_registers': 1}, {'registers': (1, 1, 8)}, []),
  ],
)
def test_logits_and_parameters(options, there, not_there):
  model = ViT(**{**FIELDS, **options})
  shapes = check(model)
  assert shapes.items() >= there.items()
  assert not shapes.keys() & {*not_there}
  assert model.variable_shapes(IMAGES.shape[1:3], 3) == shapes


TALL = np.random.default_rng(0).normal(size=(2, 12, 20, 3)).astype(np.float32)


@pytest.mark.parametrize(
  ('options', 'there'),
  [
    ({'block': 'parallel', 'layer_scale': 0.1}, {f'{BLOCK}LayerScale_3/gamma': (8,)}),
    ({'block': 'parallel_scaling', 'layer_scale': 0.1}, {f'{BLOCK}LayerScale_0/gamma': (8,)}),
    ({'differential': True, 'hidden_size': 16, 'qk_norm': True}, {}),
    (
      {'rotary': {'type': 'axial'}, 'num_kv_heads': (2, 1), 'num_registers': 2},
      {f'{ATTENTION}key/kernel': (8, 1, 4), f'{ATTENTION}value/bias': (1, 4)},
    ),
    (
      {'rotary': {'type': 'mixed'}, 'classifier': 'token', 'positional_embedding': 'none'},
      {'Transformer/rotary/freqs': (2, 2, 2, 2)},
    ),
    (
      {'relative_positions': {'type': 'bias'}, 'class_token': True, 'qkv_bias': 'qv'},
      {f'{BLOCK}relative_positions/relative_position_bias_table': (48, 2)},
    ),
    (
      {'relative_positions': {'type': 'bias', 'shared': True}, 'classifier': 'token'},
      {'Transformer/relative_positions/relative_position_bias_table': (48, 2)},
    ),
    (
      {'relative_positions': {'type': 'decomposed'}, 'window_size': 2, 'global_layers': (1,)}
      | {'neck': 6, 'classifier': 'gap'},
      {
        f'{BLOCK}relative_positions/rel_pos_w': (9, 4),
        'Transformer/encoderblock_0/relative_positions/rel_pos_w': (3, 4),
        'neck/Conv_1/kernel': (3, 3, 6, 6),
        'output_projection/kernel': (6, 5),
      },
    ),
  ],
)
def test_attention_and_arrangements(options, there):
  model = ViT(**{**FIELDS, **options})
  shapes = check(model, TALL)
  assert shapes.items() >= there.items()
  assert model.variable_shapes(TALL.shape[1:3], 3) == shapes


@pytest.mark.parametrize('drop', [False, True])
def test_images_that_patches_do_not_divide(drop):
  images, options = TALL[:, :11, :19], {'drop_remainder': drop, 'num_layers': 1}
  for method in ('conv', 'linear'):
    model = ViT(**FIELDS | options, patch_embedding=method)
    if not drop:
      with pytest.raises(FieldError, match=r'^patches\.size: 4x4 pixels do not divide'):
        jax.eval_shape(lambda model=model: model.init(jax.random.key(0), images))
      continue
    params = random_params(model, images)
    assert params['Transformer']['posembed_input']['pos_embedding'].shape == (1, 2 * 4, 8)
    found = logits(model, params, images)
    np.testing.assert_array_equal(found, logits(model, params, images[:, :8, :16]))


def test_a_position_table_is_interpolated_to_the_grid_of_each_image():
  options = {'position_table': {'grid': (2, 2)}, 'position_tokens': 'patches', 'num_layers': 1}
  model = ViT(**FIELDS | options, classifier='token', num_registers=1)
  params = random_params(model)
  found = logits(model, params, IMAGES)
  table = params['Transformer']['posembed_input']['pos_embedding']
  grid = torch.tensor(table).reshape(1, 2, 2, 8).permute(0, 3, 1, 2)
  grid = F.interpolate(grid, GRID, mode='bicubic', antialias=True).flatten(2).transpose(1, 2)
  params['Transformer']['posembed_input']['pos_embedding'] = grid.numpy()
  plain = model.clone(position_table=None)
  np.testing.assert_allclose(found, logits(plain, params, IMAGES), atol=2e-5)
  positions = model.positions(
    {'Transformer': {'posembed_input': {'pos_embedding': table}}}, (8, 12)
  )
  np.testing.assert_allclose(positions.embeddings.reshape(6, 8), grid[0], atol=1e-5)


EVERYTHING = {
  'norm': 'rmsnorm',
  'layer_scale': 0.1,
  'qk_norm': True,
  'mlp': 'glu',
  'mlp_norm': True,
  'attention_norm': True,
  'pre_norm': True,
  'num_registers': 2,
  'classifier': 'token',
  'rotary': {'type': 'mixed'},
  'relative_positions': {'type': 'mlp', 'hidden_dim': 3, 'shared': True},
}


@pytest.mark.parametrize(
  'options',
  [
    EVERYTHING,
    {'differential': True, 'block': 'parallel'},
    {'window_size': 2, 'relative_positions': {'type': 'decomposed'}, 'block': 'parallel_scaling'},
    {'rotary': {'type': 'dinov3', 'rescale_coords': 2.0}},
  ],
  ids=['everything', 'differential', 'windows', 'in training'],
)
def test_layers_compute_the_same_scanned_and_recomputed(options):
  model, rngs = ViT(**FIELDS | options), {'dropout': jax.random.key(0)}
  params, train = random_params(model), 'rescale_coords' in options.get('rotary', {})
  quick = {'xla_backend_optimization_level': 0}

  def compute(model, train=train):
    apply = jax.jit(functools.partial(model.apply, train=train), compiler_options=quick)
    return np.asarray(apply({'params': params}, IMAGES, rngs=rngs))

  expected = compute(model)
  assert not train or np.abs(compute(model, train=False) - expected).max() > 1e-3
  for how in ('scan', 'remat'):
    changed = model.clone(**{how: True})
    traced = jax.make_jaxpr(changed.apply)({'params': params}, IMAGES)
    scans = 'scan' in {equation.primitive.name for equation in traced.eqns}
    assert scans == (how == 'scan')
    np.testing.assert_allclose(compute(changed), expected, rtol=1e-4, atol=1e-4)


def test_layers_and_decay_of_parameters():
  model = ViT(**FIELDS | EVERYTHING | {'patch_norm': True, 'class_token': True})
  names = model.variable_shapes((8, 12), 3)
  first = {n for n in names if model.layer_of(n) == 0}
  tops = {n.split('/')[0] for n in first}
  assert tops == {'embedding', 'embedding_norm', 'cls', 'registers', 'Transformer'}
  assert {n.split('/')[1] for n in first if n.startswith('T')} == {'posembed_input', 'pre_norm'}
  assert decaying(model) == {'kernel'}


def decaying(model):
  names = model.variable_shapes((8, 12), 3)
  return {n.split('/')[-1] for n in names if not re.search(model.NO_DECAY, n)}


@pytest.mark.parametrize(
  'options',
  [
    {'relative_positions': {'type': 'bias'}, 'positional_embedding': 'none'},
    {'relative_positions': {'type': 'decomposed'}, 'layer_scale': 0.1},
    {'differential': True, 'classifier': 'token', 'distillation': True},
    {'position_table': {'grid': (2, 2), 'factorized': True}, 'classifier': 'map'},
  ],
)
def test_only_kernels_decay(options):
  assert decaying(ViT(**FIELDS | options)) == {'kernel'}


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'norm': 'rms'}, r"^norm: .*did you mean 'rmsnorm'"),
    ({'block': 'serial'}, r"^block: 'serial' is not one of"),
    ({'mlp': 'swiglu'}, r"^mlp: 'swiglu' is not one of"),
    ({'qkv_bias': 'k'}, r"^qkv_bias: 'k' is not True, False or 'qv'"),
    ({'qkv_bias': 1}, r"^qkv_bias: 1 is not True, False or 'qv'"),
    ({'layer_scale': 'x'}, "^layer_scale: 'x' is not a number"),
    ({'layer_scale': 0.1, 'block': 'post'}, r"^layer_scale: set, but block is 'post'"),
    ({'layer_scale_mlp': False}, '^layer_scale_mlp: False, but there is no layer_scale'),
    (
      {'layer_scale': 0.1, 'layer_scale_mlp': False, 'block': 'parallel_scaling'},
      "^layer_scale_mlp: False, but block is 'parallel_scaling'",
    ),
    ({'differential': True, 'num_kv_heads': 1}, '^num_kv_heads: set, but attention is diff'),
    ({'differential': True, 'rotary': {'type': 'axial'}}, '^rotary: set, but attention is diff'),
    ({'differential': True, 'num_heads': 8}, '^differential: True, but heads have an odd width'),
    ({'num_kv_heads': 1, 'rotary': {'type': 'mixed'}}, "^num_kv_heads: set, .*'mixed'"),
    ({'num_kv_heads': (1, 1, 1)}, '^num_kv_heads: 3 numbers for 2 layers'),
    ({'num_kv_heads': 3}, '^num_kv_heads: 3 does not divide num_heads=2'),
    ({'window_size': 0}, '^window_size: 0 is not a whole number from 1 on'),
    ({'global_layers': (0,)}, r'^global_layers: \(0,\), but there is no window_size'),
    ({'global_layers': (2,), 'window_size': 2}, '^global_layers: 2 is not a layer; .* 0 to 1'),
    ({'window_size': 2, 'classifier': 'token'}, '^window_size: 2, but 1 tokens stand before'),
    ({'window_size': 2, 'rotary': {'type': 'axial'}}, '^rotary: set, but window_size is'),
    (
      {'window_size': 2, 'relative_positions': {'type': 'bias', 'shared': True}},
      r'^relative_positions\.shared: True, but window_size is set',
    ),
    ({'rotary': {'type': 'axial'}, 'num_heads': 4}, '^rotary: set, but heads have 2 channels'),
    ({'rotary': {'type': 'axial'}, 'num_heads': 3}, '^num_heads: 3 heads do not divide'),
    (
      {'relative_positions': {'type': 'bias'}, 'num_registers': 2},
      r"^relative_positions\.type: 'bias', but 2 tokens stand before the patches, not 1",
    ),
    ({'rotary': {'type': 'axal'}}, r"^rotary\.type: .*did you mean 'axial'"),
    ({'num_kv_heads': (1, 2), 'scan': True}, '^scan: True, but layers differ by num_kv_heads'),
    ({'neck': 0}, '^neck: 0 is not a whole number from 1 to'),
    ({'neck': 4, 'num_registers': 1}, '^neck: 4, but 1 tokens stand before'),
    ({'neck': 4, 'final_norm': False}, '^final_norm: False, but neck has one'),
    ({'fc_norm': True, 'final_norm': False}, '^final_norm: False, but fc_norm is one'),
    ({'num_registers': -1}, '^num_registers: -1 is not a whole number from 0 on'),
    ({'position_tokens': 'cls'}, "^position_tokens: 'cls' is not one of"),
    ({'pool_prefix': True, 'classifier': 'token'}, "^pool_prefix: True, but classifier 'token'"),
    ({'map_num_heads': 2}, "^map_num_heads: 2, but classifier is 'gap', not 'map'"),
    ({'map_num_heads': 3, 'classifier': 'map'}, '^map_num_heads: 3 does not divide hidden_size=8'),
    ({'neck': 3, 'classifier': 'map'}, '^map_num_heads: 2 does not divide neck=3'),
    ({'map_mlp_dim': 0, 'classifier': 'map'}, '^map_mlp_dim: 0 is not a whole number from 1 to'),
    ({'distillation': True}, "^distillation: True, but classifier is 'gap'"),
    (
      {'distillation': True, 'classifier': 'token', 'representation_size': 4},
      '^distillation: True, but representation_size is 4',
    ),
    ({'position_table': {'grid': (2, 2)}, 'class_token': True}, '^position_table: .*position_tok'),
    (
      {'position_table': {'grid': (2, 2)}, 'positional_embedding': 'none'},
      "^position_table: set, but positional_embedding is 'none'",
    ),
    *(
      ({field: value, 'tokenizer': {'type': 'dynamic', 'num_tokens': 2}}, f'^{field}: .*tokenizer')
      for field, value in (('rotary', {'type': 'axial'}), ('neck', 4), ('window_size', 2))
    ),
  ],
)
def test_mistakes_name_their_field(options, message):
  with pytest.raises(FieldError, match=message):
    ViT(**FIELDS | options)


def test_a_number_of_heads_may_be_given_alone_or_for_each_layer():
  model = ViT(**FIELDS, num_kv_heads=1)
  assert ViT(**FIELDS, num_kv_heads=(1,)) == model
  shapes = model.variable_shapes((8, 12), 3)
  assert shapes[f'{ATTENTION}key/kernel'] == (8, 1, 4)
  assert ViT(**FIELDS, num_kv_heads=(1, 1), scan=True).variable_shapes((8, 12), 3) == shapes


def test_windows_keep_their_tables_at_another_image_size():
  options = {'window_size': 2, 'global_layers': (1,), 'relative_positions': {'type': 'bias'}}
  old, new = (
    ModelConfig(ViT(**FIELDS | options), channels=3, image_size=size) for size in ((8, 12), (16, 8))
  )
  variables = {'params': random_params(old.model)}
  encoders = [v['params']['Transformer'] for v in (variables, adapt(variables, old, new, 'a')[0])]
  (before, after), (wide, tall) = (
    [p[f'encoderblock_{i}']['relative_positions']['relative_position_bias_table'] for p in encoders]
    for i in range(2)
  )
  np.testing.assert_array_equal(before, after)
  np.testing.assert_array_equal(tall, layers.resize_bias_table(wide, (2, 3), (4, 2)))


@pytest.mark.parametrize(
  'options', [{'rotary': {'type': 'axial'}}, {'window_size': 2}, {'neck': 4}]
)
def test_tokens_without_their_places_are_refused(options):
  model = ViT(**FIELDS | options)
  with pytest.raises(FieldError, match=f'^{next(iter(options))}: set, but tokens are left out'):
    model.init(jax.random.key(0), IMAGES, select_tokens=lambda tokens: tokens[:, :2])


def fitted(old, new):
  """The notes on weights of one ViT that go into another."""
  old, new = (ModelConfig(ViT(**FIELDS | more), 3, (8, 12)) for more in (old, new))
  return adapt({'params': random_params(old.model)}, old, new, 'a.npz')[1]


def test_weights_are_fitted_to_options_of_training_and_of_the_head():
  rotary = {'type': 'dinov3', 'shift_coords': 0.1, 'jitter_coords': 2.0, 'rescale_coords': 2.0}
  assert not fitted({'rotary': rotary}, {'rotary': {'type': 'dinov3'}})
  message = r'^rotary\.temperature: 50\.0, but a\.npz has weights for 100\.0'
  with pytest.raises(FieldError, match=message):
    fitted({'rotary': rotary}, {'rotary': {'type': 'dinov3', 'temperature': 50.0}})
  with pytest.raises(FieldError, match=r'^rotary: None, but a\.npz has weights for {'):
    fitted({'rotary': rotary}, {})
  with pytest.raises(FieldError, match=r"^relative_positions\.type: 'mlp', .* for 'decomposed'"):
    fitted(*({'relative_positions': {'type': kind}} for kind in ('decomposed', 'mlp')))
  assert fitted({'class_token': True, 'pool_prefix': True}, {'class_token': True}) == [
    'pool_prefix: the head reads the tokens of patches alone, unlike that of the weights'
  ]


@pytest.mark.parametrize('kind', ['bias', 'decomposed'])
def test_parameters_of_distances_are_of_one_grid(kind):
  model = ViT(**FIELDS, relative_positions={'type': kind}, positional_embedding='none')
  variables = {'params': random_params(model)}
  with pytest.raises(FieldError, match=rf"^relative_positions\.type: '{kind}', .* grid than 3x5"):
    jax.eval_shape(model.apply, variables, TALL)


def test_tokens_are_learned_of_the_patches_alone():
  options = EVERYTHING | {'rotary': None, 'relative_positions': None}
  tokenizer = {'type': 'dynamic', 'num_tokens': 2, 'tokenlearner_loc': 1}
  model = ViT(**FIELDS | options, tokenizer=tokenizer)
  params = random_params(model)

  def tokens(params):
    found = model.apply({'params': params}, IMAGES, method='features', mutable=['intermediates'])
    return found[0], found[1]['intermediates']['Transformer']['TokenLearnerModuleV11_0']

  found, learner = jax.eval_shape(tokens, params)
  assert (found.tokens.shape, found.num_prefix, found.num_registers) == ((2, 3 + 2, 8), 3, 2)
  assert learner['token_maps'][0].shape == (2, 2, 6)


@pytest.mark.parametrize(
  'options',
  [
    EVERYTHING,
    {'differential': True, 'block': 'parallel', 'patch_norm': True},
    {'window_size': 2, 'relative_positions': {'type': 'decomposed'}, 'neck': 4},
  ],
  ids=['everything', 'differential', 'windows'],
)
def test_tokens_have_the_dtype_of_the_computation(options):
  model = ViT(**FIELDS | options, dtype=jnp.bfloat16)
  variables = {'params': random_params(model)}
  found = jax.eval_shape(
    functools.partial(model.apply, layers=(0, 1), method='features'), variables, IMAGES
  )
  assert {x.dtype for x in (found.pooled, found.tokens, *found.layers)} == {jnp.dtype('bfloat16')}
