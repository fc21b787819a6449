"""Folders in YOLO's layout: a data.yaml, images, and a text file of objects for each of them.

As github.com/ultralytics/ultralytics reads them and roboflow.com exports them, with one object in
each image.
"""

import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vit_jax.data import images
from vit_jax.data.sources.folders import FolderSource
from vit_jax.data.sources.records import Record, check_num_classes
from vit_jax.data.sources.splits import resolve_aliases, split_names, split_ranges
from vit_jax.errors import FieldError, UsageError
from vit_jax.regular_files import read_text, reading

_SPLITS = ('train', 'val', 'test')  # keys of data.yaml
_MOST_YAML = 2**20  # bytes of data.yaml: about 40,000 names
_MOST_TEXT = 2**20  # of a file of objects
_DIGITS = 18  # of a number that is read
_ROUNDING = 1e-3  # of the image's side, by which edges of boxes may lie outside


class YoloSource(FolderSource):
  """Records that have a box, from image files, all of which decode."""

  def __init__(self, *args: Any, boxes: Sequence[np.ndarray]):
    super().__init__(*args)
    self._boxes = np.stack(boxes)

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    records = super().read(indices)
    for i in indices:
      yield next(records) | {'box': self._boxes[i]}


def load(split: str, directory: str) -> YoloSource:
  """Opens splits of a folder with a data.yaml.

  Its entries: `train`, and `val` and `test` where there are such, each a folder of images or a list
  of them, relative to data.yaml's folder or to the folder that `path` names; and `names`, of the
  classes, or `nc`, how many there are. Next to a folder `images` stands `labels`, with a file for
  each image, of the same name but for the ending .txt, and in it the line `class cx cy width
  height`, in fractions of the image. Images that can't be decoded are skipped.

  Args:
    split: in TFDS syntax; 'valid' and 'validation' are 'val', and 'val' and 'test' stand for each
      other where there is but one. A slice takes each class in proportion.
    directory: the folder.

  Raises:
    FieldError: no data.yaml in the folder (`dir`), or no such split.
    UsageError: a data.yaml that can't be used; an image without exactly one object, or with a label
      that is malformed, of an unknown class, or not inside the image.
  """
  root = Path(directory).expanduser().absolute()
  if not directory or not os.path.exists(root / 'data.yaml'):
    raise FieldError(
      'dir',
      f'{directory!r} is not a folder with a data.yaml; give the folder of a data set in YOLO '
      'format',
    )
  data_yaml = _read_yaml(root / 'data.yaml')
  folders = {name: _image_folders(root, data_yaml, name) for name in _SPLITS if data_yaml.get(name)}
  if 'train' not in folders:
    raise UsageError(f'{root / "data.yaml"}: no entry train, the folder of images to train on')
  class_names = _class_names(root / 'data.yaml', data_yaml)
  split = resolve_aliases(str(split), folders)
  names = split_names(split, folders)
  checked = {
    name: images.check_images(root, *images.list_images(root, folders[name]))
    for name in dict.fromkeys(('train', *names))
  }
  for name, found in checked.items():
    if not found.files:
      raise UsageError(f'{root / "data.yaml"}: {name} ({", ".join(folders[name])}) has no images')

  @functools.cache
  def objects(name):
    return [_read_object(root / file, len(class_names)) for file in checked[name].files]

  sizes = {name: len(checked[name].files) for name in names}
  ranges = split_ranges(split, sizes, lambda name: [label for label, _ in objects(name)])
  files = [checked[name].files[i] for name, r in ranges for i in r]
  labels, boxes = zip(*[objects(name)[i] for name, r in ranges for i in r], strict=True)
  return YoloSource(
    root,
    files,
    labels,
    class_names,
    images.common_shape({shape for c in checked.values() for shape in c.shapes}, checked['train']),
    [file for name in dict.fromkeys(names) for file in checked[name].skipped],
    boxes=boxes,
  )


def _read_yaml(path: Path) -> dict[str, Any]:
  """Returns the entries of data.yaml, every scalar as the text that it is written with."""
  text = read_text(path, _MOST_YAML)
  with reading(path, 'YAML'):
    # Class names may be such as `no`, `1e3` or `2020-01-01`, which YAML has values for.
    data_yaml = yaml.load(text, Loader=yaml.BaseLoader)
  if not isinstance(data_yaml, dict):
    raise UsageError(f'{path}: not a list of entries, such as "train: train/images"')
  # Never shown: an alias of a list of aliases takes little memory, and its text too much.
  texts = [data_yaml.get('path', ''), data_yaml.get('nc', '')]
  for name in _SPLITS:
    given = data_yaml.get(name, '')
    texts += given if isinstance(given, list) else [given]
  if not all(isinstance(text, str) for text in texts):
    raise UsageError(f'{path}: {", ".join(_SPLITS)}, path or nc is neither a text nor a list of it')
  return data_yaml


def _image_folders(root: Path, data_yaml: Mapping[str, Any], name: str) -> list[str]:
  """Returns the folders of images of a split, relative to `root`."""
  given = data_yaml[name]
  given = given if isinstance(given, list) else [given]
  bases = [root / data_yaml.get('path', ''), root]
  folders = []
  for value in given:
    # Roboflow writes '../train/images' for a folder beside data.yaml.
    values = [value, value.removeprefix('../')]
    found = [base / v for base in bases for v in values if os.path.isdir(base / v)]
    if not found:
      raise UsageError(f'{root / "data.yaml"}: {name}: {value!r} is not a folder of images')
    folders.append(os.path.relpath(found[0], root))
  return folders


def _class_names(path: Path, data_yaml: Mapping[str, Any]) -> list[str]:
  """Returns `names`, a list or a dict with the labels as keys, or the numbers below `nc`."""
  names, count = data_yaml.get('names'), data_yaml.get('nc')
  if isinstance(names, dict):
    expected = {str(i) for i in range(len(names))}
    if names.keys() != expected:
      raise UsageError(f'{path}: names has the keys {", ".join(names)}, not 0 to {len(names) - 1}')
    names = [names[str(i)] for i in range(len(names))]
  if names is None and count and count.isdecimal():
    number = int(count[:_DIGITS])
    check_num_classes(f'{path}: nc', number)
    names = [str(i) for i in range(number)]
  if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
    raise UsageError(f'{path}: names is not a list of classes, nor is there their number, nc')
  if count is not None and count != str(len(names)):
    raise UsageError(f'{path}: {len(names)} names, but nc is {count}')
  return names


def _label_path(image: Path) -> Path:
  """Returns the file of an image's objects: in `labels`, for the innermost folder `images`."""
  parts = list(image.parts)
  for i in reversed(range(len(parts) - 1)):
    if parts[i] == 'images':
      parts[i] = 'labels'
      break
  return Path(*parts).with_suffix('.txt')


def _read_object(image: Path, num_classes: int) -> tuple[int, np.ndarray]:
  """Returns (label, box float32 [4]) of the one object that is marked in an image."""
  path = _label_path(image)
  if not path.exists():
    raise UsageError(f'{path}: there is no such file, to say what is in {image.name}')
  lines = [(i, line.split()) for i, line in enumerate(read_text(path, _MOST_TEXT).splitlines(), 1)]
  lines = [(i, words) for i, words in lines if words]
  if len(lines) != 1:
    raise UsageError(f'{path}: {len(lines)} objects; each image must have exactly one')
  return _parse(f'{path}:{lines[0][0]}', lines[0][1], num_classes)


def _parse(place: str, words: Sequence[str], num_classes: int) -> tuple[int, np.ndarray]:
  try:
    label, *numbers = map(float, words)
  except ValueError:
    numbers = []
  if len(numbers) != 4 or not all(map(math.isfinite, (label, *numbers))):
    raise UsageError(f'{place}: {" ".join(words)[:60]!r} is not "class cx cy width height"')
  if not 0 <= label < num_classes or label != int(label):
    raise UsageError(f'{place}: class {words[0][:60]} is not one of 0 to {num_classes - 1}')
  centre, size = np.array(numbers[:2]), np.array(numbers[2:])
  low, high = centre - size / 2, centre + size / 2
  if not (size > 0).all() or (low < -_ROUNDING).any() or (high > 1 + _ROUNDING).any():
    raise UsageError(
      f'{place}: the box {" ".join(words[1:])[:60]} is not inside the image, whose sides are 0 to 1'
    )
  low, high = low.clip(0, 1), high.clip(0, 1)
  return int(label), np.concatenate([(low + high) / 2, high - low]).astype(np.float32)
