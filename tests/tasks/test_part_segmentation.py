"""The task part_segmentation against NumPy, shape by shape, as PointNet's evaluation goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from vit_jax import tasks
from vit_jax.errors import FieldError

# Three categories, with the parts 0 to 2, 3 alone, and 4 and 5.
CATEGORIES = np.float32([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1]])
OF_SHAPE = np.array([0, 2, 2, 1, 0, 2, 0])
BATCH, POINTS, PARTS = len(OF_SHAPE), 12, 6
WEIGHT = np.float32([1, 1, 1, 1, 1, 1, 0])


def make_batch(with_category):
  rng = np.random.default_rng(0)
  allowed = CATEGORIES[OF_SHAPE]
  # Of the second shape one part is neither there nor predicted.
  parts = np.stack([rng.choice(np.flatnonzero(row), POINTS) for row in allowed]).astype(np.int32)
  parts[1] = 4
  logits = rng.normal(size=(BATCH, POINTS, PARTS)).astype(np.float32)
  logits[1, :, 4] += 20
  batch = {'parts': parts, 'weight': WEIGHT}
  return logits, batch | ({'label': allowed} if with_category else {})


def values(task, sums):
  return {n: m.value(*map(np.asarray, sums[n])) for n, m in task.metrics.items()}


@pytest.mark.parametrize('with_category', [True, False])
def test_loss_and_metrics(with_category):
  task = tasks.build('part_segmentation', {'label_smoothing': 0.1}, PARTS, 'points')
  logits, batch = make_batch(with_category)
  for train in (False, True):
    found = values(
      task, jax.jit(task.loss, static_argnums=3)({'logits': logits}, batch, None, train)
    )
    targets = np.eye(PARTS)[batch['parts']]
    targets = 0.9 * targets + 0.1 / PARTS if train else targets
    nats = -(log_softmax(logits, axis=-1) * targets).sum(-1).mean(1)
    by_category, hits = {}, []
    for i in range(BATCH - 1):  # the last has no weight
      ours = range(PARTS)
      if with_category:
        ours = np.flatnonzero(CATEGORIES[OF_SHAPE[i]])
      guess = np.array(ours)[logits[i][:, list(ours)].argmax(axis=1)]
      ious = []
      for part in ours:
        true, guessed = batch['parts'][i] == part, guess == part
        if (true | guessed).any():
          ious.append((true & guessed).sum() / (true | guessed).sum())
        elif with_category:
          ious.append(1.0)
      by_category.setdefault(OF_SHAPE[i] if with_category else 0, []).append(np.mean(ious))
      hits.append((guess == batch['parts'][i]).mean())
    expected = {
      'loss': nats[:-1].mean(),
      'mean_iou': np.mean(np.concatenate(list(by_category.values()))),
      'category_iou': np.mean([np.mean(ious) for ious in by_category.values()]),
      'accuracy': np.mean(hits),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_the_head_is_told_the_category_where_it_is_known():
  task = tasks.build('part_segmentation', {}, PARTS, 'points')
  given = []

  def apply(inputs, **options):
    given.append((inputs, options))
    return {'logits': inputs}

  batch = {'points': jnp.ones((1, 2, 3)), 'label': jnp.ones((1, PARTS))}
  task.outputs(apply, batch, None, True)
  task.outputs(apply, batch | {'label': jnp.zeros(1, int)}, None, True)
  task.outputs(apply, {'points': batch['points']}, None, True)
  assert [list(options) for _, options in given] == [['label'], [], []]
  assert all(inputs is batch['points'] for inputs, _ in given)


def test_a_prediction_is_one_for_all_points_and_is_shown():
  task = tasks.build('part_segmentation', {}, 3, 'points')
  logits = np.random.default_rng(1).normal(size=(1, 4, 3)).astype(np.float32)
  logits[0, :, 0] -= 100
  prediction = jax.tree.map(lambda x: np.asarray(x)[0], task.predict({'logits': logits}))
  np.testing.assert_array_equal(prediction['parts'], logits[0].argmax(axis=1))
  expected = softmax(logits[0], axis=1).mean(axis=0)
  np.testing.assert_allclose(task.probabilities(prediction), expected, atol=1e-6)
  prediction['parts'] = np.int32([1, 2, 2, 2])
  taken = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
  points = np.float32([[0, 0, 0.9], [0.1, 0, 0], [0.8, 0.1, 0], [0, 0, 0], [0, 2, 0]])
  whole = task.to_points(prediction, taken, points)
  np.testing.assert_array_equal(whole['parts'], [2, 1, 2, 1, 2])
  names = ['wing', 'tail', 'body']
  assert task.lines(whole, names, 5) == ['   60.00 % of points  body', '   40.00 % of points  tail']
  assert task.entry(whole, names, 1) == {
    'classes': [{'class': 'body', 'label': 2, 'share': 0.6}],
    'parts': [2, 1, 2, 1, 2],
  }


@pytest.mark.parametrize('value', [-0.1, 1])
def test_a_smoothing_out_of_range_is_refused(value):
  with pytest.raises(FieldError, match=r'^label_smoothing: .* is not a number from 0 to below 1'):
    tasks.build('part_segmentation', {'label_smoothing': float(value)}, 3, 'points')
