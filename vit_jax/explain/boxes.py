"""Boxes on images: where objects are, and where a model predicts them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from vit_jax.explain import panels
from vit_jax.tasks.localization import iou

_COLUMNS = 4
# Dashes tell them apart where colours don't.
_STYLES = {
  'true': {'edgecolor': 'limegreen', 'linestyle': '-'},
  'predicted': {'edgecolor': 'red', 'linestyle': '--'},
}


def boxes_figure(
  images: np.ndarray,
  true_boxes: np.ndarray | None,
  predicted_boxes: np.ndarray,
  captions: Sequence[str],
  title: str | None = None,
) -> Figure:
  """Draws boxes on images, with their overlap; what of a box is outside of its image is cut off.

  Under an image that has a true box stands the two boxes' intersection over union (IoU).

  Args:
    images: uint8 [N, H, W, C], N >= 1.
    true_boxes: [N, 4], (centre x, centre y, width, height) as fractions of the image, x to the
      right and y downwards; None where there are none.
    predicted_boxes: likewise; never None.
    captions: N texts, of one line or several, put under the images.
    title: of the figure; None for one that names the boxes drawn.
  """
  drawn = {'predicted': predicted_boxes}
  if true_boxes is not None:
    drawn = {'true': true_boxes, **drawn}
    ious = np.asarray(iou(true_boxes, predicted_boxes))
    pairs = zip(captions, ious, strict=True)
    captions = [f'{caption}\nIoU {overlap:.0%}'.lstrip() for caption, overlap in pairs]
  height, width = images.shape[1:3]
  figure, axes = panels.panels(
    len(images),
    _COLUMNS,
    title or f'Boxes, {" and ".join(drawn)}',
    aspect=height / width,
    caption_lines=panels.count_lines(captions),
    footer_lines=2,
  )
  for i, (axis, image, caption) in enumerate(zip(axes, images, captions, strict=True)):
    panels.show(axis, image)
    panels.caption(axis, caption)
    for kind, rows in drawn.items():
      axis.add_patch(_rectangle(rows[i], image.shape, kind))
  handles = [Patch(fill=False, label=kind, **_STYLES[kind]) for kind in drawn]
  figure.legend(handles=handles, loc='lower center', ncols=2, fontsize=panels.SMALL)
  return figure


def _rectangle(box: np.ndarray, shape: tuple[int, ...], kind: str) -> Rectangle:
  """Returns a box in the coordinates of imshow, where pixel (0, 0) starts at -0.5."""
  x, y, width, height = np.asarray(box) * (shape[1], shape[0], shape[1], shape[0])
  left, top = x - width / 2 - 0.5, y - height / 2 - 0.5
  return Rectangle((left, top), width, height, fill=False, linewidth=1.8, **_STYLES[kind])


def draw_box(axis: Axes, box: np.ndarray, shape: tuple[int, ...]) -> None:
  """Draws a true box, (cx, cy, width, height) in fractions, on an image of a shape [H, W, C]."""
  axis.add_patch(_rectangle(box, shape, 'true'))
