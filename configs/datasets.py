"""What the configs know about data sets: splits, image sizes, normalisation, augmentation."""

import os
import re
from collections.abc import Collection
from pathlib import Path

from ml_collections import ConfigDict

from vit_jax import config_fields, models, tasks
from vit_jax.data import FOLDER_OF
from vit_jax.data.kinds import kind_of
from vit_jax.errors import UsageError

IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}

# name -> changes to config.data, changes to config.augment. Others: ImageNet's, at 224 pixels, or
# none where the model takes points.
_DATASETS = {
  'digits': ({}, {'shift': 1}),
  'mnist': ({'mean': (0.1307,), 'std': (0.3081,)}, {'shift': 2}),
  'fashion_mnist': ({'mean': (0.2860,), 'std': (0.3530,)}, {'crop_padding': 2, 'flip': True}),
  'cifar10': (
    {'mean': (0.4914, 0.4822, 0.4465), 'std': (0.2470, 0.2435, 0.2616)},
    {'crop_padding': 4, 'flip': True},
  ),
  'cifar100': (
    {'mean': (0.5071, 0.4865, 0.4409), 'std': (0.2673, 0.2564, 0.2762)},
    {'crop_padding': 4, 'flip': True},
  ),
  'moving_mnist': ({}, {}),  # a flip would turn left into right
  'digits_in_space': ({}, {}),
  # As FlyingGiraffe/vnn trains on them.
  'modelnet40': ({'num_points': 1024}, {'point_scale': 0.25, 'point_shift': 0.1}),
  'shapenet_part': ({}, {'point_scale': 0.25, 'point_shift': 0.1}),
  'imagenet2012': (
    {'test_split': 'validation', 'image_size': (224, 224), 'crop': 'inception', **IMAGENET},
    {'flip': True},
  ),
}
_PHOTOGRAPHS = (
  {'image_size': (224, 224), 'channels': 3, 'crop': 'inception', **IMAGENET},
  {'flip': True},
)
# Pixels a side, of those above that are taken as stored.
STORED_SIZES = {'digits': 8, 'mnist': 28, 'fashion_mnist': 28, 'cifar10': 32, 'cifar100': 32}


def enlarge(config: ConfigDict, size: int) -> None:
  """Brings a data set of small images to `size` pixels a side, and its shifts and crops with it."""
  config.data.image_size = (size, size)
  factor = size / STORED_SIZES[config.data.name]
  for name in ('crop_padding', 'shift'):
    config.augment[name] = round(config.augment[name] * factor)


def split_arg(
  arg: str, default_size: str | None, sizes: Collection[str] = (), example: str = 'cifar10'
) -> tuple[str | None, str]:
  """Splits 'SIZE,DATASET', or 'DATASET' alone, into the two.

  Args:
    arg: of a config.
    default_size: where `arg` has none.
    sizes: those that might be the name of a data set, for their small letters.
    example: a data set for the messages.

  Raises:
    UsageError: more parts than two, or an empty one, or a size alone.
  """
  parts = arg.split(',')
  if len(parts) > 2 or not all(parts):
    size = default_size or 'B/16'
    raise UsageError(f"--config: {arg!r} is not 'SIZE,DATASET', as in '{size},{example}'")
  # Names of data sets are of small letters, and paths start with a dot, mostly; sizes with neither.
  is_size = re.match(r'[A-Z\d]|g/|swin-', arg) or arg in sizes
  if len(parts) == 1 and is_size and not os.path.isdir(arg):
    raise UsageError(
      f"--config: {arg!r} is no folder; a size needs a data set after it, as in '{arg},{example}'"
    )
  return parts[0] if len(parts) == 2 else default_size, parts[-1]


def _validation_split(folder: Path) -> str:
  """Returns the folder's own, beside a test split; else a share of what is trained on."""
  folders = [folder, *sorted(folder.glob('*/'))]  # of splits, or of classes with splits in them

  def has(split):
    return any((parent / split).is_dir() for parent in folders)

  own = [name for name in ('val', 'valid', 'validation') if has(name)]
  return own[0] if own and has('train') and has('test') else '10%'


def apply(config: ConfigDict, dataset: str) -> None:
  """Sets `config.data` and `config.augment` for a data set, or for a folder where it is a path.

  The folder holds what the model takes; images, where the model is left open. No published number
  is of such a folder: where classes are learnt, a validation split chooses.
  """
  name = config.model.name
  input = 'image' if name is None else models.backbone(name).INPUT
  others = _PHOTOGRAPHS if kind_of(input).has_pixels else ({'num_points': 1024}, {})
  data, augment = _DATASETS.get(dataset, others)
  config.data.update(data)
  config.augment.update(augment)
  if os.sep in dataset:
    config.data.dir = dataset
    if tasks.find(config.task).LEARNS_CLASSES:
      config.data.val_split = _validation_split(Path(dataset).expanduser())
    dataset = FOLDER_OF[input]
  config_fields.set_data(config, dataset)
