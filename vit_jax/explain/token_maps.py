"""Which pixels each of TokenLearner's tokens is made of (arXiv 2106.11297)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from vit_jax.errors import UsageError
from vit_jax.explain import panels

_LEARNER = re.compile(r'TokenLearnerModule(?:V11)?_(\d+)')


def token_maps(intermediates: Mapping[str, Any], grid: tuple[int, int]) -> list[np.ndarray]:
  """Returns the weights with which each learned token sums up the patches.

  Those of version 1.1 are a softmax, and add up to 1 over the grid; those of version 1 are
  sigmoids, each in [0, 1].

  Args:
    intermediates: what `model.apply(..., mutable=['intermediates'])` captures of a TokenLearnerViT.
    grid: (rows, columns) of the patches.

  Returns:
    One float32 [B, num_tokens, rows, columns] for each layer that learns tokens, in order: one of
    them, or with a TokenFuser all from `tokenlearner_loc` on.

  Raises:
    UsageError: the model learns no tokens.
  """
  encoder = intermediates.get('Transformer', {})
  found = {int(match[1]): name for name in encoder if (match := _LEARNER.fullmatch(name))}
  if not found:
    raise UsageError(
      "config.model: learns no tokens; a 'token_learner' whose tokenizer.type is 'dynamic' does"
    )
  maps = [np.asarray(encoder[found[i]]['token_maps'][0]) for i in sorted(found)]
  return [m.reshape(*m.shape[:2], *grid) for m in maps]


def token_maps_figure(
  images: np.ndarray,
  maps: np.ndarray,
  captions: Sequence[str],
  title: str = 'TokenLearner: where each token looks',
) -> Figure:
  """Draws each image, and beside it the map of each token over it, on a square-root scale.

  Args:
    images: uint8 [B, H, W, C].
    maps: [B, num_tokens, H, W], one of those that `token_maps` returns, brought to the image.
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
