"""ResNets in torchvision, in timm, which has torchvision's names, and in transformers."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from vit_jax import models
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.weights import files, rules
from vit_jax.weights.formats import huggingface, timm, torchvision
from vit_jax.weights.rules import CONV, DENSE, Module, batch_norm
from vit_jax.weights.table import Source, Table, length_of

_NAMES = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152')
_STAGES = 4


class _ResNet(Table):
  """What the tables of all formats share.

  A subclass names the modules there: (convolution, norm) of the stem, of the units in a block and
  of its shortcut, and the classifier.
  """

  models = _NAMES
  stem: ClassVar[tuple[str, str]]
  shortcut: ClassVar[tuple[str, str]]
  head: ClassVar[str]

  def block(self, stage: int, number: int) -> str:
    """Returns the name of a block; both count from 0."""
    raise NotImplementedError

  def unit(self, number: int) -> tuple[str, str]:
    """Returns the names of a convolution and its norm within a block, counted from 0."""
    raise NotImplementedError

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    return rules.without_counters(tensors)

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    depths = tuple(self.count_blocks(tensors, stage) for stage in range(_STAGES))
    bottleneck = f'{self.block(0, 0)}.{self.unit(2)[0]}.weight' in tensors
    kinds = {name: models.backbone(name) for name in _NAMES}
    known = {(kind.stage_sizes, kind.bottleneck): name for name, kind in kinds.items()}
    if (depths, bottleneck) not in known:
      kind = 'bottleneck' if bottleneck else 'basic'
      raise UsageError(
        f'{source.path}: a ResNet of {"-".join(map(str, depths))} {kind} blocks is none of '
        f'{", ".join(_NAMES)}'
      )
    num_filters, channels, _, _ = tensors[f'{self.stem[0]}.weight'].shape
    return {
      'name': known[depths, bottleneck],
      'num_filters': num_filters,
      'num_classes': length_of(tensors, f'{self.head}.bias', source.path, self.title) or 0,
      'channels': channels,
      **entries,
    }

  def count_blocks(self, names: Iterable[str], stage: int) -> int:
    """Returns the number of blocks of a stage."""
    pattern = re.compile(re.escape(self.block(stage, 0)).removesuffix('0') + r'(\d+)\.')
    return len({match[1] for name in names if (match := pattern.match(name))})

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    model = config.backbone
    yield from _conv_norm('conv1', 'bn1', self.stem)
    for stage, num_blocks in enumerate(model.stage_sizes):
      for number in range(num_blocks):
        ours, theirs = f'layer{stage + 1}_{number}', self.block(stage, number)
        for i in range(3 if model.bottleneck else 2):
          unit = (f'{theirs}.{name}' for name in self.unit(i))
          yield from _conv_norm(f'{ours}/conv{i + 1}', f'{ours}/bn{i + 1}', unit)
        shortcut = (f'{theirs}.{name}' for name in self.shortcut)
        yield from _conv_norm(f'{ours}/downsample_conv', f'{ours}/downsample_bn', shortcut)
    yield Module('output_projection', self.head, DENSE)

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    return rules.with_counters(tensors)


def _conv_norm(conv: str, norm: str, theirs: Iterable[str]) -> Iterator[Module]:
  """Yields a convolution and the norm after it, whose names there are given in this order."""
  their_conv, their_norm = theirs
  yield Module(conv, their_conv, CONV)
  yield from batch_norm(norm, their_norm)


class TorchvisionResNet(_ResNet):
  """torchvision/models/resnet.py; running statistics are parameters' neighbours there."""

  format, published = 'torchvision', _NAMES
  title = "torchvision's ResNet"
  marks: ClassVar = {'conv1.weight': 4, 'layer1.0.conv2.weight': 4, 'layer1.0.bn1.running_mean': 1}
  stem, shortcut, head = ('conv1', 'bn1'), ('downsample.0', 'downsample.1'), 'fc'

  def block(self, stage: int, number: int) -> str:
    return f'layer{stage + 1}.{number}'

  def unit(self, number: int) -> tuple[str, str]:
    return f'conv{number + 1}', f'bn{number + 1}'

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    config = super().describe(tensors, entries, source)
    preprocess = torchvision.PREPROCESS if config['channels'] == 3 else None
    return {'image_size': torchvision.IMAGE_SIZE, 'preprocess': preprocess, **config}


class TimmResNet(timm.TimmTable, TorchvisionResNet):
  """timm's ResNet: the tensors of torchvision's, and a config.json.

  Other models have these tensors as well (resnetblur50, which filters before it takes every second
  value), so that the name in config.json decides.
  """

  format = 'timm'
  title = "timm's ResNet"
  yields = True

  def read_config(self, source: Source) -> dict[str, Any]:
    timm.check_architecture(source, _NAMES)
    return super().read_config(source)

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    return _ResNet.describe(self, tensors, entries, source)

  def creation(self, config: ModelConfig, path: object) -> tuple[str, dict[str, Any]]:
    if config.backbone.num_filters != 64:
      raise UsageError(f'{path}: num_filters {config.backbone.num_filters} is not 64 there')
    return config.name, {'in_chans': config.channels, 'num_classes': config.num_classes}


class HuggingFaceResNet(_ResNet, huggingface.HuggingFaceTable):
  """models/resnet of transformers: ResNetForImageClassification and ResNetModel."""

  model_type = 'resnet'
  title = 'a Hugging Face ResNet'
  marks: ClassVar = {
    'embedder.embedder.convolution.weight': 4,
    'encoder.stages.0.layers.0.layer.1.convolution.weight': 4,
  }
  stem = ('embedder.embedder.convolution', 'embedder.embedder.normalization')
  shortcut = ('shortcut.convolution', 'shortcut.normalization')
  head = 'classifier.1'

  def canonical(self, name: str) -> str:
    return name.removeprefix('resnet.')

  def block(self, stage: int, number: int) -> str:
    return f'encoder.stages.{stage}.layers.{number}'

  def unit(self, number: int) -> tuple[str, str]:
    return f'layer.{number}.convolution', f'layer.{number}.normalization'

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    config = super().describe(tensors, entries, source)
    names = huggingface.class_names(source, config['num_classes'])
    kind = models.backbone(config['name'])
    expected = {'num_channels': config['channels'], **_their_sizes(kind, config['num_filters'])}
    expected |= {'hidden_act': 'relu', **_FIXED}
    for name, value in expected.items():
      theirs = source.their_config.get(name, _DEFAULTS.get(name, value))
      if theirs != value:
        raise UsageError(f'{source.metadata_path}: {name} is {theirs!r}, where {value!r} is read')
    return {'class_names': names, **config}

  def check_place(self, config: ModelConfig, path: object) -> None:
    if config.image_size is None:
      raise UsageError(f'{path}: image_size is needed there')

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    tensors = super().finish(tensors, config)
    if not config.num_classes:
      return tensors
    return {n if n.startswith(self.head) else f'resnet.{n}': t for n, t in tensors.items()}

  def classifier_class(self, config: ModelConfig, path: object) -> str:
    return 'ResNetForImageClassification'

  def their_config(self, config: ModelConfig) -> dict[str, Any]:
    kind = 'ForImageClassification' if config.num_classes else 'Model'
    return {
      'architectures': [f'ResNet{kind}'],
      'model_type': self.model_type,
      'image_size': huggingface.shortest(config.image_size),
      'num_channels': config.channels,
      **_their_sizes(config.backbone, config.backbone.num_filters),
      'hidden_act': 'relu',
      **_FIXED,
      'torch_dtype': 'float32',
      **huggingface.labels(config),
    }


# The stride is that of the 3x3 convolution, and the first stage has none.
_FIXED = {'downsample_in_first_stage': False, 'downsample_in_bottleneck': False}
_DEFAULTS = {
  'num_channels': 3,
  'embedding_size': 64,
  'hidden_sizes': [256, 512, 1024, 2048],
  'depths': [3, 4, 6, 3],
  'layer_type': 'bottleneck',
}


def _their_sizes(kind: Any, num_filters: int) -> dict[str, Any]:
  """Returns the fields of config.json with the sizes of a model, or of a class of models."""
  first = num_filters * (4 if kind.bottleneck else 1)
  return {
    'embedding_size': num_filters,
    'hidden_sizes': [first * 2**stage for stage in range(_STAGES)],
    'depths': list(kind.stage_sizes),
    'layer_type': 'bottleneck' if kind.bottleneck else 'basic',
  }


TABLES = (TorchvisionResNet(), TimmResNet(), HuggingFaceResNet())
