"""Records in array_record files, by their numbers; what is damaged is told by file and number."""

import bisect
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
        records as the data set says. What is between its ends isn't read yet.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    with ThreadPoolExecutor(32) as pool:
      list(pool.map(_check_file, instructions))
    self._source = ArrayRecordDataSource(instructions)
    self._starts = [(os.fspath(i.filename), i.skip) for i in instructions]
    self._ends = list(itertools.accumulate(i.take for i in instructions))

  def __len__(self) -> int:
    return len(self._source)

  def parse(self, indices: Sequence[int], parse: Callable[[bytes, str], T]) -> Iterator[T]:
    """Yields `parse(record, place)` of records, read together; `place` is for messages.

    Raises:
      UsageError: a record is damaged, or `parse` raises anything.
    """
    try:
      records = self._source.__getitems__(indices)
    except RuntimeError:  # which doesn't tell the record
      records = map(self._read, indices)
    for i, record in zip(indices, records, strict=True):
      place = self._place(i)
      with reading(place, 'an example'):
        parsed = parse(record, place)
      yield parsed

  def _read(self, i: int) -> bytes:
    try:
      return self._source[i]
    except RuntimeError as e:
      raise UsageError(f'{self._place(i)}: damaged ({e})') from e

  def _place(self, i: int) -> str:
    at = bisect.bisect_right(self._ends, i)
    path, skipped = self._starts[at]
    return f'{path}, record {skipped + i - (self._ends[at - 1] if at else 0)}'


def _check_file(instruction: Any) -> None:
  """Raises UsageError unless a file has as many records as its instruction says."""
  from array_record.python.array_record_module import ArrayRecordReader

  path = os.fspath(instruction.filename)
  with reading(path, 'an array_record file'):
    open_regular(path).close()
    reader = ArrayRecordReader(path, options='readahead_buffer_size:0')
    count = reader.num_records()
    reader.close()  # raises what was wrong
  if count != instruction.examples_in_shard:
    raise UsageError(
      f'{path}: damaged: {count:,} records, and {instruction.examples_in_shard:,} by '
      'dataset_info.json'
    )
