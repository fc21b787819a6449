"""How long this process has compiled for, and how often it needed not to."""

import functools
from typing import NamedTuple

# What JAX tells its listeners of: programs made for XLA, and compiled, or read from the cache.
_SECONDS = (
  '/jax/core/compile/jaxpr_to_mlir_module_duration',
  '/jax/core/compile/backend_compile_duration',
)
_READ = '/jax/compilation_cache/cache_hits'


class Compiled(NamedTuple):
  """What JAX has compiled.

  Attributes:
    seconds: that it took, without tracing.
    num_read: how many programs came from the compilation cache instead.
  """

  seconds: float
  num_read: int

  def since(self, earlier: 'Compiled') -> dict[str, float | int]:
    """Returns `compile_seconds` and `programs_from_cache` since `so_far` gave `earlier`."""
    return {
      'compile_seconds': self.seconds - earlier.seconds,
      'programs_from_cache': self.num_read - earlier.num_read,
    }


@functools.cache
def _totals() -> dict[str, float | int]:
  """Returns totals that grow from now on."""
  import jax

  totals = {'seconds': 0.0, 'num_read': 0}

  def add_seconds(event, seconds, **_):
    if event in _SECONDS:
      totals['seconds'] += seconds

  def count(event, **_):
    totals['num_read'] += event == _READ

  jax.monitoring.register_event_duration_secs_listener(add_seconds)
  jax.monitoring.register_event_listener(count)
  return totals


def so_far() -> Compiled:
  """Returns what JAX has compiled since the first call."""
  return Compiled(**_totals())
