"""Part segmentation: what each point of a cloud belongs to."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.ranges import Rate
from vit_jax.tasks.task import Apply, Batch, Metric, Outputs, Sums, Task


def _category_mean(total: Any, count: Any) -> Any:
  """Returns the mean over categories that occur of the means of their objects."""
  return (total / np.maximum(count, 1)).sum() / (count > 0).sum()


@dataclasses.dataclass(frozen=True)
class PartSegmentation(Task):
  """Learns the part that each point belongs to.

  A batch has `parts`, int32 [B, N], and may have `label`, float32 [B, K], with a 1 for each part
  that objects of the category have; then only these are predicted in evaluation, as PointNet does
  (arXiv 1612.00593). Outputs are `logits`, float32 [B, N, K]; a prediction is a dict of the
  `parts`, int32 [N], and of `probabilities`, float32 [K], the share of points that each part is
  expected to have.

  The loss is the mean cross-entropy of a cloud's points. Metrics are `loss`; `mean_iou`, over
  objects, each with the mean IoU of its category's parts, 1 where a part is neither there nor
  predicted, or without a category of the parts that are; `category_iou`, the mean over categories
  of that of their objects; `accuracy`, of points.

  Attributes:
    label_smoothing: share of each label that is spread over all parts in training, in [0, 1).
  """

  label_smoothing: Rate = 0.0

  TARGETS: ClassVar[tuple[str, ...]] = ('parts',)
  HEADS: ClassVar[tuple[str, ...]] = ('part_segmentation',)

  @property
  def metrics(self) -> dict[str, Metric]:
    share = {'unit': '%', 'higher_is_better': True}
    return {
      'loss': Metric(label='loss'),
      'mean_iou': Metric(**share, label='mean IoU'),
      'category_iou': Metric(**share, value=_category_mean),
      'accuracy': Metric(**share, label='accuracy of points'),
    }

  def outputs(
    self, apply: Apply, batch: Batch, rng: jax.Array, train: bool, teacher: Apply | None = None
  ) -> Outputs:
    del rng, train, teacher
    allowed = _allowed(batch)
    return apply(batch[self.input], **({} if allowed is None else {'label': allowed}))

  def loss(self, outputs: Outputs, batch: Batch, rng: jax.Array, train: bool) -> Sums:
    del rng
    logits, parts, weight = outputs['logits'], batch['parts'], batch['weight']
    true = jax.nn.one_hot(parts, self.num_classes)  # [B, N, K]
    targets = optax.smooth_labels(true, self.label_smoothing if train else 0.0)
    nats = optax.softmax_cross_entropy(logits, targets).mean(axis=1)  # [B]

    allowed = _allowed(batch)
    scores = logits if allowed is None else jnp.where(allowed[:, None] > 0, logits, -jnp.inf)
    guesses = scores.argmax(axis=-1)
    guessed = jax.nn.one_hot(guesses, self.num_classes)
    hits, either = (true * guessed).sum(axis=1), jnp.maximum(true, guessed).sum(axis=1)  # [B, K]
    counted = either > 0 if allowed is None else allowed > 0
    ious = jnp.where(either > 0, hits / jnp.maximum(either, 1), 1)
    iou = (ious * counted).sum(axis=1) / counted.sum(axis=1)  # [B]
    # No part is of two categories, so that the first tells which it is.
    first = jnp.zeros_like(counted[:, 0], int) if allowed is None else counted.argmax(axis=1)
    category = jax.nn.one_hot(first, self.num_classes) * weight[:, None]
    return {
      'loss': ((nats * weight).sum(), weight.sum()),
      'mean_iou': ((iou * weight).sum(), weight.sum()),
      'category_iou': ((iou[:, None] * category).sum(axis=0), category.sum(axis=0)),
      'accuracy': (((guesses == parts).mean(axis=1) * weight).sum(), weight.sum()),
    }

  def predict(self, outputs: Outputs) -> Any:
    logits = outputs['logits']
    return {
      'parts': logits.argmax(axis=-1).astype(jnp.int32),
      'probabilities': jax.nn.softmax(logits).mean(axis=1),
    }

  def probabilities(self, prediction: Any) -> Any:
    return prediction['probabilities']

  def to_points(self, prediction: Any, taken: np.ndarray, points: np.ndarray) -> Any:
    """Gives each point the part of the nearest of those that were taken."""
    from scipy.spatial import cKDTree  # a tenth of a second to import, which others needn't

    _, nearest = cKDTree(taken).query(points)
    return prediction | {'parts': prediction['parts'][nearest]}

  def lines(self, prediction: Any, class_names: Sequence[str], top: int) -> list[str]:
    entries = self.entry(prediction, class_names, top)['classes']
    return [f'{100 * e["share"]:8.2f} % of points  {e["class"]}' for e in entries]

  def entry(self, prediction: Any, class_names: Sequence[str], top: int) -> dict[str, Any]:
    parts = prediction['parts']
    counts = np.bincount(parts, minlength=self.num_classes)
    order = [part for part in np.argsort(-counts, kind='stable')[:top].tolist() if counts[part]]
    classes = [
      {'class': class_names[part], 'label': part, 'share': float(counts[part] / len(parts))}
      for part in order
    ]
    return {'classes': classes, 'parts': parts.tolist()}


def _allowed(batch: Batch) -> jax.Array | None:
  """Returns the parts that the categories of a batch have, [B, K]; None where they aren't known."""
  label = batch.get('label')
  return None if label is None or label.ndim < 2 else label
