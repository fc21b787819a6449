"""train.py and others in processes forked from one that has imported the libraries already.

The imports would be most of what such a process takes.
"""

import atexit
import contextlib
import gc
import multiprocessing
import os
import runpy
import sys
import threading

_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(
  ['vit_jax.cli', 'vit_jax.train.loop', 'sklearn.datasets', 'tensorboardX', 'tensorflow_datasets']
)


def _run(args, environment, cwd, outputs):
  """In the process: what the shell and the interpreter do for train.py."""
  gc.set_threshold(100_000, 50, 1000)  # as in conftest.py
  os.chdir(cwd)
  os.environ.update(environment)
  for fd, output in enumerate(outputs, start=1):
    os.dup2(output.fileno(), fd)
    output.close()
  sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')
  sys.argv = ['train.py', *args]
  try:
    runpy.run_path('train.py', run_name='__main__')
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()  # which multiprocessing leaves out


def _serve(code, args, environment, cwd, requests, answers):
  """In the process: what the interpreter does for code that reads lines and writes some."""
  os.chdir(cwd)
  os.environ.update(environment)
  os.dup2(requests.fileno(), 0)
  os.dup2(answers.fileno(), 1)
  requests.close()
  answers.close()
  sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, 'w')
  sys.argv = ['-c', *args]
  leave = os._exit
  try:
    exec(code, {'__name__': '__main__'})
  finally:
    os._exit = leave  # which the code may have replaced


@contextlib.contextmanager
def serving_process(code, args, environment, cwd):
  """Yields (file to write requests to, file of answers) of a process that runs `code`."""
  (read_requests, requests), (answers, write_answers) = (
    _CONTEXT.Pipe(duplex=False) for _ in range(2)
  )
  ends = read_requests, write_answers
  process = _CONTEXT.Process(target=_serve, args=(code, args, environment, cwd, *ends))
  process.start()
  files = os.fdopen(os.dup(requests.fileno()), 'w'), os.fdopen(os.dup(answers.fileno()))
  for connection in (read_requests, requests, answers, write_answers):
    connection.close()
  with files[1]:
    with files[0]:
      yield files
    process.join()


class TrainingProcess:
  """What the tests need of subprocess.Popen.

  Attributes:
    stdout: its output, as text.
    returncode: after `communicate`; minus the signal's number where one ended it.
  """

  def __init__(self, args, environment, cwd):
    pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(2)]
    process = _CONTEXT.Process(target=_run, args=(args, environment, cwd, [w for _, w in pipes]))
    process.start()
    self.stdout, self._stderr = (os.fdopen(os.dup(r.fileno())) for r, _ in pipes)
    for connection in sum(pipes, ()):
      connection.close()
    self._process, self.send_signal = process, lambda signum: os.kill(process.pid, signum)
    self._errors = []
    self._reader = threading.Thread(target=lambda: self._errors.append(self._stderr.read()))
    self._reader.start()

  def kill(self):
    """Ends it with SIGKILL."""
    self._process.kill()

  def communicate(self, timeout=300):
    """Waits for its end, which `timeout` seconds bring about; returns output and errors."""
    with self.stdout, self._stderr:
      limit = threading.Timer(timeout, self.kill)
      limit.start()
      out = self.stdout.read()
      self._reader.join()
      self._process.join()
      limit.cancel()
    self.returncode = self._process.exitcode
    return out, self._errors[0]
