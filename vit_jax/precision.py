"""The dtype that models compute in."""

import jax

from vit_jax.errors import check_choice

DTYPES = ('auto', 'float32', 'bfloat16')


def resolve_dtype(dtype: str) -> str:
  """Returns the compute dtype; 'auto' is bfloat16 where the hardware has it.

  Raises:
    FieldError: it is none of `DTYPES`.
  """
  check_choice('dtype', dtype, DTYPES)
  if dtype != 'auto':
    return dtype
  return 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
