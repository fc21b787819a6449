"""Vector neurons (arXiv 2104.12229) and attention between them (arXiv 2206.04176).

A vector neuron is a vector in space instead of a number; C of them are an array [..., C, 3]. From
rotated vectors a layer makes the rotated result, up to rounding. `VNLinear`, `VNBatchNorm`,
`VNLeakyReLU`, `VNLinearLeakyReLU`, `VNMaxPool` and `VNStdFeature` are those of
github.com/FlyingGiraffe/vnn, models/vn_layers.py: the same parameters give the same values.

With a dtype of bfloat16, vectors and matrix products are bfloat16; lengths, inner products of a
vector with a direction, statistics and softmax are float32. Products of float32 matrices have the
precision of float32 on every device: with TF32, a rotation would change the fourth digit.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers.attention import dot_product_attention
from vit_jax.models.layers.batch_norm import BatchNorm

EPSILON = 1e-6  # added to lengths that are divided by

# What torch.nn.Linear starts with.
_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def lengths(x: jax.Array) -> jax.Array:
  """Returns the lengths of vectors [..., 3], float32 [...]; at a zero vector the gradient is 0."""
  squares = jnp.square(x.astype(jnp.float32)).sum(-1)
  is_zero = squares == 0
  return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))


def rescale(x: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
  """Gives vectors [..., 3] of lengths `old` [...] the lengths `new`; a negative one turns them."""
  return (x.astype(jnp.float32) * (new / old)[..., None]).astype(x.dtype)


def leaky_relu(x: jax.Array, directions: jax.Array, negative_slope: float = 0.2) -> jax.Array:
  """Shortens what points against a direction: x [..., C, 3] to [..., C, 3].

  Args:
    x: vectors.
    directions: of each vector [..., C, 3], or one for all of them [..., 1, 3]. Where x has a
      component against it, all but `negative_slope` of that component is taken away.
    negative_slope: the share that stays; 0 is ReLU, 1 is x itself.
  """
  v, d = x.astype(jnp.float32), directions.astype(jnp.float32)
  along = (v * d).sum(-1, keepdims=True)
  share = jnp.minimum(along, 0) / (jnp.square(d).sum(-1, keepdims=True) + EPSILON)
  return (v - (1 - negative_slope) * share * d).astype(x.dtype)


def mean_pool(x: jax.Array) -> jax.Array:
  """Averages the vectors of M neighbours or points: [..., M, C, 3] to [..., C, 3]."""
  return x.mean(axis=-3)


def nearest_neighbors(points: jax.Array, count: int) -> jax.Array:
  """Returns the indices of the nearest points of each point, itself among them.

  Distances are sums of squared differences in float32: a difference of inner products would cancel
  digits, so that a rotation of the points more often changed who is near.

  Args:
    points: [B, N, D].
    count: k, at most N.

  Returns:
    int32 [B, N, k], the nearest first; of points as near as each other, the first.
  """
  points = jax.lax.stop_gradient(points.astype(jnp.float32))
  distances = jnp.square(points[:, :, None] - points[:, None]).sum(-1)  # [B, N, N]
  return jax.lax.top_k(-distances, count)[1]


def edge_features(x: jax.Array, neighbors: jax.Array, *, cross: bool = False) -> jax.Array:
  """Returns what a point sees of its neighbours: [B, N, C, 3] to [B, N, k, 2 C or 3 C, 3].

  That is, channel after channel, neighbour - point, the point, and with `cross` the cross product
  neighbour x point, which a reflection turns the wrong way round: only rotations commute with it.

  Args:
    x: vectors of each point.
    neighbors: int [B, N, k], as of `nearest_neighbors`.
    cross: as above.
  """
  near = jax.vmap(lambda rows, indices: rows[indices])(x, neighbors)  # [B, N, k, C, 3]
  here = jnp.broadcast_to(x[:, :, None], near.shape)
  parts = [near - here, here] + ([jnp.cross(near, here)] if cross else [])
  return jnp.concatenate(parts, axis=-2)


class VNLinear(nn.Module):
  """Combines vectors linearly: [..., C, 3] to [..., features, 3].

  Attributes:
    features: number of vectors of the output.
    dtype: dtype of the computation; parameters are float32.
  """

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param('kernel', _uniform, (x.shape[-2], self.features))
    x = jnp.swapaxes(x.astype(self.dtype), -1, -2)  # [..., 3, C]
    x = jnp.matmul(x, kernel.astype(self.dtype), precision=jax.lax.Precision.HIGHEST)
    return jnp.swapaxes(x, -1, -2)


class VNBatchNorm(nn.Module):
  """Batch normalisation of the lengths of vectors: [..., C, 3] to [..., C, 3].

  A vector whose normalised length is negative is turned around.

  Attributes:
    dtype: dtype of the output; parameters, statistics and lengths are float32.
    axis_name: the mapped axis over which a batch is spread, where there is one, so that its
      statistics are those of the whole batch.
  """

  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    old = lengths(x) + EPSILON
    new = BatchNorm(axis_name=self.axis_name, name='bn')(old, train)
    return rescale(x, old, new).astype(self.dtype)


class VNLayerNorm(nn.Module):
  """Layer normalisation of the lengths of a point's vectors (arXiv 2206.04176): [..., C, 3] as is.

  Attributes:
    dtype: dtype of the output; parameters and lengths are float32.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    old = lengths(x) + EPSILON
    return rescale(x, old, nn.LayerNorm(name='ln')(old)).astype(self.dtype)


class VNRMSNorm(nn.Module):
  """Divides a point's vectors by the root of their mean squared length: [..., C, 3] as is.

  After RMSNorm (arXiv 1910.07467). Unlike `VNLayerNorm` it has no mean of lengths to take away, so
  it turns no vector around, and a short one among long ones stays short.

  Attributes:
    dtype: dtype of the output; parameters and lengths are float32.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.ones, x.shape[-2:-1])
    v = x.astype(jnp.float32)
    size = jnp.sqrt(jnp.square(v).sum(-1).mean(-1) + EPSILON)[..., None, None]
    return (v / size * scale[:, None]).astype(self.dtype)


class VNLeakyReLU(nn.Module):
  """`leaky_relu` by directions that are learned: [..., C, 3] to [..., C, 3].

  Attributes:
    share_nonlinearity: whether all vectors of a point have one direction.
    negative_slope: as for `leaky_relu`.
    dtype: dtype of the computation; parameters are float32.
  """

  share_nonlinearity: bool = False
  negative_slope: float = 0.2
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.astype(self.dtype)
    count = 1 if self.share_nonlinearity else x.shape[-2]
    return leaky_relu(x, VNLinear(count, self.dtype, name='map_to_dir')(x), self.negative_slope)


class VNLinearLeakyReLU(nn.Module):
  """`VNLinear`, `VNBatchNorm` and `leaky_relu`: [..., C, 3] to [..., features, 3].

  The directions are linear in the input.

  Attributes:
    features: number of vectors of the output.
    share_nonlinearity, negative_slope: as for `VNLeakyReLU`.
    dtype, axis_name: as for `VNBatchNorm`.
  """

  features: int
  share_nonlinearity: bool = False
  negative_slope: float = 0.2
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = VNLinear(self.features, self.dtype, name='map_to_feat')(x)
    y = VNBatchNorm(self.dtype, self.axis_name, name='batchnorm')(y, train)
    count = 1 if self.share_nonlinearity else self.features
    return leaky_relu(y, VNLinear(count, self.dtype, name='map_to_dir')(x), self.negative_slope)


class VNMaxPool(nn.Module):
  """Keeps of each channel the vector furthest along its direction: [..., M, C, 3] to [..., C, 3].

  The directions are linear in the vectors. Where two are nearly as far, rounding decides.

  Attributes:
    dtype: dtype of the computation; parameters are float32.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    directions = VNLinear(x.shape[-2], self.dtype, name='map_to_dir')(x)
    along = (x.astype(jnp.float32) * directions.astype(jnp.float32)).sum(-1)  # [..., M, C]
    best = jnp.argmax(along, axis=-2)[..., None, :, None]
    return jnp.take_along_axis(x, best, axis=-3).squeeze(-3)


class VNStdFeature(nn.Module):
  """Writes vectors in a frame that rotates with them, which gives invariant numbers.

  Attributes:
    share_nonlinearity, negative_slope: as for `VNLeakyReLU`.
    dtype, axis_name: as for `VNBatchNorm`.
  """

  share_nonlinearity: bool = False
  negative_slope: float = 0.2
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    """Returns (the vectors [..., C, 3] as inner products with the frame, the frame [..., 3, 3]).

    The frame is three vectors that are learned, neither orthogonal nor of length 1.
    """
    options = {
      'share_nonlinearity': self.share_nonlinearity,
      'negative_slope': self.negative_slope,
      'dtype': self.dtype,
      'axis_name': self.axis_name,
    }
    count = x.shape[-2]
    frame = VNLinearLeakyReLU(count // 2, **options, name='vn1')(x, train)
    frame = VNLinearLeakyReLU(count // 4, **options, name='vn2')(frame, train)
    frame = VNLinear(3, self.dtype, name='vn_lin')(frame)  # [..., 3, 3]
    turned = jnp.swapaxes(frame, -1, -2)
    return jnp.matmul(x.astype(self.dtype), turned, precision=jax.lax.Precision.HIGHEST), frame


class VNMultiHeadAttention(nn.Module):
  """Self-attention (arXiv 2206.04176) over points: [B, N, C, 3] to [B, N, C, 3].

  A query and a key are lists of vectors; their product is the sum of the inner products of these,
  that of Frobenius, over the square root of the count of numbers. It is invariant, so the weights
  are, and a weighted sum of vectors is equivariant. Weights are sown as those of
  `layers.dot_product_attention`.

  Attributes:
    num_heads: divides C.
    dtype: dtype of the computation; parameters, logits and softmax are float32.
  """

  num_heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-2]

    def to_heads(name):
      vectors = VNLinear(channels, self.dtype, name=name)(x)
      return vectors.reshape(*x.shape[:-2], self.num_heads, -1)  # [B, N, heads, 3 C / heads]

    with jax.default_matmul_precision('highest'):
      x = dot_product_attention(
        to_heads('query'), to_heads('key'), to_heads('value'), module=self
      ).reshape(x.shape)
    return VNLinear(channels, self.dtype, name='out')(x)
