"""Localization: the class and the box of the one object in an image."""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vit_jax.errors import UsageError, check_choice
from vit_jax.tasks import classification

TARGETS = ('label', 'box')
HEAD = 'localization'

_IOU_THRESHOLDS = (50, 75, 90)  # per cent


def mse_loss(boxes: jax.Array, targets: jax.Array) -> jax.Array:
  """Mean squared error of the four numbers [B], of boxes [B, 4]."""
  return jnp.square(boxes - targets).mean(axis=-1)


def l1_loss(boxes: jax.Array, targets: jax.Array) -> jax.Array:
  """Mean absolute error of the four numbers [B], of boxes [B, 4]."""
  return jnp.abs(boxes - targets).mean(axis=-1)


def giou_loss(boxes: jax.Array, targets: jax.Array) -> jax.Array:
  """1 - generalised IoU [B], of boxes [B, 4] with sides above 0 (arXiv 1902.09630)."""
  return 1 - giou(boxes, targets)


_BOX_LOSSES = {'mse': mse_loss, 'l1': l1_loss, 'giou': giou_loss}


def iou(boxes: jax.Array, others: jax.Array) -> jax.Array:
  """Area of the intersection of boxes, both [B, 4] as (cx, cy, w, h), over that of the union: [B].

  A side below 0 counts as 0, and what has no area overlaps with nothing.
  """
  intersection, union, _ = _areas(boxes, others)
  return _divide(intersection, union)


def giou(boxes: jax.Array, others: jax.Array) -> jax.Array:
  """IoU less the share of the smallest box round both that neither covers: [B], from -1 to 1.

  arXiv 1902.09630; arguments are those of `iou`.
  """
  intersection, union, hull = _areas(boxes, others)
  return _divide(intersection, union) - _divide(hull - union, hull)


def _areas(boxes: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the areas [B] of intersection, union, and the smallest box round both."""
  (low, high), (other_low, other_high) = _corners(boxes), _corners(others)
  intersection = _area(jnp.maximum(low, other_low), jnp.minimum(high, other_high))
  union = _area(low, high) + _area(other_low, other_high) - intersection
  return intersection, union, _area(jnp.minimum(low, other_low), jnp.maximum(high, other_high))


def _corners(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
  centre, half = boxes[..., :2], jnp.maximum(boxes[..., 2:], 0) / 2
  return centre - half, centre + half


def _area(low: jax.Array, high: jax.Array) -> jax.Array:
  return jnp.maximum(high - low, 0).prod(axis=-1)


def _divide(part: jax.Array, whole: jax.Array) -> jax.Array:
  """Returns part / whole, 0 where the whole is 0; its gradients are finite."""
  return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def make_task(config: ConfigDict, num_classes: int):
  """Returns ({'logits': [B, K], 'box': [B, 4]}, batch, train) -> metrics as (sum, count).

  `batch` is that of classification with `box` float32 [B, 4], fractions (cx, cy, w, h) of the
  image. Metrics are those of classification, with `class_loss` for its loss; `box_loss`; `loss`,
  class_loss / loss.class_divisor + box_loss; `iou`, its mean; and `iou50`, `iou75`, `iou90`, the
  share of boxes with an IoU over that many per cent.

  Args:
    config: the experiment; reads `loss` and `model.head.box_sigmoid`.
    num_classes: K.

  Raises:
    UsageError: an unknown loss, a number out of range; when called, outputs of another shape.
  """
  classify, loss = classification.make_task(config, num_classes), config.loss
  check_choice('config.loss.box', loss.box, _BOX_LOSSES)
  if not 0 < loss.class_divisor < math.inf:
    raise UsageError(f'config.loss.class_divisor: {loss.class_divisor} is not a number above 0')
  if loss.box == 'giou' and not config.model.head.box_sigmoid:
    raise UsageError(
      "config.loss.box: 'giou' learns from sides above 0 alone; it needs "
      'config.model.head.box_sigmoid=True'
    )

  def task(outputs, batch, train):
    metrics, weight = classify(outputs['logits'], batch, train), batch['weight']
    class_loss, count = metrics['loss']
    overlap = iou(outputs['box'], batch['box'])
    values = {'box_loss': _BOX_LOSSES[loss.box](outputs['box'], batch['box']), 'iou': overlap}
    values |= {f'iou{t}': (overlap > t / 100).astype(jnp.float32) for t in _IOU_THRESHOLDS}
    sums = {name: ((value * weight).sum(), count) for name, value in values.items()}
    total = class_loss / loss.class_divisor + sums['box_loss'][0]
    return metrics | {'loss': (total, count), 'class_loss': (class_loss, count)} | sums

  return task
