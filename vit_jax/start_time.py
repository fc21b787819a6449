"""The time from the start of a training process to the end of its first step."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from vit_jax.errors import UsageError


def first_step(flags: Sequence[str], turns: int) -> dict[str, list[float]]:
  """Starts train.py for runs of one step.

  Args:
    flags: of train.py, which say what to train.
    turns: how often.

  Returns:
    Seconds to the line of the first step: 'cold' where nothing is compiled yet, 'warm' where the
    compilation cache has it from the start before.

  Raises:
    UsageError: a run failed; the last line of its errors.
  """
  seconds = {'cold': [], 'warm': []}
  for _ in range(turns):
    with tempfile.TemporaryDirectory() as folder:
      for name, values in seconds.items():
        values.append(_seconds([*flags, f'--workdir={folder}/{name}'], f'{folder}/cache'))
  return seconds


def _seconds(flags: Sequence[str], cache: str) -> float:
  short = ('--config.num_steps=1', '--config.log_every=1', '--config.schedule.warmup_steps=0')
  start = time.perf_counter()
  with subprocess.Popen(
    [sys.executable, 'train.py', *flags, *short],
    env=os.environ | {'JAX_COMPILATION_CACHE_DIR': cache},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    for line in process.stdout:
      if line.startswith('step 1/1 '):
        elapsed = time.perf_counter() - start
        process.kill()
        return elapsed
    raise UsageError(process.stderr.read().strip().rpartition('\n')[2])
