"""Losses and accuracies against NumPy, and that sums add up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import (
  accuracy_score,
  precision_recall_fscore_support,
  top_k_accuracy_score,
)
from sklearn.utils.class_weight import compute_class_weight

from vit_jax import tasks
from vit_jax.data.sources.records import ArraySource
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
    assert padded[name][1] == count
  assert padded['loss'][1] == real
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
  problem = '.* is not a number from 0 to below 1'
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


# Weights of classes.

WEIGHTS = (0.5, 2.0, 1.0, 3.0, 0.25, 1.5, 4.0)


def step_loss(task, logits, batch, devices, train=True):
  """The loss of a global batch that some devices share, as a training step computes it."""
  parts = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), (logits, batch))

  def of_device(logits, batch):
    batch = batch | jax.lax.psum(task.totals(batch), 'batch')
    total, count = task.loss({'logits': logits}, batch, None, train)['loss']
    return jax.lax.psum(total, 'batch') / jax.lax.psum(count, 'batch')

  return jax.jit(jax.vmap(of_device, axis_name='batch'))(*parts)[0]


@pytest.mark.parametrize(
  ('name', 'kind', 'smoothing', 'devices'),
  [
    ('softmax', 'int', 0.0, 1),
    ('softmax', 'int', 0.1, 4),
    ('softmax', 'mixed', 0.1, 4),
    ('sigmoid', 'int', 0.0, 1),
    ('sigmoid', 'multi-hot', 0.1, 4),
  ],
)
def test_weighted_loss_and_gradient_are_those_of_pytorch(name, kind, smoothing, devices):
  """Of rows that aren't padding; devices have different numbers of these."""
  torch = pytest.importorskip('torch')
  options = {'name': name, 'label_smoothing': smoothing, 'class_weights': WEIGHTS}
  task = tasks.build('classification', options, NUM_CLASSES)
  labels, dense = make_labels(kind)
  real = np.arange(BATCH) < 8
  batch = make_batch(labels, real)
  found = jax.jit(jax.value_and_grad(lambda x: step_loss(task, x, batch, devices)))(make_logits())

  logits = torch.tensor(make_logits(), dtype=torch.float64, requires_grad=True)
  weights, dense = torch.tensor(WEIGHTS, dtype=torch.float64), torch.tensor(dense[real])
  if name == 'sigmoid':
    targets = dense * (1 - smoothing) + smoothing / NUM_CLASSES
    criterion = torch.nn.BCEWithLogitsLoss(pos_weight=weights, reduction='sum')
    loss = criterion(logits[real], targets) / real.sum()
  elif kind == 'int':
    criterion = torch.nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing)
    loss = criterion(logits[real], torch.tensor(labels[real]).long())
  else:  # of these PyTorch takes the unweighted mean: what is the same is the sum
    criterion = torch.nn.CrossEntropyLoss(weights, label_smoothing=smoothing, reduction='sum')
    loss = criterion(logits[real], dense) / (dense @ weights).sum()
  loss.backward()
  np.testing.assert_allclose(found[0], loss.item(), rtol=1e-5)
  np.testing.assert_allclose(found[1], logits.grad, rtol=1e-4, atol=1e-7)


def test_weights_of_one_and_all_alike_change_nothing():
  batch = make_batch(make_labels('mixed')[0])
  for name in ('softmax', 'softmax_twice', 'sigmoid'):
    plain, ones = (
      tasks.build('classification', {'name': name, 'class_weights': w}, NUM_CLASSES)
      for w in ((), (1,) * NUM_CLASSES)
    )
    expected = step_loss(plain, make_logits(), batch, 1)
    np.testing.assert_allclose(step_loss(ones, make_logits(), batch, 1), expected, rtol=1e-6)


@pytest.mark.parametrize('name', ['softmax', 'sigmoid'])
def test_evaluation_is_not_weighted(name):
  batch = make_batch(make_labels('int')[0])
  plain, weighted = (
    tasks.build('classification', {'name': name, 'class_weights': w}, NUM_CLASSES)
    for w in ((), WEIGHTS)
  )
  losses = [
    step_loss(task, make_logits(), batch, 1, train)
    for task, train in ((plain, False), (weighted, False), (weighted, True))
  ]
  assert losses[0] == losses[1]
  assert abs(losses[2] - losses[0]) > 0.01


def test_a_batch_of_labels_without_weight_has_no_loss():
  options = {'class_weights': (0,) + (1,) * (NUM_CLASSES - 1)}
  task, batch = (
    tasks.build('classification', options, NUM_CLASSES),
    make_batch(np.zeros(4, np.int32)),
  )
  loss_of = jax.jit(jax.value_and_grad(lambda x: step_loss(task, x, batch, 1)))
  loss, gradient = loss_of(make_logits()[:4])
  assert loss == 0
  assert not gradient.any()


def labelled(labels, num_classes=3):
  arrays = {'image': np.zeros((len(labels), 2, 2, 1), np.uint8), 'label': np.array(labels)}
  return ArraySource(arrays, [f'class {i}' for i in range(num_classes)])


def balanced(name, labels):
  options = {'name': name, 'class_weights': ('balanced',)}
  return tasks.build('classification', options, 3).for_data(labelled(labels)).class_weights


def test_balanced_weights_are_those_of_scikit_learn():
  labels = np.array([0] * 5 + [1] * 2 + [2])
  expected = compute_class_weight('balanced', classes=np.arange(3), y=labels)
  assert balanced('softmax', labels) == tuple(expected)
  # Each class as a yes or no: the weight of yes over that of no.
  rows = np.float32([[1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 1, 1]])
  for given in (labels, rows):
    one_hot = np.eye(3)[given] if given.ndim == 1 else given
    pairs = [compute_class_weight('balanced', classes=np.arange(2), y=c) for c in one_hot.T]
    np.testing.assert_allclose(balanced('sigmoid', given), [yes / no for no, yes in pairs])


@pytest.mark.parametrize(
  ('name', 'labels', 'problem'),
  [
    ('softmax', [0, 1], r"class_weights: 'balanced', but no example is of the class 'class 2'"),
    (
      'sigmoid',
      np.float32([[1, 1, 0], [1, 0, 1]]),
      r"class_weights: 'balanced', but each example is of the class 'class 0'",
    ),
    (
      'softmax',
      np.float32([[1, 1, 0], [1, 0, 1]]),
      r"name: 'softmax' learns one class of each image, and these have several; give 'sigmoid'",
    ),
  ],
)
def test_data_that_a_task_cannot_learn_from_are_refused(name, labels, problem):
  with pytest.raises(FieldError, match=f'^{problem}$'):
    balanced(name, labels)


@pytest.mark.parametrize(
  ('weights', 'problem'),
  [
    ((1, 2), '2 numbers for 7 classes'),
    ((0,) * 7, r'\(0, .* has no number above 0'),
    ((1,) * 6 + (-1,), '.* is not a tuple of items, each a number from 0 on or a text'),
    (('balance',), r"\('balance',\) is neither numbers nor 'balanced' alone"),
    ((1.0, float('nan')), 'nan is not a finite number'),
  ],
)
def test_wrong_weights_are_refused(weights, problem):
  with pytest.raises(FieldError, match=f'^class_weights: {problem}'):
    tasks.build('classification', {'class_weights': weights}, NUM_CLASSES)


# Several classes.


@pytest.mark.parametrize('threshold', [0.5, 0.9])
def test_metrics_of_several_classes_are_those_of_scikit_learn(threshold):
  task = tasks.build('classification', {'name': 'sigmoid', 'threshold': threshold}, NUM_CLASSES)
  labels, dense = make_labels('multi-hot')
  logits, real = make_logits(), np.arange(BATCH) < 10
  logits[2] = 20 * dense[2] - 10  # one without a mistake
  sums = task.loss({'logits': jnp.asarray(logits)}, make_batch(labels, real), None, False)
  found = {name: task.metrics[name].value(*sums[name]) for name in task.metrics}
  guesses = 1 / (1 + np.exp(-logits[real])) >= threshold
  *scores, _ = precision_recall_fscore_support(dense[real] > 0, guesses, average='micro')
  for name, score in zip(('precision', 'recall', 'f1'), scores, strict=True):
    assert 0 < score < 1
    np.testing.assert_allclose(found[f'micro_{name}'], score, rtol=1e-6)
  subset = accuracy_score(dense[real] > 0, guesses)
  assert subset > 0
  np.testing.assert_allclose(found['subset_accuracy'], subset, rtol=1e-6)


def test_metrics_of_nothing_predicted_are_numbers():
  task = tasks.build('classification', {'name': 'sigmoid', 'threshold': 0.5}, NUM_CLASSES)
  batch = make_batch(np.zeros((BATCH, NUM_CLASSES), np.float32))
  sums = task.loss({'logits': jnp.full((BATCH, NUM_CLASSES), -9.0)}, batch, None, False)
  found = {name: task.metrics[name].value(*sums[name]) for name in task.metrics}
  assert [found[f'micro_{n}'] for n in ('precision', 'recall', 'f1')] == [0, 0, 0]
  assert found['subset_accuracy'] == 1


def test_classes_from_the_threshold_on_are_shown():
  names, row = ['a', 'b', 'c'], np.float32([0.25, 0.625, 0.5])
  task = tasks.build('classification', {'name': 'sigmoid', 'threshold': 0.5}, 3)
  assert task.lines(row, names, top=1) == ['   62.50 %  b', '   50.00 %  c']
  assert task.entry(row, names, top=1) == {
    'predictions': [
      {'class': 'b', 'label': 1, 'probability': 0.625},
      {'class': 'c', 'label': 2, 'probability': 0.5},
    ],
    'classes': ['b', 'c'],
    'threshold': 0.5,
  }
  assert task.predicted_classes(row) == [1, 2]
  sure = tasks.build('classification', {'name': 'sigmoid', 'threshold': 0.9}, 3)
  assert sure.lines(row, names, top=3) == ['   62.50 %  b (no class reaches 90 %)']
  entry = sure.entry(row, names, top=3)
  assert [p['class'] for p in entry['predictions']] == ['b', 'c', 'a']
  assert (entry['classes'], entry['threshold']) == ([], 0.9)
  assert sure.predicted_classes(row) == []
  for options in ({}, {'name': 'sigmoid'}):
    assert tasks.build('classification', options, 3).predicted_classes(row) == [1]


@pytest.mark.parametrize(
  ('options', 'problem'),
  [
    ({'name': 'sigmoid', 'threshold': 1.0}, r'1\.0 is not a number above 0 and below 1 or None'),
    ({'threshold': 0.4}, "0.4, but 'softmax' predicts one class"),
  ],
)
def test_wrong_thresholds_are_refused(options, problem):
  with pytest.raises(FieldError, match=f'^threshold: {problem}$'):
    tasks.build('classification', options, NUM_CLASSES)
