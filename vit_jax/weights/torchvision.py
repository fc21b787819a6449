"""torchvision's ResNet-18 and -34: state dicts, .pth or .safetensors, timm's of these models too.

github.com/pytorch/vision, torchvision/models/resnet.py. A state dict doesn't say how large images
are and what is done to them: it is taken to be as in torchvision's ImageNet evaluation. What is
otherwise, and class names, `save` puts into the file's metadata, where PyTorch doesn't look.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UsageError
from vit_jax.models import MODELS
from vit_jax.models.resnet import ResNet
from vit_jax.weights import files, model_config, table
from vit_jax.weights.table import CONV, DENSE, NORM, STATISTICS, Module

_MARK = 'layer1.0.bn1.running_mean'  # the name of a tensor that these files have, and ViTs' haven't
_HEAD = 2**16  # bytes, of all three kinds of state dicts, that hold the names of their tensors

_DEPTHS = {kind.stage_sizes: name for name, kind in MODELS.items() if issubclass(kind, ResNet)}
_IMAGENET = {
  'mean': (0.485, 0.456, 0.406),
  'std': (0.229, 0.224, 0.225),
  'crop': 'central',
  'crop_fraction': 0.875,
}
_COUNTER = 'num_batches_tracked'  # of steps; PyTorch reads it where momentum is None alone


def _norm(ours: str, theirs: str) -> tuple[Module, Module]:
  return Module(ours, theirs, NORM), Module(f'batch_stats/{ours}', theirs, STATISTICS)


def _stage(ours: str, theirs: str) -> tuple[Module, ...]:
  return (
    Module(f'{ours}/conv1', f'{theirs}.conv1', CONV),
    *_norm(f'{ours}/bn1', f'{theirs}.bn1'),
    Module(f'{ours}/conv2', f'{theirs}.conv2', CONV),
    *_norm(f'{ours}/bn2', f'{theirs}.bn2'),
    Module(f'{ours}/downsample_conv', f'{theirs}.downsample.0', CONV),
    *_norm(f'{ours}/downsample_bn', f'{theirs}.downsample.1'),
  )


_TABLE = (
  Module('conv1', 'conv1', CONV),
  *_norm('bn1', 'bn1'),
  *(line for i in range(1, 5) for line in _stage(f'layer{i}_{{}}', f'layer{i}.{{}}')),
  Module('output_projection', 'fc', DENSE),
)
# Of every stage as many blocks as the longest has; what a model lacks doesn't count.
_RULES = table.expand(_TABLE, num_layers=max(map(max, _DEPTHS)))

SUFFIXES = files.STATE_DICTS


def looks_like(path: str) -> bool:
  """Whether it is a state dict whose beginning names a tensor of ResNets."""
  return files.has_suffix(path, SUFFIXES) and _MARK.encode() in files.read(path, _HEAD)


def load(
  path: str | os.PathLike, *, allow: str | None = None, **known: Any
) -> tuple[table.Params, dict[str, Any]]:
  """Returns (params, model config) of a state dict; running statistics are under 'batch_stats'.

  Args:
    path: .safetensors or, PyTorch being installed, .pth; local, gs:// or https://.
    allow: as for `augreg.load`.
    **known: `image_size`, where the file doesn't say it, in place of 224x224.

  Raises:
    UsageError: the file can't be read, isn't such a ResNet, tensors don't fit, or `known` has
      something else.
  """
  for name in sorted(known.keys() - {'image_size'}):
    raise UsageError(f'--{name}: {known[name]!r}, but {path} is a ResNet, which has no such option')
  tensors, text = files.read_state_dict(path)
  tensors = {name: t for name, t in tensors.items() if not name.endswith(f'.{_COUNTER}')}
  anchors = ('conv1.weight', 'layer1.0.conv2.weight', _MARK)
  model_config.require(tensors, anchors, path, "torchvision's ResNet")
  with files.reading(path, 'a file with a model config'):
    stated = model_config.from_json(text, path, _DEPTHS.values()) if text else {}
  with files.reading(path, 'a ResNet'):
    config = _describe(tensors, model_config.combine(stated, known, path), path)
  return table.to_ours(tensors, _RULES, config, path, allow), config


def save(
  params: table.Params,
  config: Mapping[str, Any],
  path: str | os.PathLike,
  *,
  allow: str | None = None,
) -> None:
  """Writes a state dict, .safetensors or .pth, which torchvision's model takes as it is.

  Raises:
    UsageError: the model is none of these ResNets, or parameters without a place there aren't
      matched by `allow`.
  """
  if 'head' in config:
    raise UsageError(f'{path}: a model for {config["head"]["name"]} has no place there')
  names = list(_DEPTHS.values())
  if config['name'] not in names:
    raise UsageError(
      f'{path}: a model {config["name"]!r} has no place there; {" and ".join(names)} have'
    )
  tensors = table.to_theirs(params, _RULES, config, path, allow)
  norms = [name.removesuffix('.running_mean') for name in tensors if name.endswith('.running_mean')]
  tensors |= {f'{norm}.{_COUNTER}': np.array(0) for norm in norms}
  metadata = {files.CONFIG_KEY: model_config.to_json(config)}
  if files.is_safetensors(path):
    files.write(path, files.format_safetensors(tensors, **metadata))
  else:
    files.write(path, files.format_torch(tensors, path, **metadata))


def _describe(tensors: files.Tensors, known: Mapping[str, Any], path: object) -> dict[str, Any]:
  """Returns the model config; see `model_config`."""
  blocks = tuple(model_config.count_layers(tensors, rf'layer{i}\.(\d+)\.') for i in range(1, 5))
  if blocks not in _DEPTHS or 'layer1.0.conv3.weight' in tensors:
    kind = 'bottleneck' if 'layer1.0.conv3.weight' in tensors else 'basic'
    raise UsageError(
      f'{path}: a ResNet of {"-".join(map(str, blocks))} {kind} blocks is none of '
      f'{", ".join(_DEPTHS.values())}'
    )
  num_filters, channels, _, _ = tensors['conv1.weight'].shape
  config = {
    'name': _DEPTHS[blocks],
    'num_filters': num_filters,
    'num_classes': len(tensors['fc.bias']) if 'fc.bias' in tensors else 0,
    'channels': channels,
    'image_size': (224, 224),
    'class_names': None,
    'preprocess': _IMAGENET if channels == 3 else None,
    **known,
  }
  model_config.check_said(config, path)
  return config
