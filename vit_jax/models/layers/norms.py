"""Norms of tokens, by the names that a model's `norm` has for them."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn

# 'rmsnorm' (arXiv 1910.07467) divides by the root mean square; it has a scale and no bias.
NORMS = {'layernorm': nn.LayerNorm, 'rmsnorm': nn.RMSNorm}


def norm_layer(kind: str, epsilon: float, dtype: Any) -> Callable[..., nn.Module]:
  """Returns a norm's class with its attributes, which takes what differs: the `name`.

  Args:
    kind: a key of `NORMS`.
    epsilon: beside the variance, or the mean square.
    dtype: of the computation; parameters and statistics are float32.
  """
  return functools.partial(NORMS[kind], epsilon=epsilon, dtype=dtype)
