"""Figures made of many small images, at most as wide as a README shows them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SMALL = 9  # points, of captions
LINE = 0.17  # inches, of a line of them

_WIDTH = 9.0  # inches: 900 pixels at the 100 per inch that Matplotlib saves by default
_NARROWEST = 5.0  # that a title fits in
_GAP = 0.08  # between panels
_TITLE = 0.4


def panels(
  count: int,
  columns: int,
  title: str,
  *,
  aspect: float = 1.0,
  header_lines: int = 0,
  caption_lines: int = 0,
  footer_lines: int = 0,
) -> tuple[Figure, list[Axes]]:
  """Returns a figure and `count` axes in it, row by row, all of one size and without ticks.

  Args:
    count: number of panels, 1 or more.
    columns: panels in a full row; fewer panels make a narrower figure.
    title: of the figure.
    aspect: height / width of a panel.
    header_lines: lines of small text that there is room for above the first row.
    caption_lines: likewise under each panel.
    footer_lines: likewise under all of them.
  """
  size = (_WIDTH - _GAP) / columns - _GAP
  columns = min(columns, count)
  row_height = size * aspect + LINE * caption_lines + 2 * _GAP
  top = _TITLE + LINE * header_lines
  width = max(columns * (size + _GAP) + _GAP, _NARROWEST)
  height = top + -(-count // columns) * row_height + LINE * footer_lines
  figure = Figure(figsize=(width, height))
  figure.text(_GAP / width, 1 - _GAP / height, title, va='top', fontsize=11)
  axes = []
  for row, column in (divmod(i, columns) for i in range(count)):
    left, bottom = _GAP + column * (size + _GAP), height - top - row * row_height - size * aspect
    place = left / width, bottom / height, size / width, size * aspect / height
    axes.append(figure.add_axes(place, xticks=[], yticks=[]))
  return figure, axes


def count_lines(captions: Sequence[str]) -> int:
  """Returns the number of lines of the longest caption."""
  return max(caption.count('\n') for caption in captions) + 1


def show(axis: Axes, image: np.ndarray) -> None:
  """Draws an image [H, W, C], uint8 or float in [0, 1], grey where it has one channel."""
  grey = image[..., 0] if image.shape[-1] == 1 else image
  axis.imshow(grey, cmap='gray', vmin=0, vmax=255 if image.dtype == np.uint8 else 1)


def class_name(label: int, names: Sequence[str] | None) -> str:
  """Returns the name of a class, or its number where classes have no names."""
  return str(label) if names is None else names[label]
