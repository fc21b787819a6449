"""Times a kernel of `fused_attention` against the usual products on the present device, in turns.

python -m vit_jax.models.layers.attention_times [SECONDS], 0.2 unless given, for a turn of either.
The inputs are bfloat16 as in ViT-B/16 and ViT-L/16 at 224 pixels, and of longer sequences. Each
figure is the time of the usual products over the kernel's, as median and range; and their times.
"""

import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax.models.layers import attention, fused_attention

# name -> (batch, tokens, heads, width of a head)
SHAPES = {
  'ViT-B/16': (128, 197, 12, 64),
  'ViT-L/16': (64, 197, 16, 64),
  '1,024 tokens': (16, 1024, 12, 64),
  '3,136 tokens': (4, 3136, 12, 64),
}
_TURNS = 5


def _step(attend: Callable, with_gradient: bool) -> Callable:
  """Returns attention compiled, or its gradients with respect to queries, keys and values."""
  if not with_gradient:
    return jax.jit(attend)

  def loss(*inputs):
    return jnp.square(attend(*inputs).astype(jnp.float32)).sum()

  return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


def _times(steps: dict[str, Callable], inputs: list[jax.Array], seconds: float) -> dict:
  """Returns milliseconds of a call by name, turn by turn, each of about so many seconds."""
  times, calls = {name: [] for name in steps}, dict.fromkeys(steps, 1)
  for turn in range(_TURNS + 2):  # the first two compile and find out how many calls to make
    for name, step in steps.items():
      start = time.perf_counter()
      # One after the other on the device, without waiting for each.
      jax.block_until_ready([step(*inputs) for _ in range(calls[name])][-1])
      per_call = (time.perf_counter() - start) / calls[name]
      if turn > 1:
        times[name].append(1000 * per_call)
      elif turn == 1:
        calls[name] = max(1, round(seconds / per_call))
  return times


def _spread(values: list[float]) -> str:
  return f'{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})'


def main(seconds: float = 0.2) -> None:
  """Prints a line for each shape, forward and with gradients."""
  device = jax.devices()[0]
  platform = {'gpu': 'cuda'}.get(device.platform, device.platform)
  print(f'{device.device_kind}, jax {jax.__version__}')
  for name, shape in SHAPES.items():
    spec = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    kernel = fused_attention.implementations(spec, spec, spec).get(platform)
    if kernel is None:
      print(f'{name}: the usual products alone; no kernel of this device takes {shape}')
      continue
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]
    for what in ('forward', 'gradient'):
      steps = {
        side: _step(attend, what == 'gradient')
        for side, attend in (('usual', attention.attend), ('kernel', kernel))
      }
      times = _times(steps, inputs, seconds)
      ratios = [a / b for a, b in zip(times['usual'], times['kernel'], strict=True)]
      both = ', '.join(f'{side} {statistics.median(v):.3f} ms' for side, v in times.items())
      print(f'{name}, {what}: {_spread(ratios)}; {both}', flush=True)


if __name__ == '__main__':
  main(*map(float, sys.argv[1:2]))
