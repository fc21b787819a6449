"""Kills runs at random moments, and starts them again: each has to end as one never killed.

    python tests/kills.py [--count=N] [--seed=N]

kills N times in turns: in the first second; while data are read; while a checkpoint is written;
with worker processes that make the batches; in fine-tuning. A kill is SIGKILL to a run and the
processes that it has started, up to three times before the run may end. Parameters, all else in
the last checkpoint, metrics.jsonl and results.json are compared bit for bit with those of a run
that had the same flags. It prints how many runs of each class were killed and are equal, and exits
1 where one isn't.
"""

import argparse
import collections
import functools
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests'), str(ROOT / 'tests' / 'train')]

from conftest import TINY  # noqa: E402
from forked_commands import Command, in_child, preload  # noqa: E402
from image_files import make_folder  # noqa: E402

_RUN = (
  *TINY,
  '--config.num_steps=12',
  '--config.log_every=2',
  '--config.eval_every=4',
  '--config.checkpoint_every=2',
  '--config.ema_decay=0.9',
  '--config.model.dropout_rate=0.1',
  '--config.augment.shift=1',
)
_FOLDER = (
  '--config.data.name=folder',
  '--config.data.dir=FOLDER',
  '--config.data.image_size=(8,8)',
  '--config.data.channels=1',
  '--config.batch_size=32',
)
# Each evaluation starts workers of its own, which is most of what such a run takes.
_WORKERS = (
  '--config.data.resident=no',
  '--config.data.num_workers=2',
  '--config.eval_every=12',
)
_ENVIRONMENT = {'XLA_FLAGS': os.environ['XLA_FLAGS'].replace(os.environ['QUICK_XLA_FLAGS'], '')}
_SECONDS, _MEMORY = 300, 4 * 2**30  # that a run may take
# Of results.json: speed and memory, and the command, in which the run's folder is named.
_OF_THIS_TIME = ('training', 'peak_host_memory_mib', 'command')


class Class(NamedTuple):
  """Runs that are killed alike.

  Attributes:
    flags: of the run.
    moment: when it is killed, a function of (random.Random, seconds that it takes, its directory,
      whether it has ended) that returns then.
  """

  flags: tuple[str, ...]
  moment: object


def _between(first, last):
  """A moment between two shares of the time that the whole run takes."""

  def wait(rng, seconds, workdir, ended):
    del workdir
    _sleep(seconds * rng.uniform(first, last), ended)

  return wait


def _first_second(rng, seconds, workdir, ended):
  del seconds, workdir
  _sleep(rng.uniform(0, 1), ended)


def _while_writing(rng, seconds, workdir, ended):
  """A moment after a checkpoint's temporary folder has come."""
  del seconds
  skipped, seen = rng.randrange(5), set()
  while not ended() and len(seen) <= skipped:
    there = workdir / 'checkpoints'
    names = os.listdir(there) if there.is_dir() else ()
    seen |= {name for name in names if 'tmp' in name}
    time.sleep(0.001)
  _sleep(rng.uniform(0, 0.05), ended)


def _sleep(seconds, ended):
  end = time.monotonic() + seconds
  while not ended() and (rest := end - time.monotonic()) > 0:
    time.sleep(min(rest, 0.05))


CLASSES = {
  'in the first second': Class(_RUN, _first_second),
  'while data are read': Class((*_RUN, *_FOLDER), _between(0, 0.6)),
  'in checkpoint writing': Class((*_RUN, '--config.checkpoint_every=1'), _while_writing),
  'with worker processes': Class(
    (*_RUN, *_FOLDER, *_WORKERS), _between(0, 1)
  ),
  'in fine-tuning': Class(
    (*_RUN, '--config.init_from=WEIGHTS', '--config.init_options.head=new'), _between(0, 1)
  ),
}  # fmt: skip


def start(flags, folder, workdir):
  """Starts such a run; returns its Command."""
  flags = [
    flag.replace('FOLDER', str(folder / 'images')).replace('WEIGHTS', str(folder / 'w.npz'))
    for flag in flags
  ]
  here = workdir.with_name(f'{workdir.name}-at')
  here.mkdir(exist_ok=True)
  if not (here / 'configs').exists():
    (here / 'configs').symlink_to(ROOT / 'configs')
  return Command('train', [*flags, f'--workdir={workdir}'], here, _ENVIRONMENT)


def finish(flags, folder, workdir):
  """Runs to the end; returns the Ending."""
  ending = start(flags, folder, workdir).ending(_SECONDS)
  if ending.code:
    raise RuntimeError(f'exit code {ending.code}: {ending.errors[-2000:]}')
  return ending


def check_equal(workdir, expected):
  """Asserts that two runs ended with the same bits; in a process of its own, for it starts JAX."""
  import jax
  import numpy as np
  from test_resume import final_state, measurements

  logging.getLogger('absl').setLevel(logging.CRITICAL)  # as commands do, for Orbax tells all
  (step, state), (expected_step, expected_state) = final_state(workdir), final_state(expected)
  assert step == expected_step, (step, expected_step)
  jax.tree.map(np.testing.assert_array_equal, state, expected_state)
  assert measurements(workdir) == measurements(expected)
  found, wanted = results(workdir), results(expected)
  assert found == wanted, [(key, found.get(key), wanted[key]) for key in wanted]


def results(workdir):
  """Returns what results.json has that a run's end decides."""
  found = json.loads((workdir / 'results.json').read_text())
  return {name: value for name, value in found.items() if name not in _OF_THIS_TIME}


def killed(kind, folder, workdir, seconds, rng):
  """Kills a run up to three times, and lets it end; returns how often it was killed as it ran."""
  times = 0
  for _ in range(rng.randint(1, 3)):
    command = start(kind.flags, folder, workdir)
    ended = functools.partial(command.poll, _SECONDS, _MEMORY)
    kind.moment(rng, seconds, workdir, ended)
    times += not ended()
    command.kill()
    command.ending()
  finish(kind.flags, folder, workdir)
  return times


def main(count, seed):
  """Prints a line for each class; returns how many runs aren't equal."""
  preload()
  root = Path(tempfile.mkdtemp(prefix='kills-')).resolve()
  try:
    return _kill(count, seed, root)
  finally:
    shutil.rmtree(root, ignore_errors=True)


def _kill(count, seed, root):
  make_folder(root / 'images', count=60)
  shutil.copy(ROOT / 'tests' / 'kept_runs' / 'w.npz', root)
  expected, seconds = {}, {}
  for name, kind in CLASSES.items():
    for _ in range(2):  # the first compiles, and the second tells the time
      expected[name] = root / f'expected {name}'
      shutil.rmtree(expected[name], ignore_errors=True)
      seconds[name] = finish(kind.flags, root, expected[name]).seconds
    print(f'{name}: a run takes {seconds[name]:.1f} s', flush=True)
  kills, runs, wrong, number = *(collections.Counter() for _ in range(3)), 0
  while sum(kills.values()) < count:
    name = list(CLASSES)[number % len(CLASSES)]
    workdir, rng = root / 'run', random.Random(f'{seed} {number}')
    shutil.rmtree(workdir, ignore_errors=True)
    runs[name] += 1
    number += 1
    try:
      kills[name] += killed(CLASSES[name], root, workdir, seconds[name], rng)
      equal = in_child(check_equal, workdir, expected[name])
    except RuntimeError as e:
      print(f'run {number} of --seed={seed}, {name}: {e}', flush=True)
      equal = False
    if not equal:
      wrong[name] += 1
      print(f'run {number} of --seed={seed}, killed {name}, is not equal', flush=True)
  for name in CLASSES:
    print(f'{name}: {kills[name]} kills, {runs[name] - wrong[name]} of {runs[name]} runs equal')
  return sum(wrong.values())


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--count', type=int, default=100)
  given = parser.parse_args()
  sys.exit(bool(main(given.count, given.seed)))
