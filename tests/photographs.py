"""Photographs of odd sizes, and what a model config makes of them, for tests of pixels."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from vit_jax import models
from vit_jax.predictor import preparation


def photographs(count):
  """Parts of two photographs, all of different odd or even sizes, upright and across."""
  rng = np.random.default_rng(0)
  for i in range(count):
    whole = load_sample_images().images[i % 2]
    # The first are of small images and long ones.
    sizes = [(427, 640), (31, 45), (426, 43), (225, 225)]
    height, width = sizes[i] if i < len(sizes) else rng.integers(40, whole.shape[:2])
    top, left = rng.integers(0, np.subtract(whole.shape[:2], (height, width)) + 1)
    part = whole[top : top + height, left : left + width]
    yield np.ascontiguousarray(part.swapaxes(0, 1) if i % 3 == 2 else part)


def prepared(preprocess, image_size):
  """The function of an image, uint8 [H, W, 3], that prediction with these pixels begins with."""
  config = models.ModelConfig.from_dict(
    {'name': 'resnet18', 'num_classes': 2, 'image_size': image_size, 'preprocess': preprocess}
  )
  function, mean, std = preparation(config)
  return lambda image: function({'image': image})['image'], np.float32(mean), np.float32(std)


def apart(ours, theirs):
  """The largest difference of two images, uint8 [H, W, C], of the same size."""
  assert ours.shape == theirs.shape
  return int(np.abs(ours.astype(int) - theirs).max())


def to_pillow(photograph):
  """A photograph as the other libraries take it."""
  return Image.fromarray(photograph)
