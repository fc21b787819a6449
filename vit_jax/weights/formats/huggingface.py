"""Hugging Face's transformers: folders of config.json and weights, and names on the hub.

github.com/huggingface/transformers. Weights are model.safetensors or, PyTorch being installed,
pytorch_model.bin, whole or in shards; a name on the hub, `google/vit-base-patch16-224`, with or
without `hf:` in front, is downloaded once into Hugging Face's cache. preprocessor_config.json is
read where there is one, but for the interpolation, which is bicubic here, and for stretching before
a crop: here that keeps the aspect.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig, Preprocessing
from vit_jax.weights import files, hub, state_dicts
from vit_jax.weights.table import Known, Source, Table, errors_of_file

SUFFIXES = ()  # it is a folder
ON_HUB = True

# transformers' names of activations -> those here, and back.
ACTIVATIONS = {
  'gelu': 'gelu_exact',
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'relu': 'relu',
  'quick_gelu': 'quick_gelu',
  'silu': 'silu',
}
THEIR_ACTIVATIONS = {
  'gelu_exact': 'gelu',
  'gelu': 'gelu_new',
  'relu': 'relu',
  'quick_gelu': 'quick_gelu',
  'silu': 'silu',
}

_PROCESSOR_DEFAULTS = {
  'do_rescale': True,
  'rescale_factor': 1 / 255,
  'offset': False,
  'do_normalize': True,
  'image_mean': 0.5,
  'image_std': 0.5,
  'do_center_crop': False,
  'do_flip_channel_order': False,
}
# Those of an image processor, or feature extractor, whose name begins so, where they are others.
_DEFAULTS_OF = {
  'Bit': {
    'image_mean': [0.48145466, 0.4578275, 0.40821073],
    'image_std': [0.26862954, 0.26130258, 0.27577711],
    'do_center_crop': True,
    'size': 224,
    'crop_size': 224,
  },
  'ConvNext': {'crop_pct': 224 / 256},
  'MobileViT': {'do_normalize': False, 'do_center_crop': True, 'do_flip_channel_order': True},
  'Vivit': {
    'rescale_factor': 1 / 127.5,
    'offset': True,
    'do_center_crop': True,
    'size': 256,
    'crop_size': 224,
  },
}
_MOST_CROPPED = 384  # pixels a side, from which on ConvNext's processor stretches whole images
# Fields of `Preprocessing` that their processors have no words for.
_VIEWS = ('frame_stride', 'temporal_views', 'spatial_crops')
_CROP_FRACTION = 224 / 256  # of a central crop that isn't said to have another


def holds(path: str) -> bool:
  """Whether it is a folder with config.json; a state dict is, too, and lacks that."""
  return state_dicts.holds(path) or hub.is_folder(path)


def read(path: str | os.PathLike) -> Source:
  """Returns what is in a folder, or under a name on the hub.

  Raises:
    UsageError: it can't be read.
  """
  return state_dicts.read(path)


def write(
  path: str | os.PathLike, tensors: files.Tensors, config: ModelConfig, table: Table
) -> None:
  """Writes a folder that transformers' from_pretrained loads.

  Where the config has `preprocess`, AutoImageProcessor.from_pretrained loads that. It has no words
  for a central crop that isn't square, nor for views: they stand in config.json, for `read` alone.
  """
  folder = Path(path)
  files.write(folder / 'model.safetensors', files.format_safetensors(tensors))
  their_config = table.their_config(config)
  if config.preprocess is not None:
    preprocessor = _their_preprocess(config)
    if preprocessor:
      files.write_json(folder / hub.PREPROCESSOR, preprocessor)
    if not preprocessor or any(getattr(config.preprocess, name) for name in _VIEWS):
      their_config[files.CONFIG_KEY] = {'preprocess': config.preprocess.to_dict()}
  files.write_json(folder / hub.CONFIG, their_config)


class HuggingFaceTable(Table):
  """A backbone in transformers.

  Attributes:
    model_type: of config.json.
    reads_bgr: whether the table reads models of images whose channels are in the order BGR, and
      makes them models of RGB.
  """

  format = 'huggingface'
  model_type: ClassVar[str]
  reads_bgr: ClassVar[bool] = False

  def owns_config(self, config: Mapping[str, Any]) -> bool:
    """Whether it is of this type of model."""
    return config.get('model_type') == self.model_type

  def known(self) -> Iterable[Known]:
    """Returns the type of model, which stands in config.json of all its weights."""
    return [Known(self.model_type, self.format)]

  def classifier_class(self, config: ModelConfig, path: object) -> str:
    """Returns the name of transformers' class that computes the model's logits.

    Raises:
      UsageError: none does.
    """
    raise NotImplementedError

  def read_config(self, source: Source) -> dict[str, Any]:
    """Returns what config.json and preprocessor_config.json state of images."""
    config = source.their_config
    if config is None:
      raise UsageError(
        f'{source.path}: a Hugging Face file; give its folder, which has config.json as well'
      )
    own = config.get(files.CONFIG_KEY, {})
    if not isinstance(own, dict):
      raise UsageError(f'{source.metadata_path}: {files.CONFIG_KEY} is {own!r}, not an object')
    if takes_bgr(source.metadata_path) and not self.reads_bgr:
      path = _processor_path(source.metadata_path)
      raise UsageError(f'{path}: do_flip_channel_order is not read for {self.title}')
    preprocess = _read_preprocess(source)
    ours = own.get('preprocess')
    if preprocess and ours:
      with errors_of_file(source.metadata_path):
        ours = Preprocessing.from_dict(ours)
        views = {name: getattr(ours, name) for name in _VIEWS}
        preprocess = dataclasses.replace(preprocess, **views)
    return {
      'preprocess': preprocess or ours,
      'image_size': pair(source, 'image_size', _read_size(source) or 224),
    }


def takes_bgr(config_path: os.PathLike) -> bool:
  """Whether preprocessor_config.json, beside config.json, puts channels into the order BGR."""
  return bool((_read_processor(config_path) or {}).get('do_flip_channel_order'))


def whole(source: Source, name: str, default: int) -> int:
  """Returns a number from 1 on in config.json.

  Raises:
    UsageError: it is something else.
  """
  value = source.their_config.get(name, default)
  if type(value) is not int or not 1 <= value < 2**31:
    raise UsageError(f'{source.metadata_path}: {name} is {value!r}')
  return value


def pair(source: Source, name: str, default: int | list[int]) -> tuple[int, int]:
  """Returns (height, width) in config.json, which may have one number for both.

  Raises:
    UsageError: it is something else.
  """
  value = source.their_config.get(name, default)
  sides = value if isinstance(value, list) else [value, value]
  if len(sides) != 2 or not all(type(side) is int and 1 <= side < 2**31 for side in sides):
    raise UsageError(f'{source.metadata_path}: {name} is {value!r}')
  return tuple(sides)


def choice(source: Source, name: str, default: str, allowed: Mapping[str, Any]) -> Any:
  """Returns what stands under a name in config.json, as it is called here.

  Args:
    source: with a config.json.
    name: in it.
    default: where it is left out.
    allowed: value there -> value here.

  Raises:
    UsageError: there is another value.
  """
  value = source.their_config.get(name, default)
  if not isinstance(value, str) or value not in allowed:
    names = ', '.join(allowed)
    raise UsageError(f'{source.metadata_path}: {name}: {value!r} is not one of {names}')
  return allowed[value]


def class_names(source: Source, num_classes: int) -> tuple[str, ...] | None:
  """Returns the names of classes in config.json; None where they are made up."""
  labels = source.their_config.get('id2label') or {}
  if not isinstance(labels, dict) or not all(key.isdecimal() for key in labels):
    raise UsageError(f'{source.metadata_path}: id2label is not a name for each number')
  labels = {int(label): str(name) for label, name in labels.items()}
  names = tuple(labels.get(label, f'LABEL_{label}') for label in range(num_classes))
  made_up = all(name == f'LABEL_{label}' for label, name in enumerate(names))
  return None if made_up else names


def labels(config: ModelConfig) -> dict[str, Any]:
  """Returns the fields of config.json with the names of classes."""
  names = config.class_names or [f'LABEL_{i}' for i in range(config.num_classes)]
  return {
    'id2label': {str(i): name for i, name in enumerate(names)},
    'label2id': {name: i for i, name in enumerate(names)},
  }


def shortest(size: tuple[int, int]) -> int | list[int]:
  """Returns (height, width) as config.json has it: one number where they are the same."""
  return size[0] if size[0] == size[1] else list(size)


def _processor_path(config_path: os.PathLike) -> Path:
  return Path(config_path).with_name(hub.PREPROCESSOR)


def _read_processor(config_path: os.PathLike) -> dict[str, Any] | None:
  """Returns preprocessor_config.json, if it is there, with the defaults of what it leaves out."""
  path = _processor_path(config_path)
  if not path.is_file():
    return None
  theirs = hub.read_json(path, "an image processor's config")
  kind = str(theirs.get('image_processor_type') or theirs.get('feature_extractor_type'))
  defaults = dict(_PROCESSOR_DEFAULTS)
  for name, others in _DEFAULTS_OF.items():
    if kind.startswith(name):
      defaults |= others
  return defaults | {name: v for name, v in theirs.items() if v is not None}


def _read_size(source: Source) -> int | list[int] | None:
  """Returns the side, or [height, width], of what the image processor makes, where it tells."""
  path = _processor_path(source.metadata_path)
  theirs = _read_processor(path) or {}
  crops = theirs.get('do_center_crop') and 'crop_size' in theirs
  name = 'crop_size' if crops else 'size'
  if isinstance(size := theirs.get(name), dict) and {'height', 'width'} <= size.keys():
    return [size['height'], size['width']]
  return _side(theirs, name, path)


def _read_preprocess(source: Source) -> Preprocessing | None:
  """Returns what preprocessor_config.json states, if it is there, in this project's terms."""
  path = _processor_path(source.metadata_path)
  theirs = _read_processor(path)
  if theirs is None:
    return None
  # They normalise pixels times the factor, here it is pixels / 255.
  scale = 255.0
  if theirs['do_rescale']:
    scale *= _numbers(theirs, 'rescale_factor', path)[0]
  if not scale:
    raise _unreadable('rescale_factor', theirs, path)
  mean, std = ([0.0], [1.0])
  if theirs['do_normalize']:
    mean, std = _numbers(theirs, 'image_mean', path), _numbers(theirs, 'image_std', path)
  # Processors of videos may subtract 1 before they normalise.
  offset = 1.0 if theirs['offset'] and theirs['do_rescale'] else 0.0
  preprocess = {
    'mean': tuple((value + offset) / scale for value in mean),
    'std': tuple(value / scale for value in std),
    'crop': 'resize',
  }
  size, crop_size = (_side(theirs, name, path) for name in ('size', 'crop_size'))
  fraction = crop_size / size if size and crop_size else None
  is_stretched = isinstance(theirs.get('size'), dict) and 'height' in theirs['size']
  # An image that is stretched to the size of the crop is whole.
  if theirs['do_center_crop'] and not (is_stretched and fraction == 1):
    preprocess |= {'crop': 'central', 'crop_fraction': fraction}
  elif 'crop_pct' in theirs and size and size < _MOST_CROPPED:
    preprocess |= {'crop': 'central', 'crop_fraction': theirs['crop_pct']}
  with errors_of_file(path):
    return Preprocessing(**preprocess)


def _numbers(theirs: Mapping[str, Any], name: str, path: Path) -> list[float]:
  value = theirs[name]
  numbers = value if isinstance(value, list) else [value]
  if not numbers or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
    raise _unreadable(name, theirs, path)
  return numbers


def _side(theirs: Mapping[str, Any], name: str, path: Path) -> int | None:
  value = theirs.get(name)
  if isinstance(value, dict):
    value = value.get('shortest_edge') or value.get('height')
  if value is not None and (type(value) is not int or value < 1):
    raise _unreadable(name, theirs, path)
  return value


def _unreadable(name: str, theirs: Mapping[str, Any], path: Path) -> UsageError:
  what = "an image processor's config"
  return UsageError(f'{path}: cannot be read as {what} ({name} is {theirs[name]!r})')


def _their_preprocess(config: ModelConfig) -> dict[str, Any] | None:
  """Returns preprocessor_config.json; None for a central crop that isn't square."""
  preprocess, (height, width) = config.preprocess, config.image_size
  size = {'height': height, 'width': width}
  crop = {'image_processor_type': 'ViTImageProcessor', 'size': size}
  if preprocess.crop == 'central':
    if height != width:
      return None
    fraction = preprocess.crop_fraction or _CROP_FRACTION
    # ViT's own processor, in older versions, doesn't crop.
    crop = {
      'image_processor_type': 'BitImageProcessor',
      'size': {'shortest_edge': math.floor(height / fraction + 1e-6)},  # as data.preprocess
      'do_center_crop': True,
      'crop_size': size,
    }
  mean, std = (
    list(values) * (config.channels if len(values) == 1 else 1)
    for values in (preprocess.mean, preprocess.std)
  )
  return {
    **crop,
    'do_resize': True,
    'resample': 3,  # Pillow's bicubic
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': mean,
    'image_std': std,
    'do_convert_rgb': config.channels == 3,
  }
