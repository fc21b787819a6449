"""Stopping on request, as all processes see it between steps.

By SIGTERM (preemption), Ctrl-C, and SIGHUP (a terminal that is closed, a connection that is lost).
"""

import contextlib
import os
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils

# Which Windows has not.
_SIGHUP = getattr(signal, 'SIGHUP', None)


class StopSignal(contextlib.AbstractContextManager):
  """Notes SIGTERM, SIGHUP and Ctrl-C for the loop to see; a second Ctrl-C interrupts at once."""

  def __init__(self):
    self._signum, self._previous, self._terminals = 0, {}, ()

  def __enter__(self):
    signums = [signal.SIGTERM, signal.SIGINT]
    if _SIGHUP and signal.getsignal(_SIGHUP) is not signal.SIG_IGN:  # as `nohup` has it ignored
      signums.append(_SIGHUP)
    self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
    for signum in signums:
      with contextlib.suppress(ValueError):  # not in the main thread: signals stay as they are
        self._previous[signum] = signal.signal(signum, self._note)
    return self

  def _note(self, signum, frame):
    del frame
    if self._signum == signal.SIGINT == signum:
      raise KeyboardInterrupt
    if signum == _SIGHUP:
      self._leave_terminals()
    self._signum = signum

  def _leave_terminals(self):
    """Has output go nowhere: to write to a terminal that is gone is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for fd in self._terminals:
      os.dup2(nowhere, fd)
    os.close(nowhere)

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
