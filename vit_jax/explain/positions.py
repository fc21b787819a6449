"""How alike position embeddings are (arXiv 2010.11929, figure 7, centre)."""

import numpy as np
from matplotlib.figure import Figure

_MOST_TICKS = 16  # on an axis of tiles


def cosine_similarity(embeddings: np.ndarray) -> np.ndarray:
  """Returns the cosine of the angle between each two embeddings of a grid.

  Args:
    embeddings: [h, w, D].

  Returns:
    float32 [h, w, h, w], 1 for the same direction, -1 for the opposite; 0 where one of the two
    embeddings is zero.
  """
  vectors = np.asarray(embeddings, np.float64)
  norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
  unit = vectors / np.where(norms == 0, 1, norms)
  return np.einsum('hwd,ijd->hwij', unit, unit, optimize=True).astype(np.float32)


def similarity_figure(
  similarity: np.ndarray, title: str = 'Position embeddings: cosine similarity'
) -> Figure:
  """Draws `cosine_similarity`, [h, w, h, w], as h x w tiles of h x w pixels.

  Tile (i, j) compares the embedding of the patch at row i and column j with all of them.
  """
  rows, columns = similarity.shape[:2]
  figure = Figure(figsize=_size(rows, columns), layout='constrained')
  figure.suptitle(title)
  axis = figure.subplots()
  # One picture of all tiles, with gaps: hundreds of axes take Matplotlib a minute.
  tiles = np.pad(similarity, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
  mosaic = tiles.transpose(0, 2, 1, 3).reshape(rows * (rows + 1), columns * (columns + 1))
  drawn = axis.imshow(mosaic[:-1, :-1], vmin=-1, vmax=1, interpolation='nearest')
  axis.set(xlabel='patch column', ylabel='patch row')
  for side, length in ((axis.xaxis, columns), (axis.yaxis, rows)):
    shown = np.arange(0, length, -(-length // _MOST_TICKS))
    side.set_ticks(shown * (length + 1) + (length - 1) / 2, shown + 1)
  axis.tick_params(length=0)
  axis.spines[:].set_visible(False)
  figure.colorbar(drawn, label='cosine similarity', shrink=0.8)
  return figure


def _size(rows: int, columns: int) -> tuple[float, float]:
  """Returns (width, height) of the figure in inches: tiles of the grid's shape, and text around."""
  shape = (rows * (rows + 1)) / (columns * (columns + 1))
  return max(5.0, 6.5 / max(1, shape) + 1.8), max(2.5, 6.5 * min(1, shape) + 1)
