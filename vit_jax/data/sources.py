"""Random access to the labelled images of a data set: digits, TFDS, or a folder.

A record is {'image': uint8 [H, W, C], 'label': int or float32 [num_classes]} with C 1 or 3; a
vector of labels is multi-hot. Where one object is marked in each image, it has 'box' as well,
float32 [4]: centre x and y, width and height, in fractions of the image's sides. Sources pickle to
little, so that worker processes can have them.
"""

import abc
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from vit_jax.data import images
from vit_jax.data.splits import EVALUATION_SPLITS, resolve_aliases, split_names, split_ranges
from vit_jax.errors import UsageError, nearest

Record = dict[str, Any]

_VERSION = re.compile(r'\d+\.\d+\.\d+')
_TFDS_NAME = re.compile(
  rf'(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>{_VERSION.pattern}))?'
)


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
    name: 'digits' (the 1,797 images of scikit-learn, split 80/20 and stratified), 'folder', 'yolo'
      (see `yolo.load`), or a data set that TFDS has prepared as array_record, as
      'name[/config][:version]'.
    split: splits and slices in TFDS syntax: 'train', 'train[:90%]', 'train[90%:]+test', 'all'.
    dir: the folder of images, either CLASS/* or {train,test}/CLASS/* ('val', 'valid' and
      'validation' are found as 'test' too), or with a data.yaml; or TFDS's data_dir, where ''
      stands for $TFDS_DATA_DIR or else ~/tensorflow_datasets. Unused by digits.
    field: the configuration field to name when `split` is wrong.

  Raises:
    UsageError: unknown name or split, no images, or a TFDS data set that isn't prepared, isn't
      array_record or isn't of image classification.
  """
  if name == 'digits':
    return _load_digits(split, field)
  if name == 'folder':
    return _load_folder(split, dir, field)
  if name == 'yolo':
    from vit_jax.data import yolo  # which needs what is defined here

    return yolo.load(split, dir, field)
  return _load_tfds(name, split, dir, field)


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

  split_names(split, ('train', 'test'), field)
  digits = load_digits()
  images = ((digits.images.astype(np.int32) * 255 + 8) // 16).astype(np.uint8)[..., None]
  order = train_test_split(
    np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0
  )
  order = dict(zip(('train', 'test'), order, strict=True))
  ranges = split_ranges(split, {name: len(rows) for name, rows in order.items()}, field)
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
  split = resolve_aliases(str(split), prefixes)
  if not prefixes['train'] and split in EVALUATION_SPLITS:
    raise UsageError(
      f'{field}: {split!r} is not a folder of {root}; without folders for the splits, give slices '
      "such as 'train[:80%]' to train and 'train[80%:]' to test"
    )
  names = split_names(split, prefixes, field)
  class_names = _class_names(root / prefixes['train'])
  checked = {}
  for name in dict.fromkeys(('train', *names)):
    _compare_classes(root / prefixes[name], class_names)
    folders = [prefixes[name] + class_name for class_name in class_names]
    checked[name] = images.check_images(root, *images.list_images(root, folders))
  labels = {name: _labels(checked[name].files, prefixes[name], class_names) for name in checked}
  if empty := set(range(len(class_names))) - set(labels['train']):
    folder = root / prefixes['train'] / class_names[min(empty)]
    raise UsageError(f'config.data.dir: {folder} holds no images')

  ranges = split_ranges(split, {name: len(checked[name].files) for name in names}, field)
  return FolderSource(
    root,
    [checked[name].files[i] for name, r in ranges for i in r],
    [labels[name][i] for name, r in ranges for i in r],
    class_names,
    images.common_shape({shape for c in checked.values() for shape in c.shapes}, checked['train']),
    [file for name in dict.fromkeys(names) for file in checked[name].skipped],
  )


def _visible_folders(folder: Path) -> list[str]:
  return sorted(f.name for f in folder.iterdir() if f.is_dir() and f.name[0] != '.')


def _split_prefixes(root: Path) -> dict[str, str]:
  """Returns the path below `root` of each split: all is 'train' where there is no such folder."""
  names = ('train', *EVALUATION_SPLITS)
  found = [n for n in names if (root / n).is_dir() and _visible_folders(root / n)]
  return {n: f'{n}/' for n in found} if 'train' in found else {'train': ''}


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


def _labels(files: Sequence[str], prefix: str, class_names: Sequence[str]) -> list[int]:
  index = {name: i for i, name in enumerate(class_names)}
  return [index[file[len(prefix) :].split('/', 1)[0]] for file in files]


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
  split_names(split, info.splits, field)
  split_ranges(split, {n: s.num_examples for n, s in info.splits.items()}, field)
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
  hint = nearest(base, ['digits', 'folder', 'yolo', *on_disk, *builders])
  return UsageError(
    f"config.data.name: {name!r} is not 'digits', 'folder', 'yolo' or a data set that TFDS knows"
    f'{hint} (prepared in {root}: {", ".join(on_disk) or "none"})'
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
