"""Stopping on request: SIGTERM (preemption) and Ctrl-C, seen between steps by all processes."""

import contextlib
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils


class StopSignal(contextlib.AbstractContextManager):
  """Notes SIGTERM and Ctrl-C for the loop to see; a second Ctrl-C interrupts at once."""

  def __init__(self):
    self._signum, self._previous = 0, {}

  def __enter__(self):
    for signum in (signal.SIGTERM, signal.SIGINT):
      with contextlib.suppress(ValueError):  # not in the main thread: signals stay as they are
        self._previous[signum] = signal.signal(signum, self._note)
    return self

  def _note(self, signum, frame):
    del frame
    if self._signum == signal.SIGINT == signum:
      raise KeyboardInterrupt
    self._signum = signum

  def __exit__(self, *unused):
    for signum, handler in self._previous.items():
      signal.signal(signum, handler)

  def agreed(self, at_boundary: bool) -> int:
    """Returns the number of the signal that ends the run here, on all processes, or 0.

    Several processes agree at boundaries alone, which all of them reach at the same step.
    """
    if jax.process_count() == 1:
      return self._signum
    if not at_boundary:
      return 0
    return int(multihost_utils.process_allgather(np.int32(self._signum)).max())
