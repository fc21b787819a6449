"""Figures made of many small images, as wide as a README shows them."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vit_jax.errors import printable

SMALL = 9  # points, of captions
LINE = 0.17  # inches, of text of that size
LONGEST = 28  # characters of a name in a caption, or of a line of several
PLAIN = {'parse_math': False}  # names of files and classes may have dollars

_WIDTH = 9.0  # inches: 900 pixels at the 100 per inch that Matplotlib saves by default
_NARROWEST = 7.6  # that a title fits in
_LARGEST = 2.2  # of a panel
_LARGEST_OF_A_ROW = 3.6  # likewise, where there is but one row
_GAP = 0.08  # between panels
_TITLE = 0.4
_HEAT = 0.25, 0.75  # how much of the image a map's lowest and highest colours cover

COLOR_BAR_LINES = 4


def panels(
  count: int,
  columns: int,
  title: str,
  *,
  aspect: float = 1.0,
  header_lines: int = 0,
  caption_lines: int = 0,
  footer_lines: int = 0,
  group: int = 1,
) -> tuple[Figure, list[Axes]]:
  """Returns a figure and `count` axes in it, row by row, all of one size and without ticks.

  Rows are as even as they can be: of 5 panels, 4 of which fit into a row, there are 3 and 2.

  Args:
    count: number of panels, 1 or more.
    columns: panels that fit into a row.
    title: of the figure.
    aspect: height / width of a panel.
    header_lines: lines of small text that there is room for above the first row.
    caption_lines: likewise under each panel.
    footer_lines: likewise under all of them.
    group: panels that stay beside each other; divides `count` and `columns`.
  """
  num_rows = -(-count // columns)
  columns = -(-count // (group * num_rows)) * group
  largest = _LARGEST if num_rows > 1 else _LARGEST_OF_A_ROW
  size = min((_WIDTH - _GAP) / columns - _GAP, largest)
  row_height = size * aspect + LINE * caption_lines + 2 * _GAP
  top = _TITLE + LINE * header_lines
  width = min(max(columns * (size + _GAP) + _GAP, _NARROWEST), _WIDTH)
  height = top + num_rows * row_height + LINE * footer_lines
  figure = Figure(figsize=(width, height))
  figure.text(_GAP / width, 1 - _GAP / height, title, va='top', fontsize=11, **PLAIN)
  axes = []
  for row, column in (divmod(i, columns) for i in range(count)):
    left, bottom = _GAP + column * (size + _GAP), height - top - row * row_height - size * aspect
    place = left / width, bottom / height, size / width, size * aspect / height
    axes.append(figure.add_axes(place, xticks=[], yticks=[]))
  return figure, axes


def caption(axis: Axes, text: str, loc: str = 'center') -> None:
  """Puts text under a panel; what starts at its 'left' edge may be as wide as the row."""
  axis.set_xlabel(text, fontsize=SMALL, loc=loc, **PLAIN)


def shorten(name: str) -> str:
  """Returns a name that fits under an image."""
  name = printable(name)
  return name if len(name) <= LONGEST else f'{name[: LONGEST - 1]}…'


def wrap(text: str, width: int = 20) -> str:
  """Breaks a name into lines that fit under one of six panels, at its spaces and underscores."""
  return textwrap.fill(text.replace('_', ' '), width)


def count_lines(captions: Sequence[str]) -> int:
  """Returns the number of lines of the longest caption; 0 where all are empty."""
  return max(len(text.splitlines()) for text in captions)


def show(axis: Axes, image: np.ndarray) -> None:
  """Draws an image [H, W, C], uint8 or float in [0, 1], grey where it has one channel."""
  grey = image[..., 0] if image.shape[-1] == 1 else image
  axis.imshow(grey, cmap='gray', vmin=0, vmax=255 if image.dtype == np.uint8 else 1)


def show_heat(axis: Axes, image: np.ndarray, values: np.ndarray, norm: Normalize) -> None:
  """Draws values [H, W] as colours laid over an image, uint8 [H, W, C], in grey."""
  show(axis, image.mean(axis=-1, keepdims=True).astype(np.uint8))
  coverage = np.interp(norm(values), (0, 1), _HEAT)  # low values, which are dark, hide little
  axis.imshow(values, cmap='inferno', norm=norm, alpha=coverage)


def add_color_bar(figure: Figure, norm: Normalize, label: str) -> None:
  """Explains the colours of `show_heat` in `COLOR_BAR_LINES` lines at the foot of the figure."""
  line = LINE / figure.get_figheight()
  bar = figure.add_axes((0.2, 3 * line, 0.6, 0.9 * line))
  ticks = MaxNLocator(4)  # on a square-root scale more would meet at its right end
  mappable = ScalarMappable(norm, 'inferno')
  figure.colorbar(mappable, cax=bar, orientation='horizontal', ticks=ticks)
  bar.set_xlabel(label, fontsize=SMALL)


def class_name(label: int, names: Sequence[str] | None) -> str:
  """Returns the name of a class, or its number where classes have no names."""
  return str(label) if names is None else names[label]
