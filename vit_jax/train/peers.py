"""The processes of one run: they meet at process 0, and all of them end where one is lost.

JAX connects all to a service in process 0. It aborts the others with a stack trace as soon as that
connection breaks, and where another process dies, it notices after up to 100 seconds. So a process
reaches the service through relays, which keep from it that the service is gone, and has a line to
process 0 besides, which breaks where either end dies, and over which both tell that they live.
"""

import asyncio
import atexit
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

import jax
from jax._src.clusters import ClusterEnv  # nothing public tells what JAX finds

from vit_jax.errors import UsageError
from vit_jax.run.ending import Interrupted, NonFiniteError

# Of a process that ends since another was lost: sysexits.h's EX_TEMPFAIL, 'try again'.
LOST = 75

# Seconds. A process counts as lost that was silent for `_PATIENCE`, or where this one has failed,
# as every exchange with a process that is stopped does some day, for `_PATIENCE_AFTER_ERROR`.
_BEAT, _PATIENCE, _PATIENCE_AFTER_ERROR = 2.0, 60.0, 8.0
_MEETING = 300.0  # for all to come to process 0
_FAREWELL = 10.0  # for mistakes that all processes find, each by itself

# Types of JAX's errors of exchanges.
_OF_EXCHANGES = RuntimeError, ValueError, jax.errors.JaxRuntimeError


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
  """Passes on all that comes, but not that it ends."""
  with contextlib.suppress(OSError):
    while data := await reader.read(2**16):
      writer.write(data)
      await writer.drain()


def found() -> tuple[str, int, int]:
  """Returns what the environment, as Slurm or a TPU, tells: coordinator, processes, which of them.

  Raises:
    UsageError: it tells nothing.
  """
  coordinator = os.environ.get('JAX_COORDINATOR_ADDRESS')
  parts = ClusterEnv.auto_detect_unset_distributed_params(
    coordinator, None, None, None, None, int(_MEETING)
  )[:3]
  if None in parts:
    raise UsageError('--distributed: the environment names no other processes; give --coordinator')
  return parts


def _free_port() -> int:
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]


class Peers(contextlib.AbstractContextManager):
  """Connects this process with the others of a run; inside the context, JAX knows of all devices.

  As soon as another process is lost, this one ends, wherever it is. On leaving the context, the
  others are told whether the run is over for all or something went wrong here.
  """

  def __init__(self, coordinator: str, count: int, index: int, end: Callable[[str, int], NoReturn]):
    """Takes 'HOST:PORT' of process 0, the number of processes, and which of them this one is.

    `end` ends the process with a message and an exit code, from any thread.
    """
    self._coordinator, self._count, self._index, self._end = coordinator, count, index, end
    host, _, port = coordinator.rpartition(':')
    if not (host and port.isdecimal()):
      raise UsageError(f'--coordinator: {coordinator!r} is not HOST:PORT')
    if index >= count:
      raise UsageError(f'--process_id: {index} is not below --num_processes, which is {count}')
    self._address = host.strip('[]'), int(port)
    self._service = '127.0.0.1', _free_port()  # where JAX finds it, or the relay to it
    self._patience, self._heard, self._lines = _PATIENCE, {}, {}
    self._done, self._open, self._all_here = set(), [], threading.Event()
    self._loop = asyncio.new_event_loop()

  def __enter__(self):
    threading.Thread(target=self._loop.run_forever, daemon=True).start()
    self._beating = asyncio.run_coroutine_threadsafe(self._beat(), self._loop)
    self._run(self._meet() if self._index else self._receive())
    if self._count > 1 and not self._all_here.wait(_MEETING):
      raise UsageError(f'--num_processes: not all {self._count} came within {_MEETING:.0f} s')
    if not self._index:
      self._run(self._tell(b'come'))  # the service is about to start, for which JAX waits badly
    service = '{}:{}'.format(*self._service)
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    try:
      jax.distributed.initialize(
        service,
        self._count,
        self._index,
        coordinator_bind_address=service,
        heartbeat_timeout_seconds=int(4 * _PATIENCE),  # JAX may find out after half of it
      )
    except (RuntimeError, ValueError) as e:
      raise UsageError(f'--distributed: {str(e).splitlines()[0]}') from e
    return self

  def __exit__(self, kind, error, trace):
    if error is None or isinstance(error, Interrupted | NonFiniteError):
      self._run(self._tell(b'done'))
      return
    if self._count > 1 and kind in _OF_EXCHANGES:
      # An exchange with a process that is lost, most likely; then this ends here.
      self._patience = _PATIENCE_AFTER_ERROR
      time.sleep(_PATIENCE_AFTER_ERROR + 2 * _BEAT)
    code = 2 if isinstance(error, UsageError) else 1
    self._run(self._fail(code))
    atexit.register(self._quit, code)

  def _run(self, work: Coroutine[Any, Any, None]) -> None:
    """Does something in the thread of the connections, and waits for it."""
    asyncio.run_coroutine_threadsafe(work, self._loop).result()

  async def _receive(self) -> None:
    """Of process 0: lets the others come."""
    bound = os.environ.get('JAX_COORDINATOR_BIND_ADDRESS', '').rpartition(':')[0].strip('[]')
    try:
      self._open.append(await asyncio.start_server(self._accept, bound or None, self._address[1]))
    except OSError as e:
      raise UsageError(f'--coordinator: {self._coordinator} cannot be served ({e})') from e

  async def _accept(self, reader, writer) -> None:
    with contextlib.suppress(OSError, ValueError):
      match (await reader.readline()).split():
        case [b'relay']:
          await self._relay(reader, writer)
        case [b'line', number]:
          index = int(number)
          if index in self._lines or not 0 < index < self._count:
            writer.write(b'taken\n')
          else:
            await self._listen(index, reader, writer)

  async def _meet(self) -> None:
    """Of the others: connects with process 0, which may come later."""
    try:
      reader, writer = await self._reach(self._address)
    except OSError as e:
      raise UsageError(f'--coordinator: {self._coordinator} does not answer ({e})') from e
    writer.write(b'line %d\n' % self._index)
    self._open.append(asyncio.create_task(self._listen(0, reader, writer)))
    self._open.append(await asyncio.start_server(self._relay, *self._service))

  async def _reach(self, address: tuple[str, int]):
    """Returns a connection to who may start to serve later."""
    start = self._loop.time()
    while True:
      try:
        return await asyncio.open_connection(*address)
      except OSError:
        if self._loop.time() > start + _MEETING:
          raise
      await asyncio.sleep(0.1)

  async def _relay(self, reader, writer) -> None:
    """Connects JAX with process 0, and there with the service."""
    far = await self._reach(self._address if self._index else self._service)
    self._open += [reader, writer, *far]  # what isn't kept is closed
    if self._index:
      far[1].write(b'relay\n')
    answers = asyncio.create_task(_copy(far[0], writer))
    await _copy(reader, far[1])
    far[1].close()  # before it ends, the service waits for that
    await answers

  async def _listen(self, index: int, reader, writer) -> None:
    """Hears what a process tells, to its end."""
    self._lines[index], self._heard[index] = writer, self._loop.time()
    if not self._index and len(self._lines) == self._count - 1:
      self._all_here.set()
    message = b'?'
    while message:
      try:
        message = await reader.readline()
      except OSError:
        message = b''
      self._heard[index] = self._loop.time()
      match message.split():
        case [b'come']:
          self._all_here.set()
        case [b'done']:
          self._done.add(index)
        case [b'taken']:
          mine = f'--process_id: {self._index} of {self._count}'
          self._leave(f'{mine} is there already, or not among those of process 0', 2)
        case [b'lost', lost]:
          await self._lose(int(lost))
        case [b'failed', failed, code] if int(failed) != self._index:
          self._done.update(self._lines, [int(failed)])  # all end now
          self._open.append(asyncio.create_task(self._follow(int(failed), int(code))))
    del self._lines[index]
    if index not in self._done:
      await self._lose(index)

  async def _beat(self) -> None:
    while True:
      await self._tell(b'beat')
      for index, heard in self._heard.items():
        if self._loop.time() > heard + self._patience and index not in self._done:
          await self._lose(index)
      await asyncio.sleep(_BEAT)

  async def _tell(self, word: bytes, *numbers: int) -> None:
    """Tells those to whom there is a line: process 0 all others, and these process 0."""
    message = b' '.join([word, *(b'%d' % n for n in numbers)]) + b'\n'
    for writer in self._lines.values():
      writer.write(message)

  async def _fail(self, code: int) -> None:
    self._done.update(self._lines)  # all end now
    await self._tell(b'failed', self._index, code)
    self._loop.call_later(_FAREWELL, self._quit, code)  # where a thread waits for others

  def _quit(self, code: int) -> NoReturn:
    """Ends this process once its error is told, instead of waiting for the others, as JAX does."""
    with contextlib.suppress(OSError):
      sys.stdout.flush()
    os._exit(code)

  async def _lose(self, index: int) -> None:
    await self._tell(b'lost', index)
    lost = f'process {index} of {self._count} was lost'
    self._leave(f'{lost}; what was saved is intact; start all again to go on', LOST)

  async def _follow(self, index: int, code: int) -> None:
    if not self._index:
      await self._tell(b'failed', index, code)
    await asyncio.sleep(_FAREWELL)
    self._leave(f'process {index} of {self._count} ended with exit code {code}', code)

  def _leave(self, message: str, code: int) -> NoReturn:
    try:
      self._end(message, code)
    finally:  # nobody may read what is printed
      os._exit(code)
