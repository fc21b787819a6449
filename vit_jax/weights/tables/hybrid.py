"""The hybrid of ResNet and ViT in Google's .npz files, scenic and timm: what ViT's tables lack."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig, bit
from vit_jax.models.hybrid import HybridViT
from vit_jax.weights import files
from vit_jax.weights.architectures import Architecture
from vit_jax.weights.formats import timm
from vit_jax.weights.rules import CONV, FLAX_DENSE, FLAX_NORM, NORM, Module
from vit_jax.weights.table import Source
from vit_jax.weights.tables.bit import count_units
from vit_jax.weights.tables.timm_vit import TimmViT, is_hybrid
from vit_jax.weights.tables.vit import AugregViT, ScenicViT


class _Hybrid:
  """What the tables of all formats add to a ViT's, which they also derive from.

  Attributes:
    numerics: whose small numbers models in this format are computed with.
    unit: a regular expression for the name of each unit's first kernel; its first group is the
      number of the stage.
  """

  models = ('hybrid',)
  numerics: ClassVar[str]
  unit = r'block(\d+)/unit\d+/conv1/kernel'

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    described = super().describe(tensors, entries, source)
    channels, filters = self.root_shape(tensors)
    num_layers = count_units(tensors, self.unit)
    described |= {
      'name': 'hybrid',
      'channels': channels,
      'resnet': {'num_layers': num_layers, 'width_factor': filters / bit.ROOT_FILTERS},
      'numerics': self.numerics,
    }
    if entries.get('image_size') is None and 'image_size' in described:
      pixels = HybridViT.reduction_of(num_layers)
      described['image_size'] = tuple(side * pixels for side in described['image_size'])
    return described

  def root_shape(self, tensors: files.Tensors) -> tuple[int, int]:
    """Returns how many channels the first convolution takes, and how many filters it has."""
    _, _, channels, filters = tensors['conv_root/kernel'].shape
    return channels, filters

  def check_place(self, config: ModelConfig, path: object) -> None:
    super().check_place(config, path)
    if (numerics := config.backbone.numerics) != self.numerics:
      raise UsageError(
        f'{path}: numerics {numerics!r} have no place there; what reads it has {self.numerics!r}'
      )


def _units(config: ModelConfig) -> Iterator[tuple[int, int]]:
  """Yields (stage, unit) of all units, from 1."""
  for stage, depth in enumerate(config.backbone.resnet['num_layers'], start=1):
    for unit in range(1, depth + 1):
      yield stage, unit


class AugregHybrid(_Hybrid, AugregViT):
  """The published files of vision_transformer, in the oldest of which norms have four axes."""

  title = 'a hybrid ViT'
  numerics = 'vision_transformer'
  marks: ClassVar = {**AugregViT.marks, 'conv_root/kernel': 4}

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    for name, array in tensors.items():
      if re.search(r'(^|/)gn(\d+|_root|_proj)/', name) and array.shape[:-1] == (1, 1, 1):
        tensors[name] = array[0, 0, 0]
    return super().tidy(tensors, entries, source)

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    yield from super().modules(config, names)
    parts = [('', '_root')]
    for stage, unit in _units(config):
      parts += [(f'block{stage}/unit{unit}/', part) for part in ('1', '2', '3', '_proj')]
    for unit, part in parts:
      yield Module(f'{unit}conv{part}', f'{unit}conv{part}', FLAX_DENSE[:1])
      yield Module(f'{unit}gn{part}', f'{unit}gn{part}', FLAX_NORM)


class ScenicHybrid(_Hybrid, ScenicViT):
  """scenic's HybridViT, whose names are those here."""

  title = "scenic's HybridViT"
  numerics = 'scenic'
  marks: ClassVar = {**ScenicViT.marks, 'conv_root/kernel': 4}


_RESNET = 'patch_embed.backbone'


class TimmHybrid(_Hybrid, TimmViT):
  """timm's VisionTransformer on a ResNetV2, vit_base_r50_s16_224 and so on.

  One without stages, vit_tiny_r_s16_p8_224, has no `stem` in its names.
  """

  title = "timm's hybrid VisionTransformer"
  foreign = timm.TimmTable.foreign
  first_conv = None  # its name differs
  numerics = 'timm'
  unit = re.escape(_RESNET) + r'\.stages\.(\d+)\.blocks\.\d+\.conv1\.weight'
  marks: ClassVar = {
    **TimmViT.marks,
    f'{_RESNET}.stem.conv.weight': 4,
    f'{_RESNET}.stem.norm.weight': 1,
  }

  def canonical(self, name: str) -> str:
    return re.sub(rf'^{re.escape(_RESNET)}\.(conv|norm)\.', rf'{_RESNET}.stem.\1.', name)

  def has(self, architecture: Architecture) -> bool:
    return is_hybrid(architecture)

  def read_config(self, source: Source) -> dict[str, Any]:
    if not timm.model_args(source).get('padding_same', True):
      raise UsageError(f'{source.metadata_path}: model_args padding_same=False is not read')
    return super().read_config(source)

  def creation(self, config: ModelConfig, path: object) -> tuple[str, dict[str, Any]]:
    if (factor := config.backbone.resnet['width_factor']) != 1:
      raise UsageError(f'{path}: resnet.width_factor {factor} is not 1 there')
    return super().creation(config, path)

  def root_shape(self, tensors: files.Tensors) -> tuple[int, int]:
    filters, channels, _, _ = tensors[f'{_RESNET}.stem.conv.weight'].shape
    return channels, filters

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    yield from super().modules(config, names)
    yield Module('conv_root', f'{_RESNET}.stem.conv', CONV[:1])
    yield Module('gn_root', f'{_RESNET}.stem.norm', NORM)
    for stage, unit in _units(config):
      ours, theirs = f'block{stage}/unit{unit}', f'{_RESNET}.stages.{stage - 1}.blocks.{unit - 1}'
      for i in (1, 2, 3):
        yield Module(f'{ours}/conv{i}', f'{theirs}.conv{i}', CONV[:1])
        yield Module(f'{ours}/gn{i}', f'{theirs}.norm{i}', NORM)
      yield Module(f'{ours}/conv_proj', f'{theirs}.downsample.conv', CONV[:1])
      yield Module(f'{ours}/gn_proj', f'{theirs}.downsample.norm', NORM)

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    if config.backbone.resnet['num_layers']:
      return tensors
    stem = f'{_RESNET}.stem.'
    return {name.replace(stem, f'{_RESNET}.'): array for name, array in tensors.items()}


TABLES = (AugregHybrid(), ScenicHybrid(), TimmHybrid())
