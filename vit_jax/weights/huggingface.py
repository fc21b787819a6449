"""Hugging Face ViTs: folders of config.json and weights, and names on the hub.

github.com/huggingface/transformers, models/vit: ViTForImageClassification, whose head reads the
class token, and ViTModel, whose pooler, if it has one, is `pre_logits` here.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.errors import UsageError, check_choice
from vit_jax.weights import files, hub, model_config, table
from vit_jax.weights.table import CONV, DENSE, FROM_HEADS, NORM, TO_HEADS, Module, tensor

_OURS = 'Transformer/encoderblock_{}'
_THEIRS = 'encoder.layer.{}'
_ATTENTION = f'{_OURS}/MultiHeadDotProductAttention_0'

_TABLE = (
  tensor('cls', 'embeddings.cls_token'),
  tensor(model_config.POSITIONS, 'embeddings.position_embeddings'),
  Module('embedding', 'embeddings.patch_embeddings.projection', CONV),
  Module(f'{_OURS}/LayerNorm_0', f'{_THEIRS}.layernorm_before', NORM),
  Module(f'{_ATTENTION}/query', f'{_THEIRS}.attention.attention.query', TO_HEADS),
  Module(f'{_ATTENTION}/key', f'{_THEIRS}.attention.attention.key', TO_HEADS),
  Module(f'{_ATTENTION}/value', f'{_THEIRS}.attention.attention.value', TO_HEADS),
  Module(f'{_ATTENTION}/out', f'{_THEIRS}.attention.output.dense', FROM_HEADS),
  Module(f'{_OURS}/LayerNorm_1', f'{_THEIRS}.layernorm_after', NORM),
  Module(f'{_OURS}/MlpBlock_0/Dense_0', f'{_THEIRS}.intermediate.dense', DENSE),
  Module(f'{_OURS}/MlpBlock_0/Dense_1', f'{_THEIRS}.output.dense', DENSE),
  Module('Transformer/encoder_norm', 'layernorm', NORM),
  Module('pre_logits', 'pooler.dense', DENSE),
  Module('output_projection', 'classifier', DENSE),
)

# The names inside transformers 5, which its files don't have unless saved as they are.
_NEW_NAMES = (
  (r'^layers\.', 'encoder.layer.'),
  (r'attention\.q_proj', 'attention.attention.query'),
  (r'attention\.k_proj', 'attention.attention.key'),
  (r'attention\.v_proj', 'attention.attention.value'),
  (r'attention\.o_proj', 'attention.output.dense'),
  (r'mlp\.fc1', 'intermediate.dense'),
  (r'mlp\.fc2', 'output.dense'),
)

_ACTIVATIONS = {
  'gelu': 'gelu_exact',
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'relu': 'relu',
}
_PROCESSOR_DEFAULTS = {
  'do_rescale': True,
  'rescale_factor': 1 / 255,
  'do_normalize': True,
  'image_mean': 0.5,
  'image_std': 0.5,
  'do_center_crop': False,
}

_CROP_FRACTION = 224 / 256  # of a central crop that isn't said to have another

SUFFIXES = ()  # it is a folder


def looks_like(path: str) -> bool:
  """Whether it is a folder with config.json, a name that begins with hf:, or OWNER/NAME."""
  return (Path(path) / hub.CONFIG).exists() or hub.is_name(path)


def load(
  path: str | os.PathLike, *, allow: str | None = None, **known: Any
) -> tuple[table.Params, dict[str, Any]]:
  """Returns (params, model config) of a folder or of a name on the hub.

  Args:
    path: a folder with config.json and model.safetensors or, PyTorch being installed,
      pytorch_model.bin, whole or in shards; or the name of one on the hub,
      `google/vit-base-patch16-224`, with or without `hf:` in front, which is downloaded once into
      Hugging Face's cache. preprocessor_config.json is read where there is one, but for the
      interpolation, which is bicubic here, and for stretching before a crop: here that keeps the
      aspect.
    allow: as for `augreg.load`.
    **known: `classifier` of a model without a head; what config.json says can't be otherwise.

  Raises:
    UsageError: there is no such model, it can't be read, isn't a ViT, or tensors don't fit.
  """
  config_file, weights_file = hub.find(path)
  theirs = _read_config(config_file)
  tensors = {_canonical(name): t for name, t in hub.read_weights(weights_file).items()}
  anchors = (
    'embeddings.patch_embeddings.projection.weight',
    'encoder.layer.0.layernorm_before.bias',
  )
  model_config.require(tensors, anchors, weights_file, 'a Hugging Face ViT')
  with files.reading(config_file, "a ViT's config.json"):
    config = _our_config(theirs, tensors, known, config_file)
  model_config.check_said(config, config_file.parent)
  _add_zero_biases(tensors, theirs, config)
  rules = table.expand(_TABLE, config['num_layers'])
  return table.to_ours(tensors, rules, config, weights_file, allow), config


def save(
  params: table.Params,
  config: Mapping[str, Any],
  path: str | os.PathLike,
  *,
  allow: str | None = None,
) -> None:
  """Writes a folder that ViTForImageClassification.from_pretrained loads; ViTModel without a head.

  Where the config has `preprocess`, AutoImageProcessor.from_pretrained loads that. It has no words
  for a central crop that isn't square: that stands in config.json, for `load` alone.

  Raises:
    UsageError: Hugging Face's ViT can't compute what this model does, or parameters without a
      place there aren't matched by `allow`.
  """
  config = model_config.describe_params(table.flatten(params), config, path)
  for field, value in (('classifier', 'token'), ('positional_embedding', 'learned_1d')):
    check_choice(f'{path}: {field} of a Hugging Face ViT', config[field], (value,))
  table_ = [line for line in _TABLE if not (line.ours == 'pre_logits' and config['num_classes'])]
  rules = table.expand(table_, config['num_layers'])
  tensors = table.to_theirs(params, rules, config, path, allow)
  if config['num_classes']:
    tensors = {n if n.startswith('classifier.') else f'vit.{n}': t for n, t in tensors.items()}
  folder = Path(path)
  files.write(folder / 'model.safetensors', files.format_safetensors(tensors))
  theirs, preprocess = _their_config(config), config['preprocess']
  if preprocess and (preprocessor := _their_preprocess(config)):
    _write_json(folder / hub.PREPROCESSOR, preprocessor)
  elif preprocess:
    theirs[files.CONFIG_KEY] = {'preprocess': preprocess}
  _write_json(folder / 'config.json', theirs)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
  files.write(path, json.dumps(content, indent=2).encode())


def _read_config(path: Path) -> dict[str, Any]:
  config = hub.read_json(path, "a ViT's config.json")
  if config.get('model_type') != 'vit':
    # timm's, which are on the same hub, name an architecture instead.
    hint = '; --from=timm reads it' if 'architecture' in config else ''
    raise UsageError(
      f"{path}: model_type is {config.get('model_type')!r}; only 'vit' is read{hint}"
    )
  return config


def _read_preprocess(path: Path) -> dict[str, Any] | None:
  """Returns what preprocessor_config.json says, if it is there, in this project's terms."""
  if not path.is_file():
    return None
  what = "an image processor's config"
  theirs = hub.read_json(path, what)
  theirs = _PROCESSOR_DEFAULTS | {key: v for key, v in theirs.items() if v is not None}
  with files.reading(path, what):
    # They normalise pixels times the factor, here it is pixels / 255.
    scale = 255 * theirs['rescale_factor'] if theirs['do_rescale'] else 255
    mean, std = theirs['image_mean'], theirs['image_std']
    if not theirs['do_normalize']:
      mean, std = 0.0, 1.0
    preprocess = {
      'mean': [value / scale for value in (mean if isinstance(mean, list) else [mean])],
      'std': [value / scale for value in (std if isinstance(std, list) else [std])],
      'crop': 'resize',
    }
    size, crop_size = theirs.get('size'), theirs.get('crop_size')
    fraction = _side(crop_size) / _side(size) if size and crop_size else None
    is_stretched = isinstance(size, Mapping) and 'height' in size
    # An image that is stretched to the size of the crop is whole.
    if theirs['do_center_crop'] and not (is_stretched and fraction == 1):
      preprocess['crop'] = 'central'
      if fraction:
        preprocess['crop_fraction'] = fraction
    return model_config.said({'preprocess': preprocess}, path)['preprocess']


def _side(size: int | Mapping[str, int]) -> int:
  return size if isinstance(size, int) else size.get('shortest_edge') or size['height']


def _their_preprocess(config: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns preprocessor_config.json, or None where it can't say it."""
  preprocess, (height, width) = config['preprocess'], config['image_size']
  size = {'height': height, 'width': width}
  crop = {'image_processor_type': 'ViTImageProcessor', 'size': size}
  if preprocess['crop'] == 'central':
    if height != width:
      return None
    fraction = preprocess.get('crop_fraction', _CROP_FRACTION)
    # ViT's own processor, in older versions, doesn't crop.
    crop = {
      'image_processor_type': 'BitImageProcessor',
      'size': {'shortest_edge': math.floor(height / fraction + 1e-6)},  # as data.preprocess
      'do_center_crop': True,
      'crop_size': size,
    }
  mean, std = (
    list(values) * (config['channels'] if len(values) == 1 else 1)
    for values in (preprocess['mean'], preprocess['std'])
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
    'do_convert_rgb': config['channels'] == 3,
  }


def _canonical(name: str) -> str:
  name = name.removeprefix('vit.')
  for new, old in _NEW_NAMES:
    name = re.sub(new, old, name)
  return name


def _pair(value: Any) -> tuple[int, int]:
  height, width = (value, value) if isinstance(value, int) else value
  return int(height), int(width)


def _whole(config: Mapping[str, Any], key: str, default: int) -> int:
  value = config.get(key, default)
  if type(value) is not int or not 1 <= value < 2**31:
    raise ValueError(f'{key} is {value!r}')
  return value


def _our_config(
  theirs: Mapping[str, Any], tensors: files.Tensors, known: Mapping[str, Any], path: Path
) -> dict[str, Any]:
  """Returns the model config that config.json gives; ViTConfig's defaults may be left out of it."""
  activation = theirs.get('hidden_act', 'gelu')
  check_choice(f'{path}: hidden_act', activation, _ACTIVATIONS)
  pooler = tensors.get('pooler.dense.bias')
  check_choice(f'{path}: pooler_act', theirs.get('pooler_act', 'tanh'), ('tanh',))
  head = tensors.get('classifier.bias')
  num_classes = 0 if head is None else len(head)
  labels = {int(label): str(name) for label, name in (theirs.get('id2label') or {}).items()}
  names = [labels.get(label, f'LABEL_{label}') for label in range(num_classes)]
  made_up = all(name == f'LABEL_{label}' for label, name in enumerate(names))
  own = model_config.said(theirs.get(files.CONFIG_KEY, {}), path)
  num_layers = _whole(theirs, 'num_hidden_layers', 12)
  if num_layers > len(tensors):
    raise UsageError(f'{path}: num_hidden_layers is {num_layers}, but of {len(tensors)} tensors')
  stated = {
    'num_heads': _whole(theirs, 'num_attention_heads', 12),
    'classifier': None if head is None else 'token',
    'norm_epsilon': float(theirs.get('layer_norm_eps', 1e-12)),
    'activation': _ACTIVATIONS[activation],
    'image_size': _pair(theirs.get('image_size', 224)),
    'class_names': None if made_up else names,
    'preprocess': _read_preprocess(path.with_name(hub.PREPROCESSOR)) or own.get('preprocess'),
  }
  known = model_config.combine(stated, known, path)
  known['classifier'] = known['classifier'] or 'token'
  return {
    'name': 'vit',
    'hidden_size': _whole(theirs, 'hidden_size', 768),
    'mlp_dim': _whole(theirs, 'intermediate_size', 3072),
    'num_layers': num_layers,
    'patches': {'size': _pair(theirs.get('patch_size', 16))},
    'positional_embedding': 'learned_1d',
    'representation_size': None if pooler is None or num_classes else len(pooler),
    'num_classes': num_classes,
    'channels': _whole(theirs, 'num_channels', 3),
    **known,
    **model_config.describe_pooling(known, probe=False, class_token=True, fc_norm=False),
  }


def _add_zero_biases(
  tensors: files.Tensors, theirs: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
  """Gives models with qkv_bias=false the biases that every model here has."""
  if not theirs.get('qkv_bias', True):
    for layer in range(config['num_layers']):
      for part in ('query', 'key', 'value'):
        name = f'encoder.layer.{layer}.attention.attention.{part}.bias'
        tensors.setdefault(name, np.zeros(config['hidden_size'], np.float32))


def _their_config(config: Mapping[str, Any]) -> dict[str, Any]:
  head = config['num_classes'] > 0
  labels = config['class_names'] or [f'LABEL_{i}' for i in range(config['num_classes'])]
  activations = {'gelu_exact': 'gelu', 'gelu': 'gelu_new', 'relu': 'relu'}
  return {
    'architectures': ['ViTForImageClassification' if head else 'ViTModel'],
    'model_type': 'vit',
    'hidden_size': config['hidden_size'],
    'intermediate_size': config['mlp_dim'],
    'num_hidden_layers': config['num_layers'],
    'num_attention_heads': config['num_heads'],
    'patch_size': _shortest(config['patches']['size']),
    'image_size': _shortest(config['image_size']),
    'num_channels': config['channels'],
    'hidden_act': activations[config['activation']],
    'layer_norm_eps': config['norm_epsilon'],
    'pooler_output_size': config['representation_size'] or config['hidden_size'],
    'pooler_act': 'tanh',
    'qkv_bias': True,
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
    'torch_dtype': 'float32',
    'id2label': {str(i): name for i, name in enumerate(labels)},
    'label2id': {name: i for i, name in enumerate(labels)},
  }


def _shortest(size: tuple[int, int]) -> int | list[int]:
  return size[0] if size[0] == size[1] else list(size)
