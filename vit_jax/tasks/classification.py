"""Image classification: softmax or sigmoid cross-entropy, top-1 and top-5 accuracy."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.errors import FieldError, check_choice
from vit_jax.tasks import class_metrics
from vit_jax.tasks.task import Batch, Metric, Outputs, Sums, Task


def softmax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Softmax cross-entropy [B] of logits and label distributions, both [B, K]."""
  return optax.softmax_cross_entropy(logits, labels)


def sigmoid_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Binary cross-entropy summed over classes [B], as scenic and big_vision (arXiv 2106.10270)."""
  return optax.sigmoid_binary_cross_entropy(logits, labels).sum(axis=-1)


def softmax_twice_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Softmax cross-entropy [B] of probabilities taken for logits, to reproduce published code.

  PyTorch's CrossEntropyLoss applies softmax itself, and much code for it gives it a model that ends
  in one already. Probabilities lie in [0, 1], so that a one-hot label's loss stays above
  log(1 + (K - 1) / e), 1.461 for ten classes, and a confidently wrong row has almost no gradient.
  """
  return optax.softmax_cross_entropy(jax.nn.softmax(logits), labels)


_LOSSES = {'softmax': softmax_loss, 'softmax_twice': softmax_twice_loss, 'sigmoid': sigmoid_loss}
_THRESHOLD = 0.5
_PROBABILITIES = {
  'softmax': jax.nn.softmax,
  'softmax_twice': jax.nn.softmax,  # the second is part of the loss
  'sigmoid': jax.nn.sigmoid,
}


def top_k_hits(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
  """Returns float32 [B], 1 where one of the k highest logits is a label.

  A label is a class of the row's highest positive weight, so that for multi-hot rows each of the
  classes set counts, and for mixed rows (mixup, cutmix) the class that has the larger part.

  Args:
    logits: [B, K].
    labels: float [B, K].
    k: how many classes may be guessed.
  """
  _, guesses = jax.lax.top_k(logits, k)
  weights = jnp.take_along_axis(labels, guesses, axis=-1)
  best = labels.max(axis=-1, keepdims=True)
  return ((weights == best) & (best > 0)).any(axis=-1).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Classification(Task):
  """Learns one class or several classes of each image.

  A batch's `label` is int [B] or float [B, K]. Outputs are `logits` [B, K]; a prediction is float32
  probabilities [N, K]. Top-5 accuracy is there for more than five classes.

  Attributes:
    name: 'softmax', 'sigmoid' (binary cross-entropy summed over classes), or 'softmax_twice' (a
      common mistake).
    label_smoothing: share of each label that is spread over all classes in training, in [0, 1),
      whatever the loss.
  """

  name: str = 'softmax'
  label_smoothing: float = 0.0

  TARGETS: ClassVar[tuple[str, ...]] = ('label',)

  def __post_init__(self):
    check_choice('name', self.name, _LOSSES)
    if not 0 <= self.label_smoothing < 1:
      raise FieldError('label_smoothing', f'{self.label_smoothing} is not in [0, 1)')

  @property
  def metrics(self) -> dict[str, Metric]:
    metrics = {
      'loss': Metric(label='loss'),
      'accuracy': Metric(unit='%', higher_is_better=True, label='accuracy'),
    }
    if self.num_classes > 5:
      metrics['top5_accuracy'] = Metric(unit='%', higher_is_better=True)
    return metrics

  def further_metrics(self, record: Mapping[str, Any]) -> Mapping[str, Metric]:
    return class_metrics.metrics(self.num_classes, np.ndim(record['label']) > 0, _THRESHOLD)

  def rows(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    self._check_shape(outputs['logits'])
    probabilities, label = _PROBABILITIES[self.name](outputs['logits']), batch['label']
    predicted = class_metrics.decide(probabilities, label.ndim > 1, _THRESHOLD)
    return {'probabilities': probabilities, 'label': label, 'predicted': predicted}

  def loss(self, outputs: Outputs, batch: Batch, rng: jax.Array, train: bool) -> Sums:
    del rng
    logits, labels, weight = outputs['logits'], batch['label'], batch['weight']
    self._check_shape(logits)
    if labels.ndim == 1:
      labels = jax.nn.one_hot(labels, self.num_classes)
    targets = optax.smooth_labels(labels, self.label_smoothing if train else 0.0)
    values = {
      'loss': _LOSSES[self.name](logits, targets),
      'accuracy': top_k_hits(logits, labels, 1),
    }
    if 'top5_accuracy' in self.metrics:
      values['top5_accuracy'] = top_k_hits(logits, labels, 5)
    return {name: ((value * weight).sum(), weight.sum()) for name, value in values.items()}

  def _check_shape(self, logits: jax.Array) -> None:
    if logits.shape[1:] != (self.num_classes,):
      raise FieldError(
        'classifier',
        f'the model gives outputs of shape {logits.shape[1:]} an image, and a class is told by '
        f'({self.num_classes},)',
      )

  def predict(self, outputs: Outputs) -> Any:
    self._check_shape(outputs['logits'])
    return _PROBABILITIES[self.name](outputs['logits'])

  def probabilities(self, prediction: Any) -> Any:
    return prediction

  def lines(self, prediction: Any, class_names: Sequence[str], top: int) -> list[str]:
    labels = _most_probable(prediction, top)
    return [f'{100 * prediction[label]:8.2f} %  {class_names[label]}' for label in labels]

  def entry(self, prediction: Any, class_names: Sequence[str], top: int) -> dict[str, Any]:
    predictions = [
      {'class': class_names[label], 'label': label, 'probability': float(prediction[label])}
      for label in _most_probable(prediction, top)
    ]
    return {'predictions': predictions}


def _most_probable(probabilities: np.ndarray, top: int) -> list[int]:
  return np.argsort(-probabilities, kind='stable')[:top].tolist()
