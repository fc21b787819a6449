"""ResNet-18 and -34 in torchvision, whose names timm has for these models, too."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from vit_jax import models
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.weights import files
from vit_jax.weights.formats import torchvision
from vit_jax.weights.rules import CONV, DENSE, Module, batch_norm
from vit_jax.weights.table import Source, Table, length_of

_NAMES = ('resnet18', 'resnet34')
_COUNTER = '.num_batches_tracked'  # of steps; PyTorch reads it where momentum is None alone


class TorchvisionResNet(Table):
  """torchvision/models/resnet.py; running statistics are parameters' neighbours there."""

  format = 'torchvision'
  models = _NAMES
  title = "torchvision's ResNet"
  marks: ClassVar = {'conv1.weight': 4, 'layer1.0.conv2.weight': 4, 'layer1.0.bn1.running_mean': 1}

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    return {name: array for name, array in tensors.items() if not name.endswith(_COUNTER)}

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    blocks = tuple(_count_blocks(tensors, stage) for stage in range(1, 5))
    kind = 'bottleneck' if 'layer1.0.conv3.weight' in tensors else 'basic'
    depths = {models.backbone(name).stage_sizes: name for name in _NAMES}
    if blocks not in depths or kind != 'basic':
      raise UsageError(
        f'{source.path}: a ResNet of {"-".join(map(str, blocks))} {kind} blocks is none of '
        f'{", ".join(_NAMES)}'
      )
    num_filters, channels, _, _ = tensors['conv1.weight'].shape
    return {
      'name': depths[blocks],
      'num_filters': num_filters,
      'num_classes': length_of(tensors, 'fc.bias', source.path, self.title) or 0,
      'channels': channels,
      'image_size': torchvision.IMAGE_SIZE,
      'preprocess': torchvision.PREPROCESS if channels == 3 else None,
      **entries,
    }

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    yield Module('conv1', 'conv1', CONV)
    yield from batch_norm('bn1', 'bn1')
    for stage, num_blocks in enumerate(config.backbone.stage_sizes, start=1):
      for block in range(num_blocks):
        ours, theirs = f'layer{stage}_{block}', f'layer{stage}.{block}'
        for i in (1, 2):
          yield Module(f'{ours}/conv{i}', f'{theirs}.conv{i}', CONV)
          yield from batch_norm(f'{ours}/bn{i}', f'{theirs}.bn{i}')
        yield Module(f'{ours}/downsample_conv', f'{theirs}.downsample.0', CONV)
        yield from batch_norm(f'{ours}/downsample_bn', f'{theirs}.downsample.1')
    yield Module('output_projection', 'fc', DENSE)

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    mean = '.running_mean'
    norms = [name.removesuffix(mean) for name in tensors if name.endswith(mean)]
    return tensors | {f'{norm}{_COUNTER}': np.array(0) for norm in norms}


def _count_blocks(names: Iterable[str], stage: int) -> int:
  pattern = re.compile(rf'layer{stage}\.(\d+)\.')
  return len({match[1] for name in names if (match := pattern.match(name))})


TABLES = (TorchvisionResNet(),)
