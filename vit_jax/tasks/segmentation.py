"""Semantic segmentation: the class of each pixel."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.data.kinds import KINDS, VOID, Size, Window
from vit_jax.errors import FieldError
from vit_jax.models.heads.segmentation import upsample
from vit_jax.ranges import NonNegative
from vit_jax.tasks.task import Batch, Metric, Outputs, Sums, Task

_ALPHA, _GAMMA = 0.25, 2.0  # of the focal loss (arXiv 1708.02002)
_NO_OBJECT = 0.1  # SegViT's weight of queries whose class isn't in the image


def focal_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Sigmoid focal loss of each element (arXiv 1708.02002), alpha 0.25, gamma 2; targets 0 or 1."""
  nats = jax.nn.softplus(jnp.where(targets > 0, -logits, logits))
  return jnp.where(targets > 0, _ALPHA, 1 - _ALPHA) * _wrong(nats) ** _GAMMA * nats


def _wrong(nats: jax.Array) -> jax.Array:
  """Returns 1 less the probability of the target, whose negative logarithm is given."""
  return -jnp.expm1(-nats)


def dice_loss(shares: jax.Array, targets: jax.Array) -> jax.Array:
  """1 - (2 overlap + 1) / (both areas + 1) of masks [..., pixels], shares in [0, 1]: [...]."""
  overlap = (shares * targets).sum(axis=-1)
  return 1 - (2 * overlap + 1) / (shares.sum(axis=-1) + targets.sum(axis=-1) + 1)


def class_iou(hits: Any, either: Any) -> np.ndarray:
  """Intersection over union of each class [K], NaN of those neither predicted nor there."""
  return np.where(np.asarray(either) > 0, hits / np.maximum(either, 1), np.nan)


def mean_iou(hits: Any, either: Any) -> float:
  """Mean of `class_iou` over the classes that are predicted or there, 0 where none are."""
  found = class_iou(hits, either)
  return float(np.nanmean(found)) if not np.isnan(found).all() else 0.0


def _mean(total: Any, count: Any) -> Any:
  return total / np.maximum(count, 1)


@dataclasses.dataclass(frozen=True)
class Segmentation(Task):
  """Learns the class of each pixel; pixels of no class (`VOID`) count nowhere.

  A batch's `mask` is int32 [B, H, W]. A prediction is a dict of `mask`, [N, H, W], and of
  `probabilities` float32 [N, K], the share of pixels that each class is expected to have. Metrics
  are `loss`; `mean_iou` over classes, `iou` of each class, of all pixels together; and
  `pixel_accuracy`.

  Of a head that gives 'logits' of each pixel, the losses are means over an image's pixels, void
  ones being 0: softmax cross-entropy; the same times (1 - p)^2 ('focal'); and the dice loss of
  softmax probabilities, a mean over the classes in the image. Of a head that gives masks
  ('class_logits' and 'mask_logits', as SegViT's), they are those of SegViT (arXiv 2210.05844,
  github.com/zbwxp/SegVit, losses/) for each layer, added up: cross-entropy of what each query is,
  its class or none; and focal and dice losses of the masks of the classes that are in the image,
  both as means over the batch (with several windows, over each). Unlike there, pixels of no class
  are left out.

  Attributes:
    cross_entropy: weight of the cross-entropy; None is 1.
    focal: weight of the focal loss; None is 0, and 20 of masks.
    dice: weight of the dice loss; None is 0, and 1 of masks.
    no_object: of masks alone, the weight of queries whose class isn't in the image; None is 0.1.
  """

  cross_entropy: NonNegative | None = None
  focal: NonNegative | None = None
  dice: NonNegative | None = None
  no_object: NonNegative | None = None

  TARGETS: ClassVar[tuple[str, ...]] = ('mask',)
  HEADS: ClassVar[tuple[str, ...]] = ('linear', 'segvit')

  def __post_init__(self):
    super().__post_init__()
    if {self.cross_entropy, self.focal, self.dice} == {0}:
      raise FieldError('cross_entropy', '0, and so are focal and dice; nothing is left to learn')

  def check_model(self, model: nn.Module) -> None:
    if self.no_object is not None and not model.QUERIES:
      raise FieldError('no_object', f'{self.no_object}, but the head has no queries to weigh')

  @property
  def metrics(self) -> dict[str, Metric]:
    share = {'unit': '%', 'higher_is_better': True}
    return {
      'loss': Metric(label='loss'),
      'mean_iou': Metric(**share, label='mean IoU', value=mean_iou),
      'pixel_accuracy': Metric(**share, label='pixel accuracy', value=_mean),
      'iou': Metric(**share, value=class_iou, per_class=True),
    }

  def totals(self, batch: Batch) -> dict[str, jax.Array]:
    present, weight = self._present(batch['mask']), batch['weight']
    return {
      'images': weight.sum(),
      'queries': (self._query_weights(present).sum(axis=1) * weight).sum(),
      'objects': (present.sum(axis=1) * weight).sum(),
    }

  def loss(self, outputs: Outputs, batch: Batch, rng: jax.Array, train: bool) -> Sums:
    del rng, train
    losses = self._mask_loss if 'mask_logits' in outputs else self._pixel_loss
    mask, weight = batch['mask'], batch['weight']
    guess = self._scores(outputs).argmax(axis=-1)  # [B, H, W]
    counted = (mask != VOID) & (weight > 0)[:, None, None]
    classes = jnp.arange(self.num_classes)
    true = (mask[..., None] == classes) & counted[..., None]  # [B, H, W, K]
    guessed = (guess[..., None] == classes) & counted[..., None]
    hits, either = ((true & guessed).sum((0, 1, 2)), (true | guessed).sum((0, 1, 2)))
    return {
      'loss': ((losses(outputs, batch) * weight).sum(), weight.sum()),
      'mean_iou': (hits, either),
      'pixel_accuracy': (hits.sum(), counted.sum()),
      'iou': (hits, either),
    }

  def _weights(self, *defaults: float) -> list[float]:
    """Returns the weights of cross-entropy, focal and dice loss."""
    given = self.cross_entropy, self.focal, self.dice
    return [d if value is None else value for value, d in zip(given, defaults, strict=True)]

  def _pixel_loss(self, outputs: Outputs, batch: Batch) -> jax.Array:
    """Returns the loss of each image [B] of a head that gives logits."""
    cross_entropy, focal, dice = self._weights(1, 0, 0)
    logits, mask = outputs['logits'], batch['mask']
    counted = mask != VOID
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, mask, 0))
    per_pixel = nats * (cross_entropy + focal * _wrong(nats) ** _GAMMA) * counted
    loss = per_pixel.mean(axis=(1, 2))
    if dice:
      shares = self._by_class(jax.nn.softmax(logits) * counted[..., None])
      targets = self._by_class(jax.nn.one_hot(mask, self.num_classes))
      present = self._present(mask)
      loss += dice * (dice_loss(shares, targets) * present).sum(1) / jnp.maximum(present.sum(1), 1)
    return loss

  def _mask_loss(self, outputs: Outputs, batch: Batch) -> jax.Array:
    """Returns the loss of each image [B] of a head that gives a mask for each class."""
    cross_entropy, focal, dice = self._weights(1, 20, 1)
    mask = batch['mask']
    batch_size, num_windows, num_layers = outputs['class_logits'].shape[:3]
    if num_windows > 1:
      rows, columns = outputs['rows'][..., None], outputs['columns'][:, :, None]
      mask = jax.vmap(lambda ids, row, column: ids[row, column])(mask, rows, columns)
    mask = mask.reshape(-1, *mask.shape[-2:])  # [B * windows, h, w]
    class_logits, mask_logits = (
      outputs[name].reshape(-1, num_layers, *outputs[name].shape[3:])
      for name in ('class_logits', 'mask_logits')
    )
    present = self._present(mask)  # [B * windows, K]
    weights = self._query_weights(present)
    if num_windows > 1:  # each as a batch of its own
      queries, objects = weights.sum(axis=1), jnp.maximum(present.sum(axis=1), 1)
    else:
      queries, objects = (batch[n] / batch['images'] for n in ('queries', 'objects'))
      objects = jnp.maximum(objects, 1 / batch['images'])

    counted = (mask != VOID).reshape(len(mask), 1, -1)
    targets = self._by_class(jax.nn.one_hot(mask, self.num_classes))  # [B * windows, K, h * w]
    num_pixels = jnp.maximum(counted.sum(axis=-1), 1)
    classes = jnp.where(present, jnp.arange(self.num_classes), self.num_classes)
    loss = 0.0
    for layer in range(num_layers):
      nats = optax.softmax_cross_entropy_with_integer_labels(class_logits[:, layer], classes)
      loss += cross_entropy * (nats * weights).sum(axis=1) / queries
      logits = upsample(mask_logits[:, layer], mask.shape[1:]).reshape(targets.shape)
      per_mask = focal * (focal_loss(logits, targets) * counted).sum(axis=-1) / num_pixels
      per_mask += dice * dice_loss(jax.nn.sigmoid(logits) * counted, targets)
      loss += (per_mask * present).sum(axis=1) / objects
    return loss.reshape(batch_size, num_windows).mean(axis=1)

  def _present(self, mask: jax.Array) -> jax.Array:
    """Returns which classes are in masks [B, H, W]: float32 [B, K]."""
    found = (mask[..., None] == jnp.arange(self.num_classes)).any(axis=(1, 2))
    return found.astype(jnp.float32)

  def _query_weights(self, present: jax.Array) -> jax.Array:
    no_object = _NO_OBJECT if self.no_object is None else self.no_object
    return jnp.where(present > 0, 1.0, no_object)

  def _by_class(self, values: jax.Array) -> jax.Array:
    """Returns values [B, H, W, K] as [B, K, H * W]."""
    return jnp.moveaxis(values, -1, 1).reshape(len(values), values.shape[-1], -1)

  def _scores(self, outputs: Outputs) -> jax.Array:
    """Returns what is highest for the predicted class, [B, H, W, K]."""
    scores = outputs['scores'] if 'scores' in outputs else outputs['logits']
    if scores.shape[3:] != (self.num_classes,):
      raise FieldError('head', f'its outputs are {scores.shape} for {self.num_classes} classes')
    return scores

  def predict(self, outputs: Outputs) -> Any:
    scores = self._scores(outputs)
    if 'scores' in outputs:
      shares = scores / jnp.maximum(scores.sum(axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    else:
      shares = jax.nn.softmax(scores)
    dtype = jnp.uint8 if self.num_classes <= VOID else jnp.int32
    return {
      'mask': scores.argmax(axis=-1).astype(dtype),
      'probabilities': shares.mean(axis=(1, 2)),
    }

  def probabilities(self, prediction: Any) -> Any:
    return prediction['probabilities']

  def to_image(self, prediction: Any, window: Window, size: Size) -> Any:
    return prediction | {'mask': KINDS['mask'].restore(prediction['mask'], window, size)}

  def lines(self, prediction: Any, class_names: Sequence[str], top: int) -> list[str]:
    entries = self.entry(prediction, class_names, top)['classes']
    return [f'{100 * e["share"]:8.2f} % of pixels  {e["class"]}' for e in entries]

  def entry(self, prediction: Any, class_names: Sequence[str], top: int) -> dict[str, Any]:
    mask = prediction['mask']
    counts = np.bincount(mask[mask != VOID], minlength=self.num_classes)
    order = [label for label in np.argsort(-counts, kind='stable')[:top].tolist() if counts[label]]
    total = max(counts.sum(), 1)
    classes = [
      {'class': class_names[label], 'label': label, 'share': float(counts[label] / total)}
      for label in order
    ]
    return {'classes': classes}
