"""What the command draws of a model: the right numbers in the right places."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explain.helpers import VIT, WIDE, make_context
from matplotlib.figure import Figure

from vit_jax.errors import UsageError
from vit_jax.explain import attention
from vit_jax.explain.context import NOT_OF_MODEL
from vit_jax.explain.evaluation import Evaluation
from vit_jax.explain.filters import principal_components
from vit_jax.explain.mistakes import confusion_matrix
from vit_jax.explain.pictures import PICTURES
from vit_jax.explain.positions import cosine_similarity
from vit_jax.models import BACKBONES
from vit_jax.models.backbone import Attention, AttentionMaps, Backbone, Layout

ATTENTION = ('attention', 'attention_masks', 'rollout', 'gradient_rollout', 'attention_distance')
LEARNS = {'type': 'dynamic', 'num_tokens': 2, 'tokenlearner_loc': 1}
TOKEN_LEARNER = VIT | {'name': 'token_learner', 'classifier': 'gap', 'tokenizer': LEARNS}


def drawn(figure):
  """The top image in each of the figure's tiles."""
  return [np.asarray(axis.images[-1].get_array()) for axis in figure.axes if axis.images]


def texts(figure):
  """The texts under images, which maps may stand beside."""
  return [axis.get_xlabel() for axis in figure.axes if len(axis.images) == 1]


def title(figure):
  return figure.texts[0].get_text()


def token_learner(tokenizer, **changes):
  return make_context(TOKEN_LEARNER | {'tokenizer': LEARNS | tokenizer} | changes)


@functools.cache
def captured(classifier='token'):
  context = make_context(VIT | {'classifier': classifier})
  _, weights = attention.capture(context.backbone, context.variables, context.inputs)
  return jax.device_get(weights)


@pytest.mark.parametrize(('layer', 'index'), [(None, 1), (0, 0)])
def test_attention_of_the_class_token_is_drawn_step_by_step(layer, index):
  context = make_context(VIT, layer=layer)
  figure = PICTURES['attention'](context)
  heads = captured().layers[index, :, :, 0, 1:]
  tiles = drawn(figure)
  assert len(tiles) == 2 * 4
  for i in range(2):
    rows = [heads[i].mean(axis=0), *heads[i]]
    np.testing.assert_array_equal(tiles[4 * i], context.images[i])
    for tile, row in zip(tiles[4 * i + 1 : 4 * i + 4], rows, strict=True):
      grid = (row - row.min()) / (row.max() - row.min())
      pixels = attention.upsample(grid.reshape(2, 2), (4, 4), (4, 4))
      np.testing.assert_allclose(tile, pixels, atol=1e-4)
  assert [axis.get_title() for axis in figure.axes[:4]] == ['image', 'mean', 'head 0', 'head 1']
  assert title(figure) == f'Attention of the class token in layer {index} (0 to 1)'


def test_attention_of_the_probe_is_drawn_for_a_map_head():
  figure = PICTURES['attention'](make_context(VIT | {'classifier': 'map'}))
  assert "MAP head's probe" in title(figure)
  assert len(drawn(figure)) == 2 * 4
  assert PICTURES['attention'](make_context(VIT | {'classifier': 'gap'})) == NOT_OF_MODEL


@pytest.mark.parametrize('classifier', ['token', 'gap', 'map'])
def test_rollout_is_drawn_as_asked_for(classifier):
  context = make_context(VIT | {'classifier': classifier}, head_fusion='max', discard_ratio=0.25)
  figure = PICTURES['rollout'](context)
  maps = attention.rollout_map(
    captured(classifier),
    num_prefix=int(classifier == 'token'),
    head_tokens=(0,) if classifier == 'token' else None,
    head_fusion='max',
    discard_ratio=0.25,
  )
  large = attention.upsample(maps.reshape(2, 2, 2), (4, 4), (4, 4))
  for tile, pixels in zip(drawn(figure)[1:4:2], large, strict=True):
    low, high = pixels.min(), pixels.max()
    np.testing.assert_allclose(tile, (pixels - low) / (high - low), atol=1e-4)
  assert title(figure) == 'Attention rollout (max of heads, 25% discarded)'


def test_gradient_rollout_is_of_the_predicted_class_unless_one_is_given():
  context = make_context(VIT)
  predicted = drawn(PICTURES['gradient_rollout'](context))
  for target in range(3):
    figure = PICTURES['gradient_rollout'](dataclasses.replace(context, target=target))
    assert f"for class '{context.class_names[target]}'" in title(figure)
    for i in range(2):
      same = np.allclose(drawn(figure)[2 * i + 1], predicted[2 * i + 1], atol=1e-4)
      assert same == (context.predictions[i] == target)


def test_images_of_one_channel_that_are_not_square():
  context = make_context(WIDE)
  for name in ('attention', 'rollout', 'gradient_rollout'):
    figure = PICTURES[name](context)
    assert all(tile.shape[:2] == (8, 6) for tile in drawn(figure)[:2]), name
    box = figure.axes[0].get_position()
    width, height = figure.get_size_inches()
    assert box.height * height / (box.width * width) == pytest.approx(8 / 6)


def test_overlapping_patches():
  context = make_context(VIT | {'stride': 2})
  assert context.layout.grid == (3, 3)
  for name in ('attention', 'attention_masks', 'rollout', 'attention_distance'):
    assert isinstance(PICTURES[name](context), Figure)


def test_attention_masks_keep_the_images_where_a_head_looks():
  context = make_context(VIT)
  figure = PICTURES['attention_masks'](context)
  assert title(figure) == 'Where 60% of the attention of the class token in layer 1 (0 to 1) goes'
  tiles = drawn(figure)
  weights = np.asarray(captured().layers)[-1][:, :, 0, 1:]  # [B, heads, patches]
  for i, image in enumerate(context.images):
    for head, tile in enumerate(tiles[3 * i + 1 : 3 * i + 3]):
      order = np.argsort(-weights[i, head])
      # As many of the highest as first make up 60 %.
      count = np.searchsorted(np.cumsum(weights[i, head][order]) / weights[i, head].sum(), 0.6) + 1
      kept = np.isin(np.arange(4), order[:count]).reshape(2, 2).repeat(4, 0).repeat(4, 1)
      expected = (0.3 + 0.7 * image / 255) * np.where(kept, 1, 0.25)[..., None]
      np.testing.assert_allclose(tile, expected, atol=1e-5)


def test_distances_are_points_over_depth():
  context = make_context(VIT)
  figure = PICTURES['attention_distance'](context)
  (axis,) = figure.axes
  expected = attention.mean_attention_distance(captured().layers, (2, 2), (4, 4), num_prefix=1)
  points = np.stack([line.get_ydata() for line in axis.lines[:2]], axis=1)
  np.testing.assert_allclose(points, expected, rtol=1e-5)
  np.testing.assert_allclose(axis.lines[2].get_ydata(), expected.mean(axis=1), rtol=1e-5)
  # To itself, two neighbours at 4 pixels, and the other corner.
  np.testing.assert_allclose(axis.lines[3].get_ydata(), (0 + 4 + 4 + 32**0.5) / 4)
  assert axis.get_ylabel() == 'mean attention distance (pixels)'
  labels = [text.get_text() for text in axis.get_legend().get_texts()]
  assert labels == ['a head', 'mean of heads', 'uniform attention']


def test_a_model_without_a_head_is_explained_without_classes():
  context = make_context(VIT | {'num_classes': 0})
  assert texts(PICTURES['rollout'](context)) == ['', '']
  assert PICTURES['gradient_rollout'](context) == NOT_OF_MODEL


def test_damaged_weights_are_refused():
  context = make_context(VIT)
  context.variables['params']['cls'][:] = np.nan
  with pytest.raises(UsageError, match='not finite'):
    PICTURES['attention'](context)


def test_models_that_change_their_tokens_have_none_of_these():
  context = make_context(TOKEN_LEARNER)
  for name in ATTENTION:
    assert PICTURES[name](context) == NOT_OF_MODEL


def test_filters_are_drawn_without_images():
  context = make_context(VIT, num_images=0)
  figure = PICTURES['filters'](context)
  components, _ = principal_components(context.variables['params']['embedding']['kernel'])
  assert len(figure.axes) == len(components) == 7
  for axis, component in zip(figure.axes, components, strict=True):
    low, high = component.min(), component.max()
    expected = (component - low) / (high - low)
    np.testing.assert_allclose(axis.images[0].get_array(), expected, atol=1e-5)


@pytest.mark.parametrize('kind', ['learned_1d', 'sinusoidal_1d', 'sinusoidal_2d'])
@pytest.mark.parametrize('model', [VIT, TOKEN_LEARNER])
def test_positions_are_drawn_without_images(kind, model):
  context = make_context(model | {'positional_embedding': kind}, num_images=0)
  figure = PICTURES['positions'](context)
  _, embeddings = context.backbone.positions(context.variables['params'], (8, 8))
  similarity = cosine_similarity(embeddings)
  mosaic = figure.axes[0].images[0].get_array()
  np.testing.assert_allclose(mosaic[3:5, :2], similarity[1, 0], rtol=1e-6)
  assert kind in figure.get_suptitle()


def test_a_model_without_positions_has_no_picture_of_them():
  assert PICTURES['positions'](make_context(VIT | {'positional_embedding': 'none'})) == NOT_OF_MODEL


@pytest.mark.parametrize('classifier', ['gap', 'token'])
@pytest.mark.parametrize('use_tokenfuse', [False, True])
def test_token_maps_are_those_of_the_first_tokenized_layer(classifier, use_tokenfuse):
  context = token_learner({'use_tokenfuse': use_tokenfuse}, classifier=classifier)
  figure = PICTURES['token_maps'](context)
  apply = context.backbone.apply
  _, state = apply(context.variables, context.inputs, mutable=['intermediates'])
  (maps,) = state['intermediates']['Transformer']['TokenLearnerModuleV11_0']['token_maps']
  expected = attention.upsample(np.reshape(maps, (2, 2, 2, 2)), (4, 4), (4, 4))
  tiles = [axis.images[1].get_array() for axis in figure.axes if len(axis.images) == 2]
  np.testing.assert_allclose(tiles, expected.reshape(4, 8, 8), atol=1e-5)
  assert title(figure) == 'TokenLearner before layer 1: where each token looks'


def test_of_many_tokens_the_first_are_drawn():
  figure = PICTURES['token_maps'](token_learner({'num_tokens': 20}))
  assert sum(len(axis.images) == 2 for axis in figure.axes) == 2 * 16
  assert title(figure).endswith(', the first 16 of 20')
  figure.draw_without_rendering()
  titles = [axis.title.get_window_extent() for axis in figure.axes[1:17]]
  assert not any(a.overlaps(b) for a, b in itertools.combinations(titles, 2))


def test_a_token_learner_that_keeps_its_tokens_is_a_vit():
  context = token_learner({'type': 'patch'}, classifier='token')
  assert PICTURES['token_maps'](context) == NOT_OF_MODEL
  for name in ATTENTION:
    assert isinstance(PICTURES[name](context), Figure), name


def test_a_vit_has_no_token_maps():
  assert PICTURES['token_maps'](make_context(VIT)) == NOT_OF_MODEL


@pytest.mark.parametrize('classifier', ['gap', 'map'])
def test_a_class_token_that_is_not_read_stays_out_of_the_maps(classifier):
  context = make_context(VIT | {'classifier': classifier, 'class_token': True})
  for name in ('rollout', 'gradient_rollout', 'attention_distance'):
    assert isinstance(PICTURES[name](context), Figure), name


# Backbones of other kinds.


class Windows(Backbone, kw_only=True):
  """Looks at the brightest place of each 4x4 pixels, in two layers of a map each."""

  num_classes: int = 3
  num_attention_layers = 2

  def __call__(self, x, *, train=False):
    self.sow('intermediates', 'brightness', x.mean(axis=-1))
    return x.mean(axis=(1, 2))

  def attention_maps(self, intermediates, image_size, layer=None):
    layer = 1 if layer is None else layer
    brightness = intermediates['brightness']
    padded = np.pad(brightness, ((0, 0), (0, -image_size[0] % 4), (0, -image_size[1] % 4)))
    size = 2 * (layer + 1)
    batch, height, width = padded.shape
    maps = padded.reshape(batch, height // size, size, width // size, size).mean(axis=(2, 4))
    return AttentionMaps(maps[:, None], (size, size), (size, size), f'windows of {size} pixels')


class Registers(Backbone, kw_only=True):
  """Four patches behind two tokens, the second of which the head reads; it attends as planted."""

  planted: tuple[Any, ...] = ()
  num_classes: int = 3

  def layout(self, image_size):
    return Layout((2, 2), (4, 4), (4, 4), num_prefix=2, head_tokens=(1,))

  def __call__(self, x, *, train=False):
    weights = jnp.asarray(self.planted, jnp.float32)[None, None]
    self.sow('intermediates', 'weights', jnp.tile(weights, (len(x), 1, 1, 1)))
    return x.mean(axis=(1, 2))

  def attention(self, intermediates):
    return Attention(intermediates['weights'][None], None)


@pytest.fixture
def registered(monkeypatch):
  """Both are models by name."""
  for cls in (Windows, Registers):
    monkeypatch.setitem(BACKBONES, cls.__name__, (cls.__module__, cls.__name__))


def explained(model, image_size):
  """What there is to explain of such a model, which has no parameters."""
  context = make_context(VIT | {'image_size': image_size, 'patches': {'size': (2, 2)}})
  config = dataclasses.replace(context.config, model=model)
  return dataclasses.replace(context, config=config, variables={'params': {}})


@pytest.mark.usefixtures('registered')
@pytest.mark.parametrize(('layer', 'size'), [(None, 4), (0, 2)])
def test_maps_lie_where_a_backbone_says_and_are_cut_off_at_the_image(layer, size):
  context = dataclasses.replace(explained(Windows(), (8, 6)), layer=layer)
  figure = PICTURES['attention'](context)
  assert title(figure) == f'Attention of the windows of {size} pixels'
  assert [axis.get_title() for axis in figure.axes[:3]] == ['image', 'mean', 'head 0']
  brightness = {'brightness': context.inputs.mean(axis=-1)}
  maps = context.backbone.attention_maps(brightness, (8, 6), layer).maps[:, 0]
  pixels = attention.upsample(maps, (size, size), (size, size))[:, :8, :6]
  for i, tile in enumerate(drawn(figure)[2::3]):
    low, high = pixels[i].min(), pixels[i].max()
    np.testing.assert_allclose(tile, (pixels[i] - low) / (high - low), atol=1e-5)
  for name in ('rollout', 'gradient_rollout', 'attention_distance', 'filters', 'positions'):
    assert PICTURES[name](context) == NOT_OF_MODEL


@pytest.mark.usefixtures('registered')
def test_tokens_before_the_grid_are_no_places_and_the_heads_is_read():
  planted = np.eye(6)
  planted[1] = [0.2, 0.2, 0.1, 0.4, 0.1, 0]
  context = explained(Registers(planted=tuple(map(tuple, planted))), (8, 8))
  figure = PICTURES['rollout'](context)
  pixels = attention.upsample(np.array([[0.05, 0.2], [0.05, 0]]), (4, 4), (4, 4))
  np.testing.assert_allclose(drawn(figure)[1], pixels / 0.2, atol=1e-5)
  distances = PICTURES['attention_distance'](context).axes[0].lines[0].get_ydata()
  np.testing.assert_array_equal(distances, [0])  # patches attend to themselves


# Mistakes.


NAMES = ['cat', 'dög', '$cow$']


def with_evaluation(evaluate, model=VIT, labels=((True, False, False),)):
  """What there is to explain of a model whose data set is classified by `evaluate`."""
  labels = labels and np.array(labels)
  return make_context(model, num_images=1, labels=labels, class_names=NAMES, evaluate=evaluate)


def evaluation(labels, probabilities):
  images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones(
    (2, 3, 1), np.uint8
  )
  return Evaluation('animals', np.array(labels), np.array(probabilities), lambda i: images[i])


def test_mistakes_are_counted_and_shown_from_the_most_confident():
  calls = []

  def evaluate():
    calls.append(1)
    sure, unsure = [0.0, 0.0, 1.0], [0.5, 0.4, 0.1]
    return evaluation([0, 1, 2, 1], [unsure, unsure, sure, sure])

  there = with_evaluation(evaluate)
  confusion = PICTURES['confusion'](there)
  expected = confusion_matrix(np.array([0, 1, 2, 1]), np.array([0, 0, 2, 2]), 3)
  np.testing.assert_array_equal(confusion.axes[0].images[0].get_array(), expected)
  assert 'Confusion matrix: animals\n2 of 4 right' in confusion.get_suptitle()
  wrong = PICTURES['wrong'](there)
  assert [axis.images[0].get_array()[0, 0] for axis in wrong.axes] == [3, 1]
  assert wrong.axes[0].get_xlabel() == 'true dög\npredicted $cow$\n100.0%'
  assert wrong.texts[0].get_text() == 'Most confidently wrong of animals: 2 of 2 mistakes'
  for figure in (confusion, wrong):
    figure.draw_without_rendering()  # dollars are no formulas
  assert len(calls) == 1


def test_there_is_no_picture_of_no_mistakes():
  there = with_evaluation(lambda: evaluation([2, 0], np.eye(3)[[2, 0]]))
  assert PICTURES['wrong'](there) == 'nothing is wrong of 2 images'
  assert isinstance(PICTURES['confusion'](there), Figure)


@pytest.mark.parametrize('name', ['confusion', 'wrong'])
def test_why_there_are_no_mistakes_is_told(name):
  assert PICTURES[name](with_evaluation(lambda: 'labels are secret')) == 'labels are secret'
  headless = with_evaluation(lambda: 1 / 0, VIT | {'num_classes': 0})
  assert PICTURES[name](headless) == NOT_OF_MODEL
  unlabelled = with_evaluation(lambda: 1 / 0, labels=None)
  assert 'folders of the names of classes' in PICTURES[name](unlabelled)
