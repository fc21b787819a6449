"""The time from the start of train.py to its first step, of runs of one step, without warmup."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from vit_jax.compilation_cache import MIN_SECONDS
from vit_jax.errors import UsageError

_COMMAND = Path(__file__).resolve().parent.parent / 'train.py'
_SHORT = ('--config.num_steps=1', '--config.log_every=1', '--config.schedule.warmup_steps=0')


def first_step(flags: Sequence[str], turns: int) -> dict[str, list[float]]:
  """Starts train.py for runs of one step.

  Args:
    flags: of train.py, which say what to train.
    turns: how often.

  Returns:
    Seconds to the line of the first step: 'cold' where nothing is compiled yet, 'warm' where the
    compilation cache has it from the start before.

  Raises:
    UsageError: there is no train.py, or a run failed; the last line of its errors.
  """
  if not _COMMAND.exists():
    raise UsageError('--what=start: needs a checkout, with train.py')
  seconds = {'cold': [], 'warm': []}
  for _ in range(turns):
    with tempfile.TemporaryDirectory() as folder:
      for name, values in seconds.items():
        values.append(_seconds([*flags, f'--workdir={folder}/{name}'], f'{folder}/cache'))
  return seconds


def _seconds(flags: Sequence[str], cache: str) -> float:
  keeping = {  # compiled programs, as those of users are kept
    'JAX_COMPILATION_CACHE_DIR': cache,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': str(MIN_SECONDS),
  }
  command, start = [sys.executable, _COMMAND, *flags, *_SHORT], time.perf_counter()
  with (
    tempfile.TemporaryFile('w+') as errors,
    subprocess.Popen(
      command, env=os.environ | keeping, stdout=subprocess.PIPE, stderr=errors, text=True
    ) as process,
  ):
    for line in process.stdout:
      if line.startswith('step 1/1 '):
        elapsed = time.perf_counter() - start
        process.kill()
        return elapsed
    errors.seek(0)
    raise UsageError(errors.read().strip().rpartition('\n')[2])
