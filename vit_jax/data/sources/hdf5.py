"""Points in HDF5 files as PointNet's authors prepared them: `data`, `label` and perhaps `pid`.

Each file has n objects: `data` float [n, N, 3], `label` int [n] or [n, 1], the class; and `pid` int
[n, N], the part that a point belongs to. Files are ply_data_SPLIT0.h5, ply_data_SPLIT1.h5, ...
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vit_jax.data.sources.records import Record, Source
from vit_jax.data.sources.splits import resolve_aliases, split_names, split_ranges
from vit_jax.errors import FieldError

_NAME = re.compile(r'ply_data_(train|val|test)_?(\d+)\.h5')
_MOST_BYTES = 2**31  # of an array, once decompressed


class Hdf5Points(Source):
  """Records from the files of some splits; a file's arrays stay in memory once they are read.

  Records have `points` and `label`; with `parts`, what each point belongs to as well, and then the
  label is float32 [num_classes], with a 1 for each part that objects of the category have.
  """

  def __init__(
    self,
    files: Mapping[str, Sequence[Path]],
    split: str,
    class_names: Sequence[str],
    parts: np.ndarray | None = None,
  ):
    """Opens splits.

    Args:
      files: split -> files, in their order.
      split: in TFDS syntax; 'val' and 'test' stand for each other where there is but one.
      class_names: of the labels, or of the parts.
      parts: float32 [categories, parts], 1 for each part that a category has; None for labels
        alone.

    Raises:
      FieldError: no such split, or files that don't fit (`dir`).
    """
    self.class_names, self._parts = tuple(class_names), parts
    split = resolve_aliases(str(split), files)
    names = split_names(split, files)
    places = {n: [(p, i) for p in files[n] for i in range(self._check(p))] for n in names}
    ranges = split_ranges(split, {name: len(places[name]) for name in names})
    self._places = [places[name][i] for name, r in ranges for i in r]
    counts = {read_array(path, 'data').shape[1] for name in names for path in files[name]}
    self.num_points = counts.pop() if len(counts) == 1 else None

  def _check(self, path: Path) -> int:
    """Returns how many objects a file has, all arrays of which fit each other and the classes."""
    points, labels = read_array(path, 'data'), read_array(path, 'label')
    expected = {'data': (points, (len(points), *points.shape[1:2], 3), 'f')}
    expected['label'] = labels.reshape(-1), (len(points),), 'iu'
    limits = {'label': len(self.class_names if self._parts is None else self._parts)}
    if self._parts is not None:
      expected['pid'] = read_array(path, 'pid'), points.shape[:2], 'iu'
      limits['pid'] = self._parts.shape[1]
    for name, (array, shape, dtypes) in expected.items():
      if array.shape != shape or array.dtype.kind not in dtypes or not array.size:
        given = f'{array.dtype} [{", ".join(map(str, array.shape))}]'
        raise FieldError('dir', f'{path}: {name!r} is {given}, which is not that of points')
    for name, limit in limits.items():
      low, high = expected[name][0].min(), expected[name][0].max()
      if not 0 <= low <= high < limit:
        raise FieldError('dir', f'{path}: {name!r} is {low} to {high}, and there are {limit}')
    if not np.isfinite(points).all():
      raise FieldError('dir', f'{path}: it has coordinates that are not finite')
    return len(points)

  def __len__(self) -> int:
    return len(self._places)

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    for path, row in (self._places[i] for i in indices):
      label = int(read_array(path, 'label').reshape(-1)[row])
      record = {'points': np.float32(read_array(path, 'data')[row]), 'label': label}
      if self._parts is not None:
        parts = np.int32(read_array(path, 'pid')[row])
        record |= {'label': self._parts[label], 'parts': parts}
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


def read_text(path: Path) -> str:
  """Returns what is in a text file; FieldError, of `dir`, where it can't be read."""
  try:
    return path.read_text()
  except (OSError, UnicodeDecodeError) as e:
    reason = getattr(e, 'strerror', None) or 'it is not text'
    raise FieldError('dir', f'{path} cannot be read ({reason})') from e


def read_array(path: Path, name: str) -> np.ndarray:
  """Returns an array of a file; FieldError, of `dir`, where it can't be read."""
  return _read(path, path.stat().st_mtime_ns, name)


@functools.lru_cache(maxsize=64)
def _read(path: Path, stamp: int, name: str) -> np.ndarray:
  import h5py  # which only these data sets need

  del stamp
  try:
    with h5py.File(path, 'r') as file:
      dataset = file.get(name)
      if not isinstance(dataset, h5py.Dataset):
        raise FieldError('dir', f'{path} has no array {name!r}')
      if dataset.size * dataset.dtype.itemsize > _MOST_BYTES:
        raise FieldError('dir', f'{path}: {name!r} has more than {_MOST_BYTES >> 30} GiB')
      return dataset[()]
  except OSError as e:
    raise FieldError('dir', f'{path} cannot be read ({str(e).splitlines()[0]})') from e
