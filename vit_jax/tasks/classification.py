"""Image classification: softmax or sigmoid cross-entropy, top-1 and top-5 accuracy, micro F1."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.data import Source
from vit_jax.errors import FieldError, check_choice
from vit_jax.ranges import NonNegative, Rate, Share
from vit_jax.tasks import class_metrics
from vit_jax.tasks.task import Batch, Metric, Outputs, Sums, Task


def softmax_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Softmax cross-entropy [B] of logits and label distributions, both [B, K]."""
  return optax.softmax_cross_entropy(logits, labels)


def sigmoid_loss(
  logits: jax.Array, labels: jax.Array, pos_weight: jax.Array | None = None
) -> jax.Array:
  """Binary cross-entropy summed over classes [B], as scenic and big_vision (arXiv 2106.10270).

  `pos_weight` [K] multiplies the part of the label, as in PyTorch's BCEWithLogitsLoss.
  """
  nats = optax.sigmoid_binary_cross_entropy(logits, labels)
  if pos_weight is not None:
    nats += (pos_weight - 1) * labels * jax.nn.softplus(-logits)
  return nats.sum(axis=-1)


def softmax_twice_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Softmax cross-entropy [B] of probabilities taken for logits, to reproduce published code.

  PyTorch's CrossEntropyLoss applies softmax itself, and much code for it gives it a model that ends
  in one already. Probabilities lie in [0, 1], so that a one-hot label's loss stays above
  log(1 + (K - 1) / e), 1.461 for ten classes, and a confidently wrong row has almost no gradient.
  """
  return optax.softmax_cross_entropy(jax.nn.softmax(logits), labels)


_LOSSES = {'softmax': softmax_loss, 'softmax_twice': softmax_twice_loss, 'sigmoid': sigmoid_loss}
_BALANCED = ('balanced',)
_THRESHOLD = 0.5  # of data with several labels an example
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


def balanced_weights(labels: np.ndarray, class_names: Sequence[str], sigmoid: bool) -> np.ndarray:
  """Returns weights that make up for how often classes occur, float64 [K].

  Args:
    labels: int [N] or, with a 1 for each class of a row, [N, K].
    class_names: K.
    sigmoid: whether each class is learned as a yes or no: then its weight is that of yes, the
      number of rows without it over that of rows with it. Else it is N / (K * the number of its
      rows). Both are scikit-learn's 'balanced'; in the first case, of yes over that of no.

  Raises:
    FieldError: of `class_weights`: a class that no row or, where it is a yes or no, each row has.
  """
  one_hot = np.eye(len(class_names), dtype=bool)[labels] if labels.ndim == 1 else labels > 0
  counts, total = one_hot.sum(axis=0), len(labels)
  for name, count in zip(class_names, counts, strict=True):
    if count == 0 or (sigmoid and count == total):
      has = 'each example is' if count else 'no example is'
      raise FieldError('class_weights', f"'balanced', but {has} of the class {name!r}")
  return (total - counts) / counts if sigmoid else total / (len(counts) * counts)


@dataclasses.dataclass(frozen=True)
class Classification(Task):
  """Learns one class or several classes of each image.

  A batch's `label` is int [B] or float [B, K]. Outputs are `logits` [B, K]; a prediction is float32
  probabilities [N, K]. Top-5 accuracy is there for more than five classes.

  With the sigmoid loss, an example may have several classes. With a threshold, which such data give
  it, those whose probability is at least that are predicted. Metrics are then also precision,
  recall and F1 of all pairs of an example and a class (`micro_`), 0 where they have no denominator,
  and the share of examples all of whose classes, and no others, are predicted (`subset_accuracy`).
  Of mixed labels those from 0.5 on count for them.

  Weights of classes change the training loss alone, as label smoothing does. With softmax, it is
  the weighted mean of PyTorch's CrossEntropyLoss: a label's part of the loss is multiplied by the
  weight of its class, and the sum is divided by that of the labels' weights over the global batch,
  which takes what smoothing adds to a label out of the divisor. The two parts of a mixed label
  count with the weights of their classes there, too. With the sigmoid loss they are PyTorch's
  `pos_weight`, and the mean isn't weighted.

  Attributes:
    name: 'softmax', 'sigmoid' (binary cross-entropy summed over classes), or 'softmax_twice' (a
      common mistake).
    label_smoothing: share of each label that is spread over all classes in training, in [0, 1),
      whatever the loss.
    class_weights: a number of at least 0 for each class, in the order of their names; () weighs all
      alike; ('balanced',) is `balanced_weights` of the training split.
    threshold: of the sigmoid loss alone, the probability from which on a class is predicted, in
      (0, 1). None is 0.5 where the data have several labels an example, and else stands for the
      most probable class.
  """

  name: str = 'softmax'
  label_smoothing: Rate = 0.0
  class_weights: tuple[NonNegative | str, ...] = ()
  threshold: Share | None = None

  TARGETS: ClassVar[tuple[str, ...]] = ('label',)

  def __post_init__(self):
    super().__post_init__()
    check_choice('name', self.name, _LOSSES)
    self._check_weights(self.class_weights)
    if self.threshold is not None and self.name != 'sigmoid':
      raise FieldError('threshold', f'{self.threshold}, but {self.name!r} predicts one class')

  def _check_weights(self, weights: tuple[float | str, ...]) -> None:
    if weights in ((), _BALANCED):
      return
    if any(isinstance(weight, str) for weight in weights):
      raise FieldError('class_weights', f"{weights} is neither numbers nor 'balanced' alone")
    if len(weights) != self.num_classes:
      raise FieldError('class_weights', f'{len(weights)} numbers for {self.num_classes} classes')
    if not any(weights):
      raise FieldError('class_weights', f'{weights} has no number above 0')

  def for_data(self, source: Source) -> 'Classification':
    sigmoid = self.name == 'sigmoid'
    if np.ndim(source[0]['label']) and not sigmoid:
      raise FieldError(
        'name',
        f"{self.name!r} learns one class of each image, and these have several; give 'sigmoid'",
      )
    changes = {}
    if np.ndim(source[0]['label']) and self.threshold is None:
      changes['threshold'] = _THRESHOLD
    if self.class_weights == _BALANCED:
      weights = balanced_weights(source.labels(), source.class_names, sigmoid)
      changes['class_weights'] = tuple(weights.tolist())
    return dataclasses.replace(self, **changes)

  @property
  def metrics(self) -> dict[str, Metric]:
    metrics = {
      'loss': Metric(label='loss'),
      'accuracy': Metric(unit='%', higher_is_better=True, label='accuracy'),
    }
    if self.num_classes > 5:
      metrics['top5_accuracy'] = Metric(unit='%', higher_is_better=True)
    if self.threshold is not None:
      share = {'unit': '%', 'higher_is_better': True}
      metrics |= {
        'micro_f1': Metric(**share, label='micro F1', value=_share),
        'micro_precision': Metric(**share, value=_share),
        'micro_recall': Metric(**share, value=_share),
        'subset_accuracy': Metric(**share),
      }
    return metrics

  def further_metrics(self, record: Mapping[str, Any]) -> Mapping[str, Metric]:
    return class_metrics.metrics(self.num_classes, np.ndim(record['label']) > 0, self._least)

  def rows(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    self._check_shape(outputs['logits'])
    probabilities, label = _PROBABILITIES[self.name](outputs['logits']), batch['label']
    predicted = class_metrics.decide(probabilities, label.ndim > 1, self._least)
    return {'probabilities': probabilities, 'label': label, 'predicted': predicted}

  def _labels(self, batch: Batch) -> jax.Array:
    """Returns the labels of a batch as float32 [B, K]."""
    labels = batch['label']
    return jax.nn.one_hot(labels, self.num_classes) if labels.ndim == 1 else labels

  def totals(self, batch: Batch) -> dict[str, jax.Array]:
    if not self.class_weights or self.name == 'sigmoid':
      return {}
    weight, of_classes = batch['weight'], jnp.array(self.class_weights, jnp.float32)
    of_labels = (self._labels(batch) * of_classes).sum(axis=1)
    return {'images': weight.sum(), 'label_weights': (of_labels * weight).sum()}

  def _weighted_loss(self, logits: jax.Array, targets: jax.Array, batch: Batch) -> jax.Array:
    """Returns the loss of each example [B], whose mean over the global batch is minimised."""
    weights = jnp.array(self.class_weights, jnp.float32)
    if self.name == 'sigmoid':
      return sigmoid_loss(logits, targets, weights)
    # No label of the batch may weigh anything.
    total = jnp.maximum(batch['label_weights'], jnp.finfo(jnp.float32).tiny)
    return _LOSSES[self.name](logits, targets * weights) * batch['images'] / total

  def loss(self, outputs: Outputs, batch: Batch, rng: jax.Array, train: bool) -> Sums:
    del rng
    logits, labels, weight = outputs['logits'], self._labels(batch), batch['weight']
    self._check_shape(logits)
    targets = optax.smooth_labels(labels, self.label_smoothing if train else 0.0)
    is_weighted = train and self.class_weights
    values = {
      'loss': self._weighted_loss(logits, targets, batch)
      if is_weighted
      else _LOSSES[self.name](logits, targets),
      'accuracy': top_k_hits(logits, labels, 1),
    }
    if 'top5_accuracy' in self.metrics:
      values['top5_accuracy'] = top_k_hits(logits, labels, 5)
    counts = {}
    if self.threshold is not None:
      true, guessed = labels >= 0.5, jax.nn.sigmoid(logits) >= self.threshold
      values['subset_accuracy'] = (true == guessed).all(axis=1)
      hits, num_true, num_guessed = (
        (x.sum(axis=1) * weight).sum() for x in (true & guessed, true, guessed)
      )
      counts = {
        'micro_f1': (2 * hits, num_true + num_guessed),
        'micro_precision': (hits, num_guessed),
        'micro_recall': (hits, num_true),
      }
    sums = {name: ((value * weight).sum(), weight.sum()) for name, value in values.items()}
    return sums | counts

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

  @property
  def _least(self) -> float:
    """The threshold of examples with several labels."""
    return _THRESHOLD if self.threshold is None else self.threshold

  def predicted_classes(self, probabilities: np.ndarray) -> list[int]:
    order = _most_probable(probabilities, len(probabilities))
    if self.threshold is None:
      return order[:1]
    return [label for label in order if probabilities[label] >= self.threshold]

  def lines(self, prediction: Any, class_names: Sequence[str], top: int) -> list[str]:
    def line(label):
      return f'{100 * prediction[label]:8.2f} %  {class_names[label]}'

    if self.threshold is None:
      return [line(label) for label in _most_probable(prediction, top)]
    below = f' (no class reaches {100 * self.threshold:g} %)'
    found = [line(label) for label in self.predicted_classes(prediction)]
    return found or [line(prediction.argmax()) + below]

  def entry(self, prediction: Any, class_names: Sequence[str], top: int) -> dict[str, Any]:
    found, several = self.predicted_classes(prediction), {}
    if self.threshold is not None:
      several = {'classes': [class_names[label] for label in found], 'threshold': self.threshold}
    predictions = [
      {'class': class_names[label], 'label': label, 'probability': float(prediction[label])}
      for label in _most_probable(prediction, max(top, len(found)))
    ]
    return {'predictions': predictions} | several


def _most_probable(probabilities: np.ndarray, top: int) -> list[int]:
  return np.argsort(-probabilities, kind='stable')[:top].tolist()


def _share(total: Any, count: Any) -> Any:
  return total / np.maximum(count, 1)
