"""How well tokens are kept where images, and the patch kernel with them, are resized.

    python benchmarks/patch_kernels.py [FOLDER]

The images of FOLDER, or the two photographs that scikit-learn has, are cut into patches of one size
and, resized by Pillow's bicubic, of another. The kernels are the 64 principal components of the
patches and 64 of random numbers. Printed is the mean square of what tokens differ by, over that of
what they differ from their mean by.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vit_jax.data import decode_image
from vit_jax.data.images import find_images
from vit_jax.models.layers import resample_patch_kernel
from vit_jax.models.layers.resize import resize_weights

SIZES = ((16, 8), (16, 14), (16, 32), (14, 16), (32, 16), (32, 8))
NUM_KERNELS = 64
_MOST = 3000  # patches for principal components


def _resample(kernel: np.ndarray, weights: np.ndarray) -> np.ndarray:
  return np.einsum('ih,jw,hwcd->ijcd', weights, weights, kernel, optimize=True)


def _big_vision(kernel: np.ndarray, new: int) -> np.ndarray:
  """The pseudo-inverse of the bilinear resize without antialiasing, as FlexiViT's code."""
  weights = resize_weights(np.arange(new), new, len(kernel)).astype(np.float64)
  return _resample(kernel, np.linalg.pinv(weights.T))


def _timm(kernel: np.ndarray, new: int) -> np.ndarray:
  """The pseudo-inverse of the bicubic resize with antialiasing: timm's resample_patch_embed."""
  weights = resize_weights(np.arange(new), new, len(kernel), 'bicubic', antialias=True)
  return _resample(kernel, np.linalg.pinv(weights.astype(np.float64).T))


def _resized(kernel: np.ndarray, new: int) -> np.ndarray:
  """The kernel as an image, resized by bicubic interpolation with antialiasing."""
  weights = resize_weights(np.arange(new), new, len(kernel), 'bicubic', antialias=True)
  return _resample(kernel, weights) * (len(kernel) / new) ** 2


METHODS = {
  'vit_jax': lambda kernel, new: resample_patch_kernel(kernel, (new, new)),
  'big_vision': _big_vision,
  'timm': _timm,
  'resized': _resized,
}


def _patches(image: np.ndarray, side: int) -> np.ndarray:
  """Returns those of an image, uint8 [H, W, 3], in [-1, 1]: float64 [n, side * side * 3]."""
  rows, columns = (length // side for length in image.shape[:2])
  cells = image[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
  return cells.swapaxes(1, 2).reshape(rows * columns, -1) / 127.5 - 1


def errors(
  images: Sequence[np.ndarray], old: int, new: int, *, principal: bool = True
) -> dict[str, float]:
  """Returns, by method, the relative error of tokens from patches of `old` to `new` pixels a side.

  Args:
    images: uint8 [H, W, 3].
    old: of the kernel that is resampled.
    new: to this.
    principal: whether kernels are principal components, or random.
  """
  rng, before, after = np.random.default_rng(0), [], []
  for image in images:
    height, width = (length // old for length in image.shape[:2])
    image = image[: height * old, : width * old]
    resized = Image.fromarray(image).resize((width * new, height * new), Image.Resampling.BICUBIC)
    before.append(_patches(image, old))
    after.append(_patches(np.asarray(resized), new))
  before, after = np.concatenate(before), np.concatenate(after)
  kernels = rng.normal(size=(before.shape[1], NUM_KERNELS))
  if principal:
    some = before[rng.permutation(len(before))[:_MOST]]
    kernels = np.linalg.svd(some - some.mean(axis=0), full_matrices=False)[2][:NUM_KERNELS].T
  kernels = kernels.astype(np.float32)
  tokens = before @ kernels
  spread = np.square(tokens - tokens.mean(axis=0)).mean()
  return {
    name: np.square(
      after @ method(kernels.reshape(old, old, 3, -1), new).reshape(after.shape[1], -1) - tokens
    ).mean()
    / spread
    for name, method in METHODS.items()
  }


def main() -> None:
  """Prints the table."""
  if sys.argv[1:]:
    images = [decode_image(file, 3) for file in find_images(sys.argv[1])]
  else:
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
  print('| patches | kernels |', ' | '.join(METHODS), '|')
  print('| --- ' * (2 + len(METHODS)) + '|')
  for old, new in SIZES:
    for principal in (True, False):
      found = errors(images, old, new, principal=principal)
      kernels = 'principal' if principal else 'random'
      values = ' | '.join(f'{value:.2g}' for value in found.values())
      print(f'| {old} to {new} | {kernels} | {values} |', flush=True)


if __name__ == '__main__':
  main()
