"""The task localization against NumPy: overlaps by hand, losses and metrics restated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from vit_jax import models, tasks
from vit_jax.errors import FieldError
from vit_jax.tasks import localization

BATCH, CLASSES = 7, 4

# two boxes, and by hand: area of intersection, of union, of the smallest box round both
PAIRS = {
  'the same': ((0.5, 0.5, 0.4, 0.2), (0.5, 0.5, 0.4, 0.2), 0.08, 0.08, 0.08),
  'shifted by half': ((0.4, 0.5, 0.4, 0.2), (0.6, 0.5, 0.4, 0.2), 0.04, 0.12, 0.12),
  'one in the other': ((0.5, 0.5, 0.8, 0.8), (0.4, 0.6, 0.2, 0.4), 0.08, 0.64, 0.64),
  'crossing': ((0.5, 0.5, 0.2, 1.0), (0.5, 0.5, 1.0, 0.2), 0.04, 0.36, 1.0),
  'at the corner': ((0.3, 0.3, 0.4, 0.4), (0.5, 0.5, 0.4, 0.4), 0.04, 0.28, 0.36),
  'apart': ((0.1, 0.1, 0.2, 0.2), (0.9, 0.9, 0.2, 0.2), 0.0, 0.08, 1.0),
  'touching': ((0.2, 0.5, 0.4, 0.4), (0.6, 0.5, 0.4, 0.4), 0.0, 0.32, 0.32),
  'one without area': ((0.5, 0.5, 0.0, 0.0), (0.5, 0.5, 0.2, 0.2), 0.0, 0.04, 0.04),
  'a side below zero': ((0.5, 0.5, -0.2, 0.2), (0.5, 0.5, 0.2, 0.2), 0.0, 0.04, 0.04),
}


@pytest.mark.parametrize('name', PAIRS)
def test_overlaps_by_hand(name):
  first, second, intersection, union, hull = PAIRS[name]
  first, second = jnp.array([first]), jnp.array([second])
  for pair in ((first, second), (second, first)):
    np.testing.assert_allclose(localization.iou(*pair), intersection / union, atol=1e-6)
    expected = intersection / union - (hull - union) / hull
    np.testing.assert_allclose(localization.giou(*pair), expected, atol=1e-6)
    np.testing.assert_allclose(localization.giou_loss(*pair), 1 - expected, atol=1e-6)


def counted_overlap(first, second, grid=200):
  """IoU and GIoU of boxes on a raster, by counting its points."""
  at = (np.arange(grid) + 0.5) / grid * 2 - 0.5  # from -0.5 to 1.5

  def covers(low, high):
    return ((low[1] < at) & (at < high[1]))[:, None] & ((low[0] < at) & (at < high[0]))

  ends = [(b[:2] - b[2:] / 2, b[:2] + b[2:] / 2) for b in (first, second)]
  masks = [covers(low, high) for low, high in ends]
  hull = covers(np.minimum(ends[0][0], ends[1][0]), np.maximum(ends[0][1], ends[1][1])).sum()
  union, both = (masks[0] | masks[1]).sum(), (masks[0] & masks[1]).sum()
  return both / union, both / union - (hull - union) / hull


def random_boxes(seed, count=BATCH):
  rng = np.random.default_rng(seed)
  return np.concatenate(
    [rng.uniform(0.2, 0.8, (count, 2)), rng.uniform(0.2, 0.8, (count, 2))], axis=1
  ).astype(np.float32)


def test_overlaps_are_those_counted_on_a_raster():
  first, second = random_boxes(0, 40), random_boxes(1, 40)
  expected = np.array([counted_overlap(a, b) for a, b in zip(first, second, strict=True)])
  np.testing.assert_allclose(localization.iou(first, second), expected[:, 0], atol=0.03)
  np.testing.assert_allclose(localization.giou(first, second), expected[:, 1], atol=0.03)


def test_the_giou_of_boxes_apart_still_points_towards_each_other():
  box, target = jnp.array([[0.2, 0.2, 0.1, 0.1]]), jnp.array([[0.7, 0.6, 0.2, 0.2]])
  gradient = jax.grad(lambda box: localization.giou_loss(box, target).sum())(box)[0]
  assert (gradient[:2] < 0).all()
  for empty in ((0.5, 0.5, 0.0, 0.0), (0.7, 0.6, 0.2, 0.2)):
    gradient = jax.grad(lambda box: localization.giou_loss(box, target).sum())(jnp.array([empty]))
    assert np.isfinite(gradient).all()


def batch_and_outputs(seed=0):
  rng = np.random.default_rng(seed)
  batch = {
    'label': rng.integers(0, CLASSES, BATCH).astype(np.int32),
    'box': random_boxes(seed + 1),
    'weight': np.float32([1, 1, 0, 1, 1, 1, 0]),
  }
  near = batch['box'] + rng.normal(0, 0.03, (BATCH, 4)).astype(np.float32)
  return {'logits': rng.normal(0, 2, (BATCH, CLASSES)).astype(np.float32), 'box': near}, batch


def sums_of(outputs, batch, train=False, num_classes=CLASSES, **options):
  """What the task adds up."""
  return tasks.build('localization', options, num_classes).loss(outputs, batch, None, train)


def box_losses(boxes, targets):
  return {
    'mse': ((boxes - targets) ** 2).sum(1) / 4,
    'l1': np.abs(boxes - targets).sum(1) / 4,
    'giou': 1 - np.array([counted_overlap(a, b)[1] for a, b in zip(boxes, targets, strict=True)]),
  }


@pytest.mark.parametrize('divisor', [1.0, 20.0])
@pytest.mark.parametrize('box_loss', ['mse', 'l1', 'giou'])
def test_metrics_restated_in_numpy(box_loss, divisor):
  outputs, batch = batch_and_outputs()
  metrics = sums_of(outputs, batch, box=box_loss, class_divisor=divisor)

  weight = batch['weight']
  class_losses = -log_softmax(outputs['logits'], axis=1)[np.arange(BATCH), batch['label']]
  of_boxes = box_losses(outputs['box'], batch['box'])[box_loss]
  overlaps = np.array(
    [counted_overlap(a, b, 1000)[0] for a, b in zip(outputs['box'], batch['box'], strict=True)]
  )
  expected = {
    'loss': class_losses / divisor + of_boxes,
    'class_loss': class_losses,
    'box_loss': of_boxes,
    'accuracy': outputs['logits'].argmax(1) == batch['label'],
    'iou': overlaps,
    'iou50': overlaps > 0.5,
    'iou75': overlaps > 0.75,
    'iou90': overlaps > 0.9,
  }
  assert metrics.keys() == expected.keys()
  loose = 0.1 if box_loss == 'giou' else 1e-5
  for name, (total, count) in metrics.items():
    assert count == 5
    tolerance = {'loss': loose, 'box_loss': loose, 'iou': 0.03}.get(name, 1e-5)
    np.testing.assert_allclose(total, (expected[name] * weight).sum(), atol=tolerance, err_msg=name)


def test_weights_of_classes_are_for_the_class_alone():
  outputs, batch = batch_and_outputs()
  of_classes = (0.5, 3.0, 1.0, 2.0)
  task = tasks.build('localization', {'class_weights': of_classes, 'class_divisor': 20.0}, CLASSES)
  sums = task.loss(outputs, batch | task.totals(batch), None, True)
  nats = -log_softmax(outputs['logits'], axis=1)[np.arange(BATCH), batch['label']]
  expected = np.average(nats, weights=np.array(of_classes)[batch['label']] * batch['weight'])
  boxes = (box_losses(outputs['box'], batch['box'])['mse'] * batch['weight']).sum()
  np.testing.assert_allclose(sums['class_loss'][0] / sums['class_loss'][1], expected, rtol=1e-5)
  np.testing.assert_allclose(sums['loss'][0], 5 * expected / 20 + boxes, rtol=1e-5)


def test_the_three_thresholds_tell_boxes_apart():
  target = np.tile(np.float32((0.5, 0.5, 0.4, 0.4)), (4, 1))
  sides = np.float32([0.4 * 0.4, 0.4 * 0.6, 0.4 * 0.8, 0.4 * 0.95])  # IoU 0.4, 0.6, 0.8, 0.95
  boxes = np.stack([np.float32((0.5, 0.5, 0.4, side)) for side in sides])
  batch = {'label': np.zeros(4, np.int32), 'box': target, 'weight': np.ones(4, np.float32)}
  outputs = {'logits': np.zeros((4, 2), np.float32), 'box': boxes}
  metrics = sums_of(outputs, batch, num_classes=2)
  assert [float(metrics[name][0]) for name in ('iou50', 'iou75', 'iou90')] == [3, 2, 1]
  assert float(metrics['iou'][0]) == pytest.approx(0.4 + 0.6 + 0.8 + 0.95, abs=1e-5)


def test_labels_are_smoothed_in_training_alone_and_many_classes_have_a_top_5():
  outputs, batch = batch_and_outputs()
  outputs['logits'] = np.tile(outputs['logits'], (1, 2))
  options = {'num_classes': 2 * CLASSES, 'label_smoothing': 0.3}
  train, test = (sums_of(outputs, batch, train=train, **options) for train in (True, False))
  assert train['class_loss'][0] != test['class_loss'][0]
  assert train['box_loss'] == test['box_loss']
  assert 'top5_accuracy' in test


def test_every_sum_is_of_a_metric_with_its_direction():
  task = tasks.build('localization', {}, 9)
  outputs, batch = batch_and_outputs()
  outputs['logits'] = np.tile(outputs['logits'], (1, 3))[:, :9]
  assert task.loss(outputs, batch, None, False).keys() == task.metrics.keys()
  lower = {name for name, metric in task.metrics.items() if not metric.higher_is_better}
  assert lower == {'loss', 'class_loss', 'box_loss'}
  shares = {name for name, metric in task.metrics.items() if metric.unit == '%'}
  assert shares == {'accuracy', 'top5_accuracy', 'iou50', 'iou75', 'iou90'}


def test_a_prediction_is_mapped_back_to_the_image_and_shown():
  task = tasks.build('localization', {}, 2)
  seen = {'probabilities': np.float32([0.25, 0.75]), 'box': np.float32([0.5, 0.5, 0.5, 1.0])}
  found = task.to_image(seen, (0.25, 0.0, 0.75, 1.0), (20, 40))
  np.testing.assert_allclose(found['box'], (0.5, 0.5, 0.25, 1.0))
  assert task.lines(found, ['a', 'b'], top=1) == [
    '   75.00 %  b',
    '  box (centre x, y, width, height): 50.00 % 50.00 % 25.00 % 100.00 %',
  ]
  assert task.entry(found, ['a', 'b'], top=1) == {
    'predictions': [{'class': 'b', 'label': 1, 'probability': 0.75}],
    'box': [0.5, 0.5, 0.25, 1.0],
  }
  box = {'box_x': 0.5, 'box_y': 0.5, 'box_width': 0.25, 'box_height': 1.0}
  classes = {'class_1': 'b', 'label_1': 1, 'probability_1': 0.75}
  assert task.cells(found, ['a', 'b'], top=1) == classes | box


def test_rows_have_both_boxes_number_by_number():
  outputs, batch = batch_and_outputs()
  rows = tasks.build('localization', {}, CLASSES).rows(outputs, batch)
  np.testing.assert_array_equal(rows['label'], batch['label'])
  np.testing.assert_allclose(rows['probabilities'].sum(axis=1), 1, rtol=1e-6)
  np.testing.assert_array_equal(rows['predicted'], np.argmax(outputs['logits'], axis=1))
  for name, boxes in {'true_box': batch['box'], 'box': outputs['box']}.items():
    for i, number in enumerate(('x', 'y', 'width', 'height')):
      np.testing.assert_array_equal(rows[f'{name}_{number}'], boxes[:, i])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'box': 'gious'}, r"^box: 'gious' is not one of .*did you mean 'giou'"),
    ({'class_divisor': 0.0}, r'^class_divisor: 0\.0 is not a number above 0'),
    ({'name': 'hinge'}, r"^name: 'hinge' is not one of"),
    ({'class_divisors': 1.0}, r"^class_divisors: no such field .*did you mean 'class_divisor'"),
    ({'class_divisor': 'ten'}, r"^class_divisor: 'ten' is not a number"),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(FieldError, match=message):
    tasks.build('localization', options, CLASSES)


def test_the_giou_needs_sides_above_0():
  backbone = {'name': 'resnet18', 'num_filters': 2}
  for box_sigmoid in (False, True):
    head = {'name': 'localization', 'box_sigmoid': box_sigmoid}
    model = models.build({**backbone, 'head': head}, num_classes=CLASSES)
    tasks.build('localization', {'box': 'mse'}, CLASSES).check_model(model)
    giou = tasks.build('localization', {'box': 'giou'}, CLASSES)
    if box_sigmoid:
      giou.check_model(model)
    else:
      with pytest.raises(FieldError, match=r"^box: 'giou' .*head\.box_sigmoid=True"):
        giou.check_model(model)
