"""Both models against a float64 NumPy forward pass written from the papers' formulas."""

import math

import jax
import numpy as np
import pytest

from vit_jax.models.token_learner import TokenLearnerViT
from vit_jax.models.vit import ViT

WIDTH, HEADS, LAYERS, CLASSES = 12, 2, 3, 5
PATCH = (4, 2)
SQUARE, WIDE = (12, 6), (8, 12)  # images, in pixels, of 3x3 and of 2x6 patches
LEARNED = 3  # tokens of TokenLearner


def gelu(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_exact(x):
  return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softmax(x, axis):
  e = np.exp(x - x.max(axis, keepdims=True))
  return e / e.sum(axis, keepdims=True)


def dense(x, p):
  return x @ p['kernel'] + p['bias']


def layer_norm(x, p, epsilon=1e-6):
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + epsilon) * p['scale'] + p['bias']


def mlp(x, p, activation=gelu):
  return dense(activation(dense(x, p['Dense_0'])), p['Dense_1'])


def attention(queries, keys, p):
  """One example: [q, D] and [k, D] to [q, D], head by head."""
  out = np.tile(p['out']['bias'], (len(queries), 1))
  for h in range(HEADS):
    q = queries @ p['query']['kernel'][:, h] + p['query']['bias'][h]
    k = keys @ p['key']['kernel'][:, h] + p['key']['bias'][h]
    v = keys @ p['value']['kernel'][:, h] + p['value']['bias'][h]
    out += softmax(q @ k.T / math.sqrt(q.shape[-1]), 1) @ v @ p['out']['kernel'][h]
  return out


def block(x, p, activation=gelu, epsilon=1e-6):
  y = layer_norm(x, p['LayerNorm_0'], epsilon)
  x = x + attention(y, y, p['MultiHeadDotProductAttention_0'])
  y = layer_norm(x, p['LayerNorm_1'], epsilon)
  return x + mlp(y, p['MlpBlock_0'], activation)


def embed(image, p, patch, stride):
  """One image to [h, w, D], patch by patch."""
  rows = range(0, image.shape[0] - patch[0] + 1, stride[0])
  columns = range(0, image.shape[1] - patch[1] + 1, stride[1])
  flat = [[image[r : r + patch[0], c : c + patch[1]].ravel() for c in columns] for r in rows]
  return np.array(flat) @ p['kernel'].reshape(-1, WIDTH) + p['bias']


def positions(kind, grid, has_cls, p):
  """What is added to the tokens, [(1 +) h * w, D], or 0."""
  count = grid[0] * grid[1] + has_cls
  if kind == 'learned_1d':
    return p['posembed_input']['pos_embedding'][0]
  if kind == 'none':
    return 0
  table = np.zeros((count, WIDTH))
  if kind == 'sinusoidal_1d':
    for position in range(count):
      for i in range(WIDTH // 2):
        angle = position / 10_000 ** (2 * i / WIDTH)
        table[position, 2 * i : 2 * i + 2] = math.sin(angle), math.cos(angle)
    return table
  quarter = WIDTH // 4
  for row in range(grid[0]):
    for column in range(grid[1]):
      for i in range(quarter):
        omega = 10_000 ** (-i / quarter)
        table[has_cls + row * grid[1] + column, i::quarter] = (
          math.sin(column * omega),
          math.cos(column * omega),
          math.sin(row * omega),
          math.cos(row * omega),
        )
  return table


def pool(x, classifier, p):
  if classifier == 'token':
    return x[0]
  if classifier == 'map':
    p = p['MAPHead_0']
    x = attention(p['probe'][0], x, p['MultiHeadDotProductAttention_0'])
    return (x + mlp(layer_norm(x, p['LayerNorm_0']), p['MlpBlock_0']))[0]
  return {
    'gap': lambda: x.sum(0) / len(x),
    'gmp': lambda: x.max(0),
    'gsp': lambda: x.sum(0),
    'none': lambda: x,
  }[classifier]()


def conv3x3(x, kernel):
  h, w, _ = x.shape
  padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
  shifts = [(i, j) for i in range(3) for j in range(3)]
  return sum(padded[i : i + h, j : j + w] @ kernel[i, j] for i, j in shifts)


def learn_tokens_v1(x, grid, p):
  """[h * w, D] to [LEARNED, D]."""
  maps = layer_norm(x, p['LayerNorm_0']).reshape(*grid, WIDTH)
  for layer in range(4):
    maps = conv3x3(gelu(maps) if layer else maps, p[f'Conv_{layer}']['kernel'])
  return sigmoid(maps.reshape(-1, LEARNED)).T @ x


def learn_tokens_v11(x, p):
  """[h * w, D] to [LEARNED, D]."""
  return softmax(mlp(layer_norm(x, p['LayerNorm_0']), p['token_masking']), 0).T @ x


def fuse(tokens, original, p):
  """[LEARNED, D] and [h * w, D] to [h * w, D]."""
  tokens = layer_norm(tokens, p['fuser_mix_norm1'])
  tokens = layer_norm(dense(tokens.T, p['Dense_0']).T, p['fuser_mix_norm2'])
  return sigmoid(mlp(layer_norm(original, p['LayerNorm_0']), p['token_masking'])) @ tokens


def forward(
  p,
  images,
  classifier='gap',
  kind='learned_1d',
  patch=PATCH,
  stride=None,
  activation=gelu,
  epsilon=1e-6,
  tokenizer=None,
  class_token=False,
):
  """The whole model, image by image, in float64."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
  outputs = []
  for image in np.asarray(images, np.float64):
    x = embed(image, p['embedding'], patch, stride or patch)
    grid, x = x.shape[:2], x.reshape(-1, WIDTH)
    has_cls = int(classifier == 'token' or class_token)
    if has_cls:
      x = np.concatenate([p['cls'][0], x])
    encoder = p['Transformer']
    x = x + positions(kind, grid, has_cls, encoder)
    for layer in range(LAYERS):
      x = transform(x, layer, grid, has_cls, encoder, tokenizer, activation, epsilon)
    if 'encoder_norm' in encoder:
      x = layer_norm(x, encoder['encoder_norm'], epsilon)
    x = pool(x[1:] if class_token else x, classifier, p)
    if 'fc_norm' in p:
      x = layer_norm(x, p['fc_norm'], epsilon)
    if 'pre_logits' in p:
      x = np.tanh(dense(x, p['pre_logits']))
    outputs.append(dense(x, p['output_projection']))
  return np.array(outputs)


def transform(x, layer, grid, has_cls, p, tokenizer, activation, epsilon):
  """One layer of either model."""
  weights = p[f'encoderblock_{layer}']
  since = layer - tokenizer['tokenlearner_loc'] if tokenizer else -1
  fuser = bool(tokenizer and tokenizer['use_tokenfuse'])
  if since < 0 or (since > 0 and not fuser):
    return block(x, weights, activation, epsilon)
  cls, original = x[:has_cls], x[has_cls:]
  if tokenizer['use_v11']:
    tokens = learn_tokens_v11(original, p[f'TokenLearnerModuleV11_{since}'])
  else:
    tokens = learn_tokens_v1(original, grid, p[f'TokenLearnerModule_{since}'])
  x = block(np.concatenate([cls, tokens]), weights)
  if not fuser:
    return x
  spread = fuse(x[has_cls:], original, p[f'TokenFuser_{since}']) + original
  return np.concatenate([x[:has_cls], spread])


def check(model, size, **options):
  """Compares the model's outputs on random parameters and images with `forward`."""
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, *size, 3)).astype(np.float32)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))['params']
  p = jax.tree.map(lambda a: (0.3 * rng.normal(size=a.shape)).astype(np.float32), shapes)
  got = model.apply({'params': p}, images)
  expected = forward(p, images, **options)
  assert np.std(expected) > 0.01
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def vit(**attributes):
  return ViT(
    num_classes=CLASSES,
    mlp_dim=10,
    num_layers=LAYERS,
    num_heads=HEADS,
    hidden_size=WIDTH,
    **{'patches': {'size': PATCH}, **attributes},
  )


def token_learner(tokenizer, **attributes):
  return TokenLearnerViT(
    num_classes=CLASSES,
    mlp_dim=10,
    num_layers=LAYERS,
    num_heads=HEADS,
    hidden_size=WIDTH,
    tokenizer={'type': 'dynamic', 'num_tokens': LEARNED, 'patches': {'size': PATCH}, **tokenizer},
    **attributes,
  )


@pytest.mark.parametrize('classifier', ['token', 'gap', 'gmp', 'gsp', 'map', 'none'])
def test_vit_classifiers(classifier):
  check(vit(classifier=classifier), WIDE, classifier=classifier)


@pytest.mark.parametrize('classifier', ['gap', 'gmp', 'map', 'none'])
def test_vit_class_token_that_is_not_pooled(classifier):
  model = vit(classifier=classifier, class_token=True, positional_embedding='sinusoidal_2d')
  check(model, WIDE, classifier=classifier, class_token=True, kind='sinusoidal_2d')


@pytest.mark.parametrize('class_token', [False, True])
@pytest.mark.parametrize('classifier', ['gap', 'map'])
def test_vit_norm_after_pooling(classifier, class_token):
  model = vit(classifier=classifier, class_token=class_token, fc_norm=True)
  check(model, SQUARE, classifier=classifier, class_token=class_token)


def test_vit_norm_after_pooling_has_the_epsilon_of_the_others():
  check(
    vit(classifier='gmp', fc_norm=True, norm_epsilon=0.1), SQUARE, classifier='gmp', epsilon=0.1
  )


@pytest.mark.parametrize('size', [SQUARE, WIDE])
@pytest.mark.parametrize('classifier', ['token', 'gap'])
@pytest.mark.parametrize('kind', ['sinusoidal_1d', 'sinusoidal_2d', 'none'])
def test_vit_position_embeddings(kind, classifier, size):
  model = vit(classifier=classifier, positional_embedding=kind)
  check(model, size, classifier=classifier, kind=kind)


def test_vit_representation_size():
  check(vit(representation_size=7), SQUARE)


@pytest.mark.parametrize('method', ['conv', 'linear'])
@pytest.mark.parametrize(
  ('patch', 'stride'), [((4, 2), (2, 1)), ((4, 4), (2, 2)), ((2, 3), (2, 3))]
)
def test_vit_overlapping_patches(method, patch, stride):
  model = vit(patches={'size': patch}, stride=stride, patch_embedding=method)
  check(model, WIDE, patch=patch, stride=stride)


@pytest.mark.parametrize(
  ('name', 'activation'), [('gelu_exact', gelu_exact), ('relu', lambda x: np.maximum(x, 0))]
)
def test_vit_activation(name, activation):
  check(vit(activation=name), SQUARE, activation=activation)


def test_vit_norm_epsilon():
  check(vit(norm_epsilon=0.1), SQUARE, epsilon=0.1)


@pytest.mark.parametrize('use_tokenfuse', [False, True])
@pytest.mark.parametrize('use_v11', [False, True])
def test_token_learner_versions_and_fuser(use_v11, use_tokenfuse):
  tokenizer = {'tokenlearner_loc': 1, 'use_v11': use_v11, 'use_tokenfuse': use_tokenfuse}
  check(token_learner(tokenizer), WIDE, tokenizer=tokenizer)


@pytest.mark.parametrize('use_tokenfuse', [False, True])
@pytest.mark.parametrize('classifier', ['token', 'gmp', 'gsp', 'map', 'none'])
def test_token_learner_classifiers(classifier, use_tokenfuse):
  tokenizer = {'tokenlearner_loc': 1, 'use_v11': True, 'use_tokenfuse': use_tokenfuse}
  model = token_learner(tokenizer, classifier=classifier)
  check(model, WIDE, classifier=classifier, tokenizer=tokenizer)


@pytest.mark.parametrize('use_tokenfuse', [False, True])
def test_token_learner_with_a_class_token_and_a_norm_after_pooling(use_tokenfuse):
  tokenizer = {'tokenlearner_loc': 1, 'use_v11': True, 'use_tokenfuse': use_tokenfuse}
  model = token_learner(tokenizer, classifier='gap', class_token=True, fc_norm=True)
  check(model, WIDE, class_token=True, tokenizer=tokenizer)


@pytest.mark.parametrize('size', [SQUARE, WIDE])
@pytest.mark.parametrize('kind', ['sinusoidal_1d', 'sinusoidal_2d', 'none'])
def test_token_learner_position_embeddings(kind, size):
  tokenizer = {'tokenlearner_loc': 0, 'use_v11': False, 'use_tokenfuse': False}
  model = token_learner(tokenizer, positional_embedding=kind, classifier='token')
  check(model, size, kind=kind, tokenizer=tokenizer, classifier='token')


def test_token_learner_that_keeps_the_patches_is_a_vit():
  tokenizer = {'type': 'patch', 'tokenlearner_loc': 1, 'use_tokenfuse': True}
  check(token_learner(tokenizer), SQUARE)
