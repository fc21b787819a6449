"""Folders of images with a CSV file of labels: one class an image, or several."""

import csv
import dataclasses
import io
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_jax import host_memory
from vit_jax.data import images
from vit_jax.data.sources.folders import FolderSource
from vit_jax.data.sources.records import check_num_classes
from vit_jax.data.sources.splits import (
  EVALUATION_SPLITS,
  resolve_aliases,
  split_names,
  split_ranges,
)
from vit_jax.errors import FieldError, UsageError
from vit_jax.regular_files import read_bytes, reading

OPTIONS = {
  # In the folder; '' = train.csv, beside test.csv and so on, or else labels.csv, or the only one.
  'file': '',
  'image_column': '',  # '' = the first that names an image in the first row
  # One of names, or several of 0 and 1, one for each class; () = the others, or what is called so.
  'label_columns': (),
  'split_column': '',  # '' = split, where there is one
  # Between the names of an image's classes: auto = ; or | where there are some; none = an image has
  # one class; or any other, as ' '.
  'separator': 'auto',
}
_LABELS = ('label', 'labels', 'class', 'classes', 'category', 'target', 'tags')
_VALUES = dict.fromkeys(('1', '1.0', 'true'), True) | dict.fromkeys(('0', '0.0', 'false'), False)
_SEPARATORS = (';', '|')
_PARTS_OF_NAMES = {' ': 'words', ',': 'parts'}  # or separators: which, can't be told for sure
_MANY = 50  # characters of a value in a message
_LISTED = 8  # names of columns, likewise
_DIGITS = 18  # of a name that is sorted as a number
_MOST_BYTES = 2**30  # of a file
_MOST_MEMORY = 2**31  # bytes of labels where images have several; and of rows, on small machines
_BYTES_PER_ROW, _BYTES_PER_VALUE = 250, 60  # in memory, beside their text


@dataclasses.dataclass(slots=True)
class _Row:
  """A row: its table, its line in the file, and its values in the order of the columns."""

  table: '_Table'
  line: int
  values: tuple[str, ...]

  @property
  def place(self) -> str:
    """For messages."""
    return f'{self.table.path}:{self.line}'

  def __getitem__(self, column: str) -> str:
    return self.values[self.table.columns[column]]


class _Table(NamedTuple):
  """A CSV file: its path, the names of its columns with their numbers, and its rows."""

  path: Path
  columns: dict[str, int]
  rows: list[_Row]


class _Labels(NamedTuple):
  """How rows tell classes.

  Attributes:
    columns: one of names, or one of 0 and 1 for each class.
    separator: between names; '' where there is one.
    classes: name -> label, in the order of the labels.
    several: whether an image may have several classes, or none.
  """

  columns: tuple[str, ...]
  separator: str
  classes: dict[str, int]
  several: bool

  def encode(self, row: _Row) -> int | np.ndarray:
    """Returns the label of a row, an int or float32 [classes]; UsageError for a wrong one."""
    names = _read_classes(row, self.columns, self.separator)
    for name in names:
      if name not in self.classes:
        raise UsageError(f'{row.place}: {name!r} is not a class of the training images')
    found = [self.classes[name] for name in names]
    if self.several:
      label = np.zeros(len(self.classes), np.float32)
      label[found] = 1
      return label
    if len(found) != 1:
      raise UsageError(f'{row.place}: {len(found)} classes, where each training image has one')
    return found[0]


class _Images:
  """The images of a folder, found by what a row calls them."""

  def __init__(self, root: Path):
    self.root = root
    listed, self.stamp = images.list_images(root, [''])
    self._by_stem = {}
    for path in listed:
      self._by_stem.setdefault(_without_suffix(path).rpartition('/')[2], []).append(path)

  def matching(self, name: str) -> list[str]:
    """Returns the images whose path below the folder, with its ending or without, ends so."""
    name = name.strip().replace('\\', '/').removeprefix('./')
    found = self._by_stem.get(_without_suffix(name).rpartition('/')[2], ()) if name else ()
    ends = [(p, f'/{end}') for p in found for end in {p, _without_suffix(p)}]
    return [path for path, end in ends if end.endswith(f'/{name}')]

  def find(self, row: _Row, column: str, split: str) -> str:
    """Returns the path of a row's image, below the folder; one of its split's folder first."""
    name = row[column]
    found = self.matching(name)
    in_folder = [path for path in found if path.startswith(f'{split}/')]
    whole = [path for path in found if name in (path, _without_suffix(path))]
    for paths in (whole, in_folder, found):
      if len(paths) == 1:
        return paths[0]
    if not found:
      raise UsageError(f'{row.place}: there is no image {name[:_MANY]!r} in {self.root}')
    raise UsageError(f'{row.place}: {name[:_MANY]!r} may be {found[0]} or {found[1]}')


def load(
  split: str,
  directory: str,
  file: str,
  image_column: str,
  label_columns: Sequence[str],
  split_column: str,
  separator: str,
) -> FolderSource:
  """Opens splits of a folder of images and of CSV files, whose first line names the columns.

  An image is called by its path below the folder, or by the end of that, with the ending of its
  name or without. Images that no row names aren't used; those that can't be decoded are skipped. A
  file has the images of a split (train.csv), or a column says of which split each is, or all are
  of `train`. Classes are those of the file that has `train`: columns in their order, or names
  sorted. An image may have several classes or none, unless each training image has one. The order
  of the records follows from the paths of the images.

  Args:
    split: in TFDS syntax; 'val', 'valid', 'validation' and 'test' stand for each other where there
      is but one. Where images have one class each, a slice takes each class in proportion.
    directory: the folder.
    file: see `OPTIONS`, as for the others.

  Raises:
    FieldError: no such folder, file, split or column, or labels that may be read in several ways.
    UsageError: a file that isn't a table in UTF-8, or a row that doesn't fit: it has more values or
      fewer, an image that isn't there or that another row has, or a class that train hasn't.
  """
  root = Path(directory).expanduser().absolute()
  if not directory or not root.is_dir():
    raise FieldError('dir', f'{directory!r} is not a folder; give that of images and a CSV file')
  files, found = _find_files(root, file), _Images(root)
  train = _read(files['train'])
  image_column = _find_image_column(train, image_column, found)
  split_column = _find_split_column(train, split_column, len(files))
  labels = _find_labels(train, {image_column, split_column}, label_columns, separator)

  splits = _by_split(train, split_column) | {n: path for n, path in files.items() if n != 'train'}
  split = resolve_aliases(str(split), splits)
  if len(splits) == 1 and split in EVALUATION_SPLITS:
    raise FieldError(
      'split',
      f'{split!r} is not in {train.path}; without a column of splits, or a file for each, give '
      "slices such as 'train[:80%]' to train and 'train[80%:]' to test",
    )
  names = split_names(split, splits)
  encoded, checked = {}, {}
  for name in dict.fromkeys(('train', *names)):
    rows = splits[name]
    if isinstance(rows, Path):
      rows = _read(rows, [image_column, *labels.columns]).rows
    encoded[name] = _encode(rows, found, image_column, name, labels)
    order = images.shuffle(list(encoded[name]))
    checked[name] = images.check_images(root, order, found.stamp)
    if not checked[name].files:
      raise FieldError('dir', f'{root}: no image of the split {name!r} can be decoded')

  def classes(name):
    return [encoded[name][image] for image in checked[name].files]

  sizes = {name: len(checked[name].files) for name in names}
  ranges = split_ranges(split, sizes, None if labels.several else classes)
  chosen = [(name, checked[name].files[i]) for name, r in ranges for i in r]
  return FolderSource(
    root,
    [image for _, image in chosen],
    [encoded[name][image] for name, image in chosen],
    tuple(labels.classes),
    images.common_shape({shape for c in checked.values() for shape in c.shapes}, checked['train']),
    [image for name in dict.fromkeys(names) for image in checked[name].skipped],
  )


def _without_suffix(path: str) -> str:
  stem, suffix = os.path.splitext(path)
  return stem if suffix.lower() in images.SUFFIXES else path


def _find_files(root: Path, file: str) -> dict[str, Path]:
  """Returns split -> its file; that of 'train' has the other splits, too, where it is alone."""
  if file:
    if not os.path.exists(root / file):
      raise FieldError('options.file', f'{file!r} is not a file in {root}')
    return {'train': root / file}
  names = ('train', *EVALUATION_SPLITS)
  files = {name: root / f'{name}.csv' for name in names if (root / f'{name}.csv').exists()}
  if 'train' in files:
    return files
  there = sorted(path.name for path in root.glob('*.csv'))
  if 'labels.csv' in there or len(there) == 1:
    return {'train': root / ('labels.csv' if 'labels.csv' in there else there[0])}
  has = f'has {", ".join(there)}; options.file names one' if there else 'has no CSV file of labels'
  raise FieldError('dir', f'{root} {has}')


def _read(path: Path, needed: Sequence[str] = ()) -> _Table:
  """Reads a table, which has the `needed` columns, separated by commas, semicolons or tabs."""
  with reading(path, 'CSV in UTF-8'):
    content = read_bytes(path, _MOST_BYTES)
    file = io.TextIOWrapper(io.BytesIO(content), 'utf-8-sig', newline='')
    first = file.readline()
    file.seek(0)
    delimiter = max(',;\t', key=first.count)
    num_rows = max(map(content.count, (b'\n', b'\r'))) + 1
    num_bytes = num_rows * _BYTES_PER_ROW + content.count(delimiter.encode()) * _BYTES_PER_VALUE
    if num_bytes > (most := max(_MOST_MEMORY, (host_memory.total() or 0) // 4)):
      raise UsageError(f'{path}: may take {num_bytes:,} bytes of memory, more than {most:,}')
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    lines = ((reader.line_num, tuple(map(str.strip, values))) for values in reader)
    lines = (line for line in lines if any(line[1]))
    _, names = next(lines, (0, ()))
    columns = {name: i for i, name in enumerate(names)}
    table = _Table(path, columns, [])
    table.rows.extend(_Row(table, number, values) for number, values in lines)
  if not table.rows:
    raise UsageError(f'{path}: needs a line of the names of columns, and a row for each image')
  for column in needed:
    if column not in columns:
      raise UsageError(f'{path}: no column {column!r}, as train has; {_list(columns)}')
  for i, column in enumerate(names):
    if column and columns[column] != i:
      raise UsageError(f'{path}: two columns are called {column!r}')
  for row in table.rows:
    if len(row.values) != len(names):
      raise UsageError(f'{row.place}: {len(row.values)} values in {len(names)} columns')
  return table


def _list(columns: Iterable[str]) -> str:
  names = [*itertools.islice(filter(None, columns), _LISTED + 1)]
  return f'it has {", ".join(names[:_LISTED])}{", ..." if len(names) > _LISTED else ""}'


def _check_column(table: _Table, option: str, column: str) -> None:
  if column not in table.columns:
    raise FieldError(
      f'options.{option}', f'{column!r} is no column of {table.path}; {_list(table.columns)}'
    )


def _find_image_column(table: _Table, given: str, found: _Images) -> str:
  if given:
    _check_column(table, 'image_column', given)
    return given
  row = table.rows[0]
  for column in table.columns:
    if column != _without_suffix(column) and found.matching(column):
      raise UsageError(f'{table.path}: the first line has no names of columns, but {column}')
    if column and found.matching(row[column]):
      return column
  raise UsageError(
    f'{row.place}: nothing in this row is an image in {found.root}; {_list(table.columns)}'
  )


def _find_split_column(table: _Table, given: str, num_files: int) -> str:
  """Returns the column of splits, '' where there is none."""
  if given:
    _check_column(table, 'split_column', given)
  if num_files > 1:
    if given:
      raise FieldError('options.split_column', f'{given!r}, but each split has a file of its own')
    return ''
  return given or next((c for c in table.columns if c.lower() == 'split'), '')


def _by_split(table: _Table, column: str) -> dict[str, list[_Row] | Path]:
  if not column:
    return {'train': table.rows}
  splits = {}
  for row in table.rows:
    splits.setdefault(row[column], []).append(row)
  if 'train' not in splits:
    raise UsageError(f'{table.path}: {column!r} has {", ".join(sorted(splits)[:5])}, and no train')
  return splits


def _find_labels(table: _Table, taken: set[str], given: Sequence[str], separator: str) -> _Labels:
  """Finds out how a table tells classes; `taken` are columns of something else."""
  rows, columns = table.rows, tuple(given)
  for column in columns:
    _check_column(table, 'label_columns', column)
  if not columns:
    columns = tuple(column for column in table.columns if column and column not in taken)
    if not columns:
      raise UsageError(f'{table.path}: no column of labels; {_list(table.columns)}')
    are_numbers = all(row[c].lower() in _VALUES for row in rows for c in columns)
    if len(columns) > 1 and not are_numbers:
      called = tuple(column for column in columns if column.lower() in _LABELS)
      if len(called) != 1:
        raise FieldError(
          'options.label_columns', f'() may be any of {", ".join(columns)} in {table.path}'
        )
      columns = called
  separator = _find_separator(table, columns, separator)
  found = [_read_classes(row, columns, separator) for row in rows]
  names = columns
  if len(columns) == 1:
    names = sorted({name for classes in found for name in classes})
    are_numbers = all(name.isdecimal() and len(name) <= _DIGITS for name in names)
    names = sorted(names, key=int) if are_numbers else names
  if len(names) < 2:
    raise UsageError(f'{table.path}: {len(names)} classes in {columns[0]!r}, and not two or more')
  check_num_classes(table.path, len(names))
  several = any(len(classes) != 1 for classes in found)
  return _Labels(columns, separator, {name: i for i, name in enumerate(names)}, several)


def _find_separator(table: _Table, columns: Sequence[str], given: str) -> str:
  """Returns what stands between the names of an image's classes; '' where each has one."""
  if len(columns) > 1 or given == 'none':
    return ''
  values = {row[columns[0]] for row in table.rows}
  if given != 'auto':
    if not any(given in value for value in values):
      raise FieldError('options.separator', f'{given!r} is nowhere in {columns[0]!r}')
    return given
  found = [s for s in _SEPARATORS if any(s in value for value in values)]
  if len(found) > 1:
    raise FieldError('options.separator', f"'auto', but {table.path} has both ; and | in labels")
  for separator, what in _PARTS_OF_NAMES.items():
    parts = {value: [part.strip() for part in value.split(separator)] for value in values}
    joint = [value for value in values if len(parts[value]) > 1]
    different = {part for value in values for part in parts[value]}
    if not found and joint and (different <= values or len(different) < len(values)):
      raise FieldError(
        'options.separator',
        f"'auto', but {what} of {min(joint)[:_MANY]!r} are in other labels, too: {separator!r} is "
        "for several classes, 'none' for one",
      )
  return found[0] if found else ''


def _read_classes(row: _Row, columns: Sequence[str], separator: str) -> list[str]:
  """Returns the classes of a row."""
  if len(columns) > 1:
    for column in columns:
      if row[column].lower() not in _VALUES:
        given = row[column][:_MANY]
        raise UsageError(f'{row.place}: {given!r} in {column!r} is neither 0 nor 1')
    return [column for column in columns if _VALUES[row[column].lower()]]
  value = row[columns[0]]
  if separator:
    return [name for name in dict.fromkeys(map(str.strip, value.split(separator))) if name]
  if not value:
    raise UsageError(f'{row.place}: nothing in {columns[0]!r}, and each image has one class')
  return [value]


def _encode(
  rows: Sequence[_Row], found: _Images, column: str, split: str, labels: _Labels
) -> Mapping[str, int | np.ndarray]:
  """Returns path of image -> label."""
  if labels.several and 4 * len(rows) * len(labels.classes) > _MOST_MEMORY:
    raise UsageError(
      f'{rows[0].table.path}: {len(labels.classes):,} classes, of which {len(rows):,} images may '
      f'have several, take more than {_MOST_MEMORY >> 30} GiB'
    )
  encoded, places = {}, {}
  for row in rows:
    image = found.find(row, column, split)
    if (first := places.setdefault(image, row.place)) != row.place:
      raise UsageError(
        f'{row.place}: {image} is in line {first.rpartition(":")[2]}, too; an image has one row'
      )
    encoded[image] = labels.encode(row)
  return encoded
