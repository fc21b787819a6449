"""Data sets that TFDS has prepared as array_record, read without TensorFlow."""

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vit_jax.data import decoding, images, videos
from vit_jax.data.kinds import KINDS
from vit_jax.data.sources.array_records import ArrayRecords
from vit_jax.data.sources.records import MAX_NAMES, Record, Source, check_num_classes
from vit_jax.data.sources.splits import split_names, split_ranges
from vit_jax.errors import FieldError, UsageError, nearest
from vit_jax.regular_files import read_json, read_text, reading

_INFO, _FEATURES = 'dataset_info.json', 'features.json'
_LISTED = 8  # data sets in a message
_READ_AT_ONCE = 1024  # records for their labels
_VERSION = re.compile(r'\d+\.\d+\.\d+')
_NAME = re.compile(rf'(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>{_VERSION.pattern}))?')


class TfdsSource(Source):
  """Records from array_record files; of each, only the image or video and the label are decoded."""

  def __init__(self, records: ArrayRecords, features: Any, input_key: str, label_key: str):
    import tensorflow_datasets as tfds

    value, label = features[input_key], features[label_key]
    self._records, self._input_key, self._label_key = records, input_key, label_key
    self._is_video = isinstance(value, tfds.features.Sequence)
    self.num_frames = value.shape[0] if self._is_video else 0
    # Pillow decodes here, as TFDS would choose between decoders by what is installed.
    files = tfds.features.Text()
    files = tfds.features.Sequence(files) if self._is_video else files
    self._features = tfds.features.FeaturesDict({input_key: files, label_key: label})
    self._label_alone = tfds.features.FeaturesDict({label_key: label})
    self._multi_label = not isinstance(label, tfds.features.ClassLabel)
    self.class_names = tuple((label.feature if self._multi_label else label).names)
    self._shape, channels = value.shape[:-1], value.shape[-1]
    self.image_shape = (*self._shape[-2:], 1 if channels == 1 else 3)

  def __len__(self) -> int:
    return len(self._records)

  def labels(self) -> np.ndarray:
    labels = []
    for start in range(0, len(self), _READ_AT_ONCE):
      indices = range(len(self))[start : start + _READ_AT_ONCE]
      examples = self._records.parse(indices, self._label_alone.deserialize_example_np)
      labels += self._labels(indices, [example[self._label_key] for example in examples])
    return KINDS['label'].stack(labels)

  def _labels(self, indices: Sequence[int], stored: Sequence[Any]) -> Sequence[int | np.ndarray]:
    """Returns the labels of records; UsageError for the first that is none."""
    lowest = 0 if self._multi_label else -1  # which TFDS gives to what has no label

    def are_labels(found):
      has_all = found.dtype != object  # None stands where there is no label at all
      return has_all and lowest <= found.min(initial=0) <= found.max(initial=0) < self.num_classes

    together = np.hstack(stored)  # since it takes long to look at each
    if not are_labels(together):
      bad = next(i for i, label in enumerate(stored) if not are_labels(np.asarray(label)))
      place = self._records.place(indices[bad])
      raise UsageError(f'{place}: the label is {stored[bad]}, of {self.num_classes} classes')
    if not self._multi_label:
      return together.tolist()
    classes = np.zeros((len(stored), self.num_classes), np.float32)
    for row, label in zip(classes, stored, strict=True):
      row[np.asarray(label, np.int64)] = 1
    return list(classes)

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    examples = self._records.parse(indices, self._features.deserialize_example_np)
    for i, example in zip(indices, examples, strict=True):
      yield self._record(example, i)

  def _record(self, example: Mapping[str, Any], i: int) -> Record:
    files, channels, place = example[self._input_key], self.image_shape[2], self._records.place(i)
    if self._is_video:
      name, value = 'video', _Video(files, channels, place)
    else:
      name, value = 'image', open_image(files, channels, place)
    check_shape(value.shape[:-1], self._shape, place)
    (label,) = self._labels([i], [example[self._label_key]])
    return {name: value, 'label': label}


class _Video(videos.Frames):
  """A video that is stored as an encoded image for each frame."""

  def __init__(self, files: Sequence[bytes], channels: int, place: str):
    self._files, self._place = files, place
    with decoding.reading(place):
      super().__init__((len(files), *open_image(files[0], channels, place).shape))

  def __getitem__(self, indices: np.ndarray) -> np.ndarray:
    clip = videos.Clip(len(indices))
    with decoding.reading(self._place):
      for place, i in enumerate(indices.tolist()):
        clip.put(open_image(self._files[i], self.shape[-1], self._place), [place])
      return clip.frames


class StoredFile(io.BytesIO):
  """A file that is stored in a record, with the record's place as its name, for messages."""

  def __init__(self, content: bytes, place: str):
    super().__init__(content)
    self.name = place


def open_image(file: bytes, channels: int, place: str) -> images.EncodedImage:
  """Returns an image as it is stored.

  It isn't turned upright, as TFDS doesn't: results published on its data sets are on such images.
  """
  return images.EncodedImage(StoredFile(file, place), channels, exif=False)


def check_shape(found: Sequence[int], stated: Sequence[int | None], place: str) -> None:
  """Raises UsageError where features.json states a length that an image or video hasn't."""
  if any(given not in (None, length) for given, length in zip(stated, found, strict=True)):
    raise UsageError(f'{place}: it is {found}, and by {_FEATURES} {stated}')


def load(name: str, split: str, directory: str, other_names: Sequence[str]) -> TfdsSource:
  """Opens splits of a data set on disk: see `sources.load_source`, which knows `other_names`."""
  records, info = open_split(name, split, directory, other_names)
  input_key, label_key = _input_and_label(name, info)
  label = info.features[label_key]
  label = getattr(label, 'feature', label)
  check_num_classes(f'{info.data_dir}/{_FEATURES}: {label_key}', label.num_classes or 0)
  if len({*label.names}) != label.num_classes:  # which TFDS finds in a thread that nobody asks
    raise UsageError(
      f'{info.data_dir}/{label_key}.labels.txt: {len({*label.names}):,} names, and '
      f'{label.num_classes:,} classes in {_FEATURES}'
    )
  source = TfdsSource(records, info.features, input_key, label_key)
  if any(source.image_shape[:2]):  # a model may be made for it
    next(source.read([0]))
  return source


def load_mnist(split: str, directory: str) -> TfdsSource:
  """Opens splits of MNIST on disk; FieldError, of `dir`, where the images aren't its own."""
  source = load('mnist', split, directory, ())
  if source.image_shape != (28, 28, 1):
    raise FieldError('dir', f'the images of mnist there are {source.image_shape}, not (28, 28, 1)')
  return source


def open_split(
  name: str, split: str, directory: str, other_names: Sequence[str]
) -> tuple[ArrayRecords, Any]:
  """Returns (the records of a data set on disk, TFDS's information on it); see `load`."""
  root = directory or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  folder = _prepared_folder(name, epath.Path(root).expanduser(), other_names)
  info = _read_info(folder)
  if info is None:
    raise _not_prepared(name, root, f'in {folder} it is of a TFDS older than 4.0')
  if (stored := info.file_format.value) != 'array_record':
    raise _not_prepared(name, os.path.join(root, 'array_record'), f'in {folder} it is {stored}')
  split_names(split, info.splits)
  split_ranges(split, {n: s.num_examples for n, s in info.splits.items()})
  with reading(folder / _INFO, 'information of TFDS'):
    instructions = info.splits[split].file_instructions
  return ArrayRecords(instructions), info


def _read_info(folder: epath.Path) -> Any:
  """Returns TFDS's information on a data set; None for those that need the code to prepare them."""
  import tensorflow_datasets as tfds

  features = folder / _FEATURES
  read_json(folder / _INFO)
  if not features.exists():
    return None
  for name in _feature_classes(read_json(features)):
    if not name.startswith('tensorflow_datasets.'):  # TFDS would import the module
      raise UsageError(f'{features}: {name!r} is no feature of TFDS')
  for path in folder.glob('*.labels.txt'):  # names of classes
    read_text(path, MAX_NAMES)
  # Where a dtype is damaged, TFDS asks TensorFlow for it, and prints what to do about that.
  with _videos_as_sequences(), contextlib.redirect_stdout(io.StringIO()):
    # TFDS reads them once more, and doesn't tell which of the files is at fault.
    with reading(features, 'features of TFDS'):
      tfds.features.FeaturesDict.from_config(folder)
    with reading(folder / _INFO, 'information of TFDS'):
      info = tfds.builder_from_directory(folder).info
  lengths = [length for split in info.splits.values() for length in split.shard_lengths]
  if min(lengths, default=0) < 0:
    raise UsageError(f'{folder / _INFO}: a shard of {min(lengths)} examples')
  return info


def _feature_classes(value: Any) -> Iterator[str]:
  """Yields the names of Python classes in what features.json holds."""
  if isinstance(value, Mapping):
    names = (value.get(key) for key in ('pythonClassName', 'type'))  # the latter before TFDS 4.7
    yield from (name for name in names if isinstance(name, str))
  inner = value.values() if isinstance(value, Mapping) else value
  for item in inner if isinstance(value, Mapping | list) else ():
    yield from _feature_classes(item)


@contextlib.contextmanager
def _videos_as_sequences() -> Iterator[None]:
  """Has TFDS take a video for the sequence of images that it is stored as.

  To make a feature of its class Video, it asks TensorFlow for a dtype.
  """
  from tensorflow_datasets import features as tf
  from tensorflow_datasets.core.features import feature as feature_lib

  def from_json_content(cls, value):
    length, *shape = feature_lib.from_shape_proto(value.shape) or (None,) * 4
    dtype = feature_lib.dtype_from_str(value.dtype)
    image = tf.Image(shape=shape, dtype=dtype, encoding_format=value.encoding_format or None)
    return tf.Sequence(image, length=length)

  theirs = tf.Video.__dict__['from_json_content']
  tf.Video.from_json_content = classmethod(from_json_content)
  try:
    yield
  finally:
    tf.Video.from_json_content = theirs


def _prepared_folder(name: str, root: epath.Path, other_names: Sequence[str]) -> epath.Path:
  """Returns the folder of the newest version of a data set that is on disk."""
  match = _NAME.fullmatch(name)
  if not match or not root.joinpath(match['name']).is_dir():
    raise _unknown(name, root, other_names)
  base = root / match['name']
  version = match['version'] or '*.*.*'
  config = match['config'] or ''
  found = _versions(base / config, version)
  if not found and not config:
    found = _versions(base, f'*/{version}')
    configs = sorted({folder.parent.name for folder in found})
    if len(configs) > 1:
      names = ', '.join(f'{match["name"]}/{c}' for c in configs)
      raise FieldError('name', f'{name!r} is prepared in several variants: {names}')
  if not found:
    raise _unknown(name, root, other_names)
  return max(found, key=lambda folder: [int(n) for n in folder.name.split('.')])


def _versions(base: epath.Path, pattern: str) -> list[epath.Path]:
  found = [path.parent for path in base.glob(f'{pattern}/dataset_info.json')]
  return [folder for folder in found if _VERSION.fullmatch(folder.name)]


def _unknown(name: str, root: epath.Path, other_names: Sequence[str]) -> FieldError:
  """The error for a name that isn't on disk, whether or not TFDS knows how to prepare it."""
  import tensorflow_datasets as tfds

  base = re.split('[/:]', name)[0]
  builders = tfds.list_builders(with_community_datasets=False)
  if base in builders:
    return _not_prepared(name, root, f'there is no {root / name}')
  on_disk = sorted(f.name for f in root.iterdir() if f.is_dir()) if root.is_dir() else []
  if base in on_disk:
    return FieldError('name', f'{name!r}: {root / base} has no such version with a {_INFO}')
  hint = nearest(base, [*other_names, *on_disk, *builders])
  listed = ', '.join(on_disk[:_LISTED]) + (', ...' if len(on_disk) > _LISTED else '')
  return FieldError(
    'name',
    f'there is no data set {name!r}{hint} (prepared in {root}: {listed or "none"}; for others see '
    'tensorflow.org/datasets/catalog and docs/configuration.md)',
  )


def _not_prepared(name: str, root: str | epath.Path, reason: str) -> FieldError:
  return FieldError(
    'name',
    f'{name!r} is not prepared as array_record: {reason}. Run once: '
    'pip install tensorflow importlib_resources && python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', data_dir='{root}', file_format='array_record')"
    f'.download_and_prepare()", then: export TFDS_DATA_DIR={root} (or name this folder where '
    'another is given)',
  )


def _input_and_label(name: str, info) -> tuple[str, str]:
  """Returns the keys of the image or video and of the label or labels."""
  from tensorflow_datasets import features as tf

  def is_label(feature):
    return isinstance(getattr(feature, 'feature', feature), tf.ClassLabel)

  def is_input(feature):
    image = feature.feature if type(feature) is tf.Sequence else feature
    return type(image) is tf.Image and image.np_dtype == np.uint8 and len(image.shape) == 3

  inputs = [k for k, f in info.features.items() if is_input(f)]
  labels = [k for k, f in info.features.items() if is_label(f)]
  keys = info.supervised_keys or ()
  if len(keys) == 2 and keys[0] in inputs and keys[1] in labels:
    return keys
  picked = _pick(inputs, ('image', 'video')), _pick(labels, ('label', 'labels'))
  if None in picked:
    raise FieldError(
      'name',
      f'{name!r} is not a data set for image classification: it needs one image or video and one '
      f'class label (or sequence of labels), and has {", ".join(info.features)}',
    )
  return picked


def _pick(found: Sequence[str], preferred: Sequence[str]) -> str | None:
  named = [name for name in preferred if name in found]
  return next(iter(named or (found if len(found) == 1 else [])), None)
