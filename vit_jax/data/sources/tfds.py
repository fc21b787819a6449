"""Data sets that TFDS has prepared as array_record, read without TensorFlow."""

import io
import os
import re
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from vit_jax.data import images
from vit_jax.data.sources.records import Record, Source
from vit_jax.data.sources.splits import split_names, split_ranges
from vit_jax.errors import FieldError, nearest

_VERSION = re.compile(r'\d+\.\d+\.\d+')
_NAME = re.compile(rf'(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>{_VERSION.pattern}))?')


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


def load(name: str, split: str, directory: str, other_names: Sequence[str]) -> TfdsSource:
  """Opens splits of a data set on disk: see `sources.load_source`, which knows `other_names`."""
  import tensorflow_datasets as tfds

  root = directory or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  folder = _prepared_folder(name, epath.Path(root).expanduser(), other_names)
  try:
    builder = tfds.builder_from_directory(folder)
  except ValueError:
    raise _not_prepared(name, root, f'in {folder} it is of a TFDS older than 4.0') from None
  info = builder.info
  if (stored := info.file_format.value) != 'array_record':
    raise _not_prepared(name, os.path.join(root, 'array_record'), f'in {folder} it is {stored}')
  image_key, label_key = _image_and_label(name, info)
  split_names(split, info.splits)
  split_ranges(split, {n: s.num_examples for n, s in info.splits.items()})
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  records = builder.as_data_source(split, deserialize_method=raw).data_source
  return TfdsSource(records, info.features, image_key, label_key)


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
  return FieldError(
    'name',
    f'{name!r} is not {", ".join(map(repr, other_names))} or a data set that TFDS knows{hint} '
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
    raise FieldError(
      'name',
      f'{name!r} is not a data set for image classification: it needs one image and one class '
      f'label (or sequence of labels), and has {", ".join(info.features)}',
    )
  return picked


def _pick(found: Sequence[str], preferred: Sequence[str]) -> str | None:
  named = [name for name in preferred if name in found]
  return next(iter(named or (found if len(found) == 1 else [])), None)
