"""Localization: the class and the box of the one object in an image."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.data.kinds import KINDS, Size, Window
from vit_jax.errors import FieldError, check_choice
from vit_jax.ranges import Positive
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.task import Batch, Metric, Outputs, Sums

_BOX_NUMBERS = ('x', 'y', 'width', 'height')
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


@dataclasses.dataclass(frozen=True)
class Localization(Classification):
  """Learns the class and the box of the one object in each image.

  A batch is that of classification with `box` float32 [B, 4], (cx, cy, w, h) in fractions of the
  image's sides. Outputs are `logits` [B, K] and `box` [B, 4]; a prediction is a dict of
  `probabilities` [N, K] and `box` [N, 4]. Metrics are those of classification, with `class_loss`
  for its loss; `box_loss`; `loss`, class_loss / class_divisor + box_loss; `iou`, its mean; and
  `iou50`, `iou75`, `iou90`, the share of boxes with an IoU over that many per cent.

  Attributes, beside those of classification:
    box: the loss of boxes: 'mse' or 'l1' of their four numbers, or 'giou' (arXiv 1902.09630).
    class_divisor: what the loss of the class is divided by, above 0.
  """

  box: str = 'mse'
  class_divisor: Positive = 1.0

  TARGETS: ClassVar[tuple[str, ...]] = ('label', 'box')
  HEADS: ClassVar[tuple[str, ...]] = ('localization',)

  def __post_init__(self):
    super().__post_init__()
    check_choice('box', self.box, _BOX_LOSSES)

  def check_model(self, model: nn.Module) -> None:
    if self.box == 'giou' and not model.box_sigmoid:
      raise FieldError(
        'box', "'giou' learns from sides above 0 alone; it needs model.head.box_sigmoid=True"
      )

  @property
  def metrics(self) -> dict[str, Metric]:
    share = Metric(unit='%', higher_is_better=True)
    return super().metrics | {
      'class_loss': Metric(),
      'box_loss': Metric(),
      'iou': Metric(higher_is_better=True, label='mean IoU of boxes'),
      **{f'iou{t}': share for t in _IOU_THRESHOLDS},
    }

  def rows(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    boxes = {'true_box': batch['box'], 'box': outputs['box']}
    return super().rows(outputs, batch) | {
      f'{name}_{number}': box[:, i]
      for name, box in boxes.items()
      for i, number in enumerate(_BOX_NUMBERS)
    }

  def loss(self, outputs: Outputs, batch: Batch, rng: jax.Array, train: bool) -> Sums:
    metrics, weight = super().loss(outputs, batch, rng, train), batch['weight']
    class_loss, count = metrics['loss']
    overlap = iou(outputs['box'], batch['box'])
    values = {'box_loss': _BOX_LOSSES[self.box](outputs['box'], batch['box']), 'iou': overlap}
    values |= {f'iou{t}': (overlap > t / 100).astype(jnp.float32) for t in _IOU_THRESHOLDS}
    sums = {name: ((value * weight).sum(), count) for name, value in values.items()}
    total = class_loss / self.class_divisor + sums['box_loss'][0]
    return metrics | {'loss': (total, count), 'class_loss': (class_loss, count)} | sums

  def predict(self, outputs: Outputs) -> Any:
    return {'probabilities': super().predict(outputs), 'box': outputs['box']}

  def probabilities(self, prediction: Any) -> Any:
    return prediction['probabilities']

  def to_image(self, prediction: Any, window: Window, size: Size) -> Any:
    return prediction | {'box': KINDS['box'].restore(prediction['box'], window, size)}

  def lines(self, prediction: Any, class_names: Sequence[str], top: int) -> list[str]:
    numbers = ' '.join(f'{100 * number:.2f} %' for number in prediction['box'].tolist())
    classes = super().lines(prediction['probabilities'], class_names, top)
    return [*classes, f'  box (centre x, y, width, height): {numbers}']

  def entry(self, prediction: Any, class_names: Sequence[str], top: int) -> dict[str, Any]:
    classes = super().entry(prediction['probabilities'], class_names, top)
    return classes | {'box': prediction['box'].tolist()}

  def cells(self, prediction: Any, class_names: Sequence[str], top: int) -> dict[str, Any]:
    cells = super().cells(prediction, class_names, top)
    del cells['box']
    numbers = zip(_BOX_NUMBERS, prediction['box'].tolist(), strict=True)
    return cells | {f'box_{name}': number for name, number in numbers}
