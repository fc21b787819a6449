"""MobileNetV3 in torchvision."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from vit_jax import models
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.models.mobilenet import STEM
from vit_jax.weights import files, rules
from vit_jax.weights.formats import torchvision
from vit_jax.weights.rules import CONV, DENSE, POINTWISE, Module
from vit_jax.weights.table import Source, Table, length_of, shape_of

_NAMES = ('mobilenet_v3_large', 'mobilenet_v3_small')


class TorchvisionMobileNet(Table):
  """torchvision/models/mobilenetv3.py, whose modules are numbered."""

  format, models, published = 'torchvision', _NAMES, _NAMES
  title = "torchvision's MobileNetV3"
  stated = ('width_multiplier', 'strides')
  marks: ClassVar = {
    'features.0.0.weight': 4,
    'features.1.block.0.0.weight': 4,
    'classifier.0.bias': 1,
  }

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    return rules.without_counters(tensors)

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    numbers = (re.match(r'features\.(\d+)\.', name) for name in tensors)
    count = len({match[1] for match in numbers if match}) - 2  # without the first and the last
    kinds = {len(models.backbone(name).blocks): name for name in _NAMES}
    if count not in kinds:
      raise UsageError(
        f'{source.path}: a MobileNetV3 of {count} blocks is none of {", ".join(_NAMES)}'
      )
    width = shape_of(tensors, 'classifier.0.bias', 1, source.path, self.title)[0]
    channels = tensors['features.0.0.weight'].shape[1]
    return {
      'name': kinds[count],
      'width_multiplier': width / models.backbone(kinds[count]).pre_logits,
      'num_classes': length_of(tensors, 'classifier.3.bias', source.path, self.title) or 0,
      'channels': channels,
      'image_size': torchvision.IMAGE_SIZE,
      'preprocess': torchvision.PREPROCESS if channels == 3 else None,
      **entries,
    }

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    model = config.backbone
    yield from _conv_norm('conv_stem', 'features.0')
    before = model.scale(STEM)
    for i, block in enumerate(model.scaled_blocks()):
      parts = ['depthwise', 'project']
      if block.expanded != before:
        parts.insert(0, 'expand')
      if block.squeezes:
        parts.insert(-1, 'squeeze_excite')
      for number, part in enumerate(parts):
        ours, theirs = f'block_{i}/{part}', f'features.{i + 1}.block.{number}'
        if part == 'squeeze_excite':
          for layer in ('fc1', 'fc2'):
            yield Module(f'{ours}/{layer}', f'{theirs}.{layer}', POINTWISE)
        else:
          yield from _conv_norm(ours, theirs)
      before = block.filters
    yield from _conv_norm('conv_last', f'features.{len(model.blocks) + 1}')
    yield Module('pre_logits', 'classifier.0', DENSE)
    yield Module('output_projection', 'classifier.3', DENSE)

  def check_place(self, config: ModelConfig, path: object) -> None:
    if config.backbone.strides is not None:
      raise UsageError(f'{path}: strides {config.backbone.strides} have no place there')

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    return rules.with_counters(tensors)


def _conv_norm(ours: str, theirs: str) -> Iterator[Module]:
  """Yields a convolution and its norm."""
  yield Module(f'{ours}/conv', f'{theirs}.0', CONV)
  yield from rules.batch_norm(f'{ours}/norm', f'{theirs}.1')


TABLES = (TorchvisionMobileNet(),)
