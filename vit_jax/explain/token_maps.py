"""Which pixels learned tokens are made of (TokenLearner, arXiv 2106.11297)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from vit_jax.explain import attention_plots


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
    captions: B texts, of one line or several, put under the images.
    title: of the figure.
  """
  names = [f'token {i}' for i in range(maps.shape[1])]
  label = "weight of a pixel's patch, laid over the image"
  norm = PowerNorm(0.5, vmin=0, vmax=maps.max())
  return attention_plots.overlays(images, maps, names, captions, title, label, norm)
