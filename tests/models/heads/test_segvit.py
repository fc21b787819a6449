"""SegViT's decoder against PyTorch, written from the paper, 2210.05844, and its repository."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from vit_jax import models
from vit_jax.errors import UsageError

SIZES = {
  'square': ((8, 8), {'layers': None, 'embed_dim': None, 'num_heads': 2, 'num_layers': 1}, 3),
  'wide': ((12, 20), {'layers': (0, 3), 'embed_dim': 12, 'num_heads': 3, 'num_layers': 2}, 5),
}


def build(image_size, options, num_classes, *, backbone=(), **attributes):
  config = models.default_config('vit').to_dict()
  config |= {'hidden_size': 16, 'mlp_dim': 16, 'num_layers': 4, 'num_heads': 2}
  config |= {'patches': {'size': (4, 4)}} | dict(backbone)
  config['head'] = {'name': 'segvit', **options}
  model = models.build(config, num_classes=num_classes, **attributes)
  images = np.random.default_rng(0).normal(size=(2, *image_size, 3)).astype(np.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), variables)
  return model, variables, images


def linear(params, x):
  return functional.linear(x, params['kernel'].T, params['bias'])


def norm(params, x):
  return functional.layer_norm(x, x.shape[-1:], params['scale'], params['bias'], eps=1e-5)


def self_attention(params, x, num_heads):
  """PyTorch's own module, with the parameters in its packed layout."""
  width = x.shape[-1]
  module = torch.nn.MultiheadAttention(width, num_heads, batch_first=True)
  parts = [params[name] for name in ('query', 'key', 'value')]
  state = {
    'in_proj_weight': torch.cat([part['kernel'].reshape(width, width).T for part in parts]),
    'in_proj_bias': torch.cat([part['bias'].reshape(-1) for part in parts]),
    'out_proj.weight': params['out']['kernel'].reshape(width, width).T,
    'out_proj.bias': params['out']['bias'],
  }
  return torch.func.functional_call(module, state, (x, x, x))[0]


def attention_to_mask(params, x, tokens, num_heads):
  def heads(name, y):
    y = linear(params[name], y)
    return y.reshape(*y.shape[:2], num_heads, -1).transpose(1, 2)

  q, k, v = heads('q', x), heads('k', tokens), heads('v', tokens)
  similarity = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
  y = (similarity.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
  return linear(params['proj'], y), similarity.mean(1)


def decode(params, layers, grid, size, options):
  """Returns class logits, mask logits and scores, from the layers [B, N, D], the first first."""
  queries = params['q'].expand(len(layers[0]), -1, -1)
  states, masks, total = [], [], 0
  for stage, tokens in enumerate(reversed(layers), 1):
    tokens = norm(params[f'proj_norm_{stage}'], linear(params[f'input_proj_{stage}'], tokens))
    for layer in range(options['num_layers']):
      p = params[f'decoder_{stage}_layers_{layer}']
      y = self_attention(p['self_attn'], queries, options['num_heads'])
      queries = norm(p['norm1'], queries + y)
      y, similarity = attention_to_mask(p['multihead_attn'], queries, tokens, options['num_heads'])
      queries = norm(p['norm2'], queries + y)
      y = linear(p['linear2'], linear(p['linear1'], queries).relu())
      queries = norm(p['norm3'], queries + y)
    total = total + similarity.reshape(*similarity.shape[:2], *grid)
    states.append(linear(params['class_embed'], queries))
    masks.append(total)
  where = functional.interpolate(masks[-1], size=size, mode='bilinear', align_corners=False)
  whether = states[-1].softmax(-1)[..., :-1]
  scores = torch.einsum('bqc,bqhw->bhwc', whether, where.sigmoid())
  return torch.stack(states, 1), torch.stack(masks, 1), scores


@pytest.mark.parametrize('name', SIZES)
def test_the_decoder_is_that_of_the_paper(name):
  size, options, num_classes = SIZES[name]
  backbone = {'classifier': 'token' if name == 'square' else 'gap'}
  model, variables, images = build(size, options, num_classes, backbone=backbone)
  chosen = options['layers'] or (0, 1, 3)  # the ends of thirds of four layers
  grid, prefix = tuple(side // 4 for side in size), int(name == 'square')
  rng, num_layers, keys = np.random.default_rng(2), len(chosen), num_classes + 1
  shapes = (num_layers, num_classes, keys), (num_layers, num_classes, *grid), (*size, num_classes)
  cotangents = [rng.normal(size=(2, *shape)).astype(np.float32) for shape in shapes]

  def compute(variables):
    backbone = {'params': variables['params']['backbone']}
    method = type(model.backbone).features
    features = model.backbone.apply(backbone, images, layers=chosen, method=method)
    outputs = model.apply(variables, images)
    found = outputs['class_logits'][:, 0], outputs['mask_logits'][:, 0], outputs['scores']
    total = sum((y * c).sum() for y, c in zip(found, cotangents, strict=True))
    return total, (found, features.layers)

  (_, (found, layers)), grads = jax.jit(jax.value_and_grad(compute, has_aux=True))(variables)
  params = jax.tree.map(lambda x: torch.tensor(x, requires_grad=True), variables['params'])
  tokens = [torch.tensor(np.asarray(x)[:, prefix:]) for x in layers]
  expected = decode(params, tokens, grid, size, options)
  for ours, theirs in zip(found, expected, strict=True):
    assert ours.dtype == jnp.float32
    assert_close(ours, theirs.detach().numpy())
  sum((y * torch.tensor(c)).sum() for y, c in zip(expected, cotangents, strict=True)).backward()
  del params['backbone']
  largest = max(float(x.grad.abs().max()) for x in jax.tree.leaves(params))
  jax.tree.map(
    lambda x, ours: assert_close(ours, x.grad.numpy(), 1e-4 * largest),
    params,
    {name: grads['params'][name] for name in params},
  )


def assert_close(ours, theirs, atol=None):
  atol = 1e-4 * np.abs(theirs).max() if atol is None else atol
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=atol)


def test_dropout_in_training_alone():
  options = {'layers': (0,), 'num_heads': 1, 'num_layers': 1, 'dropout_rate': 0.5}
  model, variables, images = build((8, 8), options, 3, backbone={'num_layers': 1})
  apply = jax.jit(lambda key: model.apply(variables, images, train=True, rngs={'dropout': key}))
  first, second = (apply(jax.random.key(i))['scores'] for i in range(2))
  assert (first != second).any()
  plain = jax.jit(functools.partial(model.clone(dropout_rate=0.0).apply, train=True))
  trained = plain(variables, images)['scores']
  np.testing.assert_allclose(trained, jax.jit(model.apply)(variables, images)['scores'], rtol=1e-6)


def test_the_compute_dtype_reaches_the_decoder_and_not_its_outputs():
  options, backbone = {'layers': (0,), 'num_heads': 1, 'num_layers': 1}, {'num_layers': 1}
  model, variables, images = build((8, 8), options, 3, backbone=backbone, dtype=jnp.bfloat16)
  capture = {'capture_intermediates': True, 'mutable': ['intermediates']}
  outputs, state = jax.jit(functools.partial(model.apply, **capture))(variables, images)
  assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype('float32')}
  inner = state['intermediates']['decoder_1_layers_0']
  assert inner['norm3']['__call__'][0].dtype == jnp.bfloat16
  exact = model.clone(dtype=jnp.float32, backbone=model.backbone.clone(dtype=jnp.float32))
  exact = jax.jit(exact.apply)(variables, images)['scores']
  np.testing.assert_allclose(outputs['scores'], exact, atol=0.05)


def test_the_backbone_s_learning_rates_and_the_head_s():
  model, *_ = build((8, 8), SIZES['square'][1], 3)
  assert model.layer_of('backbone/Transformer/encoderblock_2/LayerNorm_0/scale') == 3
  assert model.layer_of('decoder_1_layers_0/linear1/kernel') == 5
  assert model.is_head('q')


RESNET = {'name': 'resnet18', 'num_filters': 4, 'head': {'name': 'segvit', 'num_heads': 1}}


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'layers': (1, 4)}, r'^head\.layers: \(1, 4\) are not layers in order, from 0 to 3'),
    ({'layers': (2, 1)}, r'^head\.layers: \(2, 1\)'),
    ({'num_heads': 3}, r'^head\.num_heads: 3 heads do not divide a width of 8'),
    ({'embed_dim': 0}, r'^head\.embed_dim: 0 is not a whole number from 1 to'),
    ({'dropout_rate': 1.0}, r'^head\.dropout_rate: 1\.0 is not a number from 0 to below 1'),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(UsageError, match=message):
    build((8, 8), SIZES['square'][1] | options, 3)


def test_images_that_patches_do_not_cover_are_refused():
  with pytest.raises(UsageError, match=r'^drop_remainder: patches cover 8x8 pixels of 10x8'):
    build((10, 8), SIZES['square'][1], 3, backbone={'drop_remainder': True})


def test_a_model_of_maps_is_refused():
  model = models.build(RESNET, num_classes=3)
  with pytest.raises(UsageError, match='has maps of its stages, and no layers of tokens'):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
