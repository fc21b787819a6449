"""ViT: parameter trees, published sizes, dtypes, dropout, remat and capture."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from vit_jax.errors import FieldError
from vit_jax.models import layers, sizes, vit
from vit_jax.models.token_learner import TokenFuser, TokenLearnerModuleV11, TokenLearnerViT
from vit_jax.models.vit import ViT

TINY = {'num_classes': 5, 'mlp_dim': 12, 'num_layers': 3, 'num_heads': 2, 'hidden_size': 8}
PATCHES = {'size': (4, 4)}
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)


def make(kind, **attributes):
  """A tiny model of either kind; the TokenLearner ones work on 2 tokens from layer 1 on."""
  if kind == 'vit':
    return ViT(**{**TINY, 'patches': PATCHES, **attributes})
  tokenizer = {
    'type': 'dynamic',
    'patches': PATCHES,
    'num_tokens': 2,
    'tokenlearner_loc': 1,
    'use_v11': kind != 'v1',
    'use_tokenfuse': kind != 'v11',
  }
  return TokenLearnerViT(**{**TINY, 'tokenizer': tokenizer, **attributes})


def random_variables(model, images=IMAGES):
  """Parameters none of which is zero, so that every one of them matters."""
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
  return jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), shapes)


def tree_of(model, images=IMAGES):
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
  assert list(shapes) == ['params']  # nothing captured
  leaves = jax.tree_util.tree_leaves_with_path(shapes['params'])
  return {jax.tree_util.keystr(path, simple=True, separator='/'): a.shape for path, a in leaves}


def norm(width):
  return {'scale': (width,), 'bias': (width,)}


def dense(inputs, outputs):
  return {'kernel': (inputs, outputs), 'bias': (outputs,)}


def attention(width, heads):
  split = {'kernel': (width, heads, width // heads), 'bias': (heads, width // heads)}
  out = {'kernel': (heads, width // heads, width), 'bias': (width,)}
  return {'query': split, 'key': split, 'value': split, 'out': out}


def flatten(tree, prefix=''):
  if not isinstance(tree, dict):
    return {prefix[:-1]: tree}
  return {k: v for name in tree for k, v in flatten(tree[name], f'{prefix}{name}/').items()}


ENCODER_BLOCK = {
  'LayerNorm_0': norm(8),
  'MultiHeadDotProductAttention_0': attention(8, 2),
  'LayerNorm_1': norm(8),
  'MlpBlock_0': {'Dense_0': dense(8, 12), 'Dense_1': dense(12, 8)},
}


def transformer(num_tokens, **more):
  return {
    'posembed_input': {'pos_embedding': (1, num_tokens, 8)},
    **{f'encoderblock_{i}': ENCODER_BLOCK for i in range(3)},
    'encoder_norm': norm(8),
    **more,
  }


def test_parameter_tree_with_class_token_and_representation():
  model = make('vit', classifier='token', representation_size=6)
  assert tree_of(model) == flatten(
    {
      'embedding': {'kernel': (4, 4, 3, 8), 'bias': (8,)},
      'cls': (1, 1, 8),
      'Transformer': transformer(7),
      'pre_logits': dense(8, 6),
      'output_projection': dense(6, 5),
    }
  )


def test_parameter_tree_with_map_head_and_fixed_positions():
  encoder = transformer(6)
  del encoder['posembed_input']
  model = make('vit', classifier='map', positional_embedding='sinusoidal_2d')
  assert tree_of(model) == flatten(
    {
      'embedding': {'kernel': (4, 4, 3, 8), 'bias': (8,)},
      'Transformer': encoder,
      'MAPHead_0': {
        'probe': (1, 1, 8),
        'MultiHeadDotProductAttention_0': attention(8, 2),
        'LayerNorm_0': norm(8),
        'MlpBlock_0': ENCODER_BLOCK['MlpBlock_0'],
      },
      'output_projection': dense(8, 5),
    }
  )


@pytest.mark.parametrize('kind', ['vit', 'v11'])
def test_parameter_tree_with_a_class_token_beside_pooling_and_a_norm_after_it(kind):
  plain = tree_of(make(kind, classifier='gap'))
  more = tree_of(make(kind, classifier='gap', class_token=True, fc_norm=True))
  renamed = {p.replace('Transformer/encoder_norm', 'fc_norm'): s for p, s in plain.items()}
  positions = 'Transformer/posembed_input/pos_embedding'
  assert more == renamed | {'cls': (1, 1, 8), positions: (1, 7, 8)}


MASKING = {'Dense_0': dense(8, 64), 'Dense_1': dense(64, 2)}
FUSER = {
  'fuser_mix_norm1': norm(8),
  'Dense_0': dense(2, 2),
  'fuser_mix_norm2': norm(8),
  'LayerNorm_0': norm(8),
  'token_masking': MASKING,
}
LEARNER_V1 = {
  'LayerNorm_0': norm(8),
  'Conv_0': {'kernel': (3, 3, 8, 2)},
  **{f'Conv_{i}': {'kernel': (3, 3, 2, 2)} for i in (1, 2, 3)},
}
LEARNER_V11 = {'LayerNorm_0': norm(8), 'token_masking': MASKING}


@pytest.mark.parametrize(
  ('kind', 'more'),
  [
    ('v11', {'TokenLearnerModuleV11_0': LEARNER_V11}),
    (
      'v1',
      {
        'TokenLearnerModule_0': LEARNER_V1,
        'TokenLearnerModule_1': LEARNER_V1,
        'TokenFuser_0': FUSER,
        'TokenFuser_1': FUSER,
      },
    ),
    (
      'v11+fuser',
      {
        'TokenLearnerModuleV11_0': LEARNER_V11,
        'TokenLearnerModuleV11_1': LEARNER_V11,
        'TokenFuser_0': FUSER,
        'TokenFuser_1': FUSER,
      },
    ),
  ],
)
def test_parameter_tree_of_token_learner(kind, more):
  assert tree_of(make(kind)) == flatten(
    {
      'embedding': {'kernel': (4, 4, 3, 8), 'bias': (8,)},
      'Transformer': transformer(6, **more),
      'output_projection': dense(8, 5),
    }
  )


@pytest.mark.parametrize(
  ('variant', 'count'),
  [('Ti/16', 5_717_416), ('S/16', 22_050_664), ('B/16', 86_567_656), ('L/16', 304_326_632)],
)
def test_published_parameter_counts(variant, count):
  model = ViT(num_classes=1000, classifier='token', **sizes.parse(variant))
  shapes = tree_of(model, jnp.zeros((1, 224, 224, 3)))
  assert sum(map(math.prod, shapes.values())) == count


def test_initial_values():
  big = {'hidden_size': 64, 'num_heads': 2, 'posemb_init_stddev': 0.5, 'classifier': 'token'}
  params = jax.jit(make('vit', **big).init)(jax.random.key(0), IMAGES)['params']
  positions = params['Transformer']['posembed_input']['pos_embedding']
  assert abs(positions.std() - 0.5) < 0.1
  assert not params['cls'].any()
  assert not params['output_projection']['kernel'].any()
  kernel = params['Transformer']['encoderblock_0']['MlpBlock_0']['Dense_0']['kernel']
  bound = math.sqrt(6 / (64 + 12))
  assert 0.9 * bound < jnp.abs(kernel).max() <= bound
  bias = params['Transformer']['encoderblock_0']['MlpBlock_0']['Dense_0']['bias']
  assert 0 < jnp.abs(bias).max() < 1e-5


@pytest.mark.parametrize('kind', ['vit', 'v11'])
@pytest.mark.parametrize('wrap', [dict, ml_collections.ConfigDict])
def test_patches_and_tokenizer_may_be_a_dict_or_a_config(kind, wrap):
  plain = make(kind)
  field = 'patches' if kind == 'vit' else 'tokenizer'
  model = make(kind, **{field: wrap(getattr(plain, field))})
  variables = random_variables(plain)
  np.testing.assert_array_equal(model.apply(variables, IMAGES), plain.apply(variables, IMAGES))


@pytest.mark.parametrize('kind', ['vit', 'v11', 'v1'])
@pytest.mark.parametrize(
  ('classifier', 'shape'),
  [(c, (2, 8)) for c in ('token', 'gap', 'gmp', 'gsp', 'map')] + [('none', None)],
)
def test_features_without_a_head(kind, classifier, shape):
  model = make(kind, num_classes=0, classifier=classifier)
  features = jax.eval_shape(lambda: model.apply(random_variables(model), IMAGES))
  tokens = {'vit': 6, 'v11': 2, 'v1': 6}[kind]
  assert features.shape == (shape or (2, tokens, 8))
  assert not any('output_projection' in path for path in tree_of(model))


def equations(jaxpr):
  """All equations of a jaxpr and of those inside it."""
  for equation in jaxpr.eqns:
    yield equation
    for value in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda v: hasattr(v, 'eqns') or hasattr(v, 'jaxpr')
    ):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from equations(inner)


@pytest.mark.parametrize(
  ('kind', 'attributes'),
  [
    ('vit', {'classifier': 'map', 'representation_size': 6}),
    ('vit', {'classifier': 'token', 'positional_embedding': 'sinusoidal_1d'}),
    ('vit', {'patch_embedding': 'linear', 'stride': 2, 'positional_embedding': 'sinusoidal_2d'}),
    ('v1', {'classifier': 'token'}),
    ('v11+fuser', {}),
  ],
)
def test_bfloat16_reaches_every_layer(kind, attributes):
  model = make(kind, dtype=jnp.bfloat16, **attributes)
  variables = random_variables(model)
  assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  found = list(equations(jax.make_jaxpr(model.apply)(variables, IMAGES).jaxpr))
  dtypes = {
    name: [e.invars[0].aval.dtype for e in found if e.primitive.name == name]
    for name in ('dot_general', 'conv_general_dilated', 'exp', 'rsqrt', 'logistic')
  }
  *body, head = dtypes['dot_general'] + []
  assert len(body) > 20
  assert {*body, *dtypes['conv_general_dilated']} == {jnp.dtype('bfloat16')}
  assert head == jnp.float32
  # Softmax, normalisation statistics, maps of TokenLearner.
  assert {*dtypes['exp'], *dtypes['rsqrt'], *dtypes['logistic']} == {jnp.dtype('float32')}

  logits = model.apply(variables, IMAGES)
  assert logits.dtype == jnp.float32
  expected = make(kind, **attributes).apply(variables, IMAGES)
  np.testing.assert_allclose(logits, expected, atol=0.1)
  assert make(kind, num_classes=0, dtype=jnp.bfloat16, **attributes).apply(
    variables, IMAGES
  ).dtype == jnp.dtype('bfloat16')


def test_remat_changes_neither_names_nor_numbers():
  plain, remat = make('v11', num_layers=2), make('v11', num_layers=2, remat=True)
  assert tree_of(remat) == tree_of(plain)
  variables = random_variables(plain)

  def loss(model, variables):
    rngs = {'dropout': jax.random.key(0, impl='rbg')}  # compiles faster
    logits = model.apply(variables, IMAGES, train=True, rngs=rngs)
    return jnp.sum(logits**2)

  value, gradient = jax.jit(jax.value_and_grad(functools.partial(loss, plain)))(variables)
  remat_value, remat_gradient = jax.jit(jax.value_and_grad(functools.partial(loss, remat)))(
    variables
  )
  np.testing.assert_allclose(remat_value, value, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), remat_gradient, gradient
  )
  recomputed = [
    e for e in equations(jax.make_jaxpr(functools.partial(loss, remat))(variables).jaxpr)
    if e.primitive.name in ('checkpoint', 'remat', 'remat2')
  ]  # fmt: skip
  assert len(recomputed) == 2


def loops(function, *args):
  """How many scans there are in what a function traces to."""
  found = equations(jax.make_jaxpr(function)(*args).jaxpr)
  return sum(e.primitive.name == 'scan' for e in found)


WITHOUT_DROPOUT = {'dropout_rate': 0.0, 'attention_dropout_rate': 0.0}


def test_scanned_layers_have_the_values_and_gradients_of_layers_one_by_one():
  plain = make('vit', classifier='token', **WITHOUT_DROPOUT)
  variables = random_variables(plain)

  def loss(model, variables):
    return jnp.sum(model.apply(variables, IMAGES, train=True) ** 2)

  def step(variables):
    options = ({}, {'remat': True, 'remat_policy': 'dots_with_no_batch_dims_saveable'})
    models = [plain, *(plain.clone(scan=True, **more) for more in options)]
    return [jax.value_and_grad(functools.partial(loss, model))(variables) for model in models]

  (value, gradient), *scanned = jax.jit(step)(variables)
  for its_value, its_gradient in scanned:
    np.testing.assert_allclose(its_value, value, rtol=1e-5)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), its_gradient, gradient
    )


def test_scanned_layers_drop_nothing_where_they_do_not_train():
  plain = make('vit', stochastic_depth=0.2)
  variables = random_variables(plain)
  values = (jax.jit(m.apply)(variables, IMAGES) for m in (plain, plain.clone(scan=True)))
  np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)


def test_layers_are_scanned_where_nothing_of_one_is_asked_for():
  model = make('vit', scan=True)
  variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
  assert loops(model.apply, variables, IMAGES) == 1
  assert loops(functools.partial(model.apply, method='features'), variables, IMAGES) == 1
  assert loops(model.init, jax.random.key(0), IMAGES) == 0
  assert tree_of(model) == tree_of(make('vit'))
  for options in (
    {'mutable': ['intermediates']},
    {'capture_intermediates': True},
    {'method': 'features', 'layers': (1,)},
  ):
    assert loops(functools.partial(model.apply, **options), variables, IMAGES) == 0
  perturbed = {'attention_weights': jnp.zeros((2, 2, 6, 6))}
  for name in ('MultiHeadDotProductAttention_0', 'encoderblock_1', 'Transformer', 'perturbations'):
    perturbed = {name: perturbed}
  assert loops(model.apply, {**variables, **perturbed}, IMAGES) == 0
  learner = make('v11', scan=True)
  variables = jax.eval_shape(learner.init, jax.random.key(0), IMAGES)
  assert loops(learner.apply, variables, IMAGES) == 0


def test_scanned_layers_draw_for_themselves_each_at_its_rate():
  encoder = vit.Encoder(3, 2, 1, scan=True, stochastic_depth=0.6, **WITHOUT_DROPOUT)
  tokens = np.random.default_rng(0).normal(size=(64, 1, 2)).astype(np.float32)
  variables, drawn = random_variables(encoder, tokens), []

  def record(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if isinstance(context.module, layers.StochasticDepth):
      drawn.append((float(context.module.rate), np.asarray(out == 0).all((1, 2))))
    return out

  with jax.disable_jit(), nn.intercept_methods(record):
    encoder.apply(variables, tokens, train=True, rngs={'dropout': jax.random.key(0)})
  rates = [rate for rate, _ in drawn]
  np.testing.assert_allclose(rates, [0, 0, 0.3, 0.3, 0.6, 0.6], rtol=1e-6)
  for rate, dropped in drawn:
    assert abs(dropped.mean() - rate) < 0.2
  patterns = {tuple(dropped) for rate, dropped in drawn if rate}
  assert len(patterns) == 4


@pytest.mark.parametrize('kind', ['vit', 'v11+fuser'])
@pytest.mark.parametrize('field', ['dropout_rate', 'attention_dropout_rate', 'stochastic_depth'])
def test_dropout_acts_in_training_alone(kind, field):
  off = {'dropout_rate': 0.0, 'attention_dropout_rate': 0.0, 'stochastic_depth': 0.0}
  plain, model = make(kind, **off), make(kind, **{**off, field: 0.5})
  variables = random_variables(model)
  evaluated = plain.apply(variables, IMAGES, train=False)
  np.testing.assert_array_equal(model.apply(variables, IMAGES, train=False), evaluated)
  np.testing.assert_array_equal(plain.apply(variables, IMAGES, train=True), evaluated)

  def trained(seed):
    return model.apply(variables, IMAGES, train=True, rngs={'dropout': jax.random.key(seed)})

  np.testing.assert_array_equal(trained(0), trained(0))
  draws = np.array([trained(seed) for seed in range(2)])
  assert np.ptp(draws, axis=0).max() > 1e-3


@pytest.mark.parametrize('kind', ['vit', 'v11', 'v1'])
def test_stochastic_depth_grows_linearly_to_the_last_layer(kind):
  model = make(kind, dropout_rate=0.0, attention_dropout_rate=0.0, stochastic_depth=0.6)
  images = np.random.default_rng(0).normal(size=(400, 4, 4, 3)).astype(np.float32)
  _, captured = model.apply(
    random_variables(model, images),
    images,
    train=True,
    rngs={'dropout': jax.random.key(0)},
    capture_intermediates=lambda module, _: isinstance(module, layers.StochasticDepth),
  )
  for layer, rate in enumerate((0.0, 0.3, 0.6)):
    block = captured['intermediates']['Transformer'][f'encoderblock_{layer}']
    for branch in ('StochasticDepth_0', 'StochasticDepth_1'):
      out = np.asarray(block[branch]['__call__'][0]).reshape(len(images), -1)
      assert abs((out == 0).all(1).mean() - rate) < 0.09


@pytest.mark.parametrize('kind', ['vit', 'v1', 'v11+fuser'])
def test_options_reach_every_module(kind):
  modules = []

  def record(call, args, kwargs, context):
    modules.append(context.module)
    return call(*args, **kwargs)

  options = {'norm_epsilon': 1e-3, 'dropout_rate': 0.2, 'activation': 'relu', 'classifier': 'map'}
  with nn.intercept_methods(record):
    tree_of(make(kind, **options))
  assert {m.epsilon for m in modules if isinstance(m, nn.LayerNorm)} == {1e-3}
  for module in modules:
    path = '/'.join(module.path)
    if isinstance(module, (TokenFuser, TokenLearnerModuleV11, layers.MlpBlock)):
      assert module.dropout_rate == (0.0 if 'MAPHead' in path else 0.2), path
    if isinstance(module, layers.MlpBlock):
      relu = module.activation_fn is layers.ACTIVATIONS['relu']
      assert relu == ('token_masking' not in path), path


@pytest.mark.parametrize('remat', [False, True])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_attention_weights_of_every_layer_can_be_captured(dtype, remat):
  model = make('vit', classifier='map', dtype=dtype, remat=remat)
  variables = random_variables(model)
  logits = jax.jit(model.apply)(variables, IMAGES)
  capture = jax.jit(functools.partial(model.apply, mutable=['intermediates']))
  captured_logits, state = capture(variables, IMAGES)
  tolerance = 1e-5 if dtype == jnp.float32 else 2e-2  # they are two programs
  np.testing.assert_allclose(captured_logits, logits, rtol=tolerance, atol=tolerance)

  scopes = [state['intermediates']['Transformer'][f'encoderblock_{i}'] for i in range(3)]
  scopes.append(state['intermediates']['MAPHead_0'])
  shapes = [(2, 2, 6, 6)] * 3 + [(2, 2, 1, 6)]
  for scope, shape in zip(scopes, shapes, strict=True):
    (weights,) = scope['MultiHeadDotProductAttention_0']['attention_weights']
    assert weights.shape == shape
    assert weights.dtype == jnp.float32
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert np.ptp(weights, axis=-1).max() > 0.01


def test_map_head_widens_its_mlp_fourfold_by_default():
  params = jax.eval_shape(
    lambda: vit.MAPHead(num_heads=2).init(jax.random.key(0), jnp.zeros((1, 3, 8)))
  )['params']
  assert params['MlpBlock_0']['Dense_0']['kernel'].shape == (8, 32)


def test_encoder_without_a_grid_takes_a_square():
  encoder = vit.Encoder(1, 12, 2, positional_embedding='sinusoidal_2d', has_cls_token=True)
  zeros = jnp.zeros((1, 10, 8))
  variables = random_variables(encoder, zeros)
  square = encoder.clone(grid=(3, 3)).apply(variables, zeros)
  np.testing.assert_array_equal(encoder.apply(variables, zeros), square)
  with pytest.raises(ValueError, match='10 tokens do not fill a 3x3 grid'):
    encoder.apply(variables, jnp.zeros((1, 11, 8)))
  with pytest.raises(FieldError, match='num_prefix: 0, but has_cls_token is True'):
    encoder.clone(num_prefix=0)
