"""Kernels of a GPU or a TPU: where they are chosen, and what is around them, without such a device.

cuDNN's and Mosaic's custom calls are looked for in what is lowered for these platforms; Pallas's
kernel runs in its interpreter, and XLA's attention stands for cuDNN's.
"""

import functools
import types

import jax
import jax.experimental.pallas.tpu as pltpu
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from vit_jax.models import vit
from vit_jax.models.layers import attention, cpu, devices, fused_attention
from vit_jax.train import flops

CALLS = {'cuda': ('__cudnn$fmhaSoftmax(', '__cudnn$fmhaSoftmaxBackward('), 'tpu': ('@tpu_custom',)}


@pytest.fixture
def accelerators(monkeypatch):
  """As JAX finds on a machine with a GPU and a TPU, where it asks at all."""
  gpu = types.SimpleNamespace(compute_capability='9.0')
  monkeypatch.setattr(devices, 'at_hand', lambda platform: [gpu])
  for name, answer in (
    ('check_cudnn_version', 91000),
    ('check_compute_capability', True),
    ('is_cuda_compute_capability_equal', False),
  ):
    monkeypatch.setattr(fused_attention_stablehlo, name, lambda *_, answer=answer: answer)
  return gpu


def inputs(tokens=130, batch=(2,), heads=1, width=8, dtype=jnp.bfloat16):
  keys = jax.random.split(jax.random.key(0), 4)
  return [jax.random.normal(key, (*batch, tokens, heads, width), dtype) for key in keys]


def values_and_gradients(function, query, key, value, cotangent):
  out, back = jax.vjp(function, query, key, value)
  return out, *back(cotangent)


def kernels(function, platform, *args):
  """How many calls of each kernel of a platform there are in what is lowered for it."""
  text = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()
  return tuple(text.count(call) for call in CALLS[platform])


@pytest.mark.parametrize(
  ('platform', 'options', 'found'),
  [
    ('cuda', {}, (1, 1)),
    ('cuda', {'tokens': 197, 'batch': (2, 3), 'dtype': jnp.float16}, (1, 1)),
    ('cuda', {'dtype': jnp.float32}, (0, 0)),
    ('cuda', {'tokens': 64}, (0, 0)),
    ('cuda', {'width': 12}, (0, 0)),
    ('tpu', {'tokens': 1025}, (3,)),  # forward, of keys and values, of queries
    ('tpu', {'tokens': 1000}, (0,)),
    ('tpu', {'tokens': 1024, 'dtype': jnp.float32}, (0,)),
    ('tpu', {'tokens': 1024, 'width': 192}, (0,)),
  ],
)
def test_kernels_are_chosen_by_device_and_shape(accelerators, platform, options, found):
  step = functools.partial(values_and_gradients, attention.dot_product_attention)
  assert kernels(step, platform, *inputs(**options)) == found


def test_values_that_are_wider_than_keys_take_the_usual_operations(accelerators):
  query, key, value = inputs(1025)[:3]
  value = jnp.tile(value, 2)
  for platform in CALLS:
    assert not any(kernels(attention.dot_product_attention, platform, query, key, value))


def test_a_gpu_before_ampere_and_a_machine_without_any_have_none(accelerators, monkeypatch):
  accelerators.compute_capability = '7.5'
  assert not fused_attention.implementations(*inputs()[:3])
  monkeypatch.undo()
  assert not fused_attention.implementations(*inputs()[:3])
  assert not fused_attention.implementations(*inputs(1024)[:3])


@pytest.mark.parametrize('option', ['bias', 'mask', 'dropout'])
def test_what_kernels_cannot_do_takes_the_usual_operations(accelerators, option):
  options = {
    'bias': {'bias': jnp.ones((130, 130))},
    'mask': {'mask': jnp.ones((130, 130), bool)},
    'dropout': {'dropout_rng': jax.random.key(0), 'dropout_rate': 0.5, 'deterministic': False},
  }[option]
  query = inputs()[0]
  assert kernels(lambda q: attention.dot_product_attention(q, q, q, **options), 'cuda', query) == (
    0,
    0,
  )


def test_converters_get_the_usual_operations(accelerators):
  query = inputs()[0]
  with cpu.left_alone():
    assert kernels(lambda q: attention.dot_product_attention(q, q, q), 'cuda', query) == (0, 0)
  (batch,) = jax.export.symbolic_shape('batch')
  symbolic = jax.ShapeDtypeStruct((batch, *query.shape[1:]), query.dtype)
  export = jax.export.export(
    jax.jit(lambda q: attention.dot_product_attention(q, q, q)), platforms=['cuda']
  )
  assert not any(call in export(symbolic).mlir_module() for call in CALLS['cuda'])


def test_a_model_whose_weights_are_captured_or_perturbed_takes_the_usual_operations(accelerators):
  model = vit.ViT(
    num_classes=2,
    mlp_dim=8,
    num_layers=2,
    num_heads=1,
    hidden_size=8,
    patches={'size': (1, 1)},
    classifier='map',
    dtype=jnp.bfloat16,
  )
  images = jnp.ones((1, 12, 12, 3))
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  assert kernels(model.apply, 'cuda', variables, images) == (2, 0)  # and none for the one probe
  capture = functools.partial(model.apply, mutable=['intermediates'])
  assert kernels(capture, 'cuda', variables, images) == (0, 0)
  zeros = {'attention_weights': jax.ShapeDtypeStruct((1, 1, 144, 144), jnp.float32)}
  for name in ('MultiHeadDotProductAttention_0', 'encoderblock_1', 'Transformer', 'perturbations'):
    zeros = {name: zeros}
  perturbed = {**variables, **zeros}
  assert kernels(model.apply, 'cuda', perturbed, images) == (1, 0)


def test_other_devices_compute_as_usual_beside_accelerators(accelerators):
  args = inputs(1024)
  ours, usual = (
    jax.jit(functools.partial(values_and_gradients, function))(*args)
    for function in (attention.dot_product_attention, attention.attend)
  )
  assert len(fused_attention.implementations(*args[:3])) == 2
  for array, expected in zip(ours, usual, strict=True):
    np.testing.assert_array_equal(array, expected)


def test_operations_are_counted_as_of_the_usual_ones(accelerators, monkeypatch):
  step = functools.partial(values_and_gradients, attention.dot_product_attention)
  beside = flops.count(step, *inputs())
  monkeypatch.undo()
  assert beside == flops.count(step, *inputs()) > 0


def test_nothing_of_the_size_of_the_weights_is_kept_for_gradients(accelerators):
  q, k, v, _ = inputs(1024)
  back = jax.eval_shape(lambda *args: jax.vjp(attention.dot_product_attention, *args)[1], q, k, v)
  assert all(leaf.shape.count(1024) == 1 for leaf in jax.tree.leaves(back) if leaf.size > 1024 * 16)
  kept = jax.eval_shape(lambda *args: jax.vjp(attention.attend, *args)[1], q, k, v)
  assert any(leaf.shape.count(1024) == 2 for leaf in jax.tree.leaves(kept))


def module_step(module, x, **options):
  """(values, gradients) of a module, compiled for tokens [B, N, D], and its arguments."""
  variables = module.init(jax.random.key(1), x)

  def loss(variables, x):
    y = module.apply(variables, x, **options).astype(jnp.float32)
    return jnp.square(y).mean(), y

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)), (variables, x)


def test_a_module_adds_tokens_to_its_input_and_not_to_queries_keys_and_values(accelerators):
  module = attention.MultiHeadDotProductAttention(num_heads=2, dtype=jnp.bfloat16)
  step, args = module_step(module, jax.random.normal(jax.random.key(0), (2, 131, 16)))
  text = step.trace(*args).lower(lowering_platforms=('cuda',)).as_text()
  assert [text.count(call) for call in CALLS['cuda']] == [1, 1]
  assert '131x16x' in text
  assert '131x2x8x' not in text


@pytest.mark.parametrize(
  'options', [{}, {'qk_norm': True, 'attention_norm': True, 'num_kv_heads': 1}]
)
def test_added_tokens_change_nothing(accelerators, monkeypatch, options):
  module = attention.MultiHeadDotProductAttention(num_heads=2, dtype=jnp.bfloat16, **options)
  x = jax.random.normal(jax.random.key(0), (2, 131, 16))
  padded, args = module_step(module, x)
  assert module.bind({}).padding(x, deterministic=True) == 1
  ours = padded(*args)
  monkeypatch.undo()
  assert module.bind({}).padding(x, deterministic=True) == 0
  usual, _ = module_step(module, x)
  (value, gradients), (expected, expected_gradients) = ours, usual(*args)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=2**-6, atol=2**-8), value, expected
  )
  scale = max(np.abs(x).max() for x in jax.tree.leaves(expected_gradients))
  close = functools.partial(np.testing.assert_allclose, rtol=2**-6, atol=2**-6 * scale)
  jax.tree.map(close, gradients, expected_gradients)


def test_captured_weights_are_of_the_tokens_alone(accelerators):
  module = attention.MultiHeadDotProductAttention(num_heads=2, dtype=jnp.bfloat16)
  x = jax.random.normal(jax.random.key(0), (2, 131, 16))
  _, kept = module.apply(module.init(jax.random.key(1), x), x, mutable=['intermediates'])
  assert kept['intermediates']['attention_weights'][0].shape == (2, 2, 131, 131)


def test_keys_of_padding_are_not_seen():
  query, key, value, _ = inputs(9, dtype=jnp.float32)
  padded = attention.dot_product_attention(query, key, value, padding=2)
  np.testing.assert_allclose(
    padded, attention.attend(query, key[:, :7], value[:, :7]), rtol=1e-6, atol=1e-6
  )


def assert_as_exact(kernel, *args):
  """A kernel's values and gradients are as close to those in float32 as the usual operations'."""
  wide = [x.astype(jnp.float32) for x in args]
  exact = jax.jit(functools.partial(values_and_gradients, attention.attend))(*wide)
  ours = jax.jit(functools.partial(values_and_gradients, kernel))(*args)
  for array, expected in zip(ours, exact, strict=True):
    assert array.dtype == args[0].dtype
    np.testing.assert_allclose(np.float32(array), expected, rtol=2**-7, atol=2**-7)


def test_pallas_kernel_with_padding_against_the_usual_operations():
  query, key, value, cotangent = inputs(130, batch=(1, 1), width=64)
  with pltpu.force_tpu_interpret_mode():
    assert_as_exact(
      fused_attention._pallas, query[..., :100, :, :], key, value, cotangent[..., :100, :, :]
    )
    padded = functools.partial(fused_attention._pallas, padding=30)
    seen = (x.astype(jnp.float32)[..., :100, :, :] for x in (key, value))
    np.testing.assert_allclose(
      np.float32(padded(query, key, value)),
      attention.attend(query.astype(jnp.float32), *seen),
      rtol=2**-7,
      atol=2**-7,
    )


@pytest.mark.parametrize(('queries', 'keys'), [(9, 9), (8, 5), (5, 8), (6, 6)])
def test_padding_for_cudnn_changes_nothing(monkeypatch, queries, keys):
  """As `jax.nn` defines the lengths that are given to it; under vmap, too."""
  xla = jax.nn.dot_product_attention

  def stand_in(query, key, value, *, implementation, **lengths):
    assert implementation == 'cudnn'
    assert query.shape[1] % 2 == key.shape[1] % 2 == 0
    assert len(lengths) == 2 * (keys % 2)
    return xla(query, key, value, implementation='xla', **lengths)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)
  query, key, value, cotangent = inputs(9, batch=(2, 3), heads=2)
  args = query[:, :, :queries], key[:, :, :keys], value[:, :, :keys], cotangent[:, :, :queries]
  assert_as_exact(fused_attention._cudnn, *args)
  assert_as_exact(jax.vmap(fused_attention._cudnn), *args)
