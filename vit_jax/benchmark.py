"""Measures training speed, resident against streamed: python -m vit_jax.benchmark --config=...

Both feeds train the same model in one process, in turns, so that what else the machine does falls
on both; compilation is left out.
"""

import statistics
import time

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from vit_jax import cli
from vit_jax.errors import UsageError
from vit_jax.train import feeds
from vit_jax.train.experiment import Experiment

_CONFIG = config_flags.DEFINE_config_file('config', help_string='Experiment, as for train.py.')
_TURNS = flags.DEFINE_integer('turns', 7, 'How often each feed is timed.', lower_bound=1)
_SECONDS = flags.DEFINE_float('seconds', 3.0, 'Shortest time of a turn.', lower_bound=0.0)


class _Side:
  """One feed with its own training state."""

  def __init__(self, config: ConfigDict, resident: str):
    config = config.copy_and_resolve_references()
    config.data.resident = resident
    experiment = Experiment(config)
    self._feed, self._step = experiment.train_feed(), 0
    self._state = feeds.put_on_devices(experiment.initial_state())
    for _ in range(8):  # compiles, and finds its number of steps per dispatch
      self._dispatch()

  def _dispatch(self) -> None:
    self._state, metrics, n = self._feed(self._state, self._step, 10**9)
    jax.block_until_ready(metrics)
    self._step += n

  def steps_per_second(self, seconds: float) -> float:
    """Trains for at least `seconds`."""
    first, start = self._step, time.perf_counter()
    while time.perf_counter() - start < seconds:
      self._dispatch()
    return (self._step - first) / (time.perf_counter() - start)

  def close(self) -> None:
    """Stops the feed."""
    self._feed.__exit__()


def main() -> None:
  """Prints a table: steps/s of each feed and their ratio, as median and range over the turns."""
  if _CONFIG.value is None:
    raise UsageError('--config: give an experiment, as --config=configs/digits.py')
  sides = {
    name: _Side(_CONFIG.value, flag) for name, flag in (('resident', 'yes'), ('streamed', 'no'))
  }
  speeds = {name: [] for name in sides}
  for _ in range(_TURNS.value):
    for name, side in sides.items():
      speeds[name].append(side.steps_per_second(_SECONDS.value))
  ratios = [a / b for a, b in zip(speeds['resident'], speeds['streamed'], strict=True)]
  print(f'{jax.device_count()} x {jax.devices()[0].device_kind}, batch {_CONFIG.value.batch_size}')
  for name, values in {**speeds, 'ratio': ratios}.items():
    unit = '' if name == 'ratio' else ' steps/s'
    low, middle, high = min(values), statistics.median(values), max(values)
    print(f'{name:<9} {middle:8.2f}{unit}  ({low:.2f} to {high:.2f}, {len(values)} turns)')
  for side in sides.values():
    side.close()


if __name__ == '__main__':
  cli.run(main)
