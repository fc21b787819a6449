"""Image classification: softmax or sigmoid cross-entropy, top-1 and top-5 accuracy."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vit_jax.errors import UsageError, check_choice

TARGETS = ('label',)
HEAD = None


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


_LOSSES = {'softmax': softmax_loss, 'sigmoid': sigmoid_loss, 'softmax_twice': softmax_twice_loss}


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


def make_task(config: ConfigDict, num_classes: int):
  """Returns (logits [B, K], batch, train) -> 'loss', 'accuracy', 'top5_accuracy' as (sum, count).

  `batch['label']` is int [B] or float [B, K]; `batch['weight']` [B] is 0 on padding. Labels
  are smoothed in training alone; top-5 is there for more than five classes.

  Args:
    config: the experiment; reads `loss.name` and `loss.label_smoothing`.
    num_classes: K.

  Raises:
    UsageError: an unknown loss or a smoothing outside [0, 1); when called, logits of another shape.
  """
  check_choice('config.loss.name', config.loss.name, _LOSSES)
  loss_fn, smoothing = _LOSSES[config.loss.name], config.loss.label_smoothing
  if not 0 <= smoothing < 1:
    raise UsageError(f'config.loss.label_smoothing: {smoothing} is not in [0, 1)')

  def task(logits, batch, train):
    labels, weight = batch['label'], batch['weight']
    if logits.shape != (*weight.shape, num_classes):
      raise UsageError(
        f'config.model.classifier: {config.model.classifier!r} gives outputs of shape '
        f'{logits.shape[1:]} an image, and the task {config.task} needs ({num_classes},)'
      )
    if labels.ndim == 1:
      labels = jax.nn.one_hot(labels, num_classes)
    values = {
      'loss': loss_fn(logits, optax.smooth_labels(labels, smoothing if train else 0.0)),
      'accuracy': top_k_hits(logits, labels, 1),
    }
    if num_classes > 5:
      values['top5_accuracy'] = top_k_hits(logits, labels, 5)
    return {name: ((value * weight).sum(), weight.sum()) for name, value in values.items()}

  return task
