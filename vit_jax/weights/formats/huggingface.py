"""Hugging Face's transformers: folders of config.json and weights, and names on the hub.

github.com/huggingface/transformers. Weights are model.safetensors or, PyTorch being installed,
pytorch_model.bin, whole or in shards; a name on the hub, `google/vit-base-patch16-224`, with or
without `hf:` in front, is downloaded once into Hugging Face's cache. preprocessor_config.json is
read where there is one; see `image_processors`.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.weights import files, hub, state_dicts, table
from vit_jax.weights.formats import image_processors
from vit_jax.weights.table import Known, Source, Table, with_own_words

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

  Where the config has `preprocess`, AutoImageProcessor.from_pretrained loads that. What it has no
  words for stands in config.json, for `read` alone: some crops, corners that aren't rounded down,
  and views.
  """
  folder = Path(path)
  files.write(folder / 'model.safetensors', files.format_safetensors(tensors))
  their_config = table.their_config(config)
  if (ours := config.preprocess) is not None:
    processor = image_processors.written(ours, config.image_size, config.channels)
    if processor:
      files.write_json(folder / hub.PREPROCESSOR, processor)
    if not processor or with_own_words(ours, {}, folder) != ours:
      their_config[files.CONFIG_KEY] = {'preprocess': ours.to_dict()}
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
    preprocess, size = own.get('preprocess'), None
    processor = image_processors.read(source.metadata_path, config.get('model_type'))
    if processor is not None:
      path = image_processors.path_of(source.metadata_path)
      if processor['do_flip_channel_order'] and not self.reads_bgr:
        raise UsageError(f'{path}: do_flip_channel_order is not read for {self.title}')
      theirs, size = image_processors.preprocessing(processor, path)
      preprocess = with_own_words(theirs, preprocess, source.metadata_path)
    size = pair(source, 'image_size', list(size or (224, 224)))
    return {'preprocess': preprocess, 'image_size': size}


def takes_bgr(config_path: os.PathLike) -> bool:
  """Whether preprocessor_config.json, beside config.json, puts channels into the order BGR."""
  model_type = hub.read_json(Path(config_path), "a model's config.json").get('model_type')
  processor = image_processors.read(config_path, model_type)
  return processor is not None and bool(processor['do_flip_channel_order'])


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
  return table.choice(source, name, source.their_config.get(name, default), allowed)


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
