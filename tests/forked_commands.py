"""Commands in forks of this process, which has imported the libraries: each starts at once.

Whoever uses it may not start JAX's backends, nor threads, in this process.
"""

import atexit
import contextlib
import os
import resource
import runpy
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
_POLL = 0.02  # seconds


class Ending(NamedTuple):
  """How a command ended.

  Attributes:
    code: its exit code; minus the signal's number where one ended it.
    stopped: why it was killed here: 'time' or 'memory', else None.
    output: what it wrote to stdout; `errors`, to stderr.
    peak: bytes that it had at most, over what this process has.
    seconds: that it ran.
  """

  code: int
  stopped: str | None
  output: str
  errors: str
  peak: int
  seconds: float


def preload():
  """Imports what commands need, but for torch those that are imported when needed."""
  import sklearn.datasets
  import tensorboardX
  import tensorflow_datasets
  import torch  # noqa: F401

  import vit_jax.explain.runs
  import vit_jax.predictor
  import vit_jax.train.loop
  import vit_jax.weights  # noqa: F401

  return sklearn.datasets, tensorboardX, tensorflow_datasets


class Command:
  """A command that runs in a process group of its own.

  Attributes:
    pid: of the process, and of the group.
  """

  def __init__(self, module, args, folder, environment=None, limit=None):
    """Starts `python -m MODULE ARGS`, or train.py, in a folder which has configs/.

    Args:
      module: 'train' or one of vit_jax.
      args: flags and arguments.
      folder: where it runs; stdout and stderr go to files beside it.
      environment: what it has other than this process.
      limit: bytes of its data, as ulimit -d.
    """
    self._files = [Path(f'{folder}.{name}') for name in ('out', 'err')]
    self._started = time.monotonic()
    self.pid = os.fork()
    if not self.pid:
      _become(module, list(map(str, args)), folder, environment or {}, limit, self._files)
    self._usage, self._status, self._stopped = None, None, None
    self._own = _resident(os.getpid(), anonymous=True)  # a fork has no pages of files at first

  def poll(self, max_seconds, max_bytes):
    """Whether it has ended; ends it where it takes more."""
    if self._status is None:
      with contextlib.suppress(OSError, IndexError):
        if self._stopped is None and _resident(self.pid) - self._own > max_bytes:
          self._stopped = 'memory'
          self.kill()
      if self._stopped is None and time.monotonic() - self._started > max_seconds:
        self._stopped = 'time'
        self.kill()
      pid, status, usage = os.wait4(self.pid, os.WNOHANG)
      if not pid:
        return False
      self._status, self._usage, self._ended = status, usage, time.monotonic()
      self.kill()  # workers that it has left
    return True

  def kill(self):
    """Ends it and the processes that it started with SIGKILL."""
    for kill, pid in ((os.killpg, self.pid), (os.kill, self.pid)):
      with contextlib.suppress(ProcessLookupError, PermissionError):
        if kill is os.killpg or self._status is None:
          kill(pid, signal.SIGKILL)

  def ending(self, max_seconds=600, max_bytes=2**40):
    """Waits for its end."""
    while not self.poll(max_seconds, max_bytes):
      time.sleep(_POLL)
    peak = max(self._usage.ru_maxrss * 1024 - self._own, 0)
    texts = [path.read_bytes().decode(errors='replace') for path in self._files]
    code = os.waitstatus_to_exitcode(self._status)
    return Ending(code, self._stopped, *texts, peak, self._ended - self._started)


def all_endings(commands, max_seconds, max_bytes, at_once):
  """Yields (key, Ending) of (key, function that starts a Command) pairs, some at once."""
  running, commands = {}, iter(commands)
  while True:
    while len(running) < at_once and (new := next(commands, None)):
      running[new[0]] = new[1]()
    if not running:
      return
    for key, command in list(running.items()):
      if command.poll(max_seconds, max_bytes):
        del running[key]
        yield key, command.ending()
    time.sleep(_POLL)


def in_child(function, *args):
  """Calls a function in a fork, and returns whether it returned without an exception."""
  pid = os.fork()
  if not pid:
    code = 1
    try:
      function(*args)
      code = 0
    except BaseException:
      traceback.print_exc()
    finally:
      sys.stdout.flush()
      os._exit(code)
  return os.waitpid(pid, 0)[1] == 0


def _resident(pid, anonymous=False):
  """Returns the bytes of memory that a process has, or those of no file."""
  _, resident, shared, *_ = map(int, Path(f'/proc/{pid}/statm').read_text().split())
  return (resident - shared if anonymous else resident) * os.sysconf('SC_PAGE_SIZE')


def _become(module, args, folder, environment, limit, files):
  """In the process: what the shell and the interpreter do for a command."""
  code = 1
  try:
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    if limit:
      resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for fd, path in enumerate(files, start=1):
      os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w', buffering=1)
    sys.argv = [f'{module}.py', *args]
    if module == 'train':
      sys.argv[0] = 'train.py'
      runpy.run_path(str(ROOT / 'train.py'), run_name='__main__')
    else:
      runpy.run_module(module, run_name='__main__', alter_sys=True)
    code = 0
  except SystemExit as e:
    code = e.code if isinstance(e.code, int) else int(e.code is not None)
  except BaseException:
    traceback.print_exc()
  finally:
    with contextlib.suppress(BaseException):
      threading._shutdown()
      atexit._run_exitfuncs()
      sys.stdout.flush()
    os._exit(code)
