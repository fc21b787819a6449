"""What ViT's layers, and what stands before and after them, may be made of, against PyTorch."""

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vit_jax.models.vit import ViT

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


def dense(x, p):
  return torch.tensordot(x, p['kernel'], 1) + p.get('bias', 0)


def norm(x, p, model):
  if model.norm == 'rmsnorm':
    return F.rms_norm(x, x.shape[-1:], p['scale'], model.norm_epsilon)
  return F.layer_norm(x, x.shape[-1:], p['scale'], p['bias'], model.norm_epsilon)


def attention(x, p, model, keys=None):
  keys = x if keys is None else keys
  q, k, v = (dense(a, p[n]) for n, a in (('query', x), ('key', keys), ('value', keys)))
  if 'query_norm' in p:
    q, k = norm(q, p['query_norm'], model), norm(k, p['key_norm'], model)
  x = F.scaled_dot_product_attention(*(a.transpose(1, 2) for a in (q, k, v))).transpose(1, 2)
  x = x.flatten(2)
  if 'norm' in p:
    x = norm(x, p['norm'], model)
  return dense(x, {**p['out'], 'kernel': p['out']['kernel'].flatten(0, 1)})


def mlp(x, p, model):
  activation, hidden = ACTIVATIONS[model.activation], dense(x, p['Dense_0'])
  hidden = activation(dense(x, p['gate'])) * hidden if 'gate' in p else activation(hidden)
  if 'norm' in p:
    hidden = norm(hidden, p['norm'], model)
  return dense(hidden, p['Dense_1'])


def block(x, p, model):
  branches = [(attention, 'MultiHeadDotProductAttention_0'), (mlp, 'MlpBlock_0')]
  for i, (f, name) in enumerate(branches):
    if model.block == 'post':
      y = norm(f(x, p[name], model), p[f'LayerNorm_{i}'], model)
    else:
      y = f(norm(x, p[f'LayerNorm_{i}'], model), p[name], model)
    x = x + y * (p[f'LayerScale_{i}']['gamma'] if f'LayerScale_{i}' in p else 1)
  return x


def embed(images, p, model):
  """[B, P + N, D] with positions."""
  kernel = p['embedding']['kernel'].permute(3, 2, 0, 1)
  x = F.conv2d(images.permute(0, 3, 1, 2), kernel, stride=model.patch_size)
  x = x.flatten(2).transpose(1, 2) + p['embedding'].get('bias', 0)
  if model.patch_norm:
    x = norm(x, p['embedding_norm'], model)
  prefix = [p[n].expand(len(x), -1, -1) for n in ('cls', 'dist', 'registers') if n in p]
  count = sum(tokens.shape[1] for tokens in prefix)
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
    x = block(x, encoder[f'encoderblock_{layer}'], model)
  if model.final_norm and not model.fc_norm:
    x = norm(x, encoder['encoder_norm'], model)
  return head(x, p, model)


def check(model, images=IMAGES, atol=2e-5):
  """Compares logits; returns the parameters' names, and their shapes."""
  params = random_params(model, images)
  found = np.asarray(model.apply({'params': params}, images))
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
