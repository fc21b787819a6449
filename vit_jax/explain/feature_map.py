"""A map of features: examples that a model takes to be alike lie side by side."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from vit_jax.explain import masks, panels

_COMPONENTS = 50  # of which t-SNE makes two
_PERPLEXITY = 30
_FEWEST = 4  # examples
_MOST_LISTED = 30  # classes, that a legend has room for
_MOST_COLORS = 256
_MOST_PICTURES = 70
_PICTURE = 0.075  # of the map's side
_FEW = 10  # classes, that colours alone tell apart
_MARKERS = 'os^D'
_SIDE, _GAP, _TITLE, _LINE = 4.4, 0.067, 0.4, 0.21  # inches
_LEGEND_COLUMNS = 5


def places(features: np.ndarray, seed: int = 0) -> np.ndarray:
  """Returns a place for each vector, float32 [N, 2] in [0, 1]: PCA to 50 components, then t-SNE.

  Args:
    features: float32 [N, D], N >= 4; only their directions count, as in k-NN.
    seed: of what t-SNE draws; the same places follow from the same seed.

  Raises:
    ValueError: fewer than 4 vectors.
  """
  count = len(features)
  if count < _FEWEST:
    raise ValueError(f'{count} examples; a map needs {_FEWEST} or more')
  lengths = np.linalg.norm(features, axis=1, keepdims=True)
  units = features / np.maximum(lengths, 1e-12)
  components = min(_COMPONENTS, *units.shape)
  reduced = PCA(components, random_state=seed).fit_transform(units)
  perplexity = min(_PERPLEXITY, (count - 1) / 3)
  found = TSNE(2, init='pca', perplexity=perplexity, random_state=seed).fit_transform(reduced)
  low, high = found.min(axis=0), found.max(axis=0)
  return np.float32((found - low) / np.maximum(high - low, 1e-12))


def map_figure(
  places: np.ndarray,
  labels: np.ndarray | None,
  class_names: Sequence[str],
  picture: Callable[[int], np.ndarray],
  title: str,
) -> Figure:
  """Draws examples as points in the colours of their classes, and beside these some as pictures.

  Up to 30 classes are in a legend; of more, names stand where most of their points are, as many as
  there is room for.

  Args:
    places: [N, 2] in [0, 1].
    labels: int [N]; None where there are none.
    class_names: of the labels.
    picture: index to image, uint8 [H, W, C].
    title: of the figure.
  """
  present = [] if labels is None else np.unique(labels).tolist()
  names = [panels.shorten(class_names[label]) for label in present]
  is_listed = len(names) <= _MOST_LISTED
  lines = -(-len(names) // _LEGEND_COLUMNS) if is_listed else 1
  width, height = 2 * _SIDE + 3 * _GAP, _TITLE + _SIDE + _GAP + _LINE * lines
  figure = Figure(figsize=(width, height))
  figure.text(_GAP / width, 1 - _GAP / height, title, va='top', fontsize=11, **panels.PLAIN)
  bottom = 1 - (_TITLE + _SIDE) / height
  points, pictures = (
    figure.add_axes(
      (left / width, bottom, _SIDE / width, _SIDE / height),
      xticks=[],
      yticks=[],
      xlim=(-0.05, 1.05),
      ylim=(-0.05, 1.05),
    )
    for left in (_GAP, 2 * _GAP + _SIDE)
  )
  styles = _styles(len(present))
  ids = np.zeros(len(places), int) if labels is None else np.searchsorted(present, labels)
  for i, (color, marker) in enumerate(styles):
    x, y = places[ids == i].T
    points.scatter(x, y, s=12, color=color, marker=marker, linewidths=0, alpha=0.8)
  pictures.scatter(*places.T, s=2, color='0.8')
  for i in _apart(places):
    _draw_picture(pictures, picture(i), places[i], styles[ids[i]][0])
  if names and is_listed:
    _add_legend(figure, names, styles)
  elif names:
    _write_names(points, places, ids, names, styles)
  return figure


def _styles(count: int) -> list[tuple[np.ndarray | str, str]]:
  """Returns a colour and a marker of each class; of no class, one for all."""
  if not count:
    return [('0.4', _MARKERS[0])]
  table = masks.colors(min(count, _MOST_COLORS)) / 255
  markers = _MARKERS if count > _FEW else _MARKERS[:1]
  return [(table[i % _MOST_COLORS], markers[i % len(markers)]) for i in range(count)]


def _apart(places: np.ndarray) -> list[int]:
  """Returns indices of examples whose pictures don't cover each other."""
  chosen = []
  for i in np.random.default_rng(0).permutation(len(places)).tolist():
    distances = np.abs(places[chosen] - places[i]).max(axis=1)
    if len(chosen) < _MOST_PICTURES and (distances > 1.2 * _PICTURE).all():
      chosen.append(i)
  return chosen


def _draw_picture(
  axis: Axes, image: np.ndarray, place: np.ndarray, color: np.ndarray | str
) -> None:
  height, width = np.array(image.shape[:2]) / max(image.shape[:2]) * _PICTURE
  left, bottom = place - (width / 2, height / 2)
  shown = image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1)
  axis.imshow(shown, extent=(left, left + width, bottom, bottom + height), zorder=2, aspect='auto')
  frame = Rectangle((left, bottom), width, height, fill=False, edgecolor=color, linewidth=1.8)
  axis.add_patch(frame).set_zorder(3)
  axis.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))  # which imshow changes


def _add_legend(figure: Figure, names: Sequence[str], styles: Sequence) -> None:
  handles = [
    Line2D([], [], linestyle='', color=color, marker=marker, label=name)
    for name, (color, marker) in zip(names, styles, strict=True)
  ]
  options = {'loc': 'lower center', 'ncols': _LEGEND_COLUMNS, 'frameon': False}
  legend = figure.legend(handles=handles, fontsize=panels.SMALL, borderaxespad=0.2, **options)
  for text in legend.get_texts():
    text.set(**panels.PLAIN)


def _write_names(
  axis: Axes, places: np.ndarray, ids: np.ndarray, names: Sequence[str], styles: Sequence
) -> None:
  """Writes the names of the largest classes that have room."""
  taken = []
  for i in np.argsort(-np.bincount(ids), kind='stable'):
    x, y = np.median(places[ids == i], axis=0)
    half = 0.008 * len(names[i])  # of the width of the text
    if all(abs(x - u) > half + other or abs(y - v) > 0.033 for u, v, other in taken):
      taken.append((x, y, half))
      box = {'facecolor': 'white', 'alpha': 0.7, 'linewidth': 0, 'pad': 0.5}
      style = {'color': 0.7 * styles[i][0], 'bbox': box, 'zorder': 4, **panels.PLAIN}
      axis.text(x, y, names[i], fontsize=7, ha='center', va='center', **style)
  axis.set_xlabel(f'names of {len(taken)} of {len(names)} classes', fontsize=panels.SMALL)
