"""Differential attention, against its formula and timm's module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import layers

HEADS, WIDTH = 3, 24
X = np.random.default_rng(0).normal(size=(2, 5, WIDTH)).astype(np.float32)


def make(layer, **attributes):
  """The module and normally distributed parameters."""
  module = layers.DifferentialAttention(num_heads=HEADS, layer=layer, **attributes)
  shapes = jax.eval_shape(module.init, jax.random.key(0), X)['params']
  rng = np.random.default_rng(1)
  return module, jax.tree.map(lambda s: np.float32(0.5 * rng.normal(size=s.shape)), shapes)


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def test_it_is_the_difference_of_two_softmaxes():
  module, params = make(layer=3)
  q, k, v = (
    np.einsum('bnc,chd->bnhd', X, params[name]['kernel']) + params[name]['bias']
    for name in ('query', 'key', 'value')
  )
  start = 0.8 - 0.6 * np.exp(-0.9)
  products = [params[f'lambda_q{i}'] @ params[f'lambda_k{i}'] for i in (1, 2)]
  factor = np.exp(products[0]) - np.exp(products[1]) + start
  halves = [np.einsum('bnhd,bmhd->bhnm', q[..., i], k[..., i]) for i in (slice(4), slice(4, None))]
  first, second = (softmax(logits / 2) for logits in halves)
  heads = np.einsum('bhnm,bmhd->bnhd', first - factor * second, v)
  heads /= np.sqrt((heads**2).mean(-1, keepdims=True) + 1e-5)
  heads *= (1 - start) * params['sub_norm']['scale']
  expected = np.einsum('bnhd,hdc->bnc', heads, params['out']['kernel']) + params['out']['bias']
  out, state = module.apply({'params': params}, X, mutable=['intermediates'])
  np.testing.assert_allclose(out, expected, atol=1e-5)
  captured = state['intermediates']['attention_weights'][0]  # [B, 2 heads, N, N]
  np.testing.assert_allclose(captured[:, ::2], first, atol=1e-6)
  np.testing.assert_allclose(captured[:, 1::2], second, atol=1e-6)


def test_all_parameters_learn_and_lambda_starts_by_the_layer():
  module, params = make(layer=1, qk_norm=True, dtype=jnp.bfloat16)

  def loss(params, layer):
    out = module.clone(layer=layer).apply({'params': params}, X)
    return jnp.sum(out.astype(jnp.float32) ** 2)

  assert module.apply({'params': params}, X).dtype == jnp.bfloat16
  gradients = jax.jit(jax.grad(loss))(params, 1)  # the layer may be traced, as in a loop over them
  assert all(np.any(g) for g in jax.tree.leaves(gradients['sub_norm']))
  assert all(np.any(gradients[f'lambda_{x}{i}']) for x in 'qk' for i in (1, 2))
  assert np.any(gradients['query_norm']['scale'])
  assert loss(params, 0) != loss(params, 5)
  first = module.init(jax.random.key(2), X)['params']['lambda_q1']
  assert first.shape == (4,)
  assert np.std(first) < 0.3


@pytest.mark.parametrize(
  ('layer', 'options'),
  [(0, {}), (7, {'qkv_bias': False, 'use_bias': False, 'qk_norm': True, 'attention_norm': True})],
)
def test_as_timm(layer, options):
  torch = pytest.importorskip('torch')
  import torchvision_operators  # noqa: F401  before timm

  timm = pytest.importorskip('timm.layers.diff_attention', exc_type=ImportError)
  module, params = make(layer, **options)
  renamed = {'use_bias': 'proj_bias', 'attention_norm': 'scale_norm'}
  theirs = timm.DiffAttention(
    WIDTH,
    HEADS,
    depth=layer,
    norm_layer=torch.nn.LayerNorm,
    **{'qkv_bias': True} | {renamed.get(name, name): value for name, value in options.items()},
  )
  state = {n: v for n, v in params.items() if n.startswith('lambda')}
  parts = [params[name] for name in ('query', 'key', 'value')]
  state['qkv.weight'] = np.concatenate([p['kernel'].reshape(WIDTH, -1).T for p in parts])
  state['proj.weight'] = params['out']['kernel'].reshape(-1, WIDTH).T
  state['sub_norm.weight'] = params['sub_norm']['scale']
  if not options:
    state['qkv.bias'] = np.concatenate([p['bias'].ravel() for p in parts])
    state['proj.bias'] = params['out']['bias']
  else:
    for ours, name in (('query_norm', 'q_norm'), ('key_norm', 'k_norm'), ('norm', 'norm')):
      state |= {f'{name}.weight': params[ours]['scale'], f'{name}.bias': params[ours]['bias']}
  theirs.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
  with torch.no_grad():
    expected = theirs.eval()(torch.tensor(X))
  # Flax's norms have another epsilon than PyTorch's.
  out = module.clone(norm=layers.norm_layer('layernorm', 1e-5, jnp.float32)).apply(
    {'params': params}, X
  )
  np.testing.assert_allclose(out, expected, atol=1e-5)
