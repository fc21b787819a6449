"""Layers that the models share."""

from vit_jax.models.layers.attention import MultiHeadDotProductAttention, dot_product_attention
from vit_jax.models.layers.batch_norm import BatchNorm
from vit_jax.models.layers.conv_norm import ConvNorm, kaiming_normal, make_divisible
from vit_jax.models.layers.differential import DifferentialAttention
from vit_jax.models.layers.drop_path import StochasticDepth
from vit_jax.models.layers.layer_scale import LayerScale
from vit_jax.models.layers.looped import gather_looped, gather_looped_by
from vit_jax.models.layers.mlp import ACTIVATIONS, MlpBlock, activate
from vit_jax.models.layers.native import Patches, patchify
from vit_jax.models.layers.neck import Neck
from vit_jax.models.layers.norms import NORMS, norm_layer
from vit_jax.models.layers.patches import (
  PatchEmbedding,
  adapt_channels,
  as_pair,
  patch_grid,
  resample_patch_kernel,
)
from vit_jax.models.layers.position_table import (
  POSITION_TABLE,
  PositionTable,
  resolve_position_table,
)
from vit_jax.models.layers.positions import (
  AddFixedSinCosPositionEmbedding,
  AddPositionEmbs,
  interpolate_positions,
  resize_position_embeddings,
  resolve_grid,
  sinusoidal_1d,
  sinusoidal_2d,
)
from vit_jax.models.layers.relative_positions import (
  RELATIVE_POSITIONS,
  DecomposedPositions,
  RelativePositions,
  check_prefix,
  relative_coordinates,
  relative_position_index,
  resize_bias_table,
  resize_distances,
  resolve_relative_positions,
)
from vit_jax.models.layers.remat import REMAT_POLICIES, check_remat, remat_policy
from vit_jax.models.layers.resize import resize_weights
from vit_jax.models.layers.rotary import (
  ROTARY,
  TRAINING_OPTIONS,
  RotaryEmbedding,
  Rotation,
  resolve_rotary,
)
from vit_jax.models.layers.token_learner import (
  TokenFuser,
  Tokenizer,
  TokenLearnerModule,
  TokenLearnerModuleV11,
  check_tokenizer,
  learns_tokens,
  make_tokenizer,
  tokenizer_layer,
)
from vit_jax.models.layers.windows import window_partition, window_reverse

__all__ = [
  'ACTIVATIONS',
  'NORMS',
  'POSITION_TABLE',
  'RELATIVE_POSITIONS',
  'REMAT_POLICIES',
  'ROTARY',
  'TRAINING_OPTIONS',
  'AddFixedSinCosPositionEmbedding',
  'AddPositionEmbs',
  'BatchNorm',
  'ConvNorm',
  'DecomposedPositions',
  'DifferentialAttention',
  'LayerScale',
  'MlpBlock',
  'MultiHeadDotProductAttention',
  'Neck',
  'PatchEmbedding',
  'Patches',
  'PositionTable',
  'RelativePositions',
  'RotaryEmbedding',
  'Rotation',
  'StochasticDepth',
  'TokenFuser',
  'TokenLearnerModule',
  'TokenLearnerModuleV11',
  'Tokenizer',
  'activate',
  'adapt_channels',
  'as_pair',
  'check_prefix',
  'check_remat',
  'check_tokenizer',
  'dot_product_attention',
  'gather_looped',
  'gather_looped_by',
  'interpolate_positions',
  'kaiming_normal',
  'learns_tokens',
  'make_divisible',
  'make_tokenizer',
  'norm_layer',
  'patch_grid',
  'patchify',
  'relative_coordinates',
  'relative_position_index',
  'remat_policy',
  'resample_patch_kernel',
  'resize_bias_table',
  'resize_distances',
  'resize_position_embeddings',
  'resize_weights',
  'resolve_grid',
  'resolve_position_table',
  'resolve_relative_positions',
  'resolve_rotary',
  'sinusoidal_1d',
  'sinusoidal_2d',
  'tokenizer_layer',
  'window_partition',
  'window_reverse',
]
