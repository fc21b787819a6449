"""Figures of attention: maps over images, and distances over depth."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

_WIDTH = 9.0  # inches, of a full row of tiles
_LARGEST_TILE = 2.2
_NARROWEST = 7.6  # that a title fits
_GAP = 0.08  # between tiles
_LINE = 0.17  # of small text
_TOP = 0.4  # for the title
_SMALL = 9  # points
_PLAIN = {'parse_math': False}  # names of files and classes may have dollars


def _tiles(
  title: str,
  rows: int,
  columns: int,
  aspect: float,
  lines: int,
  above: float = 0.0,
  right: float = 0.0,
) -> tuple[Figure, np.ndarray]:
  """Returns a figure and its axes [rows, columns], of one size, without ticks.

  Args:
    title: of the figure.
    rows: of tiles.
    columns: of tiles.
    aspect: height / width of a tile.
    lines: of text under each row.
    above: inches left free between the title and the tiles.
    right: inches left free at the right.
  """
  tile = min((_WIDTH - right - _GAP) / columns - _GAP, _LARGEST_TILE)
  width = max(_GAP + columns * (tile + _GAP) + right, _NARROWEST)
  below = _LINE * lines + 2 * _GAP
  height = _TOP + above + rows * (tile * aspect + below)
  figure = Figure(figsize=(width, height))
  axes = np.empty((rows, columns), object)
  for row, column in np.ndindex(axes.shape):
    left, bottom = _GAP + column * (tile + _GAP), below + (rows - 1 - row) * (tile * aspect + below)
    place = (left / width, bottom / height, tile / width, tile * aspect / height)
    axes[row, column] = figure.add_axes(place, xticks=[], yticks=[])
  figure.text(_GAP / width, 1 - 0.1 / height, title, va='top', fontsize=11, **_PLAIN)
  return figure, axes


def _caption(axis: Axes, text: str) -> None:
  """Puts text under a tile, from its left edge on, over the width of its neighbours."""
  units = {'xycoords': 'axes fraction', 'textcoords': 'offset points'}
  axis.annotate(text, (0, 0), (0, -3), **units, va='top', fontsize=_SMALL, **_PLAIN)


def _show(axis: Axes, image: np.ndarray) -> None:
  """Draws an image [H, W, 1 or 3], uint8 or float in [0, 1]."""
  pixels = image[..., 0] if image.shape[-1] == 1 else image
  axis.imshow(pixels, cmap='gray', vmin=0, vmax=255 if image.dtype == np.uint8 else 1)


def highlights(
  images: np.ndarray,
  maps: np.ndarray,
  names: Sequence[str],
  captions: Sequence[str],
  title: str,
) -> Figure:
  """Draws a row for each image: itself, and itself times each of its maps.

  Args:
    images: uint8 [B, H, W, 1 or 3].
    maps: [B, K, H, W] in [0, 1].
    names: K texts over the columns.
    captions: B texts of a line under the rows.
    title: of the figure.
  """
  (batch, count), (height, width) = maps.shape[:2], images.shape[1:3]
  figure, axes = _tiles(title, batch, count + 1, height / width, lines=1, above=0.2)
  for axis, name in zip(axes[0], ('image', *names), strict=True):
    axis.set_title(name, fontsize=_SMALL)
  for row, image, image_maps, caption in zip(axes, images, maps, captions, strict=True):
    _show(row[0], image)
    _caption(row[0], caption)
    for axis, values in zip(row[1:], image_maps, strict=True):
      _show(axis, image / 255 * values[..., None])
  return figure


def heat_maps(
  images: np.ndarray, maps: np.ndarray, captions: Sequence[str], title: str, label: str
) -> Figure:
  """Draws pairs of an image and its map, as colours laid over the image in grey.

  Args:
    images: uint8 [B, H, W, 1 or 3].
    maps: [B, H, W] in [0, 1].
    captions: B texts of two lines under the pairs.
    title: of the figure.
    label: of the colours.
  """
  height, width = images.shape[1:3]
  pairs = min(3, len(images))
  rows = -(-len(images) // pairs)
  figure, axes = _tiles(title, rows, 2 * pairs, height / width, lines=2, right=0.9)
  axes = axes.reshape(-1, 2)
  for (left, right), image, values, caption in zip(axes, images, maps, captions, strict=False):
    _show(left, image)
    _caption(left, caption)
    _show(right, image.mean(axis=-1, keepdims=True).astype(np.uint8))
    right.imshow(values, cmap='inferno', vmin=0, vmax=1, alpha=0.65)
  for axis in axes[len(images) :].flat:
    axis.remove()
  first, last = axes[pairs - 1, 1].get_position(), axes[len(images) - 1, 1].get_position()
  inch = 1 / figure.get_figwidth()
  bar = figure.add_axes((first.x1 + 0.2 * inch, last.y0, 0.15 * inch, first.y1 - last.y0))
  figure.colorbar(ScalarMappable(cmap='inferno'), cax=bar, label=label)
  return figure


def distances(values: np.ndarray, uniform: float, title: str) -> Figure:
  """Draws the mean attention distance of each head over the depth of its layer.

  Args:
    values: [layers, heads], in pixels.
    uniform: the distance of a head that attends to all patches alike, for comparison.
    title: of the figure.
  """
  figure = Figure(figsize=(7, 4.2), layout='constrained')
  axis = figure.subplots()
  layers = np.arange(len(values))
  axis.plot(layers, values, 'o', color='tab:blue', markersize=5, alpha=0.7)
  axis.plot(layers, values.mean(axis=1), color='tab:orange')
  axis.axhline(uniform, color='gray', linestyle='--', linewidth=1)
  axis.legend([axis.lines[0], *axis.lines[-2:]], ['a head', 'mean of heads', 'uniform attention'])
  axis.set(title=title, xlabel='layer, from 0', ylabel='mean attention distance (pixels)')
  axis.set_ylim(0, 1.1 * max(values.max(), uniform))
  axis.xaxis.get_major_locator().set_params(integer=True)
  axis.grid(alpha=0.3)
  return figure
