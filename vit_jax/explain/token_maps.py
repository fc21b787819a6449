"""Which pixels each of TokenLearner's tokens is made of (arXiv 2106.11297)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from vit_jax.errors import UsageError
from vit_jax.explain import panels

_HEAT = 0.7  # how much of a map's colour covers the image

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
  """Draws each image, and beside it the map of each token over it.

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
    footer_lines=4,
  )
  colors = ScalarMappable(PowerNorm(0.5, vmin=0, vmax=maps.max()), 'inferno')
  heat = colors.to_rgba(maps.reshape(-1, width))[:, :, :3].reshape(*maps.shape, 3)
  grey = images.mean(axis=-1)[:, None, :, :, None] / 255
  blends = _HEAT * heat + (1 - _HEAT) * grey
  for i, (first, *rest) in enumerate(np.reshape(axes, (batch, columns))):
    panels.show(first, images[i])
    first.set_xlabel(captions[i], fontsize=panels.SMALL, loc='left')
    for axis, blend in zip(rest, blends[i], strict=True):
      panels.show(axis, blend)
  for token, axis in enumerate(axes[1:columns]):
    axis.set_title(f'token {token}', fontsize=panels.SMALL)
  _add_color_bar(figure, colors)
  return figure


def _add_color_bar(figure: Figure, colors: ScalarMappable) -> None:
  """Puts the bar into four lines at the foot of the figure."""
  line = panels.LINE / figure.get_figheight()
  bar = figure.add_axes((0.2, 3 * line, 0.6, 0.9 * line))
  figure.colorbar(colors, cax=bar, orientation='horizontal')
  label = "weight of a pixel's patch (square-root scale, laid over the image)"
  bar.set_xlabel(label, fontsize=panels.SMALL)
