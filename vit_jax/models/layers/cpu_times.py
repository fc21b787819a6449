"""Times the operations of `cpu` against the usual ones, in turns."""

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax.models.layers import cpu


def _ratio(usual: Callable, ours: Callable, *args: jax.Array, turns: int = 15) -> str:
  """Returns how much longer the first takes than the second: median and range, timed in turns."""
  functions = [jax.jit(usual), jax.jit(ours)]
  ratios = []
  for turn in range(turns + 2):  # the first two compile and warm up
    seconds = []
    for function in functions:
      start = time.perf_counter()
      jax.block_until_ready(function(*args))
      seconds.append(time.perf_counter() - start)
    if turn > 1:
      ratios.append(seconds[0] / seconds[1])
  return f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'


def _attend(normalize: Callable, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  return jnp.square(normalize(query @ key.swapaxes(-1, -2)) @ value).sum()


def main() -> None:
  """Prints the numbers of the docstring of `cpu`."""
  tokens = jax.random.normal(jax.random.key(0), (3, 32, 3, 197, 64)) / 8
  gradients = (
    jax.grad(functools.partial(_attend, f), argnums=(0, 1, 2))
    for f in (jax.nn.softmax, cpu.softmax)
  )
  print('softmax, gradient of attention:', _ratio(*gradients, *tokens))
  weights = jax.nn.softmax(jax.random.normal(jax.random.key(0), (64, 4, 17, 17)))
  values = jax.random.normal(jax.random.key(1), (64, 4, 17, 8))
  gradients = (
    jax.grad(lambda v, f=f: jnp.square(f(weights, v)).sum()) for f in (jnp.matmul, cpu.product)
  )
  print('product of small matrices, its gradient:', _ratio(*gradients, values))
  tokens, kernel = jnp.ones((128, 196, 64)), jnp.ones((64, 128))
  axes = ((2,), (0,)), ((), ())
  gradients = (
    jax.grad(lambda x, k, f=f: jnp.square(f(x, k, axes)).sum(), (0, 1))
    for f in (jax.lax.dot_general, cpu.dot_general)
  )
  print('dense layer, its gradient:', _ratio(*gradients, tokens, kernel))
  hidden = jax.random.normal(jax.random.key(0), (32, 197, 768))
  exact = functools.partial(jax.nn.gelu, approximate=False)
  print('exact GELU:', _ratio(exact, cpu.gelu_exact, hidden))
  for name, side, channels, groups, size, filters in (
    ('convolution of small maps', 2, 512, 1, 3, 512),
    ('convolution to few filters', 14, 64, 1, 3, 2),
    ('depthwise convolution', 16, 256, 256, 3, 256),
    ('embedding of patches', 224, 3, 1, 16, 192),
  ):
    x = jax.random.normal(jax.random.key(1), (32, side, side, channels))
    kernel = jax.random.normal(jax.random.key(2), (size, size, channels // groups, filters)) / 64
    how = ((1, 1), ((1, 1), (1, 1))) if size == 3 else ((size, size), ((0, 0), (0, 0)))
    options = {
      'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'),
      'feature_group_count': groups,
    }

    def usual(x, kernel, how=how, options=options):
      return jax.lax.conv_general_dilated(x, kernel, *how, **options)

    def ours(x, kernel, how=how, options=options):
      return cpu.convolve(x, kernel, *how, **options)

    print(f'{name}:', _ratio(usual, ours, x, kernel))
    wanted = (0, 1) if channels > 3 else 1  # images have no gradient
    gradients = (
      jax.grad(lambda x, k, f=f: jnp.square(f(x, k)).sum(), wanted) for f in (usual, ours)
    )
    print('its gradient:', _ratio(*gradients, x, kernel))


if __name__ == '__main__':
  main()
