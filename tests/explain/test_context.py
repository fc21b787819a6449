"""What there is to explain: outputs, captions, and what backbones answer."""

import functools

import jax
import numpy as np
import pytest
from explain.helpers import VIT, make_context

from vit_jax.errors import UsageError

HEAD = {'name': 'localization', 'hidden_size': 4, 'dropout_rate': 0.0, 'box_sigmoid': True}
RESNET = {'name': 'resnet18', 'num_filters': 2, 'num_classes': 3, 'image_size': (8, 8)}


def test_captions_tell_the_predicted_and_the_true_class():
  context = make_context(VIT)
  predicted = context.config.model.apply(context.variables, context.inputs).argmax(axis=1)
  names = [['red', 'green', 'blue'][label] for label in predicted]
  labels = np.array([[True, False, False], [True, False, True]])
  context = make_context(VIT, labels=labels)
  expected = [f'predicted {names[0]}\ntrue red', f'predicted {names[1]}\ntrue red, blue']
  assert context.captions == expected
  assert context.lines == [text.replace('\n', ', ') for text in expected]
  context = make_context(
    VIT, file_names=['a.png', 'a_name_$1_that_does_not_$fit_under_an_image.png']
  )
  assert context.captions == [
    f'a.png\npredicted {names[0]}',
    f'a_name_$1_that_does_not_$fi…\npredicted {names[1]}',
  ]


def test_captions_tell_all_classes_from_the_threshold_on():
  context = make_context(VIT)
  logits = context.config.model.apply(context.variables, context.inputs)
  probabilities = np.sort(np.asarray(jax.nn.sigmoid(logits)), axis=1)
  threshold = float(probabilities[0, 1:].mean())  # which one class of the first image reaches
  for least, count in ((threshold, 1), (threshold / 100, 3), (0.999999, 0)):
    options = {'name': 'sigmoid', 'threshold': least}
    labels = np.zeros((2, 3), bool)
    first, true = make_context(VIT, labels=labels, task_options=options).captions[0].split('\n')
    expected = [['red', 'green', 'blue'][i] for i in np.argsort(-logits[0])[:count]]
    assert (first, true) == (f'predicted {", ".join(expected) or "none"}', 'true none')


def test_names_of_many_classes_take_up_to_three_lines():
  labels = np.ones((2, 20), bool)
  labels[0, 4:] = False
  names = [f'the class {i}' for i in range(20)]
  context = make_context(VIT | {'num_classes': 20}, class_names=names, labels=labels)
  assert context.captions[0].split('\ntrue ')[1] == (
    'the class 0, the class 1,\nthe class 2, the class 3'
  )
  assert context.lines[0].endswith(', true the class 0, the class 1, the class 2, the class 3')
  assert context.captions[1].split('\ntrue ')[1].split('\n')[2:] == ['the class 4, the class 5, …']


@pytest.mark.parametrize('backbone', [VIT, RESNET])
def test_a_model_with_a_head_has_boxes_and_a_backbone_of_its_own(backbone):
  context = make_context(backbone | {'head': HEAD})
  assert {name: x.shape for name, x in context.outputs.items()} == {'logits': (2, 3), 'box': (2, 4)}
  expected = jax.jit(context.config.model.apply)(context.variables, context.inputs)
  for name, values in expected.items():
    np.testing.assert_allclose(context.outputs[name], values, rtol=1e-4, atol=1e-5)
  apply = jax.jit(functools.partial(context.backbone.apply, method='features'))
  features = apply(context.backbone_variables, context.inputs).pooled
  head = context.variables['params']['class_head']
  hidden = np.maximum(features @ head['Dense_0']['kernel'] + head['Dense_0']['bias'], 0)
  logits = hidden @ head['Dense_1']['kernel'] + head['Dense_1']['bias']
  np.testing.assert_allclose(context.outputs['logits'], logits, rtol=1e-4, atol=1e-5)
  assert context.has_attention == (backbone is VIT)


def test_maps_go_on_where_patches_end_before_the_image():
  context = make_context(VIT | {'image_size': (10, 9), 'drop_remainder': True})
  layout = context.layout
  assert layout.grid == (2, 2)
  pixels = context.to_pixels(np.arange(4.0).reshape(1, 2, 2), layout.patch, layout.stride)
  assert pixels.shape == (1, 10, 9)
  assert (pixels[:, 8:] == pixels[:, 7:8]).all()
  assert (pixels[..., 8] == pixels[..., 7]).all()


def test_outputs_of_a_backbone_are_its_logits():
  context = make_context(RESNET)
  expected = jax.jit(context.config.model.apply)(context.variables, context.inputs)
  np.testing.assert_allclose(context.outputs['logits'], expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(context.predictions, expected.argmax(axis=1))
  assert context.backbone_variables is context.variables


@pytest.mark.parametrize('changes', [{'num_classes': 0}, {'classifier': 'none'}])
def test_a_model_that_gives_no_class_an_image_predicts_none(changes):
  context = make_context(VIT | changes)
  assert context.predictions is None
  assert context.captions == ['', '']


def test_outputs_that_are_not_finite_are_refused():
  context = make_context(VIT)
  context.variables['params']['output_projection']['bias'][:] = np.inf
  with pytest.raises(UsageError, match='numbers that are not finite; its weights are damaged'):
    _ = context.outputs


def test_a_backbone_is_asked_about_each_image_until_it_has_no_answer():
  context = make_context(VIT, num_images=3)
  asked = []

  def question(intermediates):
    asked.append(intermediates['Transformer'].keys())
    return 'an answer'

  assert context.ask_backbone(question) == ['an answer'] * 3
  assert asked == [{'encoderblock_0', 'encoderblock_1'}] * 3
  assert context.ask_backbone(lambda _: asked.append(None)) == []
  assert asked[3:] == [None]
