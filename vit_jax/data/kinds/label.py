"""Labels: which class an example is of, or which classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data.kinds.kind import Kind


class Label(Kind):
  """An int, or float32 [num_classes] with a 1 for each class; in batches int32 [n] or float32."""

  form, plural = 'an int or float32 [classes]', 'labels'

  def is_valid(self, value: np.ndarray) -> bool:
    if value.ndim == 0:
      return value.dtype.kind in 'iu'
    return value.dtype == np.float32 and value.ndim == 1

  def stack(self, values: Sequence[Any]) -> np.ndarray:
    array = np.stack(values)
    return array.astype(np.float32 if array.ndim > 1 else np.int32)
