"""Measures training speed in turns: python -m vit_jax.benchmark --config=... [--against=...]

One experiment alone is measured with its data resident on the device, and streamed from the host,
or only as config.data.resident is set; with --against, two experiments, as
`configs/token_learner.py:mnist` and `:mnist,plain`. Both sides train in one process, in turns, so
that what else the machine does falls on both; compilation is left out. Fields of the second
experiment are set by --against.FIELD.

--what=start measures the time from the start of train.py to its first step instead, in processes
of their own: with nothing compiled yet, and with what the start before has left in the cache.
"""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence

import jax
from absl import flags
from ml_collections import ConfigDict

from vit_jax import cli, peaks, start_time
from vit_jax.errors import UsageError
from vit_jax.train import feeds
from vit_jax.train.experiment import Experiment

_CONFIG = cli.DEFINE_experiment('config', 'Experiment, as for train.py.')
_AGAINST = cli.DEFINE_experiment('against', 'Another experiment.')
_WHAT = flags.DEFINE_enum('what', 'train', ['train', 'start'], 'Training, or its start.')
_TURNS = flags.DEFINE_integer('turns', 7, 'How often each side is timed.', lower_bound=1)
_SECONDS = flags.DEFINE_float('seconds', 3.0, 'Shortest time of a turn.', lower_bound=0.0)


class _Side:
  """An experiment with its training state and feed.

  Attributes:
    config: resolved.
    flops: floating-point operations of a step, as `vit_jax.train.flops` counts them.
  """

  def __init__(self, config: ConfigDict):
    experiment = Experiment(config)
    self.config = experiment.config
    self._feed, self._step = experiment.train_feed(), 0
    self._state = feeds.put_on_devices(experiment.initial_state())
    self.flops = experiment.flops_per_image(self._state)['training'] * self.config.batch_size
    for _ in range(8):  # compiles, and finds its number of steps per dispatch
      self._dispatch()

  def _dispatch(self) -> None:
    self._state, metrics, n = self._feed(self._state, self._step, 10**9)
    jax.block_until_ready(metrics)
    self._step += n

  def steps_per_second(self, seconds: float) -> float:
    """Trains for at least `seconds`."""
    first, start = self._step, time.perf_counter()
    while True:
      self._dispatch()
      if (elapsed := time.perf_counter() - start) >= seconds:
        return (self._step - first) / elapsed

  def close(self) -> None:
    """Stops the feed."""
    self._feed.__exit__()


def _experiments() -> dict[str, ConfigDict]:
  """Returns the two sides' experiments by the names that they are printed under."""
  if _CONFIG.value is None:
    raise UsageError('--config: give an experiment, as --config=configs/digits.py')
  if _AGAINST.value is not None:
    return {'config': _CONFIG.value, 'against': _AGAINST.value}
  if _CONFIG.value.data.resident != 'auto':
    return {'config': _CONFIG.value}
  sides = {name: _CONFIG.value.copy_and_resolve_references() for name in ('resident', 'streamed')}
  sides['resident'].data.resident = 'yes'
  sides['streamed'].data.resident = 'no'
  return sides


def _print_rows(rows: Mapping[str, Sequence[float]], unit: str) -> None:
  """Prints the values of two sides, or of one, and their ratio, as median and range over turns."""
  rows = dict(rows)
  if len(rows) == 2:
    rows['ratio'] = [a / b for a, b in zip(*rows.values(), strict=True)]
  for name, values in rows.items():
    shown = '' if name == 'ratio' else unit
    low, middle, high = min(values), statistics.median(values), max(values)
    print(f'{name:<9} {middle:8.2f}{shown}  ({low:.2f} to {high:.2f}, {len(values)} turns)')


def _print_use(sides: Mapping[str, _Side], speeds: Mapping[str, Sequence[float]]) -> None:
  """Prints examples/s of each side, and the share of the devices' peak that its products reach."""
  found = {}  # dtype -> peak of a device
  for name, side in sides.items():
    dtype, steps = side.config.dtype, statistics.median(speeds[name])
    if dtype not in found:
      found[dtype] = peaks.peak(dtype)
    peak, origin = found[dtype]
    rate = steps * side.flops
    print(
      f'{name:<9} {steps * side.config.batch_size:8.0f} examples/s, {rate / 1e12:.4g} TFLOP/s, '
      f'{100 * rate / peak / jax.device_count():.1f} % of the peak in {dtype} '
      f'({peak / 1e12:.4g} TFLOP/s a device: {origin})'
    )


def _print_start() -> None:
  """Prints the seconds to the first step."""
  if _AGAINST.value is not None:
    raise UsageError('--against: not with --what=start')
  if _SECONDS.present:
    raise UsageError('--seconds: not with --what=start, which times one step')
  seconds = start_time.first_step(_without_own_flags(sys.argv[1:]), _TURNS.value)
  _print_rows(seconds, ' s')


def _without_own_flags(arguments: Sequence[str]) -> list[str]:
  """Returns what is left for train.py; values may stand in words of their own."""
  own, rest, arguments = {'what', 'turns'}, [], iter(arguments)
  for argument in arguments:
    name, equals, _ = argument.lstrip('-').partition('=')
    if name not in own:
      rest.append(argument)
    elif not equals:
      next(arguments)
  return rest


def main() -> None:
  """Prints speeds and their share of the peak, and with --against the ratio that FLOPs allow."""
  experiments = _experiments()
  if _WHAT.value == 'start':
    _print_start()
    return
  sides = {name: _Side(config) for name, config in experiments.items()}
  speeds = {name: [] for name in sides}
  for _ in range(_TURNS.value):
    for name, side in sides.items():
      speeds[name].append(side.steps_per_second(_SECONDS.value))
  sizes = ' and '.join(str(size) for size in {c.batch_size: 0 for c in experiments.values()})
  print(f'{jax.device_count()} x {jax.devices()[0].device_kind}, batch {sizes}')
  _print_rows(speeds, ' steps/s')
  _print_use(sides, speeds)
  if _AGAINST.value is not None:
    ours, theirs = (side.flops for side in sides.values())
    of_each = f'{ours / 1e9:.4g} and {theirs / 1e9:.4g} GFLOP a step'
    print(f'{"by FLOPs":<9} {theirs / ours:8.2f}  ({of_each})')
  for side in sides.values():
    side.close()


if __name__ == '__main__':
  cli.run(main)
