"""transformers' beit and data2vec-vision, which have relative positions."""

from typing import Any, ClassVar

from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.weights import files
from vit_jax.weights.table import Source
from vit_jax.weights.tables.vit import HuggingFaceRelative, HuggingFaceViT

_ATTENTION = 'MultiHeadDotProductAttention_0'
_TABLE = 'relative_positions/relative_position_bias_table'
_THEIR_TABLE = 'relative_position_bias.relative_position_bias_table'


class HuggingFaceBEiT(HuggingFaceRelative):
  """models/beit: BeitForImageClassification and BeitModel.

  With `use_mean_pooling` they norm the mean of the patches, else the class token is read. The mask
  token, which pre-training alone uses, isn't read.
  """

  model_type = 'beit'
  title = 'a Hugging Face BEiT'
  classes = ('BeitForImageClassification', 'BeitModel')
  base = 'beit.'
  marks: ClassVar = {
    'embeddings.patch_embeddings.projection.weight': 4,
    'encoder.layer.0.layernorm_before.bias': 1,
    'encoder.layer.0.attention.attention.query.bias': 1,
  }
  squares = True
  yields = True  # without config.json, its tensors may be a ViT's
  renames = ()
  foreign: ClassVar = {r'^lm_head\.': 'visual tokens to predict (BeitForMaskedImageModeling)'}
  # What an index says, in files of transformers 4, follows from the size.
  unread = r'embeddings\.mask_token|.*relative_position_index'
  names: ClassVar = {
    **{n: v for n, v in HuggingFaceViT.names.items() if n != 'pre_logits'},
    'fc_norm': 'pooler.layernorm',
    f'Transformer/{_TABLE}': f'encoder.{_THEIR_TABLE}',
  }
  block_names: ClassVar = {
    **HuggingFaceViT.block_names,
    'LayerScale_0/gamma': 'lambda_1',
    'LayerScale_1/gamma': 'lambda_2',
    _TABLE: f'attention.attention.{_THEIR_TABLE}',
  }
  defaults: ClassVar = {
    **{n: v for n, v in HuggingFaceViT.defaults.items() if n not in ('qkv_bias', 'pooler_act')},
    'use_absolute_position_embeddings': False,
    'use_relative_position_bias': False,
    'use_shared_relative_position_bias': False,
    'layer_scale_init_value': 0.1,
    'use_mean_pooling': True,
  }
  places: ClassVar = HuggingFaceRelative.places | {
    'classifier': ('token', 'gap'),
    'positional_embedding': ('learned_1d', 'none'),
    'qkv_bias': ('qv',),
    'fc_norm': (True, False),
  }
  free = (*HuggingFaceRelative.free, 'layer_scale', 'relative_positions')

  def classifier(self, source: Source) -> str:
    return 'gap' if self.flag(source, 'use_mean_pooling') else 'token'

  def read_config(self, source: Source) -> dict[str, Any]:
    absolute = self.flag(source, 'use_absolute_position_embeddings')
    positions = {'positional_embedding': 'learned_1d' if absolute else 'none'}
    return super().read_config(source) | positions

  def options(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    own, shared = (
      self.flag(source, f'use_{which}relative_position_bias') for which in ('', 'shared_')
    )
    if own and shared:
      raise UsageError(
        f'{source.metadata_path}: use_relative_position_bias beside '
        'use_shared_relative_position_bias is not read'
      )
    scale = self.field(source, 'layer_scale_init_value')
    if type(scale) not in (int, float):
      raise UsageError(f'{source.metadata_path}: layer_scale_init_value is {scale!r}')
    return {
      'mlp_dim': self.number(source, 'intermediate_size'),
      'qkv_bias': 'qv',
      'layer_scale': float(scale) if scale > 0 else None,
      'relative_positions': {'type': 'bias', 'shared': shared} if own or shared else None,
    }

  def misplaced(self, config: ModelConfig) -> str | None:
    model = config.backbone
    if model.fc_norm != (model.classifier == 'gap'):
      return 'fc_norm'
    if model.relative_positions and model.relative_positions['type'] != 'bias':
      return 'relative_positions'
    return super().misplaced(config)

  def their_options(self, config: ModelConfig) -> dict[str, Any]:
    model = config.backbone
    relative = model.relative_positions or {}
    return {
      'intermediate_size': model.mlp_dim,
      'use_absolute_position_embeddings': model.positional_embedding == 'learned_1d',
      'use_relative_position_bias': relative.get('shared') is False,
      'use_shared_relative_position_bias': relative.get('shared') is True,
      'layer_scale_init_value': model.layer_scale or 0.0,
      'use_mean_pooling': model.classifier == 'gap',
      'use_mask_token': False,
      'drop_path_rate': 0.0,
      'hidden_dropout_prob': 0.0,
      'attention_probs_dropout_prob': 0.0,
    }


class HuggingFaceData2Vec(HuggingFaceBEiT):
  """models/data2vec's vision: BEiT by another name."""

  model_type = 'data2vec-vision'
  title = 'a Hugging Face Data2VecVision'
  classes = ('Data2VecVisionForImageClassification', 'Data2VecVisionModel')
  base = 'data2vec_vision.'
  by_origin = True


TABLES = (HuggingFaceBEiT(), HuggingFaceData2Vec())
