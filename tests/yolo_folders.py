"""Folders in YOLO format with one coloured rectangle in each image, whose box is known exactly."""

import numpy as np
from PIL import Image

COLOURS = {'red': (220, 30, 30), 'green': (30, 220, 30), 'blue': (30, 30, 220)}


def draw(rng, height, width):
  """Returns (an image, its label, the box of its rectangle), which has whole pixels."""
  h, w = rng.integers(height // 4, height // 2), rng.integers(width // 4, width // 2)
  top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
  label = int(rng.integers(len(COLOURS)))
  image = np.full((height, width, 3), 40, np.uint8)
  image[top : top + h, left : left + w] = list(COLOURS.values())[label]
  box = ((left + w / 2) / width, (top + h / 2) / height, w / width, h / height)
  return image, label, np.float32(box)


def bounds(image, threshold=128):
  """Returns the box of what is brighter in one colour than the ground, by its pixels."""
  image = np.asarray(image)
  rows, columns = np.nonzero(image.max(-1) > threshold)
  low = np.array([columns.min(), rows.min()]) / image.shape[1::-1]
  high = np.array([columns.max() + 1, rows.max() + 1]) / image.shape[1::-1]
  return np.concatenate([(low + high) / 2, high - low])


def write(root, counts, size=(16, 16), seed=0, style='{split}/images', yaml=None):
  """Writes images 0.png, 1.png, ... of the splits in `counts`, labels and data.yaml."""
  rng = np.random.default_rng(seed)
  lines = [f'names: [{", ".join(COLOURS)}]', f'nc: {len(COLOURS)}']
  for split, count in counts.items():
    folder = root / style.format(split=split)
    folder.mkdir(parents=True)
    labels = root / style.format(split=split).replace('images', 'labels')
    labels.mkdir(parents=True, exist_ok=True)
    for i in range(count):
      image, label, box = draw(rng, *size)
      Image.fromarray(image).save(folder / f'{i}.png')
      (labels / f'{i}.txt').write_text(f'{label} {" ".join(map(str, box))}\n')
    lines.append(f'{split}: {style.format(split=split)}')
  (root / 'data.yaml').write_text('\n'.join(lines) if yaml is None else yaml)
  return root
