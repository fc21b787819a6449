"""Layers that the models share."""

from vit_jax.models.layers.attention import MultiHeadDotProductAttention, dot_product_attention
from vit_jax.models.layers.drop_path import StochasticDepth
from vit_jax.models.layers.mlp import ACTIVATIONS, MlpBlock
from vit_jax.models.layers.patches import (
  PatchEmbedding,
  adapt_channels,
  as_pair,
  patch_grid,
  resample_patch_kernel,
)
from vit_jax.models.layers.positions import (
  AddFixedSinCosPositionEmbedding,
  AddPositionEmbs,
  resize_position_embeddings,
  resolve_grid,
  sinusoidal_1d,
  sinusoidal_2d,
)

__all__ = [
  'ACTIVATIONS',
  'AddFixedSinCosPositionEmbedding',
  'AddPositionEmbs',
  'MlpBlock',
  'MultiHeadDotProductAttention',
  'PatchEmbedding',
  'StochasticDepth',
  'adapt_channels',
  'as_pair',
  'dot_product_attention',
  'patch_grid',
  'resample_patch_kernel',
  'resize_position_embeddings',
  'resolve_grid',
  'sinusoidal_1d',
  'sinusoidal_2d',
]
