"""A plain point transformer: VNT-Net with ordinary neurons, which rotations of the points change.

It is what VNT-Net is compared with: the same steps, fields and head, a number where VNT-Net has a
vector, and nearly as many parameters. It is close to PCT (arXiv 2012.09688), which has attention
over all points, after neighbour embeddings, and fuses the outputs of all layers. The Point
Transformer of arXiv 2012.09164, with attention between neighbours, is another model.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import layers
from vit_jax.models.backbone import Features
from vit_jax.models.layers import vector_neurons as vn
from vit_jax.models.point_backbone import DenseLeakyReLU, PointBackbone


class PointBlock(nn.Module):
  """A pre-norm transformer layer, whose MLP has batch normalisation: [B, N, C] to [B, N, C].

  Attributes:
    mlp_dim: width of the hidden layer.
    num_heads: of attention; divides C.
    norm: as of `PointTransformer`.
    dtype: dtype of the computation; parameters and statistics are float32.
    axis_name: as for `PointTransformer`.
  """

  mlp_dim: int
  num_heads: int
  norm: str
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    norm = {'rms': nn.RMSNorm, 'layer': nn.LayerNorm}[self.norm]
    y = norm(dtype=self.dtype, name='norm1')(x)
    attention = layers.MultiHeadDotProductAttention(self.num_heads, self.dtype, name='attention')
    x = x + attention(y)
    y = norm(dtype=self.dtype, name='norm2')(x)
    y = DenseLeakyReLU(self.mlp_dim, self.dtype, self.axis_name, name='mlp')(y, train)
    return x + nn.Dense(x.shape[-1], dtype=self.dtype, name='mlp_out')(y)


class PointTransformer(PointBackbone, kw_only=True):
  """A plain point transformer: float32 points [B, N, 3] to float32 logits [B, num_classes].

  Attributes: those of `PointBackbone`. Its neurons are numbers. Features have six for each of
    `fused_size`, as VNT-Net's.
  """

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, features: bool = False
  ) -> jax.Array | Features:
    """Classifies point clouds, or returns their `Features`."""
    common = {'dtype': self.dtype, 'axis_name': self.axis_name}
    neighbors = self.neighbors(x)  # [B, N, k]
    pool = {'mean': jnp.mean, 'max': jnp.max}[self.neighbor_pooling]
    for i in range(self.num_edge_layers):
      points = x[:, :, None] if i == 0 else x[..., None]
      edges = vn.edge_features(points, neighbors, cross=i == 0)
      edges = edges.reshape(*edges.shape[:3], -1)  # [B, N, k, 9 or 2 C]
      edges = DenseLeakyReLU(self.hidden_size, **common, name=f'edge_layer_{i}')(edges, train)
      x = pool(edges, axis=2)  # [B, N, C]
    outputs = []
    for i in range(self.num_layers):
      block = PointBlock(self.mlp_dim, self.num_heads, self.norm, **common, name=f'block_{i}')
      x = block(x, train)
      outputs.append(x)
    x = DenseLeakyReLU(self.fused_size, **common, name='fusion')(
      jnp.concatenate(outputs, axis=-1), train
    )
    mean = jnp.broadcast_to(x.mean(axis=1, keepdims=True), x.shape)
    x = jnp.concatenate([x, mean], axis=-1)  # [B, N, 2 F]
    x = DenseLeakyReLU(self.fused_size, **common, name='point_layer')(x, train)
    x = nn.Dense(6 * self.fused_size, dtype=self.dtype, name='point_features')(x)
    return self.read(x, train, features)  # of [B, N, 6 F]
