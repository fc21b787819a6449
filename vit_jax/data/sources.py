"""Random access to the labelled images of a data set: digits, TFDS, or a folder.

A record is {'image': uint8 [H, W, C], 'label': int or float32 [num_classes]} with C 1 or 3; a
vector of labels is multi-hot. Sources pickle to little, so that worker processes can have them.
"""

import abc
import functools
import hashlib
import io
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from vit_jax.data import images
from vit_jax.errors import UsageError, check_choice, nearest

Record = dict[str, Any]

_EVALUATION_SPLITS = ('test', 'val', 'valid', 'validation')
_SPLIT_PART = re.compile(r'\s*([\w-]+)\s*(\[[^\]]*\])?\s*')
_VERSION = re.compile(r'\d+\.\d+\.\d+')
_TFDS_NAME = re.compile(
  rf'(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>{_VERSION.pattern}))?'
)

_log = logging.getLogger(__name__)


class Source(abc.ABC):
  """Records by index.

  Attributes:
    class_names: name of each label.
    image_shape: (height, width, channels) of the stored images; None where they differ.
  """

  class_names: tuple[str, ...]
  image_shape: tuple[int | None, int | None, int]

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    """Yields records, decoded one by one, which may be read from disk together."""

  def __getitem__(self, index: int) -> Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    return next(self.read([index]))


def load_source(
  name: str, split: str, dir: str = '', *, field: str = 'config.data.train_split'
) -> Source:
  """Opens a split of a data set; imports no TensorFlow.

  Args:
    name: 'digits' (the 1,797 images of scikit-learn, split 80/20 and stratified), 'folder', or a
      data set that TFDS has prepared as array_record, as 'name[/config][:version]'.
    split: splits and slices in TFDS syntax: 'train', 'train[:90%]', 'train[90%:]+test', 'all'.
    dir: the folder of images, either CLASS/* or {train,test}/CLASS/* ('val', 'valid' and
      'validation' are found as 'test' too); or TFDS's data_dir, where '' stands for
      $TFDS_DATA_DIR or else ~/tensorflow_datasets. Unused by digits.
    field: the configuration field to name when `split` is wrong.

  Raises:
    UsageError: unknown name or split, no images, or a TFDS data set that isn't prepared, isn't
      array_record or isn't of image classification.
  """
  if name == 'digits':
    return _load_digits(split, field)
  if name == 'folder':
    return _load_folder(split, dir, field)
  return _load_tfds(name, split, dir, field)


# Splits.


def _split_names(split: str, known: Collection[str], field: str) -> list[str]:
  """Returns the names of the splits in `split`, every one of them known."""
  parts = [_SPLIT_PART.fullmatch(part) for part in str(split).split('+')]
  if None in parts:
    raise UsageError(
      f"{field}: {split!r} is not a split in TFDS syntax, such as 'train', 'train[:90%]' or "
      "'train[:1000]+test'"
    )
  for part in parts:
    check_choice(field, part[1], [*known, 'all'])
  names = [part[1] for part in parts]
  return list(known) if 'all' in names else names


def _split_ranges(split: str, sizes: Mapping[str, int], field: str) -> list[tuple[str, range]]:
  """Returns which examples of which splits `split` stands for, in order."""
  import tensorflow_datasets as tfds

  infos = {
    name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
    for name, size in sizes.items()
  }
  try:
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
  except (AssertionError, NotImplementedError, ValueError) as error:
    reason = str(error).splitlines()[-1]
    raise UsageError(f'{field}: {split!r} cannot be read: {reason}') from None
  ranges = [(p.splitname, range(sizes[p.splitname])[p.from_ : p.to]) for p in parts]
  if not any(len(r) for _, r in ranges):
    raise UsageError(f'{field}: {split!r} holds no examples')
  return ranges


# scikit-learn's digits.


class ArraySource(Source):
  """Records from arrays in memory: images uint8 [N, H, W, C], labels int [N]."""

  def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]):
    self.class_names, self.image_shape = tuple(class_names), images.shape[1:]
    self._images, self._labels = images, labels

  def __len__(self) -> int:
    return len(self._images)

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    for i in indices:
      yield {'image': self._images[i], 'label': int(self._labels[i])}


def _load_digits(split: str, field: str) -> ArraySource:
  """Digits as uint8: intensities of 0 to 16 times 255 / 16, halves rounded up."""
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split

  _split_names(split, ('train', 'test'), field)
  digits = load_digits()
  images = ((digits.images.astype(np.int32) * 255 + 8) // 16).astype(np.uint8)[..., None]
  order = train_test_split(
    np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0
  )
  order = dict(zip(('train', 'test'), order, strict=True))
  ranges = _split_ranges(split, {name: len(rows) for name, rows in order.items()}, field)
  rows = np.concatenate([order[name][r.start : r.stop] for name, r in ranges])
  return ArraySource(images[rows], digits.target[rows], [str(i) for i in range(10)])


# Folders of images.


class FolderSource(Source):
  """Records from image files that are known to decode.

  Attributes:
    files: paths below `root`, in the order of the records.
    skipped: those of the used splits that can't be decoded.
  """

  def __init__(
    self,
    root: Path,
    files: Sequence[str],
    labels: Sequence[int],
    class_names: Sequence[str],
    image_shape: tuple[int | None, int | None, int],
    skipped: Sequence[str],
  ):
    self.class_names, self.image_shape = tuple(class_names), image_shape
    self.files, self.skipped = tuple(files), tuple(skipped)
    self._root, self._labels = root, np.asarray(labels, np.int32)

  def __len__(self) -> int:
    return len(self.files)

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    for i in indices:
      image = images.decode_image(self._root / self.files[i], self.image_shape[2])
      yield {'image': image, 'label': int(self._labels[i])}


def _load_folder(split: str, directory: str, field: str) -> FolderSource:
  """Opens a folder of images: colour where any image of 'train' is, grey otherwise."""
  root = Path(directory).expanduser().absolute()
  if not directory or not root.is_dir():
    raise UsageError(f'config.data.dir: {directory!r} is not a folder; give the folder of images')
  prefixes = _split_prefixes(root)
  split = _resolve_aliases(str(split), prefixes)
  if not prefixes['train'] and split in _EVALUATION_SPLITS:
    raise UsageError(
      f'{field}: {split!r} is not a folder of {root}; without folders for the splits, give slices '
      "such as 'train[:80%]' to train and 'train[80%:]' to test"
    )
  names = _split_names(split, prefixes, field)
  class_names = _class_names(root / prefixes['train'])
  checked = {}
  for name in dict.fromkeys(('train', *names)):
    _compare_classes(root / prefixes[name], class_names)
    checked[name] = _check_images(root, *_list_images(root, prefixes[name], class_names))
  labels = {name: _labels(checked[name].files, prefixes[name], class_names) for name in checked}
  if empty := set(range(len(class_names))) - set(labels['train']):
    folder = root / prefixes['train'] / class_names[min(empty)]
    raise UsageError(f'config.data.dir: {folder} holds no images')

  ranges = _split_ranges(split, {name: len(checked[name].files) for name in names}, field)
  return FolderSource(
    root,
    [checked[name].files[i] for name, r in ranges for i in r],
    [labels[name][i] for name, r in ranges for i in r],
    class_names,
    _common_shape({shape for c in checked.values() for shape in c.shapes}, checked['train']),
    [file for name in dict.fromkeys(names) for file in checked[name].skipped],
  )


def _visible_folders(folder: Path) -> list[str]:
  return sorted(f.name for f in folder.iterdir() if f.is_dir() and f.name[0] != '.')


def _split_prefixes(root: Path) -> dict[str, str]:
  """Returns the path below `root` of each split: all is 'train' where there is no such folder."""
  names = ('train', *_EVALUATION_SPLITS)
  found = [n for n in names if (root / n).is_dir() and _visible_folders(root / n)]
  return {n: f'{n}/' for n in found} if 'train' in found else {'train': ''}


def _resolve_aliases(split: str, known: Collection[str]) -> str:
  """Replaces names of evaluation splits that don't exist by the one that does."""
  found = next((name for name in _EVALUATION_SPLITS if name in known), None)
  if found is None:
    return split
  aliases = {name: found for name in _EVALUATION_SPLITS if name not in known}
  return re.sub(r'(^|\+)\s*([\w-]+)', lambda m: m[1] + aliases.get(m[2], m[2]), split)


def _class_names(folder: Path) -> list[str]:
  names = _visible_folders(folder)
  if len(names) < 2:
    raise UsageError(
      f'config.data.dir: {folder} has {len(names)} folders of images and needs two or more, one '
      'per class: CLASS/* or train/CLASS/* and test/CLASS/*'
    )
  return names


def _compare_classes(folder: Path, class_names: Sequence[str]) -> None:
  """Raises UsageError where the class folders of a split aren't those of 'train'."""
  found = _visible_folders(folder)
  wrong = [f'{name!r} is missing' for name in class_names if name not in found]
  wrong += [f'{name!r} is not in train' for name in found if name not in class_names]
  if wrong:
    raise UsageError(
      f'config.data.dir: the classes of {folder} differ from those of train: {", ".join(wrong[:5])}'
    )


def _list_images(
  root: Path, prefix: str, class_names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[int, int]]:
  """Returns (paths below root of what is named as images, a stamp that changes with the files).

  The order is shuffled, so that a slice of a split has all classes, and follows from each path
  alone, so that it stays when files come and go.
  """
  files, size, newest = [], 0, 0
  for name in class_names:
    for folder, subfolders, names in os.walk(root / prefix / name):
      subfolders[:] = [f for f in subfolders if f[0] != '.']
      for file in names:
        if file[0] != '.' and file.lower().endswith(images.SUFFIXES):
          path = os.path.join(folder, file)
          stat = os.stat(path) if os.path.exists(path) else os.lstat(path)
          size, newest = size + stat.st_size, max(newest, stat.st_mtime_ns)
          files.append(Path(path).relative_to(root).as_posix())
  files.sort(key=lambda f: (hashlib.blake2b(os.fsencode(f), digest_size=8).digest(), f))
  return tuple(files), (size, newest)


class _Checked(NamedTuple):
  files: list[str]
  shapes: set[tuple[int, int, int]]
  skipped: list[str]


@functools.lru_cache(maxsize=4)  # splits are loaded one by one, often from the same files
def _check_images(root: Path, files: tuple[str, ...], stamp: tuple[int, int]) -> _Checked:
  """Decodes every file once, to find those that can't be, and warns about them."""
  del stamp  # only keeps changed files from being taken for checked ones

  def check(block):
    results = []
    for file in block:
      try:
        results.append((file, images.probe_image(root / file), None))
      except Exception as error:  # Pillow raises many types on damaged files
        results.append((file, None, error))
    return results

  blocks = [files[i : i + 64] for i in range(0, len(files), 64)]
  results, bar = (
    [],
    tqdm(
      total=len(files), desc='Checking images', unit='image', delay=2, disable=None, leave=False
    ),
  )
  with bar, ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool:
    for block in pool.map(check, blocks):
      results += block
      bar.update(len(block))
  damaged = [(file, error) for file, _, error in results if error]
  for file, error in damaged:
    _log.warning('%s cannot be decoded and is skipped: %s', root / file, error)
  if damaged:
    _log.warning('%d of %d images in %s are skipped', len(damaged), len(files), root)
  good = [(file, shape) for file, shape, error in results if not error]
  return _Checked([f for f, _ in good], {s for _, s in good}, [f for f, _ in damaged])


def _labels(files: Sequence[str], prefix: str, class_names: Sequence[str]) -> list[int]:
  index = {name: i for i, name in enumerate(class_names)}
  return [index[file[len(prefix) :].split('/', 1)[0]] for file in files]


def _common_shape(
  shapes: Collection[tuple[int, int, int]], train: _Checked
) -> tuple[int | None, int | None, int]:
  sizes = {shape[:2] for shape in shapes}
  height, width = sizes.pop() if len(sizes) == 1 else (None, None)
  return height, width, max(channels for *_, channels in train.shapes)


# Data sets that TFDS has prepared.


class TfdsSource(Source):
  """Records from array_record files; of each, only the image and the label are decoded."""

  def __init__(self, records, features, image_key: str, label_key: str):
    import tensorflow_datasets as tfds

    image, label = features[image_key], features[label_key]
    self._records, self._image_key, self._label_key = records, image_key, label_key
    self._features = tfds.features.FeaturesDict({image_key: image, label_key: label})
    # Pillow decodes here, as TFDS would choose between decoders by what is installed.
    self._decoders = {image_key: tfds.decode.SkipDecoding()}
    self._multi_label = not isinstance(label, tfds.features.ClassLabel)
    self.class_names = tuple((label.feature if self._multi_label else label).names)
    self.image_shape = (*image.shape[:2], 1 if image.shape[2] == 1 else 3)

  def __len__(self) -> int:
    return len(self._records)

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    for record in self._records.__getitems__(indices):
      example = self._features.deserialize_example_np(record, decoders=self._decoders)
      label = example[self._label_key]
      if self._multi_label:
        label, present = np.zeros(self.num_classes, np.float32), label
        label[present] = 1
      # Not turned upright, as TFDS doesn't: results published on its data sets are on such images.
      file = io.BytesIO(example[self._image_key])
      yield {'image': images.decode_image(file, self.image_shape[2], exif=False), 'label': label}


def _load_tfds(name: str, split: str, directory: str, field: str) -> TfdsSource:
  import tensorflow_datasets as tfds

  root = directory or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  folder = _prepared_folder(name, epath.Path(root).expanduser())
  try:
    builder = tfds.builder_from_directory(folder)
  except ValueError:
    raise _not_prepared(name, root, f'in {folder} it is of a TFDS older than 4.0') from None
  info = builder.info
  if (stored := info.file_format.value) != 'array_record':
    raise _not_prepared(name, os.path.join(root, 'array_record'), f'in {folder} it is {stored}')
  image_key, label_key = _image_and_label(name, info)
  _split_names(split, info.splits, field)
  _split_ranges(split, {n: s.num_examples for n, s in info.splits.items()}, field)
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  records = builder.as_data_source(split, deserialize_method=raw).data_source
  return TfdsSource(records, info.features, image_key, label_key)


def _prepared_folder(name: str, root: epath.Path) -> epath.Path:
  """Returns the folder of the newest version of a data set that is on disk."""
  match = _TFDS_NAME.fullmatch(name)
  if not match or not root.joinpath(match['name']).is_dir():
    raise _unknown(name, root)
  base = root / match['name']
  version = match['version'] or '*.*.*'
  config = match['config'] or ''
  found = _versions(base / config, version)
  if not found and not config:
    found = _versions(base, f'*/{version}')
    configs = sorted({folder.parent.name for folder in found})
    if len(configs) > 1:
      names = ', '.join(f'{match["name"]}/{c}' for c in configs)
      raise UsageError(f'config.data.name: {name!r} is prepared in several variants: {names}')
  if not found:
    raise _unknown(name, root)
  return max(found, key=lambda folder: [int(n) for n in folder.name.split('.')])


def _versions(base: epath.Path, pattern: str) -> list[epath.Path]:
  found = [path.parent for path in base.glob(f'{pattern}/dataset_info.json')]
  return [folder for folder in found if _VERSION.fullmatch(folder.name)]


def _unknown(name: str, root: epath.Path) -> UsageError:
  """The error for a name that isn't on disk, whether or not TFDS knows how to prepare it."""
  import tensorflow_datasets as tfds

  base = re.split('[/:]', name)[0]
  builders = tfds.list_builders(with_community_datasets=False)
  if base in builders:
    return _not_prepared(name, root, f'there is no {root / name}')
  on_disk = sorted(f.name for f in root.iterdir() if f.is_dir()) if root.is_dir() else []
  hint = nearest(base, ['digits', 'folder', *on_disk, *builders])
  return UsageError(
    f"config.data.name: {name!r} is not 'digits', 'folder' or a data set that TFDS knows{hint} "
    f'(prepared in {root}: {", ".join(on_disk) or "none"})'
  )


def _not_prepared(name: str, root: str | epath.Path, reason: str) -> UsageError:
  return UsageError(
    f'config.data.name: {name!r} is not prepared as array_record: {reason}. Run once: '
    'pip install tensorflow importlib_resources && python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', data_dir='{root}', file_format='array_record')"
    f'.download_and_prepare()", then train with --config.data.dir={root}'
  )


def _image_and_label(name: str, info) -> tuple[str, str]:
  """Returns the keys of the image and of the label or labels."""
  from tensorflow_datasets import features as tf

  def is_label(feature):
    return isinstance(getattr(feature, 'feature', feature), tf.ClassLabel)

  images = [k for k, f in info.features.items() if type(f) is tf.Image and f.np_dtype == np.uint8]
  labels = [k for k, f in info.features.items() if is_label(f)]
  keys = info.supervised_keys or ()
  if len(keys) == 2 and keys[0] in images and keys[1] in labels:
    return keys
  picked = _pick(images, ('image',)), _pick(labels, ('label', 'labels'))
  if None in picked:
    raise UsageError(
      f'config.data.name: {name!r} is not a data set for image classification: it needs one image '
      f'and one class label (or sequence of labels), and has {", ".join(info.features)}'
    )
  return picked


def _pick(found: Sequence[str], preferred: Sequence[str]) -> str | None:
  named = [name for name in preferred if name in found]
  return next(iter(named or (found if len(found) == 1 else [])), None)
