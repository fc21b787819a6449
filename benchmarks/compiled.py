"""Compiles a training step for TPUs or GPUs that aren't at hand: its memory, and what it moves.

    python benchmarks/compiled.py --target=v5e:2x4 --config=configs/vit.py:L/16,digits
    python benchmarks/compiled.py --target=h100_sxm.txtpb --config=configs/vit.py:B/16,digits

A target is a topology of TPUs, with the packages of `jax[tpu]`, or a file *.txtpb that describes a
GPU, with those of `jax[cuda12]` and no driver: github.com/openxla/xla has such files of many in
xla/backends/gpu/target_config/specs. Fields of the experiment follow, such as --config.shard=all.

Printed are the bytes of each device, as its compiler plans them, and of a GPU what the kernels read
and write, by kind, each with the largest of its kind; kernels within loops aren't among them. XLA
chooses kernels for matrix products and convolutions by timing them, which needs the device: without
it these aren't those of a real run.
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
from jax.experimental import topologies

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vit_jax import cli
from vit_jax.errors import UsageError
from vit_jax.train.experiment import Experiment

_MIB = 2**20
_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 's32': 4, 'u32': 4}
_BYTES |= {'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}
_FREE = ('bitcast', 'constant', 'get-tuple-element', 'parameter', 'tuple', 'while')
_ARRAY = re.compile(rf'\b({"|".join(_BYTES)})\[([\d,]*)\]')
_INSTRUCTION = re.compile(r' %(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)')


def _devices(target: str, count: int | None) -> tuple[str, list[Any]]:
  """Returns (platform, devices) of a target, the first `count` of them.

  Raises:
    UsageError: there is no such target, or it has fewer devices.
  """
  path, platform, options = Path(target), 'tpu', {}
  try:
    if path.suffix == '.txtpb':
      platform = 'cuda'
      options = {'target_config': path.read_text(), 'topology': f'1x1x{count or 1}'}
    name = path.stem if options else target
    devices = topologies.get_topology_desc(name, platform, **options).devices
  except NotImplementedError as e:
    raise UsageError(f'--target: {target!r} needs the packages of jax[cuda12]') from e
  except (OSError, RuntimeError, ValueError) as e:
    raise UsageError(f'--target: {target!r}: {str(e).splitlines()[0]}') from e
  if platform == 'cuda' and not devices[0].compute_capability[0].isdigit():
    raise UsageError(f'--target: {target!r} gives no compute capability')
  if count is not None and not 1 <= count <= len(devices):
    raise UsageError(f'--devices: {count} is not between 1 and {len(devices)}')
  return platform, devices[:count]


def _compiled(config: Any, platform: str, devices: list[Any]) -> jax.stages.Compiled:
  """Returns the training step of an experiment, built as if JAX had found these devices.

  Raises:
    UsageError: the compiler refuses it, as what takes more memory than a device has.
  """
  if config.data.resident == 'auto':  # which asks a device for its memory; the step is the same
    config.data.resident = 'no'

  def local_devices(*_, backend=None):
    if backend in (None, platform):
      return devices
    raise RuntimeError(f'no devices of {backend}')

  found = {
    'devices': lambda *_: devices,
    'local_devices': local_devices,
    'device_count': lambda *_: len(devices),
    'local_device_count': lambda *_: len(devices),
    'default_backend': lambda: 'gpu' if platform == 'cuda' else platform,
    'pmap': functools.partial(jax.pmap, devices=devices),
  }
  with mock.patch.multiple(jax, **found):
    experiment = Experiment(config)
    try:
      return experiment.compiled_train_step()
    except jax.errors.JaxRuntimeError as e:
      raise UsageError(str(e).splitlines()[0]) from e


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
  cli.parse_flags([sys.argv[0], f'--config={args.config}', *fields], (), __doc__)
  platform, devices = _devices(args.target, args.devices)
  if args.hlo:
    args.hlo.touch()  # before what takes minutes
  print(f'{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}')
  start = time.perf_counter()
  compiled = _compiled(holder.value, platform, devices)
  memory = compiled.memory_analysis()
  state, rest = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  print(f'compiled in {time.perf_counter() - start:.0f} s')
  print(f'each device: {state / _MIB:,.0f} MiB of state and batch, {rest / _MIB:,.0f} MiB besides')
  hlo = compiled.as_text() if args.hlo or platform == 'cuda' else ''
  if args.hlo:
    args.hlo.write_text(hlo)
  if platform != 'cuda':
    return
  kinds = _kernels(hlo)
  for kind, kernels in sorted(kinds.items(), key=lambda item: -sum(k[0] for k in item[1])):
    size, shape, operation = max(kernels)
    total = sum(kernel[0] for kernel in kernels)
    print(f'{total / 1e9:8.2f} GB in {len(kernels):4} kernels: {kind}')
    print(f'{"":11} {size / 1e9:.2f} GB: {shape} of {operation[-80:]}')


if __name__ == '__main__':
  try:
    main(sys.argv[1:])
  except (OSError, UsageError) as e:
    raise SystemExit(f'compiled.py: {e}') from None
