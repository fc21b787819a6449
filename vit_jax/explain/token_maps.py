"""Which pixels learned tokens are made of (TokenLearner, arXiv 2106.11297)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from vit_jax.explain import panels


def token_maps_figure(
  images: np.ndarray,
  maps: np.ndarray,
  captions: Sequence[str],
  title: str = 'Where each token looks',
) -> Figure:
  """Draws each image, and beside it the map of each token over it, on a square-root scale.

  Args:
    images: uint8 [B, H, W, C].
    maps: [B, num_tokens, H, W], of `Backbone.token_maps`, brought to the image.
    captions: B texts, of one line or several, put under the rows.
    title: of the figure.
  """
  batch, num_tokens, height, width = maps.shape
  columns = num_tokens + 1
  figure, axes = panels.panels(
    batch * columns,
    columns,
    title,
    aspect=height / width,
    header_lines=1,
    caption_lines=panels.count_lines(captions),
    footer_lines=panels.COLOR_BAR_LINES,
  )
  norm = PowerNorm(0.5, vmin=0, vmax=maps.max())
  rows = np.reshape(axes, (batch, columns))
  for (first, *rest), image, image_maps, caption in zip(rows, images, maps, captions, strict=True):
    panels.show(first, image)
    panels.caption(first, caption, loc='left')
    for axis, values in zip(rest, image_maps, strict=True):
      panels.show_heat(axis, image, values, norm)
  for token, axis in enumerate(rows[0, 1:]):
    axis.set_title(f'token {token}' if num_tokens <= 8 else f'{token}', fontsize=panels.SMALL)
  panels.add_color_bar(figure, norm, "weight of a pixel's patch, laid over the image")
  return figure
