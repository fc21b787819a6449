"""Attention: captured weights, maps, rollout, gradients and distances of known answers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vit_jax.errors import UsageError
from vit_jax.explain import attention
from vit_jax.models.backbone import Attention
from vit_jax.models.token_learner import TokenLearnerViT
from vit_jax.models.vit import ViT

RNG = np.random.default_rng(0)
SIZES = {'num_classes': 3, 'mlp_dim': 6, 'num_layers': 2, 'num_heads': 2, 'hidden_size': 4}
IMAGES = RNG.normal(size=(2, 4, 6, 1)).astype(np.float32)  # 2x3 patches


class Silent(nn.Module):
  """Gives back its images."""

  def __call__(self, x, *, train):
    return x


def make(classifier='token', **attributes):
  """A tiny ViT and variables none of which is zero."""
  model = ViT(**SIZES, patches={'size': (2, 2)}, classifier=classifier, **attributes)
  shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), IMAGES)
  rng = np.random.default_rng(1)
  return model, jax.tree.map(lambda a: (0.5 * rng.normal(size=a.shape)).astype(np.float32), shapes)


def random_weights(*shape):
  """Softmax of random numbers."""
  weights = np.random.default_rng(len(shape)).exponential(size=shape).astype(np.float32)
  return weights / weights.sum(axis=-1, keepdims=True)


def rollout_map(weights, classifier, has_class_token=None, **options):
  """What a classifier reads; it has a class token where that is the classifier."""
  is_token = classifier == 'token'
  num_prefix = int(is_token if has_class_token is None else has_class_token)
  options = {'head_tokens': (0,) if is_token else None, **options}
  return attention.rollout_map(weights, num_prefix=num_prefix, **options)


def as_heads(*matrices):
  """Layers of one image and one head: [layers, 1, 1, N, N]."""
  return np.stack(matrices)[:, None, None]


@pytest.mark.parametrize('classifier', ['token', 'map', 'gap'])
def test_captured_weights_are_those_of_every_layer_in_order(classifier):
  model, variables = make(classifier)
  outputs, captured = jax.jit(functools.partial(attention.capture, model))(variables, IMAGES)
  tokens = 6 + (classifier == 'token')
  assert captured.layers.shape == (2, 2, 2, tokens, tokens)
  np.testing.assert_allclose(captured.layers.sum(-1), 1, atol=1e-5)
  apply = jax.jit(functools.partial(model.apply, mutable=['intermediates']))
  logits, state = apply(variables, IMAGES)
  np.testing.assert_allclose(outputs, logits, atol=1e-5)
  for layer in range(2):
    block = state['intermediates']['Transformer'][f'encoderblock_{layer}']
    (sown,) = block['MultiHeadDotProductAttention_0']['attention_weights']
    np.testing.assert_allclose(captured.layers[layer], sown, atol=1e-6)
  if classifier == 'map':
    assert captured.probe.shape == (2, 2, 1, 6)
    np.testing.assert_allclose(captured.probe.sum(-1), 1, atol=1e-5)
  else:
    assert captured.probe is None


def test_attention_maps_are_the_class_tokens_or_the_probes():
  layers, name = random_weights(2, 2, 4, 7, 7), 'MultiHeadDotProductAttention_0'
  blocks = {f'encoderblock_{i}': {name: {'attention_weights': w}} for i, w in enumerate(layers)}
  intermediates = {'Transformer': blocks}
  token = functools.partial(make('token')[0].attention_maps, intermediates, (4, 6))
  for maps, layer in ((token(), 1), (token(layer=0), 0)):
    np.testing.assert_array_equal(maps.maps.reshape(2, 4, 6), layers[layer][:, :, 0, 1:])
    assert maps.source == f'class token in layer {layer} (0 to 1)'
  probe = random_weights(2, 4, 1, 6)
  intermediates['MAPHead_0'] = {name: {'attention_weights': probe}}
  maps = make('map')[0].attention_maps(intermediates, (4, 6))
  np.testing.assert_array_equal(maps.maps, probe.reshape(2, 4, 2, 3))
  assert maps.source == "MAP head's probe"
  assert make('gap')[0].attention_maps(intermediates, (4, 6)) is None


@pytest.mark.parametrize('options', [{}, {'block': 'parallel'}])
def test_registers_are_left_out_of_maps_and_heads_side_by_side_are_all_there(options):
  model, variables = make(class_token=True, num_registers=2, **options)
  _, captured = attention.capture(model, variables, IMAGES)
  heads, tokens = 2 * (1 + bool(options)), 3 + 6
  assert captured.layers.shape == (2, 2, heads, tokens, tokens)
  np.testing.assert_allclose(captured.layers.sum(-1), 1, atol=1e-5)
  _, state = model.apply(variables, IMAGES, mutable=['intermediates'])
  intermediates = jax.tree.map(lambda x: x[0], state['intermediates'], is_leaf=_is_sown)
  maps = model.attention_maps(intermediates, (4, 6)).maps
  expected = np.asarray(captured.layers)[1, :, :, 0, 3:].reshape(2, heads, 2, 3)
  np.testing.assert_allclose(maps, expected, atol=1e-6)
  assert model.layout((4, 6)).num_prefix == 3


def _is_sown(value):
  return isinstance(value, tuple)


def test_maps_of_a_probe_are_of_the_patches_among_what_it_reads():
  model, variables = make('map', num_registers=1, pool_prefix=True)
  _, state = model.apply(variables, IMAGES, mutable=['intermediates'])
  intermediates = jax.tree.map(lambda x: x[0], state['intermediates'], is_leaf=_is_sown)
  captured, maps = model.attention(intermediates), model.attention_maps(intermediates, (4, 6)).maps
  assert captured.probe.shape == (2, 2, 1, 7)
  np.testing.assert_allclose(captured.probe.sum(-1), 1, atol=1e-5)
  np.testing.assert_array_equal(maps, captured.probe[:, :, 0, 1:].reshape(2, 2, 2, 3))


@pytest.mark.parametrize(
  ('options', 'weights'),
  [
    ({'classifier': 'token', 'distillation': True}, [1 / 2, 1 / 2, 0, 0, 0, 0, 0, 0]),
    ({'classifier': 'gap', 'num_registers': 1, 'pool_prefix': True}, [1 / 7] * 7),
    ({'classifier': 'gap', 'num_registers': 1}, [0, *[1 / 6] * 6]),
    ({'classifier': 'map', 'num_registers': 1, 'pool_prefix': True}, None),
  ],
)
def test_the_rollout_starts_at_all_tokens_that_the_head_reads(options, weights):
  model, variables = make(**options)
  captured, layout = attention.capture(model, variables, IMAGES)[1], model.layout((4, 6))
  rolled = attention.rollout(np.asarray(captured.layers), num_prefix=layout.num_prefix)
  if weights is None:
    weights = np.asarray(captured.probe).mean(axis=1)[:, 0]
  expected = np.einsum('bn,bnm->bm', np.broadcast_to(weights, rolled.shape[:2]), rolled)
  found = attention.rollout_map(
    captured, num_prefix=layout.num_prefix, head_tokens=layout.head_tokens
  )
  np.testing.assert_allclose(found, expected[:, layout.num_prefix :], rtol=1e-5)


@pytest.mark.parametrize(
  'options', [{'classifier': 'gap', 'window_size': 2}, {'differential': True}]
)
def test_weights_that_do_not_say_what_tokens_draw_are_not_shown(options):
  model = make(**options)[0]
  assert (model.attention({}), model.attention_maps({}, (4, 6))) == (None, None)
  assert model.num_attention_layers == 0


def test_identity_rolls_out_to_identity():
  np.testing.assert_allclose(attention.rollout(as_heads(*[np.eye(5)] * 3))[0], np.eye(5))


def test_uniform_attention_rolls_out_to_uniform():
  layers = as_heads(*[np.full((5, 5), 0.2)] * 3)
  # What isn't residual all three times is uniform after the first layer where it isn't.
  expected = 0.5**3 * np.eye(5) + (1 - 0.5**3) * 0.2
  np.testing.assert_allclose(attention.rollout(layers)[0], expected, atol=1e-6)
  for classifier in ('token', 'gap', 'gmp', 'map'):
    probe = np.full((1, 1, 1, 5), 0.2) if classifier == 'map' else None
    patches = rollout_map(Attention(layers, probe), classifier)
    assert np.ptp(patches) < 1e-7, classifier


def test_attention_to_one_token_rolls_out_to_it():
  to_third = np.zeros((5, 5))
  to_third[:, 3] = 1
  patches = rollout_map(Attention(as_heads(*[to_third] * 2), None), 'token')
  np.testing.assert_allclose(patches, [[0, 0, 0.75, 0]])


def test_what_speaks_for_a_class_by_itself_is_seen_where_tokens_are_pooled():
  weights = Attention(as_heads(np.diag([0.5, 0.0, 0.0])), None)
  np.testing.assert_allclose(
    rollout_map(weights, 'gap', scale_rows=False), [[0.5, 1 / 3, 1 / 3]], rtol=1e-6
  )


def test_later_layers_stand_to_the_left():
  first, second = (np.eye(4)[[1, 1, 2, 3]], np.eye(4)[[3, 1, 2, 3]])  # 0 looks at 1, then at 3
  rolled = attention.rollout(as_heads(first, second))[0]
  half = np.eye(4) / 2
  np.testing.assert_allclose(rolled, (second / 2 + half) @ (first / 2 + half))
  np.testing.assert_allclose(rolled[0], [0.25, 0.25, 0, 0.5])


@pytest.mark.parametrize(
  ('fusion', 'expected'),
  # the first row of the fused matrix plus I, scaled to a sum of 1
  [('mean', [1.6 / 2, 0.4 / 2]), ('max', [1.9 / 2.6, 0.7 / 2.6]), ('min', [1.3 / 1.4, 0.1 / 1.4])],
)
def test_heads_are_fused(fusion, expected):
  heads = np.array([[[0.3, 0.7], [0, 1]], [[0.9, 0.1], [0, 1]]])[None, None]
  np.testing.assert_allclose(
    attention.rollout(heads, head_fusion=fusion)[0, 0], expected, atol=1e-6
  )


def test_the_lowest_are_discarded_but_for_the_class_tokens_own():
  weights = np.array([[0.05, 0.25, 0.7], [0.1, 0.3, 0.6], [0.5, 0.2, 0.3]])
  two = np.stack([weights, weights[::-1]])[None, :, None]  # images, each with its own lowest
  for has_class_token, corner in ((True, 0.05), (False, 0)):
    # The lowest 5 (0.6 * 9, rounded down) of the first are 0.05, 0.1, 0.2, 0.25 and a 0.3, of
    # which there are two: both stay, being equal to the lowest that stays.
    kept = np.array([[corner, 0, 0.7], [0, 0.3, 0.6], [0.5, 0, 0.3]])
    second = np.array([[0.5, 0, 0.3], [0, 0.3, 0.6], [0, 0, 0.7]])
    rolled = attention.rollout(two, discard_ratio=0.6, num_prefix=int(has_class_token))
    for image, matrix in zip(rolled, (kept, second), strict=True):
      mixed = matrix + np.eye(3)
      np.testing.assert_allclose(image, mixed / mixed.sum(1, keepdims=True), atol=1e-6)


def test_nothing_is_discarded_at_a_ratio_of_zero():
  layers = random_weights(2, 2, 3, 5, 5)
  expected = np.eye(5)
  for matrix in layers[:, 0].mean(axis=1):
    expected = (0.5 * matrix + 0.5 * np.eye(5)) @ expected
  np.testing.assert_allclose(attention.rollout(layers, discard_ratio=0.0)[0], expected, atol=1e-6)


def test_the_map_of_a_classifier():
  layers, probe = random_weights(2, 3, 2, 6, 6), random_weights(3, 2, 1, 6)
  rolled = attention.rollout(layers)
  pooled = rollout_map(Attention(layers, None), 'gap')
  np.testing.assert_allclose(pooled, rolled.mean(axis=1), atol=1e-6)
  probed = rollout_map(Attention(layers, probe), 'map', head_fusion='max')
  expected = np.stack(
    [
      p.max(axis=0)[0] @ r
      for p, r in zip(probe, attention.rollout(layers, head_fusion='max'), strict=True)
    ]
  )
  np.testing.assert_allclose(probed, expected, atol=1e-6)


@pytest.mark.parametrize('classifier', ['gap', 'map'])
def test_a_class_token_that_the_classifier_does_not_read_is_no_place(classifier):
  layers, probe = random_weights(2, 1, 2, 5, 5), random_weights(1, 2, 1, 4)
  weights = Attention(layers, probe if classifier == 'map' else None)
  rolled = attention.rollout(layers)[0]
  reads = probe[0].mean(axis=0)[0] if classifier == 'map' else np.full(4, 1 / 4)
  expected = sum(share * rolled[1 + i, 1:] for i, share in enumerate(reads))
  given = rollout_map(weights, classifier, has_class_token=True)
  np.testing.assert_allclose(given, expected[None], rtol=1e-5)


@pytest.mark.parametrize('options', [{'head_fusion': 'media'}, {'discard_ratio': 1.0}])
def test_wrong_options_of_a_rollout(options):
  with pytest.raises(UsageError, match=next(iter(options))):
    attention.rollout(random_weights(1, 1, 1, 2, 2), **options)


def numpy_gradient_rollout(weights, gradients):
  """Gradient attention rollout of one image, element by element: [N, N]."""
  num_layers, num_heads, size, _ = weights.shape
  result = np.eye(size)
  for layer in range(num_layers):
    matrix = np.eye(size)
    for i, j in np.ndindex(size, size):
      products = [weights[layer, h, i, j] * gradients[layer, h, i, j] for h in range(num_heads)]
      matrix[i, j] += sum(p for p in products if p > 0) / num_heads
    result = matrix @ result
  return result


@pytest.mark.parametrize(('classifier', 'remat'), [('token', True), ('gap', False), ('map', False)])
def test_gradient_rollout_against_finite_differences(classifier, remat):
  model, variables = make(classifier, remat=remat)
  classes, step = np.array([2, 0]), 0.02
  name = 'MultiHeadDotProductAttention_0'
  weights = jax.device_get(attention.capture(model, variables, IMAGES)[1])

  @jax.jit
  def logits(layers, probe):
    blocks = {f'encoderblock_{i}': {name: {'attention_weights': p}} for i, p in enumerate(layers)}
    given = {'Transformer': blocks}
    if probe is not None:
      given['MAPHead_0'] = {name: {'attention_weights': probe}}
    outputs = model.apply(variables | {'perturbations': given}, IMAGES)
    return outputs[jnp.arange(2), classes]

  def differentiate(shape, place):
    """Central differences; the images don't mix, so that both change at once."""
    derivative = np.zeros(shape, np.float32)
    for index in np.ndindex(shape[0], *shape[2:]):
      delta = np.zeros(shape, np.float32)
      delta[index[0], :, *index[1:]] = step
      slope = (np.asarray(logits(*place(delta))) - logits(*place(-delta))) / (2 * step)
      derivative[index[0], :, *index[1:]] = slope
    return derivative

  def no_probe(delta):
    return delta, None if weights.probe is None else np.zeros_like(weights.probe)

  gradients = differentiate(weights.layers.shape, no_probe)
  weigh = functools.partial(attention.weigh_by_gradient, model)
  weighed = jax.jit(weigh)(variables, IMAGES, classes)
  expected = np.maximum(weights.layers * gradients, 0)
  assert (expected > 0).mean() > 0.2
  scale = expected.max()
  np.testing.assert_allclose(weighed.layers / scale, expected / scale, atol=5e-3)
  rolled = attention.rollout(np.asarray(weighed.layers), scale_rows=False)
  for image in range(2):
    reference = numpy_gradient_rollout(weights.layers[:, image], gradients[:, image])
    np.testing.assert_allclose(rolled[image], reference, atol=5e-3)
  if classifier == 'map':
    zeros = np.zeros_like(weights.layers)
    by_probe = differentiate((1, *weights.probe.shape), lambda delta: (zeros, delta[0]))[0]
    np.testing.assert_allclose(
      weighed.probe, np.maximum(weights.probe * by_probe, 0), atol=5e-3 * abs(by_probe).max()
    )


def test_gradients_are_of_the_class_that_is_asked_for():
  model, variables = make()
  weigh = jax.jit(functools.partial(attention.weigh_by_gradient, model))
  mixed, *same = (weigh(variables, IMAGES, np.array(c)).layers for c in ([0, 1], [0, 0], [1, 1]))
  np.testing.assert_allclose(mixed, np.stack([same[0][:, 0], same[1][:, 1]], axis=1), atol=1e-6)
  assert abs(same[0] - same[1]).max() > 1e-3


def test_perturbations_are_nowhere_unless_given():
  tokenizer = {'type': 'dynamic', 'patches': {'size': (2, 2)}, 'num_tokens': 2}
  tokenizer['tokenlearner_loc'] = 1
  for model in (
    make()[0],
    make('map', remat=True)[0],
    TokenLearnerViT(**SIZES, classifier='token', tokenizer=tokenizer),
  ):
    variables = jax.eval_shape(
      functools.partial(model.init, train=False), jax.random.key(0), IMAGES
    )
    assert list(variables) == ['params']
    apply = functools.partial(model.apply, mutable=True, train=False)
    _, state = jax.eval_shape(apply, variables, IMAGES)
    assert 'perturbations' not in state


def test_min_max_normalisation():
  maps = np.array([[[2.0, 4.0], [3.0, 2.5]], [[5.0, 5.0], [5.0, 5.0]], np.zeros((2, 2))])
  expected = [[[0, 1], [0.5, 0.25]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]]
  np.testing.assert_array_equal(attention.min_max_normalize(maps), expected)


def test_maps_are_interpolated_between_the_centres_of_patches():
  maps = RNG.random((3, 2, 4, 5))
  resized = jax.image.resize(maps, (3, 2, 12, 10), 'bilinear')
  np.testing.assert_allclose(attention.upsample(maps, (3, 2), (3, 2)), resized, atol=1e-6)
  # 4-pixel patches at a stride of 2 have their centres at 1.5, 3.5 and 5.5.
  overlapping = attention.upsample(np.array([[0.0, 1.0, 4.0]]), (1, 4), (1, 2))
  expected = [[0, 0, 0.25, 0.75, 1.75, 3.25, 4, 4]]
  np.testing.assert_allclose(overlapping, expected)


def left_neighbours(rows, columns):
  """Patches attend to what is on their left, those at the border to themselves."""
  index = np.arange(rows * columns)
  return np.eye(rows * columns)[index - (index % columns > 0)]


def test_distance_to_the_left_neighbour_is_the_stride():
  layers = as_heads(left_neighbours(2, 3), np.eye(6), left_neighbours(2, 3).T)
  distance = attention.mean_attention_distance(layers, (2, 3), (5, 4), num_prefix=0)
  assert distance.shape == (3, 1)
  # Four of the six have a neighbour, 4 pixels away. In the third layer the last ones of a row are
  # attended to by none of its patches, and the first ones by two: half at 0, half at 4 pixels.
  np.testing.assert_allclose(distance[:2, 0], [4 * 4 / 6, 0])
  np.testing.assert_allclose(distance[2, 0], (2 * 2 + 2 * 4 + 2 * 0) / 6)


def test_distance_to_one_token_on_a_grid_that_is_not_square():
  to_first = np.zeros((1, 2, 2, 7, 7))
  to_first[..., 1] = 0.25  # the first patch
  to_first[..., 0] = 0.75  # the class token: left out
  distance = attention.mean_attention_distance(to_first, (2, 3), (3, 4), num_prefix=1)
  np.testing.assert_allclose(distance, np.full((1, 2), (0 + 4 + 8 + 3 + 5 + 73**0.5) / 6))


def test_distances_are_averaged_over_images_not_heads():
  layers = np.stack([np.eye(4), np.eye(4)[[1, 0, 3, 2]]])  # at distance 0, at distance 6
  both = np.stack([np.stack([layers[0], layers[1]]), np.stack([layers[1], layers[1]])])[None]
  distance = attention.mean_attention_distance(both, (2, 2), (9, 6), num_prefix=0)
  np.testing.assert_allclose(distance, [[3, 6]])


def test_what_a_model_sows_and_gives_comes_without_tuples():
  class Sows(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      assert not train
      self.sow('intermediates', 'doubled', 2 * x)
      return x

  outputs, intermediates = attention.apply_with_intermediates(Sows(), {}, IMAGES)
  np.testing.assert_array_equal(outputs, IMAGES)
  assert list(intermediates) == ['doubled']
  np.testing.assert_array_equal(intermediates['doubled'], 2 * IMAGES)
  assert attention.apply_with_intermediates(Silent(), {}, IMAGES)[1] == {}


def test_masks_of_a_share_of_the_mass_are_dino_s():
  """Against the lines of visualize_attention.py, restated in PyTorch."""
  maps = np.random.default_rng(0).random((2, 3, 4, 5)).astype(np.float32)
  values, index = torch.sort(torch.tensor(maps).reshape(6, 20))
  values /= values.sum(dim=1, keepdim=True)
  above = values.cumsum(dim=1) > 1 - 0.6
  expected = torch.gather(above, 1, torch.argsort(index)).reshape(2, 3, 4, 5)
  np.testing.assert_array_equal(attention.mass_masks(maps, 0.6), expected.numpy())


def test_the_nearest_patch_is_drawn_as_squares():
  maps = np.arange(6).reshape(2, 3)
  found = attention.upsample_nearest(maps, (4, 2), (4, 2))
  np.testing.assert_array_equal(found, maps.repeat(4, 0).repeat(2, 1))
  overlapping = attention.upsample_nearest(np.arange(3)[None], (1, 4), (1, 2))
  np.testing.assert_array_equal(overlapping, [[0, 0, 0, 1, 1, 2, 2, 2]])
