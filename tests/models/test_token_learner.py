"""TokenLearner's modules: shapes, grids, class token, frames and captured maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models.token_learner import (
  EncoderMod,
  EncoderModFuser,
  TokenFuser,
  TokenLearnerModule,
  TokenLearnerModuleV11,
  TokenLearnerViT,
)
from vit_jax.models.vit import ViT

ENCODER = {'num_layers': 2, 'mlp_dim': 12, 'num_heads': 2, 'num_tokens': 3, 'tokenlearner_loc': 1}


def normal(*shape):
  return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def random_variables(module, *inputs):
  """Parameters none of which is zero, so that every one of them matters."""
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
  return jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), shapes)


def test_v11_gives_the_shape_of_the_paper():
  module = TokenLearnerModuleV11(num_tokens=8)
  tokens, _ = jax.eval_shape(
    lambda x: module.init_with_output(jax.random.key(0), x, deterministic=True),
    jax.ShapeDtypeStruct((256, 32, 32, 128), jnp.float32),
  )
  assert tokens.shape == (256, 8, 128)


@pytest.mark.parametrize('module', [TokenLearnerModule(3, grid=(2, 5)), TokenLearnerModuleV11(3)])
def test_flat_inputs_are_the_grid_row_by_row(module):
  x = normal(2, 2, 5, 8)
  variables = random_variables(module, x)
  tokens = module.apply(variables, x)
  assert tokens.shape == (2, 3, 8)
  np.testing.assert_allclose(module.apply(variables, x.reshape(2, 10, 8)), tokens, rtol=1e-6)


def test_v1_takes_flat_inputs_for_a_square():
  module, x = TokenLearnerModule(3), normal(2, 3, 3, 8)
  variables = random_variables(module, x)
  flat = module.apply(variables, x.reshape(2, 9, 8))
  np.testing.assert_allclose(flat, module.apply(variables, x), rtol=1e-6)
  with pytest.raises(ValueError, match='10 tokens do not fill a 3x3 grid'):
    module.apply(variables, normal(2, 10, 8))


def test_v1_mean_pooling_is_the_sum_over_positions_divided_by_their_number():
  x = normal(2, 3, 4, 8)
  variables = random_variables(TokenLearnerModule(3), x)
  mean = TokenLearnerModule(3, use_sum_pooling=False).apply(variables, x)
  np.testing.assert_allclose(mean * 12, TokenLearnerModule(3).apply(variables, x), rtol=1e-5)


def test_v11_tokens_are_convex_combinations_of_the_inputs():
  x = normal(2, 9, 8)
  module = TokenLearnerModuleV11(3)
  tokens = module.apply(random_variables(module, x), x)
  assert (tokens <= x.max(1, keepdims=True)).all()
  assert (tokens >= x.min(1, keepdims=True)).all()


@pytest.mark.parametrize('use_normalization', [True, False])
def test_fuser_returns_the_shape_of_the_original(use_normalization):
  tokens, original = normal(2, 3, 8), normal(2, 4, 5, 8)
  module = TokenFuser(use_normalization=use_normalization)
  variables = random_variables(module, tokens, original)
  assert ('fuser_mix_norm1' in variables['params']) == use_normalization
  fused = module.apply(variables, tokens, original)
  assert fused.shape == original.shape
  flat = module.apply(variables, tokens, original.reshape(2, 20, 8))
  np.testing.assert_allclose(flat, fused.reshape(2, 20, 8), rtol=1e-6)


@pytest.mark.parametrize(
  ('module', 'inputs'),
  [
    (TokenLearnerModuleV11(3, dropout_rate=0.5), [normal(2, 9, 8)]),
    (TokenFuser(dropout_rate=0.5), [normal(2, 3, 8), normal(2, 9, 8)]),
  ],
)
def test_dropout_of_the_modules_acts_in_training_alone(module, inputs):
  variables = random_variables(module, *inputs)
  first, second = (
    module.apply(variables, *inputs, deterministic=False, rngs={'dropout': jax.random.key(seed)})
    for seed in (0, 1)
  )
  assert jnp.abs(first - second).max() > 1e-3
  assert jnp.abs(first - module.apply(variables, *inputs)).max() > 1e-3


@pytest.mark.parametrize(
  ('kind', 'tokens', 'use_v11'), [(EncoderMod, 6, False), (EncoderModFuser, 20, True)]
)
def test_frames_are_tokenized_one_by_one(kind, tokens, use_v11):
  """With attention silenced, two frames together are each of them alone."""
  encoder = kind(
    **ENCODER,
    tokenizer_type='video',
    use_v11=use_v11,
    grid=(2, 5),
    positional_embedding='sinusoidal_2d',
  )
  clip = normal(3, 20, 8)
  pair = encoder.clone(temporal_dimensions=2)
  variables = random_variables(pair, clip)
  for i in range(2):
    block = variables['params'][f'encoderblock_{i}']
    block['MultiHeadDotProductAttention_0']['out'] = jax.tree.map(
      jnp.zeros_like, block['MultiHeadDotProductAttention_0']['out']
    )
  together = pair.apply(variables, clip)
  assert together.shape == (3, tokens, 8)
  alone = [encoder.apply(variables, clip[:, i : i + 10]) for i in (0, 10)]
  np.testing.assert_allclose(together, jnp.concatenate(alone, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', [EncoderMod, EncoderModFuser])
@pytest.mark.parametrize('use_v11', [True, False])
def test_the_tokenizer_does_not_see_the_class_token(kind, use_v11):
  encoder = kind(
    **ENCODER, tokenizer_type='dynamic', use_v11=use_v11, grid=(2, 5), has_cls_token=True
  ).clone(tokenlearner_loc=0)
  x = normal(2, 11, 8)
  variables = random_variables(encoder, x)
  capture = functools.partial(encoder.apply, variables, mutable=['intermediates'])
  name = 'TokenLearnerModuleV11_0' if use_v11 else 'TokenLearnerModule_0'
  (out, before), (moved, after) = capture(x), capture(-x.at[:, 1:].multiply(-1))
  assert out.shape == (2, 4 if kind is EncoderMod else 11, 8)
  assert jnp.abs(moved - out)[:, 0].max() > 1e-3
  np.testing.assert_array_equal(
    before['intermediates'][name]['token_maps'][0], after['intermediates'][name]['token_maps'][0]
  )


@pytest.mark.parametrize(('use_v11', 'use_tokenfuse'), [(False, False), (True, True)])
def test_token_maps_can_be_captured(use_v11, use_tokenfuse):
  model = TokenLearnerViT(
    num_classes=5,
    mlp_dim=12,
    num_layers=3,
    num_heads=2,
    hidden_size=8,
    classifier='token',
    tokenizer={
      'type': 'dynamic',
      'patches': {'size': (2, 4)},
      'num_tokens': 3,
      'tokenlearner_loc': 1,
      'use_v11': use_v11,
      'use_tokenfuse': use_tokenfuse,
    },
    dtype=jnp.bfloat16,
  )
  images = normal(2, 8, 8, 3)
  variables = random_variables(model, images)
  logits = jax.jit(model.apply)(variables, images)
  capture = jax.jit(functools.partial(model.apply, mutable=['intermediates']))
  captured_logits, state = capture(variables, images)
  # Two programs, in bfloat16.
  np.testing.assert_allclose(captured_logits, logits, rtol=2e-2, atol=2e-2)

  scopes = state['intermediates']['Transformer']
  learner = 'TokenLearnerModuleV11' if use_v11 else 'TokenLearnerModule'
  expected = {f'{learner}_0'}
  if use_tokenfuse:
    expected |= {f'{learner}_1', 'TokenFuser_0', 'TokenFuser_1'}
  assert {name for name in scopes if not name.startswith('encoderblock')} == expected
  for name in expected:
    (maps,) = scopes[name]['token_maps']
    assert maps.shape == (2, 3, 8)
    assert maps.dtype == jnp.float32
    assert maps.min() > 0
    assert maps.max() < 1
    if name.startswith('TokenLearnerModuleV11'):
      np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
  queries = [
    scopes[f'encoderblock_{i}']['MultiHeadDotProductAttention_0']['attention_weights'][0].shape[2]
    for i in range(3)
  ]
  assert queries == [9, 4, 4]


@pytest.mark.parametrize('use_tokenfuse', [False, True])
def test_a_vit_with_the_tokenizer_is_a_token_learner(use_tokenfuse):
  """The same parameters, outputs and answers; without it, it keeps its tokens."""
  sizes = {'num_classes': 5, 'mlp_dim': 12, 'num_layers': 2, 'num_heads': 2, 'hidden_size': 8}
  tokenizer = {'type': 'dynamic', 'num_tokens': 3, 'use_tokenfuse': use_tokenfuse}
  patches = {'size': (4, 2)}
  model = ViT(**sizes, patches=patches, tokenizer=tokenizer)
  other = TokenLearnerViT(**sizes, patches=patches, tokenizer=tokenizer | {'tokenlearner_loc': 1})
  images = normal(2, 8, 8, 3)
  variables = random_variables(model, images)
  assert model.variable_shapes((8, 8), 3) == other.variable_shapes((8, 8), 3)
  np.testing.assert_array_equal(model.apply(variables, images), other.apply(variables, images))
  assert (model.tokenizer_layer, model.num_attention_layers) == (1, 0)
  plain = model.clone(tokenizer={'type': 'patch'})
  assert not any('Token' in name for name in plain.variable_shapes((8, 8), 3))
  assert (plain.tokenizer_layer, plain.learns_tokens) == (None, False)
