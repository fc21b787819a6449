"""Tables of predictions as files, which are written whole or not at all."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.errors import UsageError

SUFFIXES = ('.csv', '.json', '.npz')
_CLASSES = ('label', 'predicted')


class NewFile(contextlib.AbstractContextManager):
  """A file that takes the place of an old one once all of it is written.

  It is opened at once, so that a path that can't be written shows before long work begins.
  """

  def __init__(self, path: str, flag: str):
    """Opens it under another name in the same folder.

    Args:
      path: of the file.
      flag: that gives it, for errors.

    Raises:
      UsageError: it can't be written.
    """
    self._path, self._flag = Path(path).resolve(), flag
    self._temporary = self._path.with_name(f'.{self._path.name}.{os.getpid()}.tmp')
    if self._path.exists() and not self._path.is_file():
      raise UsageError(f'{flag}: {path} is there, and is not a file')
    try:
      self._file = self._temporary.open('wb')
    except OSError as e:
      raise self._error(e) from e

  def _error(self, e: OSError) -> UsageError:
    return UsageError(f'{self._flag}: {self._path} cannot be written ({e.strerror})')

  def write(self, content: bytes) -> None:
    """Writes all of the file; UsageError where it can't be, and the old one stays."""
    try:
      self._file.write(content)
      self._file.close()
      os.replace(self._temporary, self._path)
    except OSError as e:
      raise self._error(e) from e

  def __exit__(self, *unused):
    with contextlib.suppress(OSError):  # of a full disk, once more
      self._file.close()
    self._temporary.unlink(missing_ok=True)


def encode(text: str) -> bytes:
  """Returns text in UTF-8; names of files keep their bytes, whatever they are."""
  return text.encode('utf-8', 'surrogateescape')


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
  """Returns a CSV file: a line of names, and one for each row."""
  out = io.StringIO()
  csv.writer(out, lineterminator='\n').writerows([header])
  csv.writer(out, lineterminator='\n').writerows(rows)
  return encode(out.getvalue())


def dicts_to_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
  """Returns a CSV file of dicts, in which a cell is empty where a row has nothing of that name."""
  header = list(dict.fromkeys(name for row in rows for name in row))
  return to_csv(header, ([row.get(name, '') for name in header] for row in rows))


def predictions(
  suffix: str, columns: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> bytes:
  """Returns a file of the predictions of N examples.

  NPZ has the columns as they are, and `classes`. CSV and JSON have names of classes: JSON an object
  of `classes` and `predictions`, one for each example; CSV a column for the probability of each
  class, and the names of several classes joined by semicolons.

  Args:
    suffix: one of `SUFFIXES`.
    columns: arrays of N, of which `label` and `predicted` are int [N] or, of several
      classes, [N, K]; `probabilities` is float32 [N, K].
    class_names: K names.
  """
  if suffix == '.npz':
    out = io.BytesIO()
    np.savez(out, **columns, classes=np.array(class_names))
    return out.getvalue()
  arrays = {n: v if n in _CLASSES else _plain(v) for n, v in columns.items()}
  texts = {n: [_names(label, class_names) for label in columns[n]] for n in _CLASSES}
  columns = arrays | texts
  if suffix == '.json':
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    lines = ',\n'.join(map(json.dumps, rows))
    classes = json.dumps(list(class_names))
    return encode(f'{{"classes": {classes}, "predictions": [\n{lines}\n]}}\n')
  probabilities = columns.pop('probabilities')
  texts = {n: [';'.join(t) if isinstance(t, list) else t for t in texts[n]] for n in _CLASSES}
  header = [*columns, *(f'probability/{name}' for name in class_names)]
  rows = zip(*(columns | texts).values(), strict=True)
  return to_csv(header, ([*r, *p] for r, p in zip(rows, probabilities, strict=True)))


def _names(label: np.ndarray, class_names: Sequence[str]) -> str | list[str]:
  """Returns the name of a class, or of each that a row of K has."""
  if np.ndim(label) == 0:
    return class_names[label]
  return [class_names[c] for c in np.flatnonzero(label)]


def _plain(values: np.ndarray) -> Iterable[Any]:
  """Returns Python's values; those of float32 have as few digits as tell them apart."""
  if values.dtype != np.float32:
    return values.tolist()
  return (row.astype(str).astype(float).tolist() for row in values)
