"""Metrics of classes that need all predictions of a split; scikit-learn computes them.

They are functions of probabilities, float32 [N, K], and labels: int [N], one of each example, or
[N, K], above 0 where an example has a class. A class that no example has counts in no mean, and is
NaN where there is a number for each class; so is what isn't defined.
"""

import functools
import warnings
from collections.abc import Callable

import numpy as np

from vit_jax.tasks.task import Metric

_TOP = (2, 3, 10)  # guesses; for 5 there is a metric made of sums
_SCORES = {'precision': 'precision', 'recall': 'recall', 'f1': 'F1'}

_Value = Callable[[np.ndarray, np.ndarray], float | np.ndarray]


def metrics(num_classes: int, several: bool, threshold: float) -> dict[str, Metric]:
  """Returns the metrics by name.

  Args:
    num_classes: K.
    several: whether examples may have several classes.
    threshold: as for `decide`.
  """

  def share(label: str, value: _Value) -> Metric:
    return Metric(unit='%', higher_is_better=True, label=label, value=value)

  def each(value: _Value) -> Metric:
    return Metric(unit='%', higher_is_better=True, value=value, per_class=True)

  def number(label: str, value: _Value, higher_is_better: bool = True) -> Metric:
    return Metric(higher_is_better=higher_is_better, label=label, value=value)

  guess = functools.partial(_guess, threshold)
  found = {name: each(_score(guess, name)) for name in _SCORES}
  for average in ('macro', 'weighted'):
    found |= {
      f'{average}_{name}': share(f'{average} {label}', _score(guess, name, average))
      for name, label in _SCORES.items()
    }
  found |= {
    'average_precision': each(_of_each('average_precision_score')),
    'mean_average_precision': share(
      'mean average precision', _mean(_of_each('average_precision_score'))
    ),
    'roc_auc': number('ROC AUC', _mean(_of_each('roc_auc_score', among_others=True))),
  }
  if several:
    hamming = number('Hamming loss', _of_guesses(guess, 'hamming_loss'), higher_is_better=False)
    return found | {'hamming_loss': hamming}
  return found | {
    'balanced_accuracy': share('balanced accuracy', _score(guess, 'recall', 'macro')),
    'matthews_corrcoef': number('Matthews correlation', _of_guesses(guess, 'matthews_corrcoef')),
    'cohen_kappa': number("Cohen's kappa", _of_guesses(guess, 'cohen_kappa_score')),
    **{f'top{k}_accuracy': share(f'top-{k} accuracy', _top(k)) for k in _TOP if k < num_classes},
  }


def decide(probabilities: np.ndarray, several: bool, threshold: float) -> np.ndarray:
  """Returns the predicted class of each example, int [N]; of several classes bool [N, K].

  Of several, those are predicted whose probability is at least `threshold`.
  """
  return probabilities >= threshold if several else probabilities.argmax(axis=1)


def _call(name: str, *args: np.ndarray, **options: object) -> float | np.ndarray:
  """Calls a function of sklearn.metrics, without its warnings of what isn't defined."""
  import sklearn.metrics  # takes a second, and few runs need it

  with warnings.catch_warnings(), np.errstate(all='ignore'):
    warnings.simplefilter('ignore')
    return getattr(sklearn.metrics, name)(*args, **options)


def _truth(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns which examples have which classes, bool [N, K]."""
  return labels > 0 if labels.ndim > 1 else labels[:, None] == np.arange(num_classes)


def _known(labels: np.ndarray) -> np.ndarray:
  """Returns labels as scikit-learn takes them, int [N] or bool [N, K]."""
  return labels > 0 if labels.ndim > 1 else labels


def _fill(values: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns the values of some classes as those of all, [K], NaN of the others."""
  filled = np.full(num_classes, np.nan)
  filled[classes] = values
  return filled


def _guess(threshold: float, probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  return decide(probabilities, labels.ndim > 1, threshold)


def _of_guesses(guess: _Value, name: str) -> _Value:
  """Returns a metric that scikit-learn computes of labels and guesses."""
  return lambda probabilities, labels: _call(name, _known(labels), guess(probabilities, labels))


def _score(guess: _Value, name: str, average: str | None = None) -> _Value:
  """Returns precision, recall or F1, averaged or of each class, 0 without guesses of a class."""
  index = list(_SCORES).index(name)

  def value(probabilities, labels):
    num_classes = probabilities.shape[1]
    classes = np.flatnonzero(_truth(labels, num_classes).any(axis=0))
    if not len(classes):
      return np.nan if average else np.full(num_classes, np.nan)
    found = _call(
      'precision_recall_fscore_support',
      _known(labels),
      guess(probabilities, labels),
      labels=classes,
      average=average,
      zero_division=0,
    )[index]
    return found if average else _fill(found, classes, num_classes)

  return value


def _of_each(name: str, among_others: bool = False) -> _Value:
  """Returns a metric that scikit-learn computes of each class against all others.

  `among_others`: it isn't defined where all examples have the class.
  """

  def value(probabilities, labels):
    known = _truth(labels, probabilities.shape[1])
    is_defined = known.any(axis=0) & ~(among_others & known.all(axis=0))
    classes = np.flatnonzero(is_defined)
    values = [_call(name, known[:, c], probabilities[:, c]) for c in classes]
    return _fill(values, classes, probabilities.shape[1])

  return value


def _mean(value_of_each: _Value) -> _Value:
  """Returns the mean over the classes for which a metric is defined."""

  def value(probabilities, labels):
    values = value_of_each(probabilities, labels)
    return values[~np.isnan(values)].mean() if not np.isnan(values).all() else np.nan

  return value


def _top(k: int) -> _Value:
  """Returns the share of examples whose class is among the k most probable."""
  return lambda probabilities, labels: _call(
    'top_k_accuracy_score', labels, probabilities, k=k, labels=np.arange(probabilities.shape[1])
  )
