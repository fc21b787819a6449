"""Measures speed in turns: python -m vit_jax.benchmark --config=... [--what=train,infer,data,start]

--what=train is the step that train.py runs: batches, augmentation, loss, optimiser. With the data
set on the device and streamed from the host, or only as config.data.resident is set.
--what=infer is the jitted model alone, on batches of config.batch_size and one device.
--what=data is the input alone: decoding of a set that stays on the device, or making of batches.
Where it is no faster than training, it is the limit.
--what=start is the time from the start of train.py to its first step, in processes of their own:
with nothing compiled yet, and with what the start before has left in the cache.

Beside the speed (median and range over the turns) stand the time to compile, to the first step
with all that comes before it, and the peak memory: of the device where it counts it, else of the
process, for the first that a process measures. Operations are those of products, and their share
of the device's peak is told.

--against=CONFIG measures a second experiment in turns with the first, in the same process; fields
of it are set by --against.FIELD. --devices=1,8 measures one on so many virtual devices of a CPU;
with --against, the first experiment is on 1 and the second on 8. JAX_NUM_CPU_DEVICES=8 in the
environment has all experiments of this process on 8, with --against=torch, too.
--against=torch measures the same model in PyTorch, in a process of its own, from timm or
transformers; logits have to agree first. PyTorch trains on one batch without augmentation: forward,
softmax cross-entropy, backward, fused AdamW; 'plain' is the same here. In bfloat16 it computes
under torch.autocast, in float32 both without TF32. With --torch_loader its batches come from a
DataLoader over the decoded set. OMP_WAIT_POLICY=passive helps PyTorch's large models on a busy CPU,
and halves the speed of small ones; it is left as it is.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from vit_jax import cli, peaks, start_time, timed_experiment
from vit_jax.comparison import measure, sides, speed_table
from vit_jax.comparison.processes import Remote
from vit_jax.comparison.rows import Row, add_shares, summary, time_in_turns
from vit_jax.errors import UsageError, check_choice, field_prefix
from vit_jax.timed_experiment import TimedExperiment

_CONFIG = cli.DEFINE_experiment('config', 'Experiment, as for train.py.')
_AGAINST = cli.DEFINE_experiment('against', "Another experiment, or 'torch'.", words=('torch',))
_WHAT = flags.DEFINE_list('what', ['train'], 'Any of train, infer, data, start.')
_TURNS = flags.DEFINE_integer('turns', 7, 'How often each side is timed.', 1, measure.MOST_TURNS)
_SECONDS = flags.DEFINE_float('seconds', 3.0, 'Shortest time of a turn, above 0.')
_JSON = flags.DEFINE_bool('json', False, 'Print JSON, with every turn, instead of tables.')
_DEVICES = flags.DEFINE_list('devices', None, 'Numbers of virtual CPU devices to compare.')
_TORCH = flags.DEFINE_list('torch', ['eager'], "How PyTorch's model runs: eager, compile or both.")
_TORCH_FROM = flags.DEFINE_enum(
  'torch_from', None, ['timm', 'transformers'], "Where PyTorch's model is from, else timm if there."
)
_TORCH_LOADER = flags.DEFINE_bool(
  'torch_loader', False, "PyTorch's training draws batches through a DataLoader."
)

_WHATS = ('train', 'infer', 'data', 'start')
_MODES = {'eager': 'torch', 'compile': 'torch.compile'}  # of PyTorch -> its row's name
_ORIGINS = ('timm', 'transformers')
_TORCH_TASKS = {'train': 'training', 'infer': 'inference'}  # of its side
_START_FLAGS = (_WHAT, _TURNS, _SECONDS, _JSON)  # not of train.py, beside --what=start


# What is asked for.


def _choices(flag: flags.FlagHolder[list[str]], allowed: Collection[str]) -> list[str]:
  """Returns what a flag lists, each once, in the order in which it is allowed."""
  with field_prefix('--'):
    if not flag.value:
      check_choice(flag.name, '', allowed)
    for name in flag.value:
      check_choice(flag.name, name, allowed)
  return [name for name in allowed if name in flag.value]


def _against_torch() -> bool:
  return _AGAINST.value is not None and 'word' in _AGAINST.value


def _device_counts() -> list[int]:
  if (counts := _DEVICES.value) is None:
    return []
  if not counts or not all(re.fullmatch('0*[1-9][0-9]{0,2}', count) for count in counts):
    raise UsageError(
      f'--devices: {",".join(counts)!r} is not numbers of devices, as 1,8, up to 999'
    )
  if _AGAINST.value is not None and len(counts) != 2:
    raise UsageError('--devices: give two numbers, of --config and of --against')
  return [int(count) for count in (dict.fromkeys(counts) if _AGAINST.value is None else counts)]


def _check_flags(whats: Sequence[str]) -> None:
  """Raises UsageError for flags that don't go together."""
  if _CONFIG.value is None:
    raise UsageError('--config: give an experiment, as --config=configs/digits.py')
  measure.check_seconds(_SECONDS.value)
  if _SECONDS.present and [*whats] == ['start']:
    raise UsageError('--seconds: not with --what=start, which times one step')
  for flag in (_AGAINST, _DEVICES):
    if flag.value is not None and 'start' in whats:
      raise UsageError(f'--{flag.name}: not with --what=start')
  if _against_torch() and _DEVICES.value is not None:
    raise UsageError('--devices: not with --against=torch')
  if _against_torch():
    _check_torch(whats)
  for flag in (_TORCH, _TORCH_FROM, _TORCH_LOADER):
    if flag.present and not _against_torch():
      raise UsageError(f'--{flag.name}: is for --against=torch')
  if _TORCH_LOADER.value and 'train' not in whats:
    raise UsageError('--torch_loader: is for --what=train')


def _check_torch(whats: Sequence[str]) -> None:
  _choices(_TORCH, _MODES)
  if 'data' in whats:
    raise UsageError('--against=torch: not with --what=data; --torch_loader times both at once')
  origins = [_TORCH_FROM.value] if _TORCH_FROM.value else _ORIGINS
  if not importlib.util.find_spec('torch'):
    raise UsageError(f'--against=torch: torch is not installed; pip install torch {origins[0]}')
  if not any(map(importlib.util.find_spec, origins)):
    names = ' nor '.join(origins)
    raise UsageError(f'--against=torch: no {names} is installed; pip install {origins[0]}')


# Sides.


def _resident(value: str) -> ConfigDict:
  config = _CONFIG.value.copy_and_resolve_references()
  config.data.resident = value
  return config


def _experiments(whats: Sequence[str]) -> dict[str, ConfigDict]:
  """Returns the experiments in this process by the names that they are printed under."""
  if _AGAINST.value is not None and not _against_torch():
    return {'config': _CONFIG.value, 'against': _AGAINST.value}
  if _against_torch() or _CONFIG.value.data.resident != 'auto' or [*whats] == ['infer']:
    return {'config': _CONFIG.value}
  return {'resident': _resident('yes'), 'streamed': _resident('no')}


def _own_rows(
  whats: Sequence[str], calls: Mapping[str, Callable[..., Any]], report: dict[str, Any]
) -> dict[str, dict[str, Row]]:
  """Returns what is measured -> the rows of experiments; describes their sides in the report."""
  described = report['sides'] = {name: call('describe') for name, call in calls.items()}
  rows = {what: {} for what in whats}
  for what, (name, side) in itertools.product(whats, described.items()):
    if (what, name) == ('infer', 'streamed'):  # one model, wherever its data are
      continue
    # Those of a CPU share its cores, and its peak.
    uses_all = what == 'train' and side['device'] != 'cpu'
    num_devices = side['device_count'] if uses_all else 1
    flops = side['flops_per_image'].get(what)
    rows[what][name] = Row(calls[name], what, side, flops, num_devices, is_ours=not rows[what])
  return rows


def _on_devices(counts: Sequence[int]) -> list[Remote]:
  """Returns the experiment with each number of virtual devices, or each of two with its own."""
  if _AGAINST.value is None:
    return [_remote(_name_of(count), _CONFIG.value, count) for count in counts]
  pairs = zip(('config', 'against'), (_CONFIG.value, _AGAINST.value), counts, strict=True)
  return [_remote(f'{name}, {_name_of(n)}', config, n) for name, config, n in pairs]


def _name_of(count: int) -> str:
  return f'{count} device{"s" if count > 1 else ""}'


def _remote(name: str, config: ConfigDict, count: int) -> Remote:
  """Returns an experiment in a process with so many virtual devices."""
  flags_given = os.environ.get('XLA_FLAGS', '')
  environment = {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{flags_given} --xla_force_host_platform_device_count={count}'.strip(),
  }
  config = config.copy_and_resolve_references()
  return Remote(name, timed_experiment.start, config, environment=environment)


def _add_torch(
  ours: TimedExperiment,
  rows: Mapping[str, dict[str, Row]],
  stack: contextlib.ExitStack,
  report: dict[str, Any],
) -> None:
  """Adds PyTorch's rows, each side of which gives the logits of ours, and ours that do its work."""
  device = sides.torch_device(jax.default_backend())
  if jax.device_count() > 1 and device != 'cpu':
    raise UsageError(
      f'--against=torch: PyTorch is timed on one device, and JAX has {jax.device_count()}; '
      'CUDA_VISIBLE_DEVICES=0 leaves one'
    )
  mine = report['sides']['config']
  if 'train' in rows:
    flops = mine['flops_per_image']['train']
    rows['train']['plain'] = Row(rows['train']['config'].call, 'plain', mine, flops, 1, True)
  origins = [_TORCH_FROM.value] if _TORCH_FROM.value else _ORIGINS
  model = ours.torch_model(stack.enter_context(tempfile.TemporaryDirectory()), origins)
  training_set = ours.training_set() if _TORCH_LOADER.value else None
  for mode in _choices(_TORCH, _MODES):
    args = model, ours.batch(), ours.config.dtype, device, mode == 'compile', training_set
    call = stack.enter_context(Remote('PyTorch', sides.TorchSide, *args)).call
    side = call('describe') | {n: mine[n] for n in ('batch_size', 'dtype')}
    side['logits'] = ours.check_same(call, mine['parameters'], side['parameters'])
    report['sides'][_MODES[mode]] = side | {'loader': _TORCH_LOADER.value}
    for what in rows:
      flops = mine['flops_per_image'][what]
      rows[what][_MODES[mode]] = Row(call, _TORCH_TASKS[what], side, flops, 1, is_ours=False)


def _here(side: Any) -> Callable[..., Any]:
  """Returns what `Remote.call` is of a side in this process."""
  return lambda method, *args: getattr(side, method)(*args)


# Measuring.


def _time(whats: Sequence[str], report: dict[str, Any]) -> None:
  """Opens the sides, times what is asked for, and writes all of it into the report."""
  with contextlib.ExitStack() as stack:
    if counts := _device_counts():
      remotes = [stack.enter_context(remote) for remote in _on_devices(counts)]
      rows = _own_rows(whats, {remote.name: remote.call for remote in remotes}, report)
    else:
      if _against_torch():
        _make_fair()
      ours = {name: TimedExperiment(config) for name, config in _experiments(whats).items()}
      for side in ours.values():
        stack.callback(side.close)
      rows = _own_rows(whats, {name: _here(side) for name, side in ours.items()}, report)
      if _against_torch():
        _add_torch(ours['config'], rows, stack, report)
    for what in whats:
      report[what] = time_in_turns(rows[what], _SECONDS.value, _TURNS.value)
  if not counts:  # virtual devices have no peak of their own
    _add_peaks(rows, report)


def _make_fair() -> None:
  """Has JAX take memory of a GPU as it needs it, and compute in float32 what is float32."""
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  if _CONFIG.value.dtype == 'float32' and jax.default_backend() != 'cpu':
    jax.config.update('jax_default_matmul_precision', 'highest')


def _add_peaks(rows: Mapping[str, Mapping[str, Row]], report: dict[str, Any]) -> None:
  """Writes the peak of a device in each dtype into the report, and the shares of it."""
  timed = [row for some in rows.values() for row in some.values() if row.flops is not None]
  report['peaks'] = {}
  for dtype in {row.side['dtype']: 0 for row in timed}:
    peak, origin = peaks.peak(dtype)
    report['peaks'][dtype] = {
      'flops_per_second': peak,
      'from': origin,
      'matrix_product_flops_per_second': peaks.matrix_product(dtype),
    }
  for what, some in rows.items():
    add_shares(some, report[what]['rows'], report['peaks'])


def _start() -> dict[str, Any]:
  """Returns the seconds to the first step, as `time_in_turns` does speeds."""
  seconds = start_time.first_step(_without_own_flags(sys.argv[1:]), _TURNS.value)
  ratio = summary(measure.ratios(*seconds.values()))
  return {
    'rows': {name: {'seconds': summary(values)} for name, values in seconds.items()},
    'ratios': [dict(zip(('of', 'to'), seconds, strict=True)) | {'by_flops': None, **ratio}],
  }


def _without_own_flags(arguments: Sequence[str]) -> list[str]:
  """Returns what is left for train.py; values may stand in words of their own."""
  own, rest, arguments = {flag.name for flag in _START_FLAGS}, [], iter(arguments)
  for argument in arguments:
    name, equals, _ = argument.lstrip('-').partition('=')
    if name not in own and name.removeprefix('no') not in own:
      rest.append(argument)
    elif name in own and not equals and not flags.FLAGS[name].boolean:
      next(arguments)
  return rest


def main() -> None:
  """Prints speeds with what belongs to them, and their ratios."""
  whats = _choices(_WHAT, _WHATS)
  _check_flags(whats)
  report = {
    'turns': _TURNS.value,
    'seconds_per_turn': _SECONDS.value,
    'load_average': os.getloadavg()[0] if hasattr(os, 'getloadavg') else None,  # not on Windows
  }
  if timed := [what for what in whats if what != 'start']:
    _time(timed, report)
  if 'start' in whats:
    report['start'] = _start()
  print(json.dumps(report, indent=2) if _JSON.value else speed_table.format_report(report))


if __name__ == '__main__':
  cli.run(main)
