"""Local files from anywhere, read without waiting and without more memory than they may cost."""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from vit_jax.errors import UsageError

_MIB = 2**20
# Far more than any file of text that describes data, a model or a run has. What JSON holds takes up
# to twenty times the memory of its text.
MAX_TEXT, MAX_JSON = 256 * _MIB, 32 * _MIB
_REASON = 200  # characters of what a parser says


@contextlib.contextmanager
def reading(path: object, what: str) -> Iterator[None]:
  """Turns every way in which parsing a foreign file can fail into one UsageError.

  Parsers raise whatever their authors thought of for a damaged file, so that no list of types is
  long enough. Nothing else goes inside: a fault of this project's own has to keep its traceback.
  """
  try:
    yield
  except (UsageError, MemoryError):
    raise
  except Exception as e:
    reason = ' '.join(str(e).split())[:_REASON]
    told = getattr(e, 'strerror', None) or f'{type(e).__name__}: {reason}'
    raise UsageError(f'{path}: cannot be read as {what} ({told})') from e


def open_regular(path: str | os.PathLike, buffering: int = -1) -> BinaryIO:
  """Opens a regular file to read its bytes.

  A pipe, a socket or a device, or a link to one, would be waited for, or has no end.

  Args:
    path: of the file.
    buffering: as of `open`.

  Raises:
    OSError: there is no such file, it can't be read, or it is no regular file.
  """
  # Without O_NONBLOCK, to open a pipe waits for somebody who writes.
  flags = os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0)
  descriptor = os.open(path, flags)
  file = None
  try:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
      raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
      raise OSError(errno.EINVAL, 'not a regular file', os.fspath(path))
    file = os.fdopen(descriptor, 'rb', buffering)
  finally:
    if file is None:
      os.close(descriptor)
  return file


def read_bytes(
  path: str | os.PathLike, max_bytes: int, take: Callable[[int], object] = lambda size: None
) -> bytes:
  """Returns what is in a regular file.

  Args:
    path: of the file; or of a remote one, as gs://, an `epath.Path`.
    max_bytes: that it may have.
    take: called with its size, before as much memory is taken.

  Raises:
    OSError: as for `open_regular`, or it has more than `max_bytes`.
  """
  if '://' in os.fspath(path) and hasattr(path, 'read_bytes'):  # an epath.Path elsewhere
    _check_size(path, path.stat().length, max_bytes)
    return path.read_bytes()
  with open_regular(path, buffering=0) as file:
    size, content = os.fstat(file.fileno()).st_size, bytearray()
    while not size and len(content) <= max_bytes and (piece := file.read(_MIB)):
      content += piece  # of a file system that doesn't tell the size, as /proc and some of FUSE
    _check_size(path, max(size, len(content)), max_bytes)
    take(size)
    if content:
      return bytes(content)
    read = file.read(size)  # it may be growing, and memory is taken for `size`
    while len(read) < size and (piece := file.read(size - len(read))):
      read += piece  # some file systems give less at a time
    return read


def _check_size(path: str | os.PathLike, size: int, most: int) -> None:
  if size > most:
    problem = f'{size:,} bytes, more than the {most:,} that are read of such a file'
    raise OSError(errno.EFBIG, problem, os.fspath(path))


def read_text(path: str | os.PathLike, max_bytes: int = MAX_TEXT) -> str:
  """Returns the text of a file that describes something.

  Raises:
    UsageError: it can't be read, or isn't UTF-8; the message names the file.
  """
  try:
    return read_bytes(path, max_bytes).decode('utf-8-sig')
  except OSError as e:
    raise UsageError(f'{os.fspath(path)}: cannot be read ({e.strerror or e})') from e
  except UnicodeDecodeError as e:
    raise UsageError(f'{os.fspath(path)}: damaged: not UTF-8 at byte {e.start}') from e


def read_json(path: str | os.PathLike, of: type = dict) -> Any:
  """Returns what a JSON file holds.

  Args:
    path: of the file.
    of: the type that it must hold, dict or list.

  Raises:
    UsageError: it can't be read, isn't JSON, or holds something else; the message names the file.
  """
  text = read_text(path, MAX_JSON)
  try:
    content = parse_json(text)
  except (ValueError, RecursionError) as e:
    raise UsageError(f'{os.fspath(path)}: damaged: not valid JSON ({e})') from e
  if not isinstance(content, of):
    wanted = {dict: 'an object', list: 'a list'}[of]
    raise UsageError(f'{os.fspath(path)}: damaged: holds a {type(content).__name__}, not {wanted}')
  return content


def parse_json(data: str | bytes) -> Any:
  """Returns what JSON holds.

  Raises:
    ValueError: it isn't JSON, or has a whole number that takes more than 64 bits.
  """
  return json.loads(data, parse_int=_parse_int)


def _parse_int(text: str) -> int:
  number = int(text)
  if not -(2**63) <= number < 2**63:
    raise ValueError(f'{text[:20]}... is too large a number')
  return number
