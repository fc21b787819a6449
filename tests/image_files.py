"""Images and files of them, for tests of what reads them."""

import numpy as np
from PIL import Image


def one_line(error):
  assert '\n' not in str(error.value)
  return str(error.value)


def pixels(height, width, channels=3, seed=0):
  shape = (height, width, channels) if channels > 1 else (height, width)
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height, width):
  """A colour gradient, which JPEG keeps to within a few levels."""
  y, x = np.mgrid[:height, :width]
  return np.stack([255 * y / height, 255 * x / width, 128 + 0 * x], -1).astype(np.uint8)


def save(path, array, **kwargs):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path, **kwargs)
  return path


def make_folder(root, splits=('train', 'test'), classes=('cat', 'dog'), count=4, suffix='png'):
  for s, split in enumerate(splits):
    for c, name in enumerate(classes):
      for i in range(count):
        save(root / split / name / f'{i}.{suffix}', pixels(4, 4, seed=100 * s + 10 * c + i))
  return str(root)
