"""VNT-Net (arXiv 2205.09690): a transformer on point clouds that no rotation of the points changes.

The paper joins vector neurons (arXiv 2104.12229) and multi-head attention. It has no public code,
and of its text only the abstract could be read when this was written. The order of the layers, the
sizes and the training are therefore this project's own choice, and may differ from the paper's.

They follow the networks that the paper builds on. Edge features, fusion, invariant layer and head
are VN-DGCNN's (github.com/FlyingGiraffe/vnn), with the cross product of that repository's
VN-PointNet. Four layers of attention, whose outputs are all fused, are PCT's (arXiv 2012.09688). A
block is VN-Transformer's (arXiv 2206.04176), with its norms before the branches; `norm` chooses
between its layer normalisation of lengths and the root mean square, which turns no vector around.
All edge layers have the neighbours in space, where DGCNN looks for those with similar features.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.backbone import Features
from vit_jax.models.layers import vector_neurons as vn
from vit_jax.models.point_backbone import PointBackbone


class VNBlock(nn.Module):
  """A pre-norm transformer layer of vectors: [B, N, C, 3] to [B, N, C, 3].

  Attributes:
    mlp_dim: vectors of the hidden layer.
    num_heads: of attention; divides C.
    norm: as of `VNTNet`.
    dtype: dtype of the computation; parameters and statistics are float32.
    axis_name: as for `VNTNet`.
  """

  mlp_dim: int
  num_heads: int
  norm: str
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    norm = {'rms': vn.VNRMSNorm, 'layer': vn.VNLayerNorm}[self.norm]
    y = norm(self.dtype, name='norm1')(x)
    x = x + vn.VNMultiHeadAttention(self.num_heads, self.dtype, name='attention')(y)
    y = norm(self.dtype, name='norm2')(x)
    common = {'dtype': self.dtype, 'axis_name': self.axis_name}
    y = vn.VNLinearLeakyReLU(self.mlp_dim, **common, name='mlp')(y, train)
    return x + vn.VNLinear(x.shape[-2], self.dtype, name='mlp_out')(y)


class VNTNet(PointBackbone, kw_only=True):
  """VNT-Net: float32 points [B, N, 3] to float32 logits [B, num_classes], invariant to rotations.

  It takes points whose mean is 0 and of which the farthest lies at a distance of 1, as
  `data.kinds` normalises them, so that translations of the data change nothing either. In float32 a
  rotation changes logits and features by rounding alone. In bfloat16 rounding adds up: rotations
  were seen to change logits by 0.16 of the largest, so that it is not invariant in practice.

  Attributes: those of `PointBackbone`. Its neurons are vectors: `hidden_size`, `mlp_dim` and
    `fused_size` count those. Features have six numbers for each vector of `fused_size`: three of
    the point's own and three of the mean over the points, both in the frame of the point.
  """

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, features: bool = False
  ) -> jax.Array | Features:
    """Classifies point clouds, or returns their `Features`, whose tokens are invariant as well."""
    common = {'dtype': self.dtype, 'axis_name': self.axis_name}
    neighbors = self.neighbors(x)  # [B, N, k]
    x = x[:, :, None]  # [B, N, 1, 3]
    for i in range(self.num_edge_layers):
      edges = vn.edge_features(x, neighbors, cross=i == 0)  # [B, N, k, 3 or 2 C, 3]
      x = vn.VNLinearLeakyReLU(self.hidden_size, **common, name=f'edge_layer_{i}')(edges, train)
      is_mean = self.neighbor_pooling == 'mean'
      pool = vn.mean_pool if is_mean else vn.VNMaxPool(self.dtype, name=f'edge_pool_{i}')
      x = pool(x)  # [B, N, C, 3]
    outputs = []
    for i in range(self.num_layers):
      block = VNBlock(self.mlp_dim, self.num_heads, self.norm, **common, name=f'block_{i}')
      x = block(x, train)
      outputs.append(x)
    fuse = functools.partial(vn.VNLinearLeakyReLU, share_nonlinearity=True, **common)
    x = fuse(self.fused_size, name='fusion')(jnp.concatenate(outputs, axis=-2), train)
    mean = jnp.broadcast_to(x.mean(axis=1, keepdims=True), x.shape)
    x = jnp.concatenate([x, mean], axis=-2)  # [B, N, 2 F, 3]
    x, _ = vn.VNStdFeature(**common, name='std_feature')(x, train)
    return self.read(x.reshape(*x.shape[:2], -1), train, features)  # of [B, N, 6 F]
