"""Losses and accuracies against NumPy, and that sums add up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from vit_jax import tasks
from vit_jax.errors import FieldError
from vit_jax.tasks.classification import top_k_hits

BATCH, NUM_CLASSES = 12, 7


@functools.cache
def build(loss='softmax', label_smoothing=0.0, num_classes=NUM_CLASSES, train=True):
  """Returns (logits, batch) -> sums."""
  options = {'name': loss, 'label_smoothing': label_smoothing}
  task = tasks.build('classification', options, num_classes)

  def sums(logits, batch):
    return task.loss(task.name_outputs(logits), batch, rng=None, train=train)

  return jax.jit(sums)


def one_hot(labels):
  return np.eye(NUM_CLASSES)[labels]


def make_labels(kind):
  """Returns labels as a batch holds them, and the same as float64 [BATCH, NUM_CLASSES]."""
  rng = np.random.default_rng(1)
  classes, others = rng.integers(NUM_CLASSES, size=(2, BATCH))
  if kind == 'int':
    return classes.astype(np.int32), one_hot(classes)
  if kind == 'multi-hot':
    dense = (rng.random((BATCH, NUM_CLASSES)) < 0.3).astype(np.float64)
    dense[:2] = 0  # rows without any label
  else:  # as mixup makes them, an even mix among them
    part = rng.uniform(0.55, 1, size=(BATCH, 1))
    part[:2] = 0.5
    dense = part * one_hot(classes) + (1 - part) * one_hot(others)
  return dense.astype(np.float32), dense


KINDS = ('int', 'multi-hot', 'mixed')


def make_logits(scale=3.0):
  return np.random.default_rng(0).normal(scale=scale, size=(BATCH, NUM_CLASSES)).astype(np.float32)


def make_batch(labels, weight=None):
  weight = np.ones(len(labels)) if weight is None else weight
  return {'label': jnp.asarray(labels), 'weight': jnp.asarray(weight, jnp.float32)}


def softmax_reference(logits, targets):
  exps = np.exp(logits.astype(np.float64))
  return -(targets * np.log(exps / exps.sum(axis=1, keepdims=True))).sum(axis=1)


def sigmoid_reference(logits, targets):
  probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
  return -(targets * np.log(probability) + (1 - targets) * np.log(1 - probability)).sum(axis=1)


def softmax_twice_reference(logits, targets):
  exps = np.exp(logits.astype(np.float64))
  return softmax_reference(exps / exps.sum(axis=1, keepdims=True), targets)


def hits_reference(logits, dense, k):
  """Sorts each row's classes and looks for one of its heaviest labels among the first k."""
  hits = []
  for scores, weights in zip(logits, dense, strict=True):
    guesses = set(np.argsort(-scores)[:k])
    labels = {c for c in range(NUM_CLASSES) if weights[c] > 0 and weights[c] == max(weights)}
    hits.append(bool(guesses & labels))
  return np.array(hits)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
  ('loss', 'reference'),
  [
    ('softmax', softmax_reference),
    ('sigmoid', sigmoid_reference),
    ('softmax_twice', softmax_twice_reference),
  ],
)
def test_loss_is_the_sum_of_the_reference(loss, reference, kind, smoothing):
  labels, dense = make_labels(kind)
  logits = make_logits()
  total, count = build(loss, smoothing)(logits, make_batch(labels))['loss']
  targets = dense * (1 - smoothing) + smoothing / NUM_CLASSES
  np.testing.assert_allclose(total, reference(logits, targets).sum(), rtol=1e-5)
  assert count == BATCH


def test_loss_of_equal_logits_is_known():
  labels, _ = make_labels('int')
  logits = np.zeros((BATCH, NUM_CLASSES), np.float32)
  for loss, expected in (('softmax', np.log(NUM_CLASSES)), ('sigmoid', NUM_CLASSES * np.log(2))):
    total, count = build(loss)(logits, make_batch(labels))['loss']
    np.testing.assert_allclose(total / count, expected, rtol=1e-6)


def test_softmax_twice_has_a_floor_and_hardly_a_gradient_where_it_is_wrong():
  right = np.full((1, NUM_CLASSES), -50.0, np.float32)
  right[0, 3] = 50.0

  def mean(logits, label):
    total, count = build('softmax_twice')(logits, make_batch(np.array([label])))['loss']
    return total / count

  floor = np.log(1 + (NUM_CLASSES - 1) / np.e)
  np.testing.assert_allclose(mean(right, 3), floor, rtol=1e-6)
  np.testing.assert_allclose(mean(right, 0), floor + 1, rtol=1e-6)
  assert np.abs(jax.grad(mean)(right, 0)).max() < 1e-6


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid', 'softmax_twice'])
def test_loss_and_gradient_are_finite_for_huge_logits(loss):
  task = build(loss, 0.1)
  batch = make_batch(make_labels('int')[0])
  total, gradient = jax.value_and_grad(lambda logits: task(logits, batch)['loss'][0])(
    make_logits(1e4)
  )
  assert np.isfinite(total)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize('kind', KINDS)
def test_accuracies_match_a_sort(kind):
  labels, dense = make_labels(kind)
  logits = make_logits()
  metrics = build()(logits, make_batch(labels))
  for name, k in (('accuracy', 1), ('top5_accuracy', 5)):
    hits = hits_reference(logits, dense, k)
    assert 0 < hits.sum() < BATCH  # else the comparison could not fail
    assert metrics[name] == (hits.sum(), BATCH)


@pytest.mark.parametrize('k', [1, 2, 5])
def test_hits_match_scikit_learn(k):
  labels, dense = make_labels('int')
  logits = make_logits()
  expected = top_k_accuracy_score(
    labels, logits, k=k, normalize=False, labels=np.arange(NUM_CLASSES)
  )
  hits = top_k_hits(jnp.asarray(logits), jnp.asarray(dense, jnp.float32), k)
  assert (hits.shape, hits.dtype) == ((BATCH,), jnp.float32)
  assert hits.sum() == expected


@pytest.mark.parametrize(
  ('label', 'hit'),
  [
    ([0, 0, 1, 0], 1),  # the class guessed
    ([1, 0, 0, 0], 0),
    ([1, 0, 1, 1], 1),  # one of several
    ([0, 0, 0, 0], 0),  # nothing to guess
    ([0.6, 0, 0.4, 0], 0),  # the smaller part of a mix
    ([0.4, 0, 0.6, 0], 1),
    ([0.5, 0, 0.5, 0], 1),
  ],
)
def test_top1_of_one_row(label, hit):
  logits = jnp.array([[0.1, 0.2, 3.0, -1.0]])
  assert top_k_hits(logits, jnp.array([label], jnp.float32), 1).item() == hit


def test_smoothing_leaves_accuracy_alone():
  batch = make_batch(make_labels('multi-hot')[0])
  plain, smooth = (build('sigmoid', s)(make_logits(), batch) for s in (0.0, 0.3))
  assert plain['accuracy'] == smooth['accuracy']
  assert plain['top5_accuracy'] == smooth['top5_accuracy']


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_padding_counts_for_nothing(loss, kind):
  labels, _ = make_labels(kind)
  logits = make_logits()
  task = build(loss, 0.1)
  real = 8
  unpadded = task(logits[:real], make_batch(labels[:real]))
  padded_batch = make_batch(labels, np.arange(BATCH) < real)
  padded = task(logits, padded_batch)
  for name, (total, count) in unpadded.items():
    np.testing.assert_allclose(padded[name][0], total, rtol=1e-6)
    assert padded[name][1] == count == real
  gradient = jax.grad(lambda x: task(x, padded_batch)['loss'][0])(logits)
  assert not gradient[real:].any()
  assert gradient[:real].any(axis=1).all()


@pytest.mark.parametrize('kind', KINDS)
def test_sums_and_counts_add_up_over_splits(kind):
  labels, _ = make_labels(kind)
  logits = make_logits()
  task = build('softmax', 0.1)
  whole = task(logits, make_batch(labels))
  parts = [task(logits[s], make_batch(labels[s])) for s in (slice(0, 3), slice(3, 4), slice(4, 12))]
  for name, (total, count) in whole.items():
    np.testing.assert_allclose(sum(part[name][0] for part in parts), total, rtol=1e-6)
    assert sum(part[name][1] for part in parts) == count


def test_a_batch_of_padding_alone_counts_nothing():
  metrics = build()(make_logits(), make_batch(make_labels('int')[0], np.zeros(BATCH)))
  assert set(metrics) == {'loss', 'accuracy', 'top5_accuracy'}
  assert all(pair == (0, 0) for pair in metrics.values())


@pytest.mark.parametrize(('num_classes', 'there'), [(2, False), (5, False), (6, True)])
def test_top5_is_there_for_more_than_five_classes(num_classes, there):
  logits = jnp.zeros((1, num_classes))
  metrics = build(num_classes=num_classes)(logits, make_batch(np.zeros(1, np.int32)))
  assert ('top5_accuracy' in metrics) == there


@pytest.mark.parametrize('smoothing', [-0.1, 1.0, 1.5, float('nan')])
def test_smoothing_out_of_range_is_refused(smoothing):
  problem = r'(nan is not a number|.* is not in \[0, 1\))'
  with pytest.raises(FieldError, match=f'^label_smoothing: {problem}$'):
    build(label_smoothing=smoothing)


def test_unknown_loss_is_refused():
  with pytest.raises(FieldError, match=r"^name: 'sofmax' .* mean 'softmax'\?$"):
    build(loss='sofmax')


def test_logits_of_another_shape_are_refused_while_they_are_traced():
  for shape in ((BATCH, NUM_CLASSES + 1), (BATCH, 3, NUM_CLASSES)):
    with pytest.raises(FieldError, match=r'^classifier: the model gives outputs of shape .* an'):
      build()(np.zeros(shape, np.float32), make_batch(make_labels('int')[0]))


def test_metrics_have_their_direction_and_unit():
  metrics = tasks.build('classification', {}, NUM_CLASSES).metrics
  assert list(metrics) == ['loss', 'accuracy', 'top5_accuracy']
  assert [m.higher_is_better for m in metrics.values()] == [False, True, True]
  assert [m.unit for m in metrics.values()] == ['', '%', '%']
  assert list(tasks.build('classification', {}, 5).metrics) == ['loss', 'accuracy']


def test_predictions_are_shown_by_their_probability():
  task = tasks.build('classification', {}, 3)
  row = np.float32([0.25, 0.625, 0.125])
  assert task.lines(row, ['a', 'b', 'c'], top=2) == ['   62.50 %  b', '   25.00 %  a']
  assert task.entry(row, ['a', 'b', 'c'], top=1) == {
    'predictions': [{'class': 'b', 'label': 1, 'probability': 0.625}]
  }
