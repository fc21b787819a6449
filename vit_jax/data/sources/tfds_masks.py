"""Data sets of images and masks that TFDS has prepared, as oxford_iiit_pet: its image and trimap.

TFDS doesn't tell what the ids in a mask are; the options do.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.data.kinds import KINDS, VOID
from vit_jax.data.sources import tfds
from vit_jax.data.sources.array_records import ArrayRecords
from vit_jax.data.sources.masks import NO_CLASS, label_table
from vit_jax.data.sources.records import Record, Source
from vit_jax.errors import FieldError, UsageError, field_prefix

# The options of the data set and their defaults.
OPTIONS = {
  'dataset': 'oxford_iiit_pet',  # of TFDS, as 'name[/config][:version]'
  'names': ('pet', 'background', NO_CLASS),  # of the ids, in order; void is of no class
  'first_id': 1,  # that of the first name
}


class TfdsMaskSource(Source):
  """Records with an image and its mask, uint8 [H, W]; ids that have no name are of no class."""

  def __init__(
    self,
    records: ArrayRecords,
    features: Any,
    keys: tuple[str, str],
    names: Sequence[str],
    first_id: int,
  ):
    from tensorflow_datasets import features as tf

    self._records, self._keys = records, keys
    self.class_names = tuple(name for name in names if name != NO_CLASS)
    self._labels = np.full(256, VOID, np.uint8)
    self._labels[first_id:] = label_table(names)[: 256 - first_id]
    *self._shape, channels = features[keys[0]].shape
    self.image_shape = (*self._shape, 1 if channels == 1 else 3)
    self._features = tf.FeaturesDict(dict.fromkeys(keys, tf.Text()))  # decoded by Pillow

  def __len__(self) -> int:
    return len(self._records)

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    examples = self._records.parse(indices, self._features.deserialize_example_np)
    for i, example in zip(indices, examples, strict=True):
      yield self._record(example, self._records.place(i))

  def _record(self, example: Mapping[str, Any], place: str) -> Record:
    image, mask = (example[key] for key in self._keys)
    image = tfds.open_image(image, self.image_shape[2], place)
    mask = self._labels[KINDS['mask'].decode(tfds.StoredFile(mask, place))]
    tfds.check_shape(image.shape[:2], self._shape, place)
    if mask.shape != image.shape[:2]:
      raise UsageError(f'{place}: a mask of {mask.shape} on an image of {image.shape[:2]}')
    return {'image': image, 'mask': mask}


def load(
  split: str, directory: str, dataset: str, names: Sequence[str], first_id: int
) -> TfdsMaskSource:
  """Opens splits of a data set on disk.

  Args:
    split: in TFDS syntax.
    directory: TFDS's data_dir, as for `sources.load_source`.
    dataset: see `OPTIONS`, as for the others.
    names: likewise.
    first_id: likewise.

  Raises:
    FieldError: an option out of range (`options.`), or what `tfds.load` raises.
  """
  classes = [name for name in names if name != NO_CLASS]
  if not 0 <= first_id <= VOID - len(names) or len({*classes}) < max(len(classes), 2):
    raise FieldError('options.names', f'{tuple(names)} from id {first_id} are no classes of masks')
  with field_prefix('', {'name': 'options.dataset'}):
    records, info = tfds.open_split(dataset, split, directory, other_names=())
  return TfdsMaskSource(records, info.features, _image_and_mask(dataset, info), names, first_id)


def _image_and_mask(name: str, info: Any) -> tuple[str, str]:
  """Returns the keys of the image and of the mask, the one other image that has one channel."""
  from tensorflow_datasets import features as tf

  found = [
    key
    for key, feature in info.features.items()
    if type(feature) is tf.Image and len(feature.shape) == 3
  ]
  masks = [key for key in found if key != 'image' and info.features[key].shape[-1] == 1]
  if 'image' not in found or len(masks) != 1:
    raise FieldError(
      'options.dataset', f'{name!r} needs an image and one mask, and has {", ".join(info.features)}'
    )
  return 'image', masks[0]
