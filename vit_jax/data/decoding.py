"""What it may cost to decode a file, and the error that names one that can't be decoded."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from vit_jax import host_memory
from vit_jax.errors import UsageError
from vit_jax.regular_files import read_bytes

_HOST = host_memory.total() or 0
# Bytes that all threads of a process decode into at once, and that one may take, alone.
MEMORY, MOST = max(2**31, _HOST // 8), max(2**31, _HOST // 2)
_UNCOUNTED = 2**24  # bytes of pixels, those of 1.4 megapixels, and
_UNCOUNTED_FILE = 2**26  # of a file, that a thread may have besides
_MOST_OF_A_FILE = 2**30  # bytes that are read of one whose pixels come all at once

_T = TypeVar('_T')
_R = TypeVar('_R')


class Undecoded(UsageError):
  """A file that isn't decoded.

  Attributes:
    path: of the file.
    reason: why, in one line without the path.
  """

  def __init__(self, path: str | os.PathLike, reason: str):
    super().__init__(path, reason)
    self.path, self.reason = path, reason

  @property
  def lines(self) -> Sequence[str]:
    return (f'{self.path}: {self.reason}',)


class UnreadableFile(Undecoded):
  """A file that can't be read or decoded."""


class TooLittleMemory(Undecoded):
  """A file could be decoded if there were more memory: it is no damaged one."""


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
  """Turns what decoders raise, which are many types on damaged files, into UnreadableFile.

  Raises:
    UnreadableFile: of `path`, or of another file that is named already.
    TooLittleMemory: there is too little.
  """
  try:
    yield
  except Undecoded:
    raise
  except MemoryError as e:
    raise TooLittleMemory(path, 'not enough memory to decode it') from e
  except Exception as e:
    raise UnreadableFile(path, reason(e)) from e


def reason(error: Exception) -> str:
  """Returns in one line, without the path, why a file can't be read."""
  if isinstance(error, Undecoded):
    return error.reason
  lines = (getattr(error, 'strerror', None) or str(error)).splitlines()
  return next(filter(None, map(str.strip, lines)), type(error).__name__)


class _Shared:
  """Memory that threads share: who finds too little free waits, with what it has already.

  Where nobody is left who could give some back, one goes on: as the only one that decodes.
  """

  def __init__(self):
    self._taken = self._waiting = 0  # by all, and by those of them that wait for more
    self._queue, self._changed = threading.Lock(), threading.Condition()

  def take(self, num_bytes: int, has: int) -> None:
    self._add(0, waiting=has)
    with self._queue, self._changed:  # one at a time, or large ones would wait for all small ones
      self._changed.wait_for(
        lambda: self._taken + num_bytes <= MEMORY or self._taken == self._waiting
      )
      self._add(num_bytes, waiting=-has)

  def give_back(self, num_bytes: int) -> None:
    self._add(-num_bytes)

  def _add(self, num_bytes: int, waiting: int = 0) -> None:
    with self._changed:
      self._taken += num_bytes
      self._waiting += waiting
      self._changed.notify_all()


class _Turn(threading.local):
  """What a thread has taken since its turn began, and what gives up what was decoded into it.

  Outside of turns `taken` is None.
  """

  taken: int | None = None
  endings: Sequence[Callable[[], None]] = ()


_shared, _turn = _Shared(), _Turn()


@contextlib.contextmanager
def turn() -> Iterator[None]:
  """Counts the memory that this thread takes, until the end, which gives it back.

  What is decoded inside must be done with by then. Outside of turns nothing is counted: only where
  several threads decode do they have to share. A turn inside of another is a part of it.
  """
  if _turn.taken is not None:
    yield
    return
  _turn.taken, _turn.endings = 0, []
  try:
    yield
  finally:
    for give_up in _turn.endings:
      give_up()
    taken, _turn.taken, _turn.endings = _turn.taken, None, ()
    if taken:
      _shared.give_back(taken)


def in_turn(records: Iterable[_T], prepare: Callable[[_T], _R]) -> Iterator[_R]:
  """Yields `prepare(record)` of each; each is read and prepared in a turn of its own."""
  records = iter(records)
  while True:
    with turn():
      for record in records:
        prepared = prepare(record)
        del record  # with the bytes of its file
        break
      else:
        return
    yield prepared


def take(num_bytes: int, give_up: Callable[[], None] | None = None) -> None:
  """Waits until so much of the threads' memory is free to decode into, and takes it.

  More than `MEMORY` is free once no other thread decodes.

  Args:
    num_bytes: how much.
    give_up: called at the end of the turn, to let go of what was decoded.
  """
  if num_bytes > _UNCOUNTED and _turn.taken is not None:
    _shared.take(num_bytes, _turn.taken)
    _turn.taken += num_bytes
    _turn.endings += [give_up] if give_up else []


def check_size(num_bytes: int, what: str) -> None:
  """Raises UsageError where no thread may take so much; `what` it is for, is in the message."""
  if num_bytes > MOST:
    raise UsageError(f'{what}: takes {num_bytes:,} bytes to decode, of {MOST:,} that may be taken')


def read_file(path: str | os.PathLike) -> bytes:
  """Returns what is in a regular file; large ones take of the threads' memory.

  Raises:
    OSError: it can't be read, is no regular file, or is too large.
  """
  return read_bytes(path, _MOST_OF_A_FILE, lambda size: size > _UNCOUNTED_FILE and take(size))
