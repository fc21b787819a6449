"""Records in array_record files, by their numbers; what is damaged is told by file and number."""

import bisect
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from vit_jax.errors import UsageError
from vit_jax.regular_files import open_regular, reading

T = TypeVar('T')


class ArrayRecords:
  """The records that TFDS's instructions take of some files, one after the other."""

  def __init__(self, instructions: Sequence[Any]):
    """Opens files.

    Args:
      instructions: `tfds.core.utils.shard_utils.FileInstruction`s.

    Raises:
      UsageError: a file is missing, is none of array_record, ends too early, or hasn't as many
        records as the data set says; of remote ones, as gs://, nothing is asked yet. What is
        between its ends isn't read yet.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    local = [i for i in instructions if '://' not in os.fspath(i.filename)]
    with ThreadPoolExecutor(32) as pool:
      list(pool.map(_check_file, local))
    self._source = ArrayRecordDataSource(instructions)
    self._starts = [(os.fspath(i.filename), i.skip) for i in instructions]
    self._ends = list(itertools.accumulate(i.take for i in instructions))

  def __len__(self) -> int:
    return len(self._source)

  def parse(self, indices: Sequence[int], parse: Callable[[bytes], T]) -> Iterator[T]:
    """Yields `parse(record)` of records, read together.

    Raises:
      UsageError: a record is damaged, or `parse`, of another library, raises anything.
    """
    try:
      records = self._source.__getitems__(indices)
    except RuntimeError:  # which doesn't tell the record
      records = map(self._read, indices)
    for i, record in zip(indices, records, strict=True):
      try:
        parsed = parse(record)
      except Exception:
        with reading(self.place(i), 'an example'):
          raise
      yield parsed

  def _read(self, i: int) -> bytes:
    try:
      return self._source[i]
    except RuntimeError as e:
      raise UsageError(f'{self.place(i)}: damaged ({e})') from e

  def place(self, i: int) -> str:
    """Returns which file and number a record has, for messages."""
    at = bisect.bisect_right(self._ends, i)
    path, skipped = self._starts[at]
    return f'{path}, record {skipped + i - (self._ends[at - 1] if at else 0)}'


def _check_file(instruction: Any) -> None:
  """Raises UsageError unless a file has as many records as its instruction says."""
  path = os.fspath(instruction.filename)
  with reading(path, 'an array_record file'):
    stat = os.stat(path)
    count = _count_records(path, stat.st_size, stat.st_mtime_ns)
  if count != instruction.examples_in_shard:
    raise UsageError(
      f'{path}: damaged: {count:,} records, and {instruction.examples_in_shard:,} by '
      'dataset_info.json'
    )


@functools.lru_cache(maxsize=2**14)  # the splits of a data set, and slices of them, have the same
def _count_records(path: str, size: int, modified: int) -> int:
  """Returns how many records a file has; `size` and `modified` tell a changed one."""
  from array_record.python.array_record_module import ArrayRecordReader

  del size, modified
  open_regular(path).close()
  reader = ArrayRecordReader(path, options='readahead_buffer_size:0')
  count = reader.num_records()
  reader.close()  # raises what was wrong
  return count
