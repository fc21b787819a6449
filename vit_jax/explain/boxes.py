"""Boxes on images: where objects are, and where a model says they are."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from vit_jax.explain import panels

_COLUMNS = 4
# Dashes tell them apart where colours don't.
_STYLES = {
  'true': {'edgecolor': 'limegreen', 'linestyle': '-'},
  'predicted': {'edgecolor': 'red', 'linestyle': '--'},
}


def boxes_figure(
  images: np.ndarray,
  true_boxes: np.ndarray,
  predicted_boxes: np.ndarray,
  captions: Sequence[str],
  title: str = 'Boxes, true and predicted',
) -> Figure:
  """Draws two boxes on each image; what of a box is outside of its image is cut off.

  Args:
    images: uint8 [N, H, W, C], N >= 1.
    true_boxes: [N, 4], (centre x, centre y, width, height) as fractions of the image, x to the
      right and y downwards.
    predicted_boxes: likewise.
    captions: N texts, of one line or several, put under the images.
    title: of the figure.
  """
  height, width = images.shape[1:3]
  figure, axes = panels.panels(
    len(images),
    _COLUMNS,
    title,
    aspect=height / width,
    caption_lines=panels.count_lines(captions),
    footer_lines=2,
  )
  drawn = zip(axes, images, true_boxes, predicted_boxes, captions, strict=True)
  for axis, image, true, predicted, caption in drawn:
    panels.show(axis, image)
    panels.caption(axis, caption)
    axis.add_patch(_rectangle(true, image.shape, 'true'))
    axis.add_patch(_rectangle(predicted, image.shape, 'predicted'))
  handles = [Patch(fill=False, label=name, **style) for name, style in _STYLES.items()]
  figure.legend(handles=handles, loc='lower center', ncols=2, fontsize=panels.SMALL)
  return figure


def _rectangle(box: np.ndarray, shape: tuple[int, ...], kind: str) -> Rectangle:
  """Returns a box in the coordinates of imshow, where pixel (0, 0) starts at -0.5."""
  x, y, width, height = np.asarray(box) * (shape[1], shape[0], shape[1], shape[0])
  left, top = x - width / 2 - 0.5, y - height / 2 - 0.5
  return Rectangle((left, top), width, height, fill=False, linewidth=1.8, **_STYLES[kind])
