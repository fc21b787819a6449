"""Images, files of them and augmentations, for tests of what reads and changes them."""

import jax
import ml_collections
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from vit_jax.data import augment

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
NUM_CLASSES = 10


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


PALETTE = {0: (200, 60, 60), 1: (60, 60, 200), 2: (60, 220, 60), 255: (0, 0, 0)}


def scene(seed, height=24, width=32):
  """A record whose entries can be told from one another.

  An image painted by PALETTE from its mask, left half 0, right half 1, with a strip of void and in
  front a rectangle of class 2, which the box is round; and a video of the image, once as it is and
  once with its channels in reverse.
  """
  rng = np.random.default_rng(seed)
  mask = np.repeat((np.arange(width) >= width // 2).astype(np.uint8)[None], height, axis=0)
  mask[: height // 6] = 255
  h, w = rng.integers(height // 4, height // 2), rng.integers(width // 4, width // 2)
  top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
  mask[top : top + h, left : left + w] = 2
  image = np.zeros((height, width, 3), np.uint8)
  for number, color in PALETTE.items():
    image[mask == number] = color
  box = ((left + w / 2) / width, (top + h / 2) / height, w / width, h / height)
  video = np.stack([image, image[..., ::-1]])
  return {'image': image, 'mask': mask, 'box': np.float32(box), 'video': video}


def painted_classes(image):
  """Returns for each pixel of a scene the class whose colour is nearest, uint8 [..., H, W]."""
  colors = np.array(list(PALETTE.values()))
  distances = np.square(np.asarray(image)[..., None, :] - colors.astype(float)).sum(-1)
  return np.array(list(PALETTE), np.uint8)[distances.argmin(-1)]


def corners(box):
  """Returns (left, top, right, bottom) of boxes (cx, cy, w, h), both [..., 4]."""
  return np.concatenate([box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2], axis=-1)


def bounds(mask, number=2):
  """Returns (left, top, right, bottom), in fractions of its sides, of a class in a mask [H, W]."""
  rows, columns = np.nonzero(mask == number)
  height, width = mask.shape
  return np.array(
    [
      columns.min() / width,
      rows.min() / height,
      (columns.max() + 1) / width,
      (rows.max() + 1) / height,
    ]
  )


def photographs(count, height=12, width=16):
  """Returns uint8 [count, height, width, 3]: pieces of a photograph, shrunk."""
  photo = load_sample_image('flower.jpg')
  corners = [(30 * (i % 8), 40 * (i // 8)) for i in range(count)]
  pieces = [photo[top : top + 180, left : left + 240] for top, left in corners]
  return np.stack([np.asarray(Image.fromarray(p).resize((width, height))) for p in pieces])


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def repeated(value, f, count, seed=0):
  """Returns f(key, value) for `count` keys, in NumPy."""
  return jax.tree.map(np.asarray, jax.jit(jax.vmap(f, (0, None)))(keys(count, seed), value))


def augmentations(**fields):
  """Returns config.augment with everything off but `fields`."""
  config = ml_collections.ConfigDict(
    {
      'resized_crop': {'area': (), 'size': ()},
      'crop_padding': 0,
      'flip': False,
      'shift': 0,
      'rand_augment': {'num_ops': 0, 'magnitude': 9.0},
      'color_jitter': {
        'brightness': 0.0,
        'contrast': 0.0,
        'saturation': 0.0,
        'hue': 0.0,
        'probability': 1.0,
      },
      'grayscale': 0.0,
      'gaussian_blur': {'probability': 0.0, 'sigma': (0.1, 2.0)},
      'solarize': {'probability': 0.0, 'threshold': 0.5},
      'own': (),
      'random_erasing': {'probability': 0.0, 'area': (0.02, 0.33), 'aspect': (0.3, 3.3)},
      'rotation': 'none',
      'point_scale': 0.0,
      'point_shift': 0.0,
      'point_jitter': 0.0,
      'mixup_alpha': 0.0,
      'cutmix_alpha': 0.0,
    }
  )
  config.update(fields)
  return config


def run_augment(fields, keys, batch, mean=MEAN, std=STD):
  """Returns a batch augmented, compiled, with everything off but `fields`."""
  config = augmentations(**fields)
  return jax.jit(lambda k, b: augment.augment(config, k, b, NUM_CLASSES, mean, std))(keys, batch)
