"""What a classifier gets wrong: the confusion matrix and the most confident mistakes."""

import textwrap
from collections.abc import Sequence

import numpy as np
import sklearn.metrics
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vit_jax.explain import panels

_MOST_NUMBERED = 20  # classes, that zeros in the cells leave the other numbers clear
_SMALLEST = 5.5  # points, of numbers in cells
_DIGIT = 0.62  # width of a digit, of its height
_MATRIX_SHARE = 0.62  # of the figure's width
_BARS = 0.8  # inches, width of the bars beside it
_LOWEST = 3  # classes of the lowest recall, named where the axes name none
_MOST_NAMED = 50  # classes, that names on the axes can be read
_WIDTH = 9.0  # inches, at most, of a matrix
_TITLE_WIDTH = 100  # characters of a line
_CHARACTER = 0.6  # width of one in a name, of its height
_COLUMNS = 6  # of images


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
  """Counts the examples of each true class (row) that were taken for each class (column).

  Args:
    labels: int [N], in [0, num_classes).
    predictions: int [N], likewise.
    num_classes: K; classes that don't occur have a row and a column, too.

  Returns:
    int64 [K, K].

  Raises:
    ValueError: a label or a prediction is not a class.
  """
  for name, classes in (('labels', labels), ('predictions', predictions)):
    if not np.isin(classes, np.arange(num_classes)).all():
      raise ValueError(f'{name}: not all in [0, {num_classes})')
  return sklearn.metrics.confusion_matrix(labels, predictions, labels=np.arange(num_classes))


def confusion_figure(
  counts: np.ndarray,
  class_names: Sequence[str] | None = None,
  *,
  normalize: bool = False,
  title: str = 'Confusion matrix',
) -> Figure:
  """Draws a confusion matrix [K, K], colours on a square-root scale, so that rare errors show.

  Beside each row is the recall of its class, the share of its examples that are right. Cells carry
  their numbers where these fit, axes names for up to 50 classes; of more, the title names those of
  the lowest recall.

  Args:
    counts: what `confusion_matrix` returns.
    class_names: K names; None numbers the classes from 0.
    normalize: show percent of each row, the true class, instead of counts; a class without
      examples has a row of zeros.
    title: of the figure; the number of right ones is put beneath.
  """
  num_classes = len(counts)
  totals = counts.sum(axis=1)
  values = 100 * counts / np.maximum(totals, 1)[:, None] if normalize else counts
  across, down = _room_for_names(num_classes, class_names)
  side = min(_WIDTH, max(5.5, 0.6 * num_classes + 3.2) + across)
  figure = Figure(figsize=(side, (side - across) * 0.9 + down), layout='constrained')
  matrix = _MATRIX_SHARE * (side - across)
  axis, recalls = figure.subplots(1, 2, sharey=True, width_ratios=(matrix, _BARS))
  norm = PowerNorm(0.5, vmin=0, vmax=100 if normalize else max(values.max(), 1))
  drawn = axis.imshow(values, cmap='Blues', norm=norm, aspect='auto')
  right, total = np.trace(counts), counts.sum()
  lines = [title, f'{right:,} of {total:,} right ({right / max(total, 1):.2%})']
  if num_classes > _MOST_NAMED:
    lowest = f'lowest recall: {_lowest(np.diagonal(counts), totals, class_names)}'
    filled = textwrap.fill(lowest, _TITLE_WIDTH, break_on_hyphens=False)
    lines.append(filled.replace('\xa0', ' '))
  figure.suptitle('\n'.join(lines), fontsize=11, **panels.PLAIN)
  axis.set(xlabel='predicted class', ylabel='true class')
  _name_classes(axis, num_classes, class_names)
  _number_cells(axis, values, norm, matrix)
  _draw_recalls(recalls, np.diagonal(counts), totals)
  unit = 'percent of the true class' if normalize else 'images'
  label = f'{unit} (colours on a square-root scale)'
  style = {'location': 'bottom', 'shrink': 0.6, 'aspect': 40, 'ticks': MaxNLocator(4, integer=True)}
  figure.colorbar(drawn, ax=axis, label=label, **style)
  return figure


def _number_cells(axis: Axes, values: np.ndarray, norm: PowerNorm, side: float) -> None:
  """Writes the values into their cells, where they can be read; zeros where cells are few.

  `side` is that of the matrix in inches.
  """
  texts = np.vectorize('{:.1f}'.format if values.dtype.kind == 'f' else str)(values)
  cell = 72 * side / len(values)  # points
  size = min(8, cell / (_DIGIT * max(map(len, texts.flat))))
  if size < _SMALLEST:
    return
  for (row, column), value in np.ndenumerate(values):
    if value or len(values) <= _MOST_NUMBERED:
      color = '0.7' if value == 0 else 'white' if norm(value) > 0.6 else 'black'
      place = {'ha': 'center', 'va': 'center', 'fontsize': size, 'color': color}
      axis.text(column, row, texts[row, column], **place)


def _lowest(right: np.ndarray, totals: np.ndarray, names: Sequence[str] | None) -> str:
  """Returns the names of the classes with the lowest recall, and the recall."""
  there = np.flatnonzero(totals)
  order = there[np.argsort(right[there] / totals[there], kind='stable')][:_LOWEST]
  shares = (f'{panels.class_name(c, names)} {right[c] / totals[c]:.1%}' for c in order)
  return ', '.join(text.replace(' ', '\xa0') for text in shares)  # a line doesn't end within one


def _draw_recalls(axis: Axes, right: np.ndarray, totals: np.ndarray) -> None:
  """Draws the recall of each class as a bar, with its number where names can be read."""
  shares = 100 * right / np.maximum(totals, 1)
  height = 0.8 if len(shares) <= _MOST_NAMED else 1  # gaps are less than a pixel
  axis.barh(np.arange(len(shares)), shares, height, color='tab:blue', alpha=0.4)
  axis.set(xlim=(0, 100), xlabel='recall (%)', xticks=[0, 100])
  axis.tick_params(left=False, labelleft=False)
  for side in ('top', 'right'):
    axis.spines[side].set_visible(False)
  if len(shares) > _MOST_NAMED:
    return
  for row, (share, total) in enumerate(zip(shares, totals, strict=True)):
    text = f'{share:.1f}' if total else 'none'
    axis.text(4, row, text, va='center', fontsize=8 if len(shares) <= _MOST_NUMBERED else 6.5)


def _name_classes(axis: Axes, num_classes: int, names: Sequence[str] | None) -> None:
  """Puts the classes on both axes, where there is room for them."""
  if num_classes > _MOST_NAMED:
    return
  texts = _texts(num_classes, names)
  style = {'fontsize': _text_size(num_classes), **panels.PLAIN}
  rotation = 90 if _are_upright(texts) else 0
  axis.set_xticks(np.arange(num_classes), texts, rotation=rotation, **style)
  axis.set_yticks(np.arange(num_classes), texts, **style)


def _room_for_names(num_classes: int, names: Sequence[str] | None) -> tuple[float, float]:
  """Returns how wide names beside a matrix, and how high those under it are, in inches."""
  if num_classes > _MOST_NAMED:
    return 0, 0
  texts = _texts(num_classes, names)
  longest = max(map(len, texts)) * _CHARACTER * _text_size(num_classes) / 72
  return longest, longest if _are_upright(texts) else 0


def _texts(num_classes: int, names: Sequence[str] | None) -> list[str]:
  return [panels.class_name(label, names) for label in range(num_classes)]


def _text_size(num_classes: int) -> int:
  return panels.SMALL if num_classes <= _MOST_NUMBERED else 7


def _are_upright(texts: Sequence[str]) -> bool:
  return max(map(len, texts)) > 3


def most_confidently_wrong(probabilities: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
  """Returns which examples a classifier gets wrong, the most probable prediction first.

  Args:
    probabilities: [N, K]; the prediction is the first class of the highest.
    labels: int [N].
    count: how many at most.

  Returns:
    int [M], indices of examples, M <= count; among equals, the first example comes first.
  """
  wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
  order = np.argsort(-probabilities[wrong].max(axis=1), kind='stable')
  return wrong[order[:count]]


def wrong_figure(
  images: np.ndarray,
  labels: np.ndarray,
  probabilities: np.ndarray,
  class_names: Sequence[str] | None = None,
  title: str = 'Most confidently wrong',
) -> Figure:
  """Draws images with the true and the predicted class, and its probability, under each.

  Args:
    images: uint8 [M, H, W, C], M >= 1: those chosen by `most_confidently_wrong`, in its order.
    labels: int [M].
    probabilities: [M, K].
    class_names: K names; None numbers the classes from 0.
    title: of the figure.
  """
  height, width = images.shape[1:3]
  captions = [
    _caption(label, row, class_names) for label, row in zip(labels, probabilities, strict=True)
  ]
  figure, axes = panels.panels(
    len(images), _COLUMNS, title, aspect=height / width, caption_lines=panels.count_lines(captions)
  )
  for axis, image, caption in zip(axes, images, captions, strict=True):
    panels.show(axis, image)
    panels.caption(axis, caption)
  return figure


def _caption(label: int, probabilities: np.ndarray, names: Sequence[str] | None) -> str:
  predicted = probabilities.argmax()
  true, taken_for = (panels.class_name(c, names) for c in (label, predicted))
  lines = f'true {true}', f'predicted {taken_for}', f'{probabilities[predicted]:.1%}'
  return '\n'.join(map(panels.wrap, lines))
