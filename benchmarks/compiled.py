"""Compiles a training step for TPUs or GPUs that aren't at hand: its memory, and what it moves.

    python benchmarks/compiled.py --target=v5e:2x4 --config=configs/vit.py:L/16,digits
    python benchmarks/compiled.py --target=h100_sxm.txtpb --config=configs/vit.py:B/16,digits

A target is a topology of TPUs, with the packages of `jax[tpu]`, or a file that describes a GPU,
with those of `jax[cuda12]` and no driver: github.com/openxla/xla has such files of many in
xla/backends/gpu/target_config/specs. Fields of the experiment follow, such as --config.shard=all.

Printed are the bytes of each device, as its compiler plans them, and of a GPU what the kernels read
and write, by kind, each with the largest of its kind. XLA chooses kernels for matrix products and
convolutions by timing them, which needs the device: without it these aren't those of a real run.
"""

import argparse
import collections
import functools
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

# Before JAX starts: its plugin for GPUs asks for none, and the one for TPUs doesn't wait for one.
os.environ |= {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1'}

import jax
from absl import flags
from jax.experimental import topologies

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vit_jax import cli
from vit_jax.errors import UsageError
from vit_jax.models.layers import devices as layers_devices
from vit_jax.models.layers import fused_attention
from vit_jax.train.experiment import Experiment

_MIB = 2**20
_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'f32': 4, 's64': 8}
_FREE = ('bitcast', 'constant', 'get-tuple-element', 'parameter', 'tuple')
_ARRAY = re.compile(rf'\b({"|".join(_BYTES)})\[([\d,]*)\]')
_INSTRUCTION = re.compile(r' %(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)')


def _devices(target: str, count: int | None) -> tuple[str, list[Any]]:
  """Returns (platform, devices) of a target, the first `count` of them."""
  path = Path(target)
  if path.suffix == '.txtpb':
    options = {'target_config': path.read_text(), 'topology': f'1x1x{count or 1}'}
    return 'cuda', topologies.get_topology_desc(path.stem, 'cuda', **options).devices
  return 'tpu', topologies.get_topology_desc(target, 'tpu').devices[:count]


def _compiled(config: Any, platform: str, devices: list[Any]) -> jax.stages.Compiled:
  """Returns the training step of an experiment, built as if JAX had found these devices."""
  capability = tuple(map(int, getattr(devices[0], 'compute_capability', '9.0').split('.')))
  found = {
    'devices': lambda *_, **__: devices,
    'local_devices': lambda *_, **__: devices,
    'device_count': lambda *_: len(devices),
    'local_device_count': lambda *_: len(devices),
    'default_backend': lambda: 'gpu' if platform == 'cuda' else platform,
    'pmap': functools.partial(jax.pmap, devices=devices),
  }
  with (
    mock.patch.multiple(jax, **found),
    mock.patch.object(layers_devices, 'at_hand', lambda p: devices if p == platform else []),
    mock.patch.object(fused_attention, '_capability', mock.Mock(return_value=capability)),
  ):
    return Experiment(config).compiled_train_step()


def _bytes(shapes: str) -> int:
  return sum(
    _BYTES[dtype] * math.prod(int(side) for side in sides.split(',') if side)
    for dtype, sides in _ARRAY.findall(shapes)
  )


def _kernels(hlo: str) -> dict[str, list[tuple[int, str, str]]]:
  """Returns kind -> (bytes read and written, shapes, operation) of a GPU program's kernels."""
  bodies, shapes, found = {}, {}, collections.defaultdict(list)
  for block in hlo.split('\n\n'):
    header, _, body = block.partition('\n')
    bodies[header.split()[0].lstrip('%') if header.strip() else ''] = body
  for instruction in _INSTRUCTION.finditer(hlo[hlo.index('\nENTRY') :]):
    name, shape, opcode, operands, rest = instruction.groups()
    shapes[name] = re.sub(r'\{.*?\}', '', shape)
    if opcode in _FREE:
      continue
    total = _bytes(shape) + sum(
      _bytes(shapes.get(x, '')) for x in re.findall(r'%([\w.-]+)', operands)
    )
    called = re.search(r'calls=%([\w.-]+)', rest)
    body = bodies.get(called[1], '') if called else ''
    kind = re.search(r'custom_call_target="(.*?)"', rest)
    if kind:
      kind = kind[1]
    elif ' dot(' in body:
      kind = 'matrix product'
    else:
      kind = 'sum over an axis' if ' reduce(' in body else 'elementwise'
    operation = re.search(r'op_name="(.*?)"', rest)
    found[kind].append((total, shapes[name], operation[1] if operation else ''))
  return found


def main(argv: list[str]) -> None:
  """Compiles, and prints the figures."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--target', required=True)
  parser.add_argument('--config', required=True)
  parser.add_argument('--devices', type=int, help='the first so many of the topology; GPUs: 1')
  parser.add_argument('--hlo', type=Path, help='a file for the compiled program')
  args, fields = parser.parse_known_args(argv)
  holder = cli.DEFINE_experiment('config', '')
  flags.FLAGS([sys.argv[0], f'--config={args.config}', *fields])
  try:
    platform, devices = _devices(args.target, args.devices)
  except (OSError, NotImplementedError, RuntimeError) as e:
    raise UsageError(f'--target: {args.target!r}: {str(e).splitlines()[0]}') from e
  print(f'{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}')
  start = time.perf_counter()
  compiled = _compiled(holder.value, platform, devices)
  memory = compiled.memory_analysis()
  state, rest = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  print(f'compiled in {time.perf_counter() - start:.0f} s')
  print(f'each device: {state / _MIB:,.0f} MiB of state and batch, {rest / _MIB:,.0f} MiB besides')
  if args.hlo:
    args.hlo.write_text(compiled.as_text())
  if platform != 'cuda':
    return
  kinds = _kernels(compiled.as_text())
  for kind, kernels in sorted(kinds.items(), key=lambda item: -sum(k[0] for k in item[1])):
    size, shape, operation = max(kernels)
    total = sum(kernel[0] for kernel in kernels)
    print(f'{total / 1e9:8.2f} GB in {len(kernels):4} kernels: {kind}')
    print(f'{"":11} {size / 1e9:.2f} GB: {shape} of {operation[-80:]}')


if __name__ == '__main__':
  try:
    main(sys.argv[1:])
  except UsageError as e:
    raise SystemExit(f'compiled.py: {e}') from None
