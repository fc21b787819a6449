"""Losses of segmentation against PyTorch, metrics and predictions against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from vit_jax import tasks
from vit_jax.data.kinds import VOID
from vit_jax.errors import FieldError

K = 4


def build(**options):
  return tasks.build('segmentation', options, K)


def batch(shape=(3, 6, 8), seed=0, void=0.0, classes=K, weight=None):
  rng = np.random.default_rng(seed)
  mask = rng.integers(0, classes, shape).astype(np.int32)
  mask[rng.random(shape) < void] = VOID
  weight = np.ones(len(mask), np.float32) if weight is None else np.float32(weight)
  return {'mask': mask, 'weight': weight}


def with_totals(task, *batches):
  """The first batch with the totals of all of them, as a step gives it."""
  totals = [task.totals(b) for b in batches]
  return batches[0] | jax.tree.map(lambda *x: sum(x), *totals)


def value_and_grad(task, outputs, given):
  """The loss that a step minimises, and its gradients."""

  def loss(outputs):
    total, count = task.loss(outputs, given, None, True)['loss']
    return total / given.get('images', count)

  return jax.jit(jax.value_and_grad(loss))(outputs)


def assert_same(found, expected, inputs):
  """Values, and the gradients of `inputs`, PyTorch's."""
  value, grads = found
  np.testing.assert_allclose(value, expected.item(), rtol=1e-4)
  expected.backward()
  for name, x in inputs.items():
    theirs = x.grad.numpy()
    np.testing.assert_allclose(grads[name], theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def to_torch(outputs):
  return {name: torch.tensor(x, requires_grad=True) for name, x in outputs.items()}


def test_the_cross_entropy_of_pixels_is_pytorch_s():
  given = batch(void=0.3, weight=[1, 0, 1])
  logits = np.random.default_rng(1).normal(size=(3, 6, 8, K)).astype(np.float32)
  x = to_torch({'logits': logits})
  mask = torch.tensor(given['mask'])[[0, 2]].long()
  rows = x['logits'][[0, 2]].permute(0, 3, 1, 2)
  nats = functional.cross_entropy(rows, mask, ignore_index=VOID, reduction='sum')
  assert_same(value_and_grad(build(), {'logits': logits}, given), nats / mask.numel(), x)


def test_focal_and_dice_losses_of_pixels():
  given = batch(void=0.3, classes=3)
  logits = np.random.default_rng(1).normal(size=(3, 6, 8, K)).astype(np.float32)
  x = to_torch({'logits': logits})
  mask, p = torch.tensor(given['mask']).long(), x['logits'].softmax(-1)
  focal, dice = 0, 0
  for ids, rows in zip(mask, p, strict=True):
    kept = ids != VOID
    right = rows[kept].gather(-1, ids[kept][:, None])[:, 0]
    focal += (-((1 - right) ** 2) * right.log()).sum() / ids.numel()
    present = ids[kept].unique()
    for k in present:
      target, share = (ids[kept] == k).float(), rows[kept][:, k]
      overlap = 2 * (target * share).sum() + 1
      dice += (1 - overlap / (target.sum() + share.sum() + 1)) / len(present)
  task = build(cross_entropy=0.0, focal=2.0, dice=0.5)
  found = value_and_grad(task, {'logits': logits}, given)
  assert_same(found, (2 * focal + 0.5 * dice) / 3, x)


def mask_outputs(seed=1, batch_size=3, layers=2, grid=(3, 4), windows=1):
  rng = np.random.default_rng(seed)
  shapes = {'class_logits': (K, K + 1), 'mask_logits': (K, *grid)}
  return {
    name: rng.normal(size=(batch_size, windows, layers, *shape)).astype(np.float32)
    for name, shape in shapes.items()
  }


def scores(size, batch_size=3):
  return np.random.default_rng(5).random((batch_size, *size, K)).astype(np.float32)


def published_loss(outputs, mask, weights=(1, 20, 1), no_object=0.1):
  """As github.com/zbwxp/SegVit, losses/: query i is matched with class i.

  Pixels of no class are left out, where there the masks take them for background.
  """
  labels = [ids[ids != VOID].unique() for ids in mask]
  num_masks = max(sum(map(len, labels)), 1)
  class_weights = torch.tensor([1.0] * K + [no_object])
  total = 0
  for layer in range(outputs['class_logits'].shape[2]):
    class_logits, masks = (outputs[n][:, 0, layer] for n in ('class_logits', 'mask_logits'))
    targets = torch.full(class_logits.shape[:2], K)
    for row, found in zip(targets, labels, strict=True):
      row[found.long()] = found.long()
    nats = functional.cross_entropy(class_logits.transpose(1, 2), targets, class_weights)
    large = functional.interpolate(masks, mask.shape[1:], mode='bilinear', align_corners=False)
    focal, dice = 0, 0
    for i, found in enumerate(labels):
      kept = mask[i] != VOID
      for k in found:
        logits, target = large[i, k][kept], (mask[i][kept] == k).float()
        p = logits.sigmoid()
        p_t, alpha = p * target + (1 - p) * (1 - target), 0.25 * target + 0.75 * (1 - target)
        bce = functional.binary_cross_entropy_with_logits(logits, target, reduction='none')
        focal += (alpha * (1 - p_t) ** 2 * bce).mean() / num_masks
        overlap, both = 2 * (p * target).sum() + 1, p.sum() + target.sum() + 1
        dice += (1 - overlap / both) / num_masks
    total += weights[0] * nats + weights[1] * focal + weights[2] * dice
  return total


@pytest.mark.parametrize(
  ('options', 'weights', 'void'),
  [({}, (1, 20, 1), 0.0), ({'cross_entropy': 2.0, 'focal': 3.0, 'dice': 0.5}, (2, 3, 0.5), 0.3)],
)
def test_the_losses_of_masks_are_those_of_segvit(options, weights, void):
  no_object = 0.1 if not options else 0.4
  task, outputs = build(**options, no_object=no_object), mask_outputs()
  given = batch(classes=3, void=void)
  given['mask'][1] = np.where(given['mask'][1] == VOID, VOID, 2)
  x = to_torch(outputs)
  expected = published_loss(x, torch.tensor(given['mask']), weights, no_object)
  outputs |= {'scores': scores((6, 8))}
  assert_same(value_and_grad(task, outputs, with_totals(task, given)), expected, x)


def test_the_loss_of_masks_in_parts_is_that_of_the_whole():
  """As two devices or micro-batches compute it, with a row of padding."""
  task, whole = build(), mask_outputs(batch_size=4)
  outputs = {**whole, 'scores': scores((6, 8), 4)}
  given = batch((4, 6, 8), classes=3, void=0.2, weight=[1, 1, 1, 0])

  def part(rows):
    return {name: x[rows] for name, x in given.items()}

  halves = part(slice(2)), part(slice(2, 4))
  sums = [
    task.loss({n: y[rows] for n, y in outputs.items()}, with_totals(task, *pair), None, True)
    for rows, pair in ((slice(2), halves), (slice(2, 4), halves[::-1]))
  ]
  found = sum(s['loss'][0] for s in sums) / sum(s['loss'][1] for s in sums)
  rows = {name: torch.tensor(y[:3]) for name, y in whole.items()}
  expected = published_loss(rows, torch.tensor(given['mask'][:3]))
  np.testing.assert_allclose(found, expected.item(), rtol=1e-4)


def test_in_windows_each_is_a_batch_of_its_own():
  task, outputs = build(), mask_outputs(batch_size=1, windows=2)
  given = batch((1, 6, 10), classes=3, void=0.2)
  lefts = (0, 2)
  expected = 0
  for i, left in enumerate(lefts):
    window = {name: torch.tensor(y[:, i : i + 1]) for name, y in outputs.items()}
    mask = torch.tensor(given['mask'][..., left : left + 8])
    expected += published_loss(window, mask).item() / 2
  outputs |= {
    'scores': scores((6, 10), 1),
    'rows': np.tile(np.arange(6, dtype=np.int32), (1, 2, 1)),
    'columns': np.stack([np.arange(left, left + 8, dtype=np.int32) for left in lefts])[None],
  }
  total, _ = task.loss(outputs, with_totals(task, given), None, False)['loss']
  np.testing.assert_allclose(total, expected, rtol=1e-4)


@pytest.mark.parametrize('head', ['pixels', 'masks'])
def test_nothing_of_no_class_counts(head):
  """Neither in loss nor in metrics; and images without any class give finite gradients."""
  task, given = build(dice=1.0, focal=1.0), batch(void=0.4)
  given['mask'][2] = VOID
  given = with_totals(task, given)
  if head == 'pixels':
    outputs = {'logits': np.random.default_rng(2).normal(size=(3, 6, 8, K)).astype(np.float32)}
    _, grads = value_and_grad(task, outputs, given)
    assert (np.asarray(grads['logits'])[given['mask'] == VOID] == 0).all()
  else:
    outputs = mask_outputs(grid=(6, 8)) | {'scores': scores((6, 8))}
    _, grads = value_and_grad(task, outputs, given)
    moved = np.abs(np.asarray(grads['mask_logits'])).max(axis=(1, 2, 3))
    assert (moved[given['mask'] == VOID] == 0).all()
    assert (moved[given['mask'] != VOID] > 0).all()
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_metrics_are_those_of_a_confusion_matrix():
  task, confusion = build(), np.zeros((K, K))
  totals = None
  for seed in range(2):
    given = batch(seed=seed, void=0.2, classes=3, weight=[1, 1, 0])
    logits = np.random.default_rng(seed).normal(size=(3, 6, 8, K)).astype(np.float32)
    logits[..., 3] = -9  # neither predicted nor there
    sums = task.loss({'logits': logits}, given, None, False)
    totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
    mask, guess = given['mask'][:2].ravel(), logits[:2].argmax(-1).ravel()
    kept = mask != VOID
    np.add.at(confusion, (mask[kept], guess[kept]), 1)
  values = {name: task.metrics[name].value(*sums) for name, sums in totals.items()}
  hits, either = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
  np.testing.assert_allclose(values['iou'][:3], (hits / np.maximum(either, 1))[:3], rtol=1e-6)
  assert np.isnan(values['iou'][3])
  assert values['mean_iou'] == pytest.approx((hits[:3] / either[:3]).mean())
  assert values['pixel_accuracy'] == pytest.approx(hits.sum() / confusion.sum())
  assert task.metrics['mean_iou'].value(np.zeros(3), np.zeros(3)) == 0


def test_predictions_of_pixels():
  logits = np.random.default_rng(3).normal(size=(2, 6, 8, K)).astype(np.float32)
  found = jax.jit(build().predict)({'logits': logits})
  np.testing.assert_array_equal(found['mask'], logits.argmax(-1))
  assert found['mask'].dtype == jnp.uint8
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(found['probabilities'], p.mean((1, 2)), rtol=1e-5)
  positive = np.exp(logits)
  np.testing.assert_allclose(
    build().predict({'scores': positive})['probabilities'], p.mean((1, 2)), rtol=1e-5
  )
  assert build().probabilities(found) is found['probabilities']


def test_a_mask_is_brought_to_its_image_and_told_by_shares():
  task, names = build(), ['sky', 'road', 'car', 'tree']
  mask = np.repeat(np.uint8([0, 0, 0, 2]), 2).reshape(4, 2)
  prediction = {'mask': mask, 'probabilities': np.full(K, 0.25, np.float32)}
  whole = task.to_image(prediction, (0.25, 0.0, 0.75, 1.0), (8, 8))['mask']
  np.testing.assert_array_equal(whole[:, 2:6], mask.repeat(2, 0).repeat(2, 1))
  assert (whole[:, [0, 1, 6, 7]] == VOID).all()
  shown = {**prediction, 'mask': whole}
  assert task.lines(shown, names, 5) == ['   75.00 % of pixels  sky', '   25.00 % of pixels  car']
  assert task.entry(shown, names, 1) == {'classes': [{'class': 'sky', 'label': 0, 'share': 0.75}]}


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'focal': -1.0}, r'^focal: -1\.0 is not a number from 0 on'),
    ({'no_object': -0.1}, r'^no_object: -0\.1 is not'),
    ({'cross_entropy': 0.0, 'focal': 0.0, 'dice': 0.0}, r'^cross_entropy: 0, and so are'),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(FieldError, match=message):
    build(**options)
