"""Folders of images and masks: coloured rectangles on a ground, whose classes are known exactly."""

import numpy as np
from PIL import Image

NAMES = ('ground', 'red', 'void', 'blue')  # by the ids in the files
CLASSES = ('ground', 'red', 'blue')
_COLOURS = np.uint8([[40, 40, 40], [220, 30, 30], [128, 128, 128], [30, 30, 220]])


def draw(rng, height, width):
  """Returns (an image, its mask by the ids in files), with a rectangle of each class but ground."""
  ids = np.zeros((height, width), np.uint8)
  for i in (2, 1, 3):
    h, w = rng.integers(height // 4, height // 2 + 1), rng.integers(width // 4, width // 2 + 1)
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    ids[top : top + h, left : left + w] = i
  return _COLOURS[ids], ids


def write(root, counts, size=(16, 16), seed=0, mode='L'):
  """Writes images 0.png, 1.png, ... and masks of the splits in `counts`, and classes.txt."""
  rng = np.random.default_rng(seed)
  for split, count in counts.items():
    for folder in ('images', 'masks'):
      (root / split / folder).mkdir(parents=True)
    for i in range(count):
      image, ids = draw(rng, *size)
      Image.fromarray(image).save(root / split / 'images' / f'{i}.png')
      mask = Image.fromarray(ids, mode=mode)
      if mode == 'P':
        mask.putpalette(_COLOURS.tobytes())
      mask.save(root / split / 'masks' / f'{i}.png')
  (root / 'classes.txt').write_text('\n'.join(NAMES) + '\n')
  return root
