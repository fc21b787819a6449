"""BiT in big_transfer's .npz files, timm and Hugging Face's transformers.

A file has no place for the epsilon that is added to the variance of a filter; each library has its
own. Kernels that are s times as large compute the same with an epsilon that is s^2 times as large,
and that is how a model with another epsilon is written.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig, bit
from vit_jax.weights import files
from vit_jax.weights.formats import huggingface, timm
from vit_jax.weights.rules import CONV, DENSE, FLAX_DENSE, NORM, Module
from vit_jax.weights.table import Source, Table, length_of

_IMAGE_SIZE = (224, 224)  # of a model whose file says nothing
_TF_NORM = (('scale', 'gamma', None), ('bias', 'beta', None))


class _BiT(Table):
  """What the tables of all formats share.

  Attributes:
    epsilon: `weight_epsilon` of the library.
    root: the name of the first convolution's kernel.
    unit: a regular expression for the name of each unit's first kernel; its first group is the
      number of the stage.
    head: the name of the head's module; its bias is a vector.
  """

  models = ('bit',)
  epsilon: ClassVar[float]
  root: ClassVar[str]
  unit: ClassVar[str]
  head: ClassVar[str]

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    channels, filters = self.root_shape(tensors)
    bias = f'{self.head}{self.separator}bias'
    return {
      'name': 'bit',
      'depths': count_units(tensors, self.unit),
      'width_factor': filters / bit.ROOT_FILTERS,
      'weight_epsilon': self.epsilon,
      'num_classes': length_of(tensors, bias, source.path, self.title) or 0,
      'channels': channels,
      'image_size': _IMAGE_SIZE,
      **entries,
    }

  def root_shape(self, tensors: files.Tensors) -> tuple[int, int]:
    """Returns how many channels the first convolution takes, and how many filters it has."""
    filters, channels, _, _ = tensors[self.root].shape
    return channels, filters

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    epsilon = config.backbone.weight_epsilon
    if epsilon == self.epsilon:
      return tensors
    scale = math.sqrt(self.epsilon / epsilon)
    # The head, which isn't standardized, has two axes here.
    return {name: scale * t if t.ndim == 4 else t for name, t in tensors.items()}


def count_units(names: Iterable[str], unit: str) -> tuple[int, ...]:
  """Returns how many units each stage has.

  Args:
    names: of tensors.
    unit: as for `_BiT`.
  """
  stages = [int(match[1]) for name in names if (match := re.fullmatch(unit, name))]
  return tuple(stages.count(stage) for stage in sorted(set(stages)))


class BigTransfer(_BiT):
  """The published .npz files, whose names are those of TensorFlow."""

  format = 'augreg'
  title = "big_transfer's ResNet"
  separator = '/'
  epsilon = 1e-10
  root = 'resnet/root_block/standardized_conv2d/kernel'
  unit = r'resnet/block(\d+)/unit\d+/a/standardized_conv2d/kernel'
  head = 'resnet/head/conv2d'
  marks: ClassVar = {
    'resnet/root_block/standardized_conv2d/kernel': 4,
    'resnet/block1/unit01/a/standardized_conv2d/kernel': 4,
    'resnet/group_norm/gamma': 1,
  }

  def canonical(self, name: str) -> str:
    # Some files number these modules.
    return re.sub(r'/standardized_conv2d_\d+/', '/standardized_conv2d/', name)

  def root_shape(self, tensors: files.Tensors) -> tuple[int, int]:
    _, _, channels, filters = tensors[self.root].shape
    return channels, filters

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    kernel = tensors.get(f'{self.head}/kernel')
    if kernel is not None and kernel.shape[:-2] == (1, 1):
      tensors[f'{self.head}/kernel'] = kernel[0, 0]
    return tensors

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    conv, kernel = 'standardized_conv2d', FLAX_DENSE[:1]
    yield Module('root_block/conv_root', f'resnet/root_block/{conv}', kernel)
    for unit in _units(config):
      for i, letter in enumerate('abc', start=1):
        yield Module(f'{unit}/conv{i}', f'resnet/{unit}/{letter}/{conv}', kernel)
        yield Module(f'{unit}/gn{i}', f'resnet/{unit}/{letter}/group_norm', _TF_NORM)
      yield Module(f'{unit}/conv_proj', f'resnet/{unit}/a/proj/{conv}', kernel)
    yield Module('norm-pre-head', 'resnet/group_norm', _TF_NORM)
    yield Module('output_projection', self.head, FLAX_DENSE)

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    tensors, kernel = super().finish(tensors, config), f'{self.head}/kernel'
    return tensors | ({kernel: tensors[kernel][None, None]} if kernel in tensors else {})


def _units(config: ModelConfig) -> Iterable[str]:
  """Yields the names of the units here."""
  for stage, depth in enumerate(config.backbone.depths, start=1):
    for unit in range(1, depth + 1):
      yield f'block{stage}/unit{unit:02d}'


class _TorchBiT(_BiT):
  """timm's names, which transformers' follow.

  Attributes:
    stem: the first convolution's module.
    units: those of a unit, with places for the numbers of its stage and of itself.
  """

  epsilon = 1e-8
  stem: ClassVar[str]
  units: ClassVar[str]

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    yield Module('root_block/conv_root', self.stem, CONV[:1])
    for unit in _units(config):
      stage, number = (int(n) - 1 for n in re.findall(r'\d+', unit))
      theirs = self.units.format(stage, number)
      for i in (1, 2, 3):
        yield Module(f'{unit}/conv{i}', f'{theirs}.conv{i}', CONV[:1])
        yield Module(f'{unit}/gn{i}', f'{theirs}.norm{i}', NORM)
      yield Module(f'{unit}/conv_proj', f'{theirs}.downsample.conv', CONV[:1])
    yield Module('norm-pre-head', 'norm', NORM)
    yield Module('output_projection', self.head, DENSE)


class TimmBiT(_TorchBiT, timm.TimmTable):
  """timm's ResNetV2 of BiT, resnetv2_50x1_bit to resnetv2_152x4_bit; its head is a convolution."""

  title = "timm's ResNetV2 of BiT"
  published = ('resnetv2_*_bit',)
  stem, root = 'stem.conv', 'stem.conv.weight'
  units, unit = 'stages.{}.blocks.{}', r'stages\.(\d+)\.blocks\.\d+\.conv1\.weight'
  head = 'head.fc'
  marks: ClassVar = {
    'stem.conv.weight': 4,
    'stages.0.blocks.0.norm1.weight': 1,
    'stages.0.blocks.0.downsample.conv.weight': 4,
    'norm.weight': 1,
  }

  def read_config(self, source: Source) -> dict[str, Any]:
    entries = super().read_config(source)
    if (config := source.their_config) is None:
      return entries
    if not re.match(r'resnetv2_\d+x\d+_bit', str(config.get('architecture'))):
      raise UsageError(
        f'{source.metadata_path}: architecture {config.get("architecture")!r} is not read, '
        'resnetv2_50x1_bit and so on are'
      )
    read = {'img_size', 'in_chans', 'num_classes', 'global_pool'}
    timm.refuse_args(source, timm.model_args(source).keys() - read)
    timm.check_average(source)
    return entries

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    kernel = tensors.get('head.fc.weight')
    if kernel is not None and kernel.shape[2:] == (1, 1):
      tensors['head.fc.weight'] = kernel[:, :, 0, 0]
    return tensors

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    tensors, kernel = super().finish(tensors, config), 'head.fc.weight'
    return tensors | ({kernel: tensors[kernel][:, :, None, None]} if kernel in tensors else {})


# The values of BitConfig that alone are read, and are written. It has no fields for epsilons.
_FIXED = {
  'layer_type': 'preactivation',
  'hidden_act': 'relu',
  'global_padding': None,
  'embedding_dynamic_padding': False,
  'num_groups': bit.NUM_GROUPS,
  'width_factor': 1,  # of which transformers' last norm and head know nothing
}


class HuggingFaceBiT(_TorchBiT, huggingface.HuggingFaceTable):
  """models/bit of transformers: BitForImageClassification and BitModel."""

  model_type = 'bit'
  title = 'a Hugging Face BiT'
  stem, root = 'embedder.convolution', 'embedder.convolution.weight'
  units, unit = 'encoder.stages.{}.layers.{}', r'encoder\.stages\.(\d+)\.layers\.\d+\.conv1\.weight'
  head = 'classifier.1'
  marks: ClassVar = {
    'embedder.convolution.weight': 4,
    'encoder.stages.0.layers.0.norm1.weight': 1,
    'encoder.stages.0.layers.0.downsample.conv.weight': 4,
    'norm.weight': 1,
  }

  def canonical(self, name: str) -> str:
    return name.removeprefix('bit.')

  def read_config(self, source: Source) -> dict[str, Any]:
    entries, config = super().read_config(source), source.their_config
    for name, value in _FIXED.items():
      if (theirs := config.get(name, value)) != value:
        raise UsageError(f'{source.metadata_path}: {name} {theirs!r} is not read, {value!r} is')
    return entries

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    described, config = super().describe(tensors, entries, source), source.their_config
    sizes = _sizes(described['depths'], described['width_factor'])
    sizes |= {'num_channels': described['channels']}
    for name, value in sizes.items():
      if (theirs := config.get(name, _DEFAULT_SIZES[name])) != value:
        raise UsageError(
          f'{source.metadata_path}: {name} is {theirs!r}, but of the tensors {value!r}'
        )
    last = 4 * 2 ** (len(sizes['depths']) - 1)
    stride = config.get('output_stride', 32)
    if type(stride) is not int or stride < last:
      raise UsageError(f'{source.metadata_path}: output_stride {stride!r} is not read, {last} is')
    names = huggingface.class_names(source, described['num_classes'])
    return {'class_names': names, **described}

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    tensors = super().finish(tensors, config)
    if not config.num_classes:
      return tensors
    return {n if n.startswith(self.head) else f'bit.{n}': t for n, t in tensors.items()}

  def classifier_class(self, config: ModelConfig, path: object) -> str:
    return 'BitForImageClassification'

  def their_config(self, config: ModelConfig) -> dict[str, Any]:
    model = config.backbone
    sizes = _sizes(model.depths, model.width_factor)
    size = {} if config.image_size is None else {'image_size': list(config.image_size)}
    return {
      'architectures': ['BitForImageClassification' if config.num_classes else 'BitModel'],
      'model_type': 'bit',
      'num_channels': config.channels,
      **sizes,
      **_FIXED,
      'output_stride': 4 * 2 ** (len(model.depths) - 1),
      'drop_path_rate': 0.0,
      'torch_dtype': 'float32',
      **size,
      **huggingface.labels(config),
    }


def _sizes(depths: Collection[int], width_factor: float) -> dict[str, Any]:
  """Returns the fields of BitConfig that the tensors tell."""
  filters = int(bit.ROOT_FILTERS * width_factor)
  return {
    'embedding_size': filters,
    'hidden_sizes': [4 * filters * 2**i for i in range(len(depths))],
    'depths': list(depths),
  }


_DEFAULT_SIZES = {'num_channels': 3, **_sizes((3, 4, 6, 3), 1)}  # BitConfig's


TABLES = (BigTransfer(), TimmBiT(), HuggingFaceBiT())
