"""What the points of a cloud belong to."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.kinds.kind import Kind


class Parts(Kind):
  """int32 [N], a part's id for each of the points of a record, which are chosen with them."""

  form, plural = 'int32 [points]', 'parts'

  def is_valid(self, value: np.ndarray) -> bool:
    return value.dtype == np.int32 and value.ndim == 1

  def num_points(self, value: np.ndarray) -> int:
    return len(value)

  def take_points(self, value: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return value[indices]

  def normalize(self, value: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    del mean, std
    return value.astype(jnp.int32)
