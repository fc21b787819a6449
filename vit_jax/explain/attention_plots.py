"""Figures of attention: maps over images, and distances over depth."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vit_jax.explain import panels

_MOST_IN_A_ROW = 9  # panels that details can be seen in
_PAIRS = 3  # of an image and its map in a row


def highlights(
  images: np.ndarray,
  maps: np.ndarray,
  names: Sequence[str],
  captions: Sequence[str],
  title: str,
  darkest: float = 0.0,
) -> Figure:
  """Draws a row for each image: itself, and itself as bright as each of its maps.

  Args:
    images: uint8 [B, H, W, 1 or 3].
    maps: [B, K, H, W] in [0, 1].
    names: K texts over the columns.
    captions: B texts, put under the images.
    title: of the figure.
    darkest: brightness of black where a map is 1, so that it can be told from where it is 0.
  """

  def draw(axis, image, values):
    panels.show(axis, (darkest + (1 - darkest) * image / 255) * values[..., None])

  return _rows(images, maps, names, captions, title, draw)


def overlays(
  images: np.ndarray,
  maps: np.ndarray,
  names: Sequence[str],
  captions: Sequence[str],
  title: str,
  label: str,
  norm: Normalize | None = None,
) -> Figure:
  """Draws a row for each image: itself, and each of its maps as colours over it in grey.

  Args are those of `highlights`, `label`, of the colours, and `norm`, which maps go to them by;
  None for one from 0 to 1.
  """
  norm = norm or Normalize(0, 1)

  def draw(axis, image, values):
    panels.show_heat(axis, image, values, norm)

  figure = _rows(images, maps, names, captions, title, draw, panels.COLOR_BAR_LINES)
  panels.add_color_bar(figure, norm, label)
  return figure


def _rows(
  images: np.ndarray,
  maps: np.ndarray,
  names: Sequence[str],
  captions: Sequence[str],
  title: str,
  draw: Callable[[Axes, np.ndarray, np.ndarray], None],
  footer_lines: int = 0,
) -> Figure:
  """Draws a row for each image, and in it by `draw` each of its maps; several rows of many maps."""
  batch, count, height, width = maps.shape
  rows = -(-(count + 1) // _MOST_IN_A_ROW)  # of an image
  columns = -(-(count + 1) // rows)
  figure, axes = panels.panels(
    batch * rows * columns,
    columns,
    title,
    aspect=height / width,
    header_lines=1,
    caption_lines=panels.count_lines(captions) + (rows > 1),  # and the names over the next row
    footer_lines=footer_lines,
  )
  texts = ('image', *names)
  for i, tiles in enumerate(np.reshape(axes, (batch, rows * columns))):
    for axis, name in zip(tiles, texts, strict=False):
      if rows > 1 or i == 0:
        axis.set_title(name, fontsize=panels.SMALL, pad=3)
    panels.show(tiles[0], images[i])
    panels.caption(tiles[0], captions[i], loc='left')
    for axis, values in zip(tiles[1:], maps[i], strict=False):
      draw(axis, images[i], values)
    for axis in tiles[len(texts) :]:
      axis.remove()
  return figure


def heat_maps(
  images: np.ndarray, maps: np.ndarray, captions: Sequence[str], title: str, label: str
) -> Figure:
  """Draws pairs of an image and its map, as colours laid over the image in grey.

  Args:
    images: uint8 [B, H, W, 1 or 3].
    maps: [B, H, W] in [0, 1].
    captions: B texts, of one line or several, under the pairs.
    title: of the figure.
    label: of the colours.
  """
  batch, height, width = maps.shape
  figure, axes = panels.panels(
    2 * batch,
    2 * _PAIRS,
    title,
    aspect=height / width,
    caption_lines=panels.count_lines(captions),
    footer_lines=panels.COLOR_BAR_LINES,
    group=2,
  )
  norm = Normalize(0, 1)
  rows = zip(axes[::2], axes[1::2], images, maps, captions, strict=True)
  for left, right, image, values, caption in rows:
    panels.show(left, image)
    panels.caption(left, caption, loc='left')
    panels.show_heat(right, image, values, norm)
  panels.add_color_bar(figure, norm, label)
  return figure


def distances(values: np.ndarray, uniform: float, title: str) -> Figure:
  """Draws the mean attention distance of each head over the depth of its layer.

  Args:
    values: [layers, heads], in pixels.
    uniform: the distance of a head that attends to all patches alike, for comparison.
    title: of the figure.
  """
  figure = Figure(figsize=(9, 4.5), layout='constrained')
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
