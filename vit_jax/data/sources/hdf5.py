"""Points in HDF5 files as PointNet's authors prepared them: `data`, `label` and perhaps `pid`.

Each file has n objects: `data` float [n, N, 3], `label` int [n] or [n, 1], the class; and `pid` int
[n, N], the part that a point belongs to. Files are ply_data_SPLIT0.h5, ply_data_SPLIT1.h5, ...
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vit_jax.data.sources.records import Record, Source
from vit_jax.data.sources.splits import resolve_aliases, split_names, split_ranges
from vit_jax.errors import FieldError, UsageError
from vit_jax.regular_files import open_regular, reading

_NAME = re.compile(r'ply_data_(train|val|test)_?(\d+)\.h5')
# Bytes of an array, once decompressed, and how many times those in the file that may be, where it
# isn't small. Coordinates are compressed to half.
_MOST_BYTES, _MOST_RATIO, _SMALL = 2**31, 100, 2**24


class Hdf5Points(Source):
  """Records from the files of some splits; a file's arrays stay in memory once they are read.

  Records have `points` and `label`; with `categories` also `parts`, what each point belongs to, and
  then the label is float32 [num_classes], with a 1 for each part that the category's objects have.
  """

  def __init__(
    self,
    files: Mapping[str, Sequence[Path]],
    split: str,
    class_names: Sequence[str],
    categories: np.ndarray | None = None,
  ):
    """Opens splits.

    Args:
      files: split -> files, in their order.
      split: in TFDS syntax; 'val' and 'test' stand for each other where there is but one.
      class_names: of the labels, or of the parts.
      categories: int [parts], the category that each part is of; None for labels alone.

    Raises:
      FieldError: no such split.
      UsageError: a file that is damaged or doesn't fit.
    """
    self.class_names, self._categories = tuple(class_names), categories
    split = resolve_aliases(str(split), files)
    names = split_names(split, files)
    self._stamps = {path: _stamp(path) for name in names for path in files[name]}
    shapes = {path: self._check(path) for path in self._stamps}
    places = {n: [(p, i) for p in files[n] for i in range(shapes[p][0])] for n in names}
    ranges = split_ranges(split, {name: len(places[name]) for name in names})
    self._places = [places[name][i] for name, r in ranges for i in r]
    counts = {shape[1] for shape in shapes.values()}
    self.num_points = counts.pop() if len(counts) == 1 else None

  def _check(self, path: Path) -> tuple[int, ...]:
    """Returns the shape of a file's points, all arrays of which fit each other and the classes."""
    points, labels = self._array(path, 'data'), self._array(path, 'label')
    expected = {'data': (points, (len(points), *points.shape[1:2], 3), 'f')}
    expected['label'] = labels.reshape(-1), (len(points),), 'iu'
    limits = {'label': len(self.class_names)}
    if self._categories is not None:
      expected['pid'] = self._array(path, 'pid'), points.shape[:2], 'iu'
      limits = {'label': int(self._categories.max()) + 1, 'pid': len(self.class_names)}
    for name, (array, shape, dtypes) in expected.items():
      if array.shape != shape or array.dtype.kind not in dtypes or not array.size:
        given = f'{array.dtype} [{", ".join(map(str, array.shape))}]'
        raise UsageError(f'{path}: {name!r} is {given}, which is not that of points')
    for name, limit in limits.items():
      low, high = expected[name][0].min(), expected[name][0].max()
      if not 0 <= low <= high < limit:
        raise UsageError(f'{path}: {name!r} is {low} to {high}, and there are {limit}')
    if not np.isfinite(points).all():
      raise UsageError(f'{path}: it has coordinates that are not finite')
    return points.shape

  def _array(self, path: Path, name: str) -> np.ndarray:
    return _read_array(path, self._stamps[path], name)

  def __len__(self) -> int:
    return len(self._places)

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    for path, row in (self._places[i] for i in indices):
      label = int(self._array(path, 'label').reshape(-1)[row])
      record = {'points': np.float32(self._array(path, 'data')[row]), 'label': label}
      if self._categories is not None:
        parts = np.int32(self._array(path, 'pid')[row])
        record |= {'label': np.float32(self._categories == label), 'parts': parts}
      yield record


def find_files(root: Path) -> dict[str, list[Path]]:
  """Returns split -> its files in the order of their numbers; FieldError where there are none."""
  found = {'train': [], 'val': [], 'test': []}
  for path in root.iterdir():
    if match := _NAME.fullmatch(path.name):
      found[match[1]].append((int(match[2]), path))
  if not found['train']:
    raise FieldError('dir', f'{root} has no ply_data_train0.h5')
  return {name: [path for _, path in sorted(files)] for name, files in found.items() if files}


def check_folder(directory: str, what: str) -> Path:
  """Returns the path of a folder; FieldError, of `dir`, where it is none."""
  root = Path(directory).expanduser().absolute()
  if not directory or not root.is_dir():
    raise FieldError('dir', f'{directory!r} is not a folder; give that of {what}')
  return root


def _stamp(path: Path) -> int:
  """Returns what changes with a file; UsageError where there is none."""
  with reading(path, 'HDF5'):
    return path.stat().st_mtime_ns


@functools.lru_cache(maxsize=64)
def _read_array(path: Path, stamp: int, name: str) -> np.ndarray:
  """Returns an array of a file; UsageError where it can't be read, or `stamp` isn't the file's."""
  import h5py  # which only these data sets need

  if _stamp(path) != stamp:
    raise UsageError(f'{path}: it has changed since it was opened')
  with reading(path, 'HDF5'):
    open_regular(path).close()
    with h5py.File(path, 'r') as file:
      # Links to other files, and arrays whose numbers lie in them, would be followed.
      link = file.get(name, getlink=True)
      dataset = file[name] if isinstance(link, h5py.HardLink) else None
      if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise UsageError(f'{path} has no array {name!r}')
      if dataset.dtype.kind not in 'fiu' or not dataset.shape:
        raise UsageError(
          f'{path}: {name!r} is {dataset.dtype} {dataset.shape}, not rows of numbers'
        )
      stored = dataset.id.get_storage_size()
      taken = dataset.dtype.itemsize * max(dataset.size, math.prod(dataset.chunks or ()))
      if taken > min(_MOST_BYTES, max(_SMALL, stored * _MOST_RATIO)):
        raise UsageError(
          f'{path}: {name!r} would take {taken:,} bytes, and has {stored:,} in the file; '
          f'the most is {_MOST_BYTES >> 30} GiB, and {_MOST_RATIO} times those in the file'
        )
      return dataset[()]
