"""An object in a process of its own, whose methods are called from here."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, Self

from vit_jax.errors import UsageError


class Remote:
  """`factory(*args)`, made in a new process, which imports what it needs for that and no more.

  The process ends with the `with` block, however that ends, and with this process.

  Attributes:
    name: what messages call it.
    pid: of the process.
  """

  def __init__(
    self,
    name: str,
    factory: Callable[..., Any],
    *args: Any,
    environment: Mapping[str, str] | None = None,
  ):
    """Starts the process; the `with` block has it make the object. All of it has to pickle.

    Args:
      name: see above.
      factory: see above.
      *args: of the factory.
      environment: variables that are set for the process, beside those of this one.
    """
    self.name, self._recipe = name, (factory, args)
    self._connection, theirs = multiprocessing.Pipe()
    code = f'import sys; sys.path[:] = {sys.path}; from {__name__} import serve; '
    self._process = subprocess.Popen(
      [sys.executable, '-c', f'{code}serve({theirs.fileno()})'],
      pass_fds=[theirs.fileno()],
      stdin=subprocess.DEVNULL,
      stdout=2,  # standard output is the command's own
      env={**os.environ, **(environment or {})},
      start_new_session=True,  # or Ctrl-C would reach it, and it would say so
    )
    self.pid = self._process.pid
    theirs.close()  # or the end of the process would not be seen here

  def __enter__(self) -> Self:
    with contextlib.suppress(ConnectionError):  # the first call tells why
      self._connection.send(self._recipe)
    return self

  def __exit__(self, *_: object) -> None:
    self._process.kill()
    self._process.wait()
    self._connection.close()

  def call(self, method: str, *args: Any) -> Any:
    """Returns what the object's method does.

    Raises:
      UsageError: the factory or the method raised one, or the process was ended from outside.
      RuntimeError: they raised something else, whose traceback is the message.
    """
    try:
      with contextlib.suppress(ConnectionError):  # there may be an answer: why it ended
        self._connection.send((method, args))
      done, result = self._connection.recv()
    except (EOFError, ConnectionError):
      raise UsageError(f'{self.name}: {_describe_exit(self._process.wait())}') from None
    if done:
      return result
    raise result if isinstance(result, UsageError) else RuntimeError(f'{self.name}:\n{result}')


def _describe_exit(code: int) -> str:
  if code == -signal.SIGKILL:
    return 'its process was killed; where memory is short, a smaller batch needs less'
  return f'its process ended with exit code {code}'


def serve(fileno: int) -> None:
  """Makes the object and calls its methods until the other end of the connection is closed."""
  connection = Connection(fileno)
  with contextlib.suppress(ConnectionError):  # nobody waits for the answer
    try:
      requests = _requests(connection)
      factory, args = next(requests)
      served = factory(*args)
      for method, args in requests:
        connection.send((True, getattr(served, method)(*args)))
    except UsageError as e:
      connection.send((False, e))
    except Exception:
      connection.send((False, traceback.format_exc()))


def _requests(connection: Connection) -> Iterator[tuple[Any, tuple[Any, ...]]]:
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      yield connection.recv()
