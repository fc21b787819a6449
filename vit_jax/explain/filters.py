"""Principal components of the patch embedding's filters (arXiv 2010.11929, figure 7, left)."""

import numpy as np
from matplotlib.figure import Figure

from vit_jax.errors import UsageError
from vit_jax.explain import panels

_TIE = 1e-5  # relative; well over the rounding of float32 kernels


def principal_components(
  kernel: np.ndarray, num_components: int = 28
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the directions in which the filters of a patch embedding vary most.

  The filters are centred: their mean is subtracted before the singular value decomposition. Signs,
  which that leaves open, are such that the entry of largest magnitude is positive: the first, in
  row-major order, of those within 1e-5 of the largest (relative), which rounding can't order.

  Args:
    kernel: [h, w, C, D], a filter of h x w pixels for each of D features.
    num_components: how many at most; there are no more than h * w * C or D - 1.

  Returns:
    (float32 [k, h, w, C], float32 [k]): components of unit norm, orthogonal to each other, and the
    share of the filters' variance that each explains, descending.

  Raises:
    UsageError: the filters are all alike.
  """
  *shape, num_filters = kernel.shape
  filters = np.asarray(kernel, np.float64).reshape(-1, num_filters).T
  filters = filters - filters.mean(axis=0)
  _, scales, directions = np.linalg.svd(filters, full_matrices=False)
  variances = scales**2
  if not variances.sum() > 0:
    raise UsageError('patch embedding: its filters are all alike and have no components')
  k = min(num_components, num_filters - 1, len(directions))
  directions = directions[:k]
  magnitudes = np.abs(directions)
  largest = magnitudes >= (1 - _TIE) * magnitudes.max(axis=1, keepdims=True)
  first = largest.argmax(axis=1, keepdims=True)
  directions = directions * np.sign(np.take_along_axis(directions, first, axis=1))
  shares = variances[:k] / variances.sum()
  return directions.reshape(k, *shape).astype(np.float32), shares.astype(np.float32)


def components_figure(
  components: np.ndarray,
  shares: np.ndarray,
  title: str = 'Patch embedding: principal components of its filters',
) -> Figure:
  """Draws what `principal_components` returns, each tile scaled to its own range.

  Raises:
    UsageError: the filters are for images that are neither grey nor RGB.
  """
  count, height, width, channels = components.shape
  if channels not in (1, 3):
    raise UsageError(
      f'patch embedding: filters of {channels} channels are no pictures; those of 1 or 3 are'
    )
  figure, axes = panels.panels(
    count, 7, title, aspect=height / width, caption_lines=1, footer_lines=2
  )
  low, high = (f(components, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
  tiles = (components - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
  for i, (axis, tile, share) in enumerate(zip(axes, tiles, shares, strict=True), start=1):
    panels.show(axis, tile)
    panels.caption(axis, f'{i}: {share:.1%}')
  figure.supxlabel(
    f'component: share of the variance; {shares.sum():.1%} in all\n'
    f'{height} x {width} pixels, each tile from its own minimum to its maximum',
    fontsize=panels.SMALL,
  )
  return figure
