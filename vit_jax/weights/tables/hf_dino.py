"""transformers' dinov2, dinov2_with_registers and dinov3_vit.

The mask token, which pre-training alone uses, is left unread; where their classes always have one,
zeros are written.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.weights import files
from vit_jax.weights.table import Source
from vit_jax.weights.tables.vit import HuggingFaceRelative, HuggingFaceViT

_MASK_TOKEN = 'embeddings.mask_token'
_MAX_RATIO = 1024  # of widths, the MLP's to a token's
_ATTENTION = 'MultiHeadDotProductAttention_0'
_NORMS_AND_SCALES = {
  'LayerNorm_0': 'norm1',
  'LayerScale_0/gamma': 'layer_scale1.lambda1',
  'LayerNorm_1': 'norm2',
  'LayerScale_1/gamma': 'layer_scale2.lambda1',
}
_MLP = {'MlpBlock_0/Dense_0': 'mlp.fc1', 'MlpBlock_0/Dense_1': 'mlp.fc2'}
_GATED_MLP = {
  ('MlpBlock_0/gate', 'MlpBlock_0/Dense_0'): 'mlp.weights_in',
  'MlpBlock_0/Dense_1': 'mlp.weights_out',
}


class _DINO(HuggingFaceRelative):
  """What all have: layers whose branches are scaled.

  Attributes:
    gated: what `block_names` has of a gated MLP, in place of that without.
    mask_shape: of a mask token of width 1; None where it may be left out.
  """

  unread = _MASK_TOKEN.replace('.', r'\.')
  renames = ()
  gated: ClassVar[Mapping[str | tuple[str, ...], str]]
  mask_shape: ClassVar[tuple[int, ...] | None] = None
  places: ClassVar = HuggingFaceRelative.places | {'mlp': ('mlp', 'glu')}
  free = (*HuggingFaceRelative.free, 'layer_scale')

  def options(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    value = self.field(source, 'layerscale_value')
    if type(value) not in (int, float) or not math.isfinite(value):
      raise UsageError(f'{source.metadata_path}: layerscale_value is {value!r}')
    return {'layer_scale': float(value)}

  def layer_names(self, config: ModelConfig) -> Mapping[str | tuple[str, ...], str]:
    if config.backbone.mlp == 'mlp':
      return self.block_names
    names = {n: v for n, v in self.block_names.items() if 'MlpBlock_0' not in n}
    return names | self.gated

  def misplaced(self, config: ModelConfig) -> str | None:
    return 'layer_scale' if config.backbone.layer_scale is None else super().misplaced(config)

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    if self.mask_shape is not None:
      shape = (*self.mask_shape, config.backbone.hidden_size)
      tensors = tensors | {_MASK_TOKEN: np.zeros(shape, np.float32)}
    return super().finish(tensors, config)

  def their_options(self, config: ModelConfig) -> dict[str, Any]:
    return {'layerscale_value': config.backbone.layer_scale, 'drop_path_rate': 0.0}


class HuggingFaceDINOv2(_DINO):
  """models/dinov2: Dinov2Model, and Dinov2ForImageClassification.

  The latter's head reads the class token and the mean of the patches, one after the other.
  """

  model_type = 'dinov2'
  title = 'a Hugging Face DINOv2'
  classes = ('Dinov2ForImageClassification', 'Dinov2Model')
  base = 'dinov2.'
  squares = True
  marks: ClassVar = {
    'embeddings.patch_embeddings.projection.weight': 4,
    'embeddings.position_embeddings': 3,
    'encoder.layer.0.layer_scale1.lambda1': 1,
  }
  names: ClassVar = {n: v for n, v in HuggingFaceViT.names.items() if n != 'pre_logits'}
  block_names: ClassVar = HuggingFaceViT.block_names | _NORMS_AND_SCALES | _MLP
  gated = _GATED_MLP
  defaults: ClassVar = {
    'hidden_size': 768,
    'num_hidden_layers': 12,
    'num_attention_heads': 12,
    'mlp_ratio': 4,
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-6,
    'image_size': 224,
    'patch_size': 14,
    'num_channels': 3,
    'qkv_bias': True,
    'layerscale_value': 1.0,
    'use_swiglu_ffn': False,
  }

  def classifier(self, source: Source) -> str | None:
    return 'token_gap' if self.has_head(source.tensors) else None

  def read_config(self, source: Source) -> dict[str, Any]:
    entries = super().read_config(source)
    return entries | ({'activation': 'silu'} if self.flag(source, 'use_swiglu_ffn') else {})

  def options(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    gated, ratio = self.flag(source, 'use_swiglu_ffn'), self.field(source, 'mlp_ratio')
    if type(ratio) not in (int, float) or not 0 < ratio <= _MAX_RATIO:
      raise UsageError(f'{source.metadata_path}: mlp_ratio is {ratio!r}')
    return {
      **super().options(tensors, source),
      'mlp': 'glu' if gated else 'mlp',
      'mlp_dim': _mlp_dim(self.number(source, 'hidden_size'), ratio, gated),
      'qkv_bias': self.flag(source, 'qkv_bias'),
    }

  def misplaced(self, config: ModelConfig) -> str | None:
    model = config.backbone
    if _mlp_ratio(model) is None:
      return 'mlp_dim'
    if model.mlp == 'glu' and model.activation != 'silu':
      return 'activation'
    if config.num_classes and model.classifier != 'token_gap':
      return 'classifier'
    return super().misplaced(config)

  places: ClassVar = _DINO.places | {'classifier': ('token', 'token_gap')}

  def their_options(self, config: ModelConfig) -> dict[str, Any]:
    model = config.backbone
    return super().their_options(config) | {
      'mlp_ratio': _mlp_ratio(model),
      'qkv_bias': model.qkv_bias,
      'use_swiglu_ffn': model.mlp == 'glu',
      'use_mask_token': False,
      'hidden_dropout_prob': 0.0,
      'attention_probs_dropout_prob': 0.0,
    }


def _mlp_dim(width: int, ratio: float, gated: bool) -> int:
  """Returns the hidden width of an MLP; a gated one has two thirds, as a multiple of 8."""
  hidden = int(width * ratio)
  return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def _mlp_ratio(model: Any) -> int | None:
  """Returns the whole number by which `_mlp_dim` is that of a backbone; None where none is."""
  gated = model.mlp == 'glu'
  ratio = round(model.mlp_dim * (1.5 if gated else 1) / model.hidden_size)
  ratios = (r for r in (ratio - 1, ratio, ratio + 1) if 0 < r <= _MAX_RATIO)
  return next((r for r in ratios if _mlp_dim(model.hidden_size, r, gated) == model.mlp_dim), None)


class HuggingFaceDINOv2WithRegisters(HuggingFaceDINOv2):
  """models/dinov2_with_registers, whose registers have no positions."""

  model_type = 'dinov2_with_registers'
  title = 'a Hugging Face DINOv2 with registers'
  classes = ('Dinov2WithRegistersForImageClassification', 'Dinov2WithRegistersModel')
  base = 'dinov2_with_registers.'
  marks: ClassVar = HuggingFaceDINOv2.marks | {'embeddings.register_tokens': 3}
  names: ClassVar = HuggingFaceDINOv2.names | {'registers': 'embeddings.register_tokens'}
  mask_shape = (1,)
  defaults: ClassVar = HuggingFaceDINOv2.defaults | {'patch_size': 16, 'num_register_tokens': 4}
  places: ClassVar = HuggingFaceDINOv2.places | {'position_tokens': ('class',)}
  free = (*HuggingFaceDINOv2.free, 'num_registers')

  def options(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    return {
      **super().options(tensors, source),
      'num_registers': self.number(source, 'num_register_tokens'),
      'position_tokens': 'class',
    }

  def misplaced(self, config: ModelConfig) -> str | None:
    return super().misplaced(config) if config.backbone.num_registers else 'num_registers'

  def their_options(self, config: ModelConfig) -> dict[str, Any]:
    theirs = super().their_options(config)
    del theirs['use_mask_token']
    return theirs | {'num_register_tokens': config.backbone.num_registers}


# What rotary embeddings have in training alone -> its name there.
_AUGMENTED = {
  'shift_coords': 'pos_embed_shift',
  'jitter_coords': 'pos_embed_jitter',
  'rescale_coords': 'pos_embed_rescale',
}
_BIASES = {'query_bias': True, 'key_bias': False, 'value_bias': True}


class HuggingFaceDINOv3(_DINO):
  """models/dinov3_vit: DINOv3ViTModel, which has rotary positions."""

  model_type = 'dinov3_vit'
  title = 'a Hugging Face DINOv3'
  classes = ('DINOv3ViTModel', 'DINOv3ViTModel')
  base = 'model.'
  marks: ClassVar = {
    'embeddings.patch_embeddings.weight': 4,
    'layer.0.attention.o_proj.weight': 2,
    'layer.0.layer_scale1.lambda1': 1,
  }
  names: ClassVar = {
    'cls': 'embeddings.cls_token',
    'registers': 'embeddings.register_tokens',
    'embedding': 'embeddings.patch_embeddings',
    'Transformer/encoder_norm': 'norm',
    'output_projection': 'classifier',
  }
  block = 'layer.{}.'
  block_names: ClassVar = {
    f'{_ATTENTION}/query': 'attention.q_proj',
    f'{_ATTENTION}/key': 'attention.k_proj',
    f'{_ATTENTION}/value': 'attention.v_proj',
    f'{_ATTENTION}/out': 'attention.o_proj',
    'MlpBlock_0/Dense_0': 'mlp.up_proj',
    'MlpBlock_0/Dense_1': 'mlp.down_proj',
    **_NORMS_AND_SCALES,
  }
  gated: ClassVar = {
    'MlpBlock_0/gate': 'mlp.gate_proj',
    'MlpBlock_0/Dense_0': 'mlp.up_proj',
    'MlpBlock_0/Dense_1': 'mlp.down_proj',
  }
  mask_shape = (1, 1)
  defaults: ClassVar = {
    'hidden_size': 384,
    'intermediate_size': 1536,
    'num_hidden_layers': 12,
    'num_attention_heads': 6,
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-5,
    'image_size': 224,
    'patch_size': 16,
    'num_channels': 3,
    'rope_theta': 100.0,
    **_BIASES,
    'proj_bias': True,
    'mlp_bias': True,
    'layerscale_value': 1.0,
    'use_gated_mlp': False,
    'num_register_tokens': 0,
    'pos_embed_shift': None,
    'pos_embed_jitter': None,
    'pos_embed_rescale': 2.0,
  }
  places: ClassVar = _DINO.places | {
    'positional_embedding': ('none',),
    'qkv_bias': (True, False, 'qv'),
    'use_bias': (True, False),
  }
  free = (*_DINO.free, 'num_registers', 'rotary')

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    tensors = super().tidy(tensors, entries, source)
    # Models without registers have a tensor of none.
    return {n: t for n, t in tensors.items() if n != 'embeddings.register_tokens' or t.size}

  def read_config(self, source: Source) -> dict[str, Any]:
    return super().read_config(source) | {'positional_embedding': 'none'}

  def options(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    biases = {name: self.flag(source, name) for name in _BIASES}
    kinds = {(True, True, True): True, (False, False, False): False, (True, False, True): 'qv'}
    if (found := tuple(biases.values())) not in kinds:
      raise UsageError(f'{source.metadata_path}: {biases} are not read together')
    if (use_bias := self.flag(source, 'proj_bias')) != self.flag(source, 'mlp_bias'):
      raise UsageError(
        f'{source.metadata_path}: proj_bias {use_bias} beside mlp_bias {not use_bias}'
      )
    return {
      **super().options(tensors, source),
      'mlp': 'glu' if self.flag(source, 'use_gated_mlp') else 'mlp',
      'mlp_dim': self.number(source, 'intermediate_size'),
      'qkv_bias': kinds[found],
      'use_bias': use_bias,
      'num_registers': self.field(source, 'num_register_tokens'),
      'rotary': {
        'type': 'dinov3',
        'rotate_half': True,
        'temperature': self.field(source, 'rope_theta'),
        **{ours: self.field(source, theirs) for ours, theirs in _AUGMENTED.items()},
      },
    }

  def misplaced(self, config: ModelConfig) -> str | None:
    theirs = {'type': 'dinov3', 'rotate_half': True, 'grid_indexing': 'ij', 'grid_offset': 0}
    rotary = config.backbone.rotary or {}
    if any(rotary.get(name) != value for name, value in theirs.items()):
      return 'rotary'
    return 'num_classes' if config.num_classes else super().misplaced(config)

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    none = np.zeros((1, 0, config.backbone.hidden_size), np.float32)
    return super().finish({'embeddings.register_tokens': none, **tensors}, config)

  def their_options(self, config: ModelConfig) -> dict[str, Any]:
    model = config.backbone
    biases = dict.fromkeys(_BIASES, bool(model.qkv_bias))
    return super().their_options(config) | {
      'intermediate_size': model.mlp_dim,
      'use_gated_mlp': model.mlp == 'glu',
      **(_BIASES if model.qkv_bias == 'qv' else biases),
      'proj_bias': model.use_bias,
      'mlp_bias': model.use_bias,
      'num_register_tokens': model.num_registers,
      'rope_theta': float(model.rotary['temperature']),
      **{theirs: model.rotary[ours] for ours, theirs in _AUGMENTED.items()},
    }


TABLES = (HuggingFaceDINOv2(), HuggingFaceDINOv2WithRegisters(), HuggingFaceDINOv3())
