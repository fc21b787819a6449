"""Point clouds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data import clouds
from vit_jax.data.kinds.kind import Kind


class Points(Kind):
  """float32 [N, 3], x, y and z of points in space, which no crop or flip of an image moves.

  Normalised, their mean is 0 and the farthest lies at a distance of 1.
  """

  form, plural = 'float32 [points, 3]', 'points'
  has_points = True
  dtype = np.float32
  cannot_follow = (
    'resized_crop.area',
    'crop_padding',
    'flip',
    'shift',
    'rand_augment.num_ops',
    'color_jitter.brightness',
    'color_jitter.contrast',
    'color_jitter.saturation',
    'color_jitter.hue',
    'grayscale',
    'gaussian_blur.probability',
    'solarize.probability',
    'random_erasing.probability',
    'mixup_alpha',
    'cutmix_alpha',
  )

  def is_valid(self, value: np.ndarray) -> bool:
    return value.dtype == np.float32 and value.ndim == 2 and value.shape[1] == 3 and len(value) > 0

  def find_files(self, path: str | Path) -> list[Path]:
    return clouds.find_clouds(path)

  def decode(self, file: Path | BinaryIO, channels: int = 0) -> np.ndarray:
    del channels
    return clouds.decode_points(file)

  def picture(self, value: np.ndarray) -> np.ndarray:
    return clouds.draw(value)

  def num_points(self, value: np.ndarray) -> int:
    return len(value)

  def take_points(self, value: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return value[indices]

  def map_points(self, function: Callable[[jax.Array], jax.Array], value: jax.Array) -> jax.Array:
    return function(value)

  def normalize(self, value: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    del mean, std
    centred = value - value.mean(axis=-2, keepdims=True)  # [..., N, 3]
    radius = jnp.linalg.norm(centred, axis=-1).max(axis=-1)[..., None, None]
    return centred / jnp.where(radius > 0, radius, 1)
