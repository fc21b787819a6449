"""StableHLO, serialised by jax.export, which JAX runs without this project.

jax.export keeps a file readable for half a year at least; see its documentation.
"""

import os
from collections.abc import Sequence

import jax
import jax.export

from vit_jax.errors import FieldError, check_choice
from vit_jax.exporting.function import Function
from vit_jax.weights import files

OPTIONS = ('platforms', 'dtype')
_DESCRIPTION = '.json'
BESIDE = (_DESCRIPTION,)
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def write(
  path: str | os.PathLike,
  function: Function,
  *,
  platforms: Sequence[str] = ('cpu', 'cuda', 'tpu'),
) -> float | None:
  """Writes PATH, and the function's description beside it as PATH.json.

  The function's derivatives are left out (vjp_order 0).

  Args:
    path: of the file.
    function: what it computes.
    platforms: of `PLATFORMS`, on which it will run.

  Returns:
    The largest difference, as `Function.check`; None where this machine's device is of none of the
    platforms.

  Raises:
    UsageError: it can't be written, or what was read back computes something else.
  """
  if not platforms:
    raise FieldError('platforms', f'give one or more of {", ".join(PLATFORMS)}')
  for platform in platforms:
    check_choice('platforms', platform, PLATFORMS)
  (batch,) = jax.export.symbolic_shape('batch')
  exported = jax.export.export(jax.jit(function.call), platforms=platforms)(function.spec(batch))
  data = exported.serialize(vjp_order=0)
  here = {'gpu': 'cuda'}.get(jax.default_backend(), jax.default_backend())
  difference = None
  if here in platforms:
    difference = function.check(jax.jit(jax.export.deserialize(data).call))
  files.write(path, data)
  described = function.description | {
    'platforms': list(platforms),
    'vjp_order': 0,
    'jax': jax.__version__,
  }
  files.write_json(f'{path}{_DESCRIPTION}', described)
  return difference
