"""Pictures of what is learnt: filters, positions, and what TokenLearner looks at."""

import functools
import itertools

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from small_vits import SQUARE, random_images

from vit_jax.explain import attention, pictures
from vit_jax.explain.filters import principal_components
from vit_jax.explain.positions import cosine_similarity, position_embeddings
from vit_jax.models import MODELS

LEARNS = {'type': 'dynamic', 'num_tokens': 2, 'tokenlearner_loc': 1}
TOKEN_LEARNER = SQUARE | {'name': 'token_learner', 'classifier': 'gap', 'tokenizer': LEARNS}


@functools.cache
def make(num_images=2, tokenizer=None, **changes):
  """What there is to explain of a model as it is before training."""
  config = (SQUARE if tokenizer is None else TOKEN_LEARNER) | changes
  config |= {'tokenizer': LEARNS | dict(tokenizer or ())}
  model = MODELS[config['name']].from_config(config)
  images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
  return pictures.Context(
    model=model,
    params=model.init(jax.random.key(0), random_images(config))['params'],
    images=images[:num_images],
    inputs=random_images(config)[:num_images],
    class_names=['red', 'green', 'blue'],
    file_names=['a.png', 'b.png'][:num_images],
    labels=None,
    boxes=None,
    evaluate=lambda: 1 / 0,
    layer=None,
    head_fusion='mean',
    discard_ratio=0.0,
    target=None,
  )


def draw(name, context):
  return pictures.PICTURES[name](context)


def test_filters_are_drawn_without_images():
  context = make(num_images=0)
  figure = draw('filters', context)
  components, _ = principal_components(np.asarray(context.params['embedding']['kernel']))
  assert len(figure.axes) == len(components) == 7
  for axis, component in zip(figure.axes, components, strict=True):
    low, high = component.min(), component.max()
    expected = (component - low) / (high - low)
    np.testing.assert_allclose(axis.images[0].get_array(), expected, atol=1e-5)


@pytest.mark.parametrize('kind', ['learned_1d', 'sinusoidal_1d', 'sinusoidal_2d'])
@pytest.mark.parametrize('tokenizer', [None, ()])
def test_positions_are_drawn_without_images(kind, tokenizer):
  context = make(num_images=0, tokenizer=tokenizer, positional_embedding=kind)
  figure = draw('positions', context)
  similarity = cosine_similarity(position_embeddings(context.params, kind, (2, 2)))
  mosaic = figure.axes[0].images[0].get_array()
  np.testing.assert_allclose(mosaic[3:5, :2], similarity[1, 0], rtol=1e-6)
  assert kind in figure.get_suptitle()


def test_a_model_without_positions_has_no_picture_of_them():
  assert draw('positions', make(positional_embedding='none')) == pictures.NOT_OF_MODEL


@pytest.mark.parametrize('classifier', ['gap', 'token'])
@pytest.mark.parametrize('use_tokenfuse', [False, True])
def test_token_maps_are_those_of_the_first_tokenized_layer(classifier, use_tokenfuse):
  context = make(tokenizer=(('use_tokenfuse', use_tokenfuse),), classifier=classifier)
  figure = draw('token_maps', context)
  variables = {'params': context.params}
  _, state = context.model.apply(variables, context.inputs, mutable=['intermediates'])
  (maps,) = state['intermediates']['Transformer']['TokenLearnerModuleV11_0']['token_maps']
  expected = attention.upsample(np.reshape(maps, (2, 2, 2, 2)), (4, 4), (4, 4))
  drawn = [axis.images[1].get_array() for axis in figure.axes if len(axis.images) == 2]
  np.testing.assert_allclose(drawn, expected.reshape(4, 8, 8), atol=1e-5)
  assert figure.texts[0].get_text() == 'TokenLearner before layer 1: where each token looks'


def test_of_many_tokens_the_first_are_drawn():
  figure = draw('token_maps', make(tokenizer=(('num_tokens', 20),)))
  assert sum(len(axis.images) == 2 for axis in figure.axes) == 2 * 16
  assert figure.texts[0].get_text().endswith(', the first 16 of 20')
  figure.draw_without_rendering()
  titles = [axis.title.get_window_extent() for axis in figure.axes[1:17]]
  assert all(a.x1 < b.x0 for a, b in itertools.pairwise(titles))


def test_a_token_learner_that_keeps_its_tokens_is_a_vit():
  context = make(tokenizer=(('type', 'patch'),), classifier='token')
  assert draw('token_maps', context) == pictures.NOT_OF_MODEL
  for name in ('attention', 'rollout', 'gradient_rollout', 'attention_distance'):
    assert isinstance(draw(name, context), Figure), name


def test_a_vit_has_no_token_maps():
  assert draw('token_maps', make()) == pictures.NOT_OF_MODEL


@pytest.mark.parametrize('classifier', ['gap', 'map'])
def test_a_class_token_that_is_not_read_stays_out_of_the_maps(classifier):
  context = make(classifier=classifier, class_token=True)
  for name in ('rollout', 'gradient_rollout', 'attention_distance'):
    assert isinstance(draw(name, context), Figure), name
