"""Data sets that TFDS has prepared as array_record, read without TensorFlow."""

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vit_jax.data import images, videos
from vit_jax.data.kinds import KINDS
from vit_jax.data.sources.records import Record, Source
from vit_jax.data.sources.splits import split_names, split_ranges
from vit_jax.errors import FieldError, nearest

_READ_AT_ONCE = 1024  # records for their labels
_VERSION = re.compile(r'\d+\.\d+\.\d+')
_NAME = re.compile(rf'(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>{_VERSION.pattern}))?')


class TfdsSource(Source):
  """Records from array_record files; of each, only the image or video and the label are decoded."""

  def __init__(self, records, features, input_key: str, label_key: str):
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
    *size, channels = value.shape[-3:]
    self.image_shape = (*size, 1 if channels == 1 else 3)

  def __len__(self) -> int:
    return len(self._records)

  def labels(self) -> np.ndarray:
    return KINDS['label'].stack(
      [
        self._label(self._label_alone.deserialize_example_np(record))
        for start in range(0, len(self), _READ_AT_ONCE)
        for record in self._records.__getitems__(range(len(self))[start : start + _READ_AT_ONCE])
      ]
    )

  def _label(self, example: Mapping[str, Any]) -> Any:
    label = example[self._label_key]
    if self._multi_label:
      label, present = np.zeros(self.num_classes, np.float32), label
      label[present] = 1
    return label

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    for record in self._records.__getitems__(indices):
      example = self._features.deserialize_example_np(record)
      label = self._label(example)
      files = example[self._input_key]
      if self._is_video:
        yield {'video': _Video(files, self.image_shape[2]), 'label': label}
      else:
        yield {'image': open_image(files, self.image_shape[2]), 'label': label}


class _Video(videos.Frames):
  """A video that is stored as an encoded image for each frame."""

  def __init__(self, files: Sequence[bytes], channels: int):
    self._files = files
    super().__init__((len(files), *open_image(files[0], channels).shape))

  def __getitem__(self, indices: np.ndarray) -> np.ndarray:
    return np.stack([open_image(self._files[i], self.shape[-1]) for i in indices.tolist()])


def open_image(file: bytes, channels: int) -> images.EncodedImage:
  """Returns an image as it is stored.

  It isn't turned upright, as TFDS doesn't: results published on its data sets are on such images.
  """
  return images.EncodedImage(io.BytesIO(file), channels, exif=False)


def load(name: str, split: str, directory: str, other_names: Sequence[str]) -> TfdsSource:
  """Opens splits of a data set on disk: see `sources.load_source`, which knows `other_names`."""
  records, info = open_split(name, split, directory, other_names)
  return TfdsSource(records, info.features, *_input_and_label(name, info))


def open_split(
  name: str, split: str, directory: str, other_names: Sequence[str]
) -> tuple[Any, Any]:
  """Returns (the records of a data set on disk as bytes, TFDS's information on it); see `load`."""
  import tensorflow_datasets as tfds

  root = directory or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  folder = _prepared_folder(name, epath.Path(root).expanduser(), other_names)
  try:
    with _videos_as_sequences():
      builder = tfds.builder_from_directory(folder)
  except ValueError:
    raise _not_prepared(name, root, f'in {folder} it is of a TFDS older than 4.0') from None
  info = builder.info
  if (stored := info.file_format.value) != 'array_record':
    raise _not_prepared(name, os.path.join(root, 'array_record'), f'in {folder} it is {stored}')
  split_names(split, info.splits)
  split_ranges(split, {n: s.num_examples for n, s in info.splits.items()})
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  return builder.as_data_source(split, deserialize_method=raw).data_source, info


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
  hint = nearest(base, [*other_names, *on_disk, *builders])
  others = f'{", ".join(map(repr, other_names))} or ' if other_names else ''
  return FieldError(
    'name',
    f'{name!r} is not {others}a data set that TFDS knows{hint} '
    f'(prepared in {root}: {", ".join(on_disk) or "none"})',
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
    return type(image) is tf.Image and image.np_dtype == np.uint8

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
