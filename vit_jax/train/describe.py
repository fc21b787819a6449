"""What an experiment is, in words and numbers, without training it: `train.py --mode=describe`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vit_jax import models
from vit_jax.errors import UsageError
from vit_jax.train import partition
from vit_jax.train.experiment import Experiment
from vit_jax.train.shard import device_bytes
from vit_jax.train.state import TrainState

_MOST_ROWS = 40  # of the table of layers, beyond which it goes less deep
_WIDEST = 34  # characters of a cell
_MIB = 2**20


def describe(experiment: Experiment, compile: bool = False) -> str:
  """Returns some lines, at most 100 characters wide, on an experiment.

  Layers, parameters, floating-point operations, memory, schedule, and what is frozen. All but the
  last lines on memory follows from shapes.

  Args:
    experiment: built, not started.
    compile: compile the training step, which may take minutes, to ask how much memory it takes.

  Raises:
    UsageError: `compile` with several processes.
  """
  if compile and jax.process_count() > 1:
    raise UsageError('--compile: not with several processes; describe the experiment in one')
  state = experiment.state_shapes
  sections = {
    'layers': _layers(experiment),
    'parameters': _parameters(experiment, state),
    'computation': _computation(experiment, state),
    'memory of each device': _memory(experiment, state, compile),
    'schedule': _schedule(experiment),
  }
  lines = [experiment.describe()]
  for title, texts in sections.items():
    lines += ['', title, *(f'  {text}' for text in texts)]
  return '\n'.join(lines)


def _mib(count: int) -> str:
  return f'{count / _MIB:,.1f} MiB'


def _align(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
  """Returns rows of cells as lines with columns, those in `right` flush right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for row in rows:
    cells = zip(row, widths, strict=True)
    padded = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(cells)]
    lines.append('  '.join(padded).rstrip())
  return lines


def _layers(experiment: Experiment) -> list[str]:
  """Returns the modules that have parameters, as deep as the table stays readable.

  Flax's own table has five columns, of which a terminal of 80 characters shows little.
  """
  calls = called_modules(experiment.model, experiment.input_shape)
  params = models.flatten({'params': experiment.state_shapes.params})
  counts = {path: _below(params, path) for path in calls}
  depth = 1
  deepest = max(map(len, calls))
  while depth < deepest and _rows_to(calls, counts, depth + 1) <= _MOST_ROWS:
    depth += 1
  rows = [('module', 'class', 'output', 'parameters')]
  for path, (kind, output) in calls.items():
    if path and len(path) <= depth and counts[path]:
      name = '  ' * (len(path) - 1) + path[-1]
      rows.append((_cut(name), _cut(kind), _cut(_shape(output)), f'{counts[path]:,}'))
  return _align(rows, right=(3,))


def _rows_to(calls: Mapping[tuple, Any], counts: Mapping[tuple, int], depth: int) -> int:
  return sum(len(path) <= depth and counts[path] > 0 for path in calls)


def _cut(text: str) -> str:
  return text if len(text) <= _WIDEST else f'{text[: _WIDEST - 1]}…'


def called_modules(
  model: nn.Module, input_shape: Sequence[int]
) -> dict[tuple[str, ...], tuple[str, list[tuple[int, ...]]]]:
  """Returns path -> (class, shapes of the output) of a model's modules, as they are called.

  Args:
    model: the module, which is run on shapes alone.
    input_shape: of an example, as (height, width, channels).
  """
  found = {}

  def record(call, args, kwargs, context):
    path = context.module.path
    if context.method_name == 'setup':
      return call(*args, **kwargs)
    found.setdefault(path, None)  # before the modules within
    outputs = call(*args, **kwargs)
    found[path] = found[path] or (
      type(context.module).__name__,
      [np.shape(x) for x in jax.tree.leaves(outputs) if np.ndim(x)],
    )
    return outputs

  def run(x):
    with nn.intercept_methods(record):
      model.init(jax.random.key(0), x, train=False)

  jax.eval_shape(run, jax.ShapeDtypeStruct((1, *input_shape), np.float32))
  return found


def _below(params: Mapping[str, Any], path: tuple[str, ...]) -> int:
  start = '/'.join((*path, ''))
  return models.num_entries([x for name, x in params.items() if name.startswith(start)])


def _shape(output: Sequence[tuple[int, ...]]) -> str:
  shapes = ['x'.join(map(str, shape[1:])) for shape in output]
  return ', '.join(shapes[:2]) + (', …' if len(shapes) > 2 else '')


def _parameters(experiment: Experiment, state: TrainState) -> list[str]:
  """Returns the number of parameters, of all and by module, and how many of them are trained."""
  freeze = experiment.config.freeze
  trainable, frozen = partition.split(freeze, state.params)
  rows = [('total', state.params, trainable)]
  rows += [(name, tree, trainable[name]) for name, tree in state.params.items()]
  table = [('', 'all', 'trained')]
  table += [
    (_cut(name), f'{models.num_entries(tree):,}', f'{models.num_entries(some):,}')
    for name, tree, some in rows
  ]
  lines = _align(table, right=(1, 2))
  if state.model_state:
    names = ', '.join(state.model_state)
    lines.append(f'and {models.num_entries(state.model_state):,} other numbers ({names})')
  if freeze:
    lines.append(f'frozen by config.freeze={freeze}: {models.num_entries(frozen):,}')
  if experiment.config.freeze_first:
    lines.append(
      f'frozen for the first {experiment.config.freeze_first_steps:,} steps: '
      f'config.freeze_first={experiment.config.freeze_first}'
    )
  return lines


def _computation(experiment: Experiment, state: TrainState) -> list[str]:
  flops, config = experiment.flops_per_image(state), experiment.config
  total = flops['training'] * config.batch_size * config.num_steps
  return _align(
    [
      ('forward', f'{_flop(flops["forward"])} an example'),
      ('training', f'{_flop(flops["training"])} an example'),
      ('of the run', _flop(total)),
      ('', 'products and convolutions; a multiply-add is two operations'),
    ]
  )


def _flop(count: float) -> str:
  units = ('FLOP', 'kFLOP', 'MFLOP', 'GFLOP', 'TFLOP', 'PFLOP', 'EFLOP')
  power = min(int(math.log10(max(count, 1)) // 3), len(units) - 1)
  return f'{count / 1000**power:.4g} {units[power]}'


def _memory(experiment: Experiment, state: TrainState, compile: bool) -> list[str]:
  parts = {
    'parameters': state.params,
    'optimiser state': state.opt_state,
    'moving average': state.ema_params,
    'other variables': state.model_state,
    'gradients': experiment.gradient_shapes,
  }
  rows = [(name, _mib(device_bytes(tree))) for name, tree in parts.items() if jax.tree.leaves(tree)]
  rows.append(('a batch, as it is stored', _mib(device_bytes(experiment.batch_shapes()))))
  if not compile:
    return [*_align(rows, right=(1,)), 'what a step needs besides, such as activations: --compile']
  found = experiment.compiled_train_step().memory_analysis()
  sizes = {
    'arguments of a step': found.argument_size_in_bytes,
    'its results': found.output_size_in_bytes,
    'of these in the same place': -found.alias_size_in_bytes,
    'what else it needs': found.temp_size_in_bytes,
  }
  rows += [(name, _mib(size)) for name, size in sizes.items()]
  rows.append(('sum of these four', _mib(sum(sizes.values()))))
  return _align(rows, right=(1,))


def _schedule(experiment: Experiment) -> Iterator[str]:
  """Yields the optimiser, its learning rates, and when something else than a step is due."""
  c, rate = experiment.config, experiment.schedule
  name, warmup = c.schedule.name, c.schedule.warmup_steps
  rows = [('optimiser', c.optimizer.name)]
  rows.append(('learning rate', f'{float(rate(0)):.4g} in the first step, {name}'))
  if warmup:
    rows.append(('', f'{float(rate(warmup)):.4g} after {warmup:,} steps of warmup'))
  rows.append(('', f'{float(rate(c.num_steps - 1)):.4g} in the last, step {c.num_steps:,}'))
  if c.plateau.factor != 1:
    rows.append(('', f'times {c.plateau.factor:g} where {c.monitor} gets no better'))
  for field in ('log_every', 'eval_every', 'checkpoint_every'):
    rows.append((field, f'{c[field]:,} steps'))
  for name, period in experiment.evaluators.periods.items():
    rows.append((name, f'{period:,} steps'))
  rows.append(('monitor', c.monitor))
  yield from _align(rows)
