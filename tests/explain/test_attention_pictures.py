"""Figures of attention, and what the command draws of a model."""

import dataclasses
import functools

import numpy as np
import pytest
from matplotlib.figure import Figure
from small_vits import SQUARE, WIDE, logits, random_images, random_params

from vit_jax.errors import UsageError
from vit_jax.explain import attention, attention_plots
from vit_jax.explain.pictures import NOT_OF_MODEL, PICTURES, Context
from vit_jax.models import MODELS

RNG = np.random.default_rng(0)


def make(config, **changes):
  """What there is to explain of a small model with random parameters, and two images."""
  context = Context(
    model=MODELS[config['name']].from_config(config),
    params=random_params(config),
    images=RNG.integers(0, 256, (2, *config['image_size'], config['channels']), dtype=np.uint8),
    inputs=random_images(config),
    class_names=config['class_names'] or ['red', 'green', 'blue'],
    file_names=['', ''],
    labels=None,
    boxes=None,
    evaluate=lambda: 1 / 0,
    layer=None,
    head_fusion='mean',
    discard_ratio=0.0,
    target=None,
  )
  return dataclasses.replace(context, **changes)


def drawn(figure):
  """The top image in each of the figure's tiles."""
  return [np.asarray(axis.images[-1].get_array()) for axis in figure.axes if axis.images]


def texts(figure):
  """The texts under images, which maps may stand beside."""
  return [axis.get_xlabel() for axis in figure.axes if len(axis.images) == 1]


def title(figure):
  return figure.texts[0].get_text()


@functools.cache
def captured(classifier='token'):
  context = make(SQUARE | {'classifier': classifier})
  _, weights = attention.capture(context.model, context.params, context.inputs)
  return attention.Attention(*(w if w is None else np.asarray(w) for w in weights))


@pytest.mark.parametrize(('layer', 'index'), [(None, 1), (0, 0)])
def test_attention_of_the_class_token_is_drawn_step_by_step(layer, index):
  context = make(SQUARE, layer=layer)
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
      np.testing.assert_allclose(tile, context.images[i] / 255 * pixels[..., None], atol=1e-4)
  assert [axis.get_title() for axis in figure.axes[:4]] == ['image', 'mean', 'head 0', 'head 1']
  assert title(figure) == f'Attention of the class token in layer {index} (0 to 1), times the image'


def test_attention_of_the_probe_is_drawn_for_a_map_head():
  figure = PICTURES['attention'](make(SQUARE | {'classifier': 'map'}))
  assert "MAP head's probe" in title(figure)
  assert len(drawn(figure)) == 2 * 4
  assert PICTURES['attention'](make(SQUARE | {'classifier': 'gap'})) == NOT_OF_MODEL


def test_captions_say_the_predicted_and_the_true_class():
  predicted = logits(random_params(SQUARE), SQUARE, random_images(SQUARE)).argmax(axis=1)
  names = [['red', 'green', 'blue'][label] for label in predicted]
  labels = np.array([[True, False, False], [True, False, True]])
  context = make(SQUARE, labels=labels)
  expected = [f'predicted {names[0]}\ntrue red', f'predicted {names[1]}\ntrue red, blue']
  assert texts(PICTURES['rollout'](context)) == expected
  lines = texts(PICTURES['attention'](context))
  assert lines[::4] == [text.replace('\n', ', ') for text in expected]
  assert not any(lines[i] for i in (1, 2, 3, 5, 6, 7))
  context = make(SQUARE, file_names=['a.png', 'a_name_$1_that_does_not_$fit_under_an_image.png'])
  assert texts(PICTURES['rollout'](context)) == [
    f'a.png\npredicted {names[0]}',
    f'a_name_$1_that_does_not_$fi…\npredicted {names[1]}',
  ]


@pytest.mark.parametrize('classifier', ['token', 'gap', 'map'])
def test_rollout_is_drawn_as_asked_for(classifier):
  context = make(SQUARE | {'classifier': classifier}, head_fusion='max', discard_ratio=0.25)
  figure = PICTURES['rollout'](context)
  maps = attention.rollout_map(captured(classifier), classifier, 'max', 0.25)
  large = attention.upsample(maps.reshape(2, 2, 2), (4, 4), (4, 4))
  for tile, pixels in zip(drawn(figure)[1:4:2], large, strict=True):
    low, high = pixels.min(), pixels.max()
    np.testing.assert_allclose(tile, (pixels - low) / (high - low), atol=1e-4)
  assert title(figure) == 'Attention rollout (max of heads, 25% discarded)'


def test_gradient_rollout_is_of_the_predicted_class_unless_one_is_given():
  context = make(SQUARE)
  predicted = drawn(PICTURES['gradient_rollout'](context))
  for target in range(3):
    figure = PICTURES['gradient_rollout'](dataclasses.replace(context, target=target))
    assert f"for class '{context.class_names[target]}'" in title(figure)
    for i in range(2):
      same = np.allclose(drawn(figure)[2 * i + 1], predicted[2 * i + 1], atol=1e-4)
      assert same == (context.predictions[i] == target)


def test_images_of_one_channel_that_are_not_square():
  context = make(WIDE)
  for name in ('attention', 'rollout', 'gradient_rollout'):
    figure = PICTURES[name](context)
    assert all(tile.shape[:2] == (8, 6) for tile in drawn(figure)[:2]), name
    box = figure.axes[0].get_position()
    width, height = figure.get_size_inches()
    assert box.height * height / (box.width * width) == pytest.approx(8 / 6)


def test_overlapping_patches():
  config = SQUARE | {'stride': 2}
  context = make(config)
  assert context.grid == (3, 3)
  for name in ('attention', 'rollout', 'attention_distance'):
    assert isinstance(PICTURES[name](context), Figure)


def test_distances_are_points_over_depth():
  context = make(SQUARE)
  figure = PICTURES['attention_distance'](context)
  (axis,) = figure.axes
  expected = attention.mean_attention_distance(captured().layers, (2, 2), (4, 4), True)
  points = np.stack([line.get_ydata() for line in axis.lines[:2]], axis=1)
  np.testing.assert_allclose(points, expected, rtol=1e-5)
  np.testing.assert_allclose(axis.lines[2].get_ydata(), expected.mean(axis=1), rtol=1e-5)
  # To itself, two neighbours at 4 pixels, and the other corner.
  np.testing.assert_allclose(axis.lines[3].get_ydata(), (0 + 4 + 4 + 32**0.5) / 4)
  assert axis.get_ylabel() == 'mean attention distance (pixels)'
  labels = [text.get_text() for text in axis.get_legend().get_texts()]
  assert labels == ['a head', 'mean of heads', 'uniform attention']


def test_a_model_without_a_head_is_explained_without_classes():
  config = SQUARE | {'num_classes': 0}
  context = make(config)
  assert texts(PICTURES['rollout'](context)) == ['', '']
  assert PICTURES['gradient_rollout'](context) == NOT_OF_MODEL


def test_damaged_weights_are_refused():
  context = make(SQUARE)
  context.params['cls'][:] = np.nan
  with pytest.raises(UsageError, match='not finite'):
    PICTURES['attention'](context)


@pytest.mark.parametrize('count', [1, 2, 7])
@pytest.mark.parametrize('num_maps', [2, 17])
def test_nothing_lies_outside_the_figure_or_over_something_else(count, num_maps):
  images = RNG.integers(0, 256, (count, 6, 9, 3), dtype=np.uint8)
  maps = RNG.random((count, num_maps, 6, 9))
  long = 'predicted ' + 'm' * 17
  names = [f'{i}' for i in range(num_maps)]
  for figure in (
    attention_plots.highlights(images, maps, names, [long] * count, 'A title ' * 7),
    attention_plots.heat_maps(images, maps[:, 0], [f'{long}\n{long}'] * count, 'A title ' * 7, 'x'),
  ):
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    boxes = [axis.get_tightbbox() for axis in figure.axes if axis.images]
    boxes += [text.get_window_extent() for text in figure.texts]
    for box in boxes + [axis.get_tightbbox() for axis in figure.axes]:
      assert 0 <= box.x0 < box.x1 <= width
      assert 0 <= box.y0 < box.y1 <= height
    tiles = [axis.get_window_extent() for axis in figure.axes]
    labels = [axis.xaxis.label for axis in figure.axes if axis.get_xlabel()]
    assert len(labels) == count + (figure.axes[-1].get_xlabel() == 'x'), 'and that of the colours'
    captions = [label.get_window_extent() for label in labels]
    for caption in captions:
      assert not any(caption.overlaps(other) for other in tiles if other.y1 < caption.y1)
    for i, tile in enumerate(tiles):
      assert not any(tile.overlaps(other) for other in tiles[:i])


def test_models_that_change_their_tokens_have_none_of_these():
  tokenizer = {'type': 'dynamic', 'num_tokens': 2, 'tokenlearner_loc': 1}
  context = make(SQUARE | {'name': 'token_learner', 'tokenizer': tokenizer})
  for name in ('attention', 'rollout', 'gradient_rollout', 'attention_distance'):
    assert PICTURES[name](context) == NOT_OF_MODEL
