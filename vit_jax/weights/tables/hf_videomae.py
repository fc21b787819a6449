"""transformers' videomae: VideoMAEForVideoClassification, a ViViT without a class token."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.models.variables import Variables
from vit_jax.weights import files
from vit_jax.weights.formats import huggingface
from vit_jax.weights.rules import Module
from vit_jax.weights.table import Source
from vit_jax.weights.tables.vit import HuggingFaceViT, with_zero_biases
from vit_jax.weights.tables.vivit import CONV_3D

_POSITIONS = 'embeddings.position_embeddings'
_KERNEL = 'embeddings.patch_embeddings.projection.weight'
_MAX_TOKENS = 2**16
_EPSILON = 1e-5  # of fc_norm, PyTorch's default
_HEAD = ('classifier.', 'fc_norm.')
_PROJECTIONS = r'encoder\.layer\.\d+\.attention\.attention\.(query|key|value)\.weight'


class HuggingFaceVideoMAE(HuggingFaceViT):
  """models/videomae: a classifier, whose positions are fixed; here they are learned ones.

  Keys have no bias there, and zeros here. It adds the same to all logits of a query, which is
  nothing, so that it is left out when written, whatever it has become.
  """

  models = ('vivit',)
  model_type = 'videomae'
  title = 'a Hugging Face VideoMAE'
  classes = ('VideoMAEForVideoClassification', 'VideoMAEModel')
  stated = ('num_heads', 'activation', 'norm_epsilon')
  base = 'videomae.'
  renames = (
    (r'attention\.q_bias$', 'attention.query.bias'),
    (r'attention\.v_bias$', 'attention.value.bias'),
  )
  marks: ClassVar = {_KERNEL: 5, 'encoder.layer.0.layernorm_before.bias': 1}
  foreign: ClassVar = {r'^(decoder|encoder_to_decoder)\.': 'a decoder (VideoMAEForPreTraining)'}
  names: ClassVar = {
    'Transformer/posembed_input/pos_embedding': _POSITIONS,
    'embedding': 'embeddings.patch_embeddings.projection',
    'Transformer/encoder_norm': 'layernorm',
    'fc_norm': 'fc_norm',
    'output_projection': 'classifier',
  }
  defaults: ClassVar = {
    **{n: v for n, v in HuggingFaceViT.defaults.items() if n not in ('qkv_bias', 'pooler_act')},
    'num_frames': 16,
    'tubelet_size': 2,
    'qv_bias': True,
    'use_mean_pooling': True,
  }

  def classifier(self, source: Source) -> str:
    return 'gap' if self.flag(source, 'use_mean_pooling') else '0'

  def read_config(self, source: Source) -> dict[str, Any]:
    return super().read_config(source) | {'num_frames': self.number(source, 'num_frames')}

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    tensors = with_zero_biases(super().tidy(tensors, entries, source), _PROJECTIONS)
    patch = huggingface.pair(source, 'patch_size', self.defaults['patch_size'])
    size = (entries['num_frames'], *entries['image_size'])
    tubelet = (self.number(source, 'tubelet_size'), *patch)
    count = math.prod(side // length for side, length in zip(size, tubelet, strict=True))
    if count > _MAX_TOKENS:
      raise UsageError(f'{source.metadata_path}: {count} tokens of a video, over {_MAX_TOKENS}')
    return tensors | {_POSITIONS: _positions(count, len(tensors[_KERNEL]))}

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    config = super().describe(tensors, entries, source)
    for field in ('class_token', 'fc_norm', 'representation_size'):  # of a ViT
      del config[field]
    patch, frames = config['patches']['size'], self.number(source, 'tubelet_size')
    return config | {
      'name': 'vivit',
      'patches': {'size': (*patch, frames)},
      'temporal_encoding_config': {'method': '3d_conv'},
      'attention_config': {'type': 'spacetime'},
      'fc_norm_epsilon': _EPSILON if config['classifier'] == 'gap' else None,
    }

  def options(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    # The older name of the field prevails where a file has both.
    if 'qkv_bias' in source.their_config and type(source.their_config['qkv_bias']) is not bool:
      raise UsageError(f'{source.metadata_path}: qkv_bias is {source.their_config["qkv_bias"]!r}')
    self.flag(source, 'qv_bias')
    return {'mlp_dim': self.number(source, 'intermediate_size')}

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    for module in super().modules(config, names):
      yield module._replace(leaves=CONV_3D) if module.ours == 'embedding' else module

  def misplaced(self, config: ModelConfig) -> str | None:
    model = config.backbone
    pooled = ('gap', _EPSILON) if model.fc_norm_epsilon else ('0', None)
    for field, allowed in (
      ('attention_type', model.attention_type == 'spacetime'),
      ('temporal_encoding_config', model.temporal_encoding_config['method'] == '3d_conv'),
      ('classifier', (model.classifier, model.fc_norm_epsilon) == pooled),
      ('tokenizer', not model.learns_tokens),
      ('representation_size', model.representation_size is None),
      ('num_classes', config.num_classes > 0),
      ('image_size', config.image_size is not None),
      ('num_frames', config.num_frames is not None),
    ):
      if not allowed:
        return field
    return None

  def check_place(self, config: ModelConfig, path: object) -> None:
    if (name := self.misplaced(config)) is not None:
      raise UsageError(f'{path}: its {name} has no place in {self.title}')

  def writes(self, config: ModelConfig) -> bool:
    return super().writes(config) and self.misplaced(config) is None

  def convert(
    self, variables: Variables, config: ModelConfig, path: object, allow: str | None
  ) -> files.Tensors:
    tensors = super().convert(variables, config, path, allow)
    positions = tensors.pop(_POSITIONS)
    if not np.array_equal(positions, _positions(*positions.shape[1:])):
      raise UsageError(f'{path}: positions that were trained have no place in {self.title}')
    return tensors

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    named = {}
    for name, tensor in tensors.items():
      if name.endswith('key.bias'):
        continue
      name = name.replace('query.bias', 'q_bias').replace('value.bias', 'v_bias')
      named[name if name.startswith((*_HEAD, _POSITIONS)) else f'{self.base}{name}'] = tensor
    return named

  def their_options(self, config: ModelConfig) -> dict[str, Any]:
    model = config.backbone
    return {
      'intermediate_size': model.mlp_dim,
      'num_frames': config.num_frames,
      'tubelet_size': model.tubelet_frames,
      'qv_bias': True,
      'use_mean_pooling': model.classifier == 'gap',
      'hidden_dropout_prob': 0.0,
      'attention_probs_dropout_prob': 0.0,
    }


def _positions(count: int, width: int) -> np.ndarray:
  """Returns the fixed positions, float32 [1, count, width]: sine and cosine in turns."""
  channels = np.arange(width)
  angles = np.arange(count)[:, None] / np.power(10_000, 2 * (channels // 2) / width)
  return np.where(channels % 2, np.cos(angles), np.sin(angles)).astype(np.float32)[None]


TABLES = (HuggingFaceVideoMAE(),)
