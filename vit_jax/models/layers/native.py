"""Patches of images of several sizes in one batch (arXiv 2307.06304, 2502.14786)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vit_jax.errors import UsageError


@struct.dataclass
class Patches:
  """Patches of images that each keep their aspect ratio and resolution, in any order.

  `vit.ViT` takes them in place of images, where `position_table` tells it where they are.

  Attributes:
    pixels: float [B, N, patch height, patch width, C].
    places: (row, column) of each in its image, int [B, N, 2].
    valid: bool [B, N], False of those that fill up an image's N and stand for nothing. Each image
      has some that are valid.
  """

  pixels: jax.Array
  places: jax.Array
  valid: jax.Array

  @property
  def grids(self) -> jax.Array:
    """(rows, columns) of each image: int [B, 2]."""
    return jnp.max(self.places, axis=1, where=self.valid[..., None], initial=0) + 1


def patchify(
  images: Sequence[np.ndarray], patch_size: tuple[int, int], num_patches: int | None = None
) -> Patches:
  """Cuts images into patches, row after row, and puts zeros after them.

  Args:
    images: [height, width, C] each, of whole patches.
    patch_size: (height, width) in pixels.
    num_patches: of each image, with those that fill up; None: as many as the largest image has.

  Returns:
    Patches of NumPy's arrays, the pixels in the images' dtype.

  Raises:
    UsageError: an image isn't made of whole patches, or of more than `num_patches`.
  """
  cut = []
  for i, image in enumerate(images):
    height, width, channels = image.shape
    if height % patch_size[0] or width % patch_size[1]:
      size, patch = f'{height}x{width}', 'x'.join(map(str, patch_size))
      raise UsageError(f'images[{i}]: {size} pixels are not whole patches of {patch}')
    grid = (height // patch_size[0], width // patch_size[1])
    pixels = image.reshape(grid[0], patch_size[0], grid[1], patch_size[1], channels).swapaxes(1, 2)
    places = np.stack(np.mgrid[: grid[0], : grid[1]], -1).reshape(-1, 2)
    cut.append((pixels.reshape(-1, *patch_size, channels), places.astype(np.int32)))
  length = max(len(places) for _, places in cut) if num_patches is None else num_patches
  for i, (_, places) in enumerate(cut):
    if len(places) > length:
      raise UsageError(f'images[{i}]: {len(places)} patches are more than num_patches={length}')

  def fill(array):
    return np.pad(array, [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)])

  return Patches(
    pixels=np.stack([fill(pixels) for pixels, _ in cut]),
    places=np.stack([fill(places) for _, places in cut]),
    valid=np.stack([np.arange(length) < len(places) for _, places in cut]),
  )
