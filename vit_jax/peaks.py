"""The floating-point operations a second that a device can reach."""

import functools
import statistics
import time

import jax
import jax.numpy as jnp

# Dense, in bfloat16, of one device as JAX counts them, from the makers' data sheets; a part of
# `Device.device_kind` -> operations a second. Of two parts that fit, the first counts.
_BFLOAT16 = {
  'GB200': 2500e12,
  'B200': 2250e12,
  'H200': 989e12,
  'H100 PCIe': 756e12,
  'H100 NVL': 835e12,
  'H100': 989e12,
  'A100': 312e12,
  'L40S': 362e12,
  'L40': 181e12,
  'L4': 121e12,
  'A10G': 70e12,
  'A10': 125e12,
  'RTX 4090': 165e12,
  'RTX 3090': 71e12,
  'TPU v6': 918e12,
  'TPU v5 lite': 197e12,
  'TPU v5': 459e12,
  'TPU v4': 275e12,
  'TPU v3': 61e12,  # a core, half a chip, is a device
  'TPU v2': 22e12,
}
_TURNS = 5
_SECONDS = 0.2  # of a turn, at least
_QUEUED = 8  # products that the host waits for at once


def peak(dtype: str) -> tuple[float, str]:
  """Returns (floating-point operations a second of the first device, where the figure is from).

  It is the maker's where it is known, else that of a matrix product, timed here.

  Args:
    dtype: that is computed in, 'bfloat16' or 'float32'.
  """
  kind = jax.devices()[0].device_kind
  if dtype == 'bfloat16':
    for name, operations in _BFLOAT16.items():
      if name in kind:
        return operations, 'data sheet'
  return matrix_product(dtype), 'a matrix product, timed here'


@functools.cache
def matrix_product(dtype: str) -> float:
  """Returns the operations a second of products of square matrices, timed once, by the median.

  Their values are random: devices slow down for what draws more power than zeros and ones do.
  """
  size = 1024 if jax.default_backend() == 'cpu' else 8192
  x = jax.random.normal(jax.random.key(0), (size, size), dtype)
  product = jax.jit(jnp.dot)
  product(x, x).block_until_ready()
  rates = []
  for _ in range(_TURNS):
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < _SECONDS:
      jax.block_until_ready([product(x, x) for _ in range(_QUEUED)])
      count += _QUEUED
    rates.append(count * 2 * size**3 / elapsed)
  return statistics.median(rates)
