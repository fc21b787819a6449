"""Images with patches hidden, and what a masked autoencoder draws in their place."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vit_jax.explain import panels

_NAMES = ('original', 'masked', 'reconstruction')
_ROWS_OF = 2  # images beside each other
_GREY = 128  # of hidden patches


def reconstructions_figure(
  images: np.ndarray,
  hidden: np.ndarray,
  predicted: np.ndarray,
  captions: Sequence[str],
  title: str | None = None,
) -> Figure:
  """Draws each image, what the model sees of it, and what it makes of that, side by side.

  The reconstruction has the prediction where pixels are hidden, and the image elsewhere.

  Args:
    images: uint8 [N, H, W, C], N >= 1.
    hidden: bool [N, H, W, 1], the pixels that the model doesn't see.
    predicted: uint8 [N, H, W, C].
    captions: N texts, put under the images.
    title: of the figure; None for one that tells the share of hidden pixels.
  """
  height, width = images.shape[1:3]
  figure, axes = panels.panels(
    len(images) * len(_NAMES),
    _ROWS_OF * len(_NAMES),
    title or f'Reconstructions, {hidden.mean():.0%} of the image hidden',
    aspect=height / width,
    header_lines=1,
    caption_lines=panels.count_lines(captions),
    group=len(_NAMES),
  )
  masked = np.where(hidden, np.uint8(_GREY), images)
  for i, axis in enumerate(axes):
    row, column = divmod(i, len(_NAMES))
    panels.show(axis, (images, masked, np.where(hidden, predicted, images))[column][row])
    panels.caption(axis, captions[row] if column == 0 else '', loc='left')
    if i < _ROWS_OF * len(_NAMES):
      axis.set_title(_NAMES[column], fontsize=panels.SMALL, pad=3)
  return figure
