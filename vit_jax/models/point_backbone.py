"""`PointBackbone`: what VNT-Net and the plain point transformer beside it have in common."""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import FieldError, UsageError, check_choice
from vit_jax.models import fields as fields_lib
from vit_jax.models import layers
from vit_jax.models.backbone import Backbone, Features, Shape, trace_shapes
from vit_jax.models.layers import vector_neurons as vn
from vit_jax.ranges import Count, Layers, Rate, Width

NEIGHBOR_POOLINGS = ('mean', 'max')
NORMS = ('rms', 'layer')

_BLOCK = re.compile(r'(?:batch_stats/)?block_(\d+)/.*')
_EDGE_LAYER = re.compile(r'(?:batch_stats/)?edge_(?:layer|pool)_\d+/.*')
_HEAD = re.compile(r'(?:batch_stats/)?(?:head_\d+|output_projection)/.*')


class PointBackbone(Backbone, kw_only=True):
  """Base class of transformers on point clouds: float points [B, N, 3] to logits [B, num_classes].

  Edge layers look at the nearest neighbours of each point, blocks of attention at all points, and a
  fusion layer at the outputs of all blocks. A head of dense layers reads the maximum and the mean
  over the points. A subclass has these layers, of its kind of neuron, in `__call__`.

  Attributes:
    num_classes: number of logits; 0 or less leaves the head out and returns what it reads, [B, D],
      in `dtype`.
    num_neighbors: nearest points that an edge layer looks at, the point itself among them.
    num_edge_layers: before the blocks.
    neighbor_pooling: of what is seen of the neighbours, one of `NEIGHBOR_POOLINGS`.
    hidden_size: neurons of a point.
    num_layers: blocks.
    num_heads: of attention; divides `hidden_size`.
    mlp_dim: neurons of the hidden layer of a block's MLP.
    norm: before the branches of a block, one of `NORMS`: by the root mean square of a point's
      neurons (arXiv 1910.07467), or layer normalisation.
    fused_size: neurons of a point after the fusion layer.
    head_dims: widths of the head's dense layers before the logits, each with batch normalisation.
    dropout_rate: of the head, after each of them.
    dtype: dtype of the computation. Parameters, statistics of the normalisation, softmax and the
      logits are float32 in any case, and so are the distances that make neighbours.
    axis_name: the mapped axis over which a batch is spread, where there is one, so that its
      statistics are those of the whole batch; only training needs it.

  Raises:
    FieldError: on construction, for values that don't fit each other; when called, for fewer points
      than `num_neighbors`.
    UsageError: when called, for points that don't have three coordinates.
  """

  num_classes: int
  num_neighbors: Count = 20
  num_edge_layers: Layers = 2
  neighbor_pooling: str = 'mean'
  hidden_size: Width = 48
  num_layers: Layers = 4
  num_heads: Count = 4
  mlp_dim: Width = 96
  norm: str = 'rms'
  fused_size: Width = 341
  head_dims: tuple[Width, ...] = (512, 256)
  dropout_rate: Rate = 0.5
  dtype: Any = jnp.float32
  axis_name: str | None = None

  INPUT: ClassVar[str] = 'points'
  WEIGHT_FIELDS: ClassVar[tuple[str, ...]] = (
    'num_neighbors',
    'num_edge_layers',
    'neighbor_pooling',
    'hidden_size',
    'num_layers',
    'num_heads',
    'mlp_dim',
    'norm',
    'fused_size',
    'head_dims',
  )
  FUNCTION_FIELDS: ClassVar[tuple[str, ...]] = (
    'num_neighbors',
    'neighbor_pooling',
    'num_heads',
    'norm',
  )

  def __post_init__(self) -> None:
    fields_lib.check_ranges(self)
    check_choice('neighbor_pooling', self.neighbor_pooling, NEIGHBOR_POOLINGS)
    check_choice('norm', self.norm, NORMS)
    if self.hidden_size % self.num_heads:
      raise FieldError(
        'num_heads', f'{self.num_heads} does not divide hidden_size {self.hidden_size}'
      )
    super().__post_init__()

  @nn.nowrap
  def neighbors(self, points: jax.Array) -> jax.Array:
    """Returns the indices of the nearest points, int32 [B, N, k], of points [B, N, 3]."""
    if points.shape[-1] != 3:
      raise UsageError(f'points have {points.shape[-1]} coordinates; {type(self).__name__} takes 3')
    if points.shape[1] < self.num_neighbors:
      raise FieldError(
        'num_neighbors', f'{self.num_neighbors}, but there are {points.shape[1]} points'
      )
    return vn.nearest_neighbors(points, self.num_neighbors)

  @nn.nowrap
  def read(self, tokens: jax.Array, train: bool, features: bool) -> jax.Array | Features:
    """Pools tokens [B, N, D] and classifies them, or returns their `Features`."""
    pooled = jnp.concatenate([tokens.max(axis=1), tokens.mean(axis=1)], axis=-1)  # [B, 2 D]
    if features:
      return Features(pooled=pooled, tokens=tokens)
    if self.num_classes <= 0:
      return pooled
    x = pooled
    for i, width in enumerate(self.head_dims):
      x = DenseLeakyReLU(width, self.dtype, self.axis_name, name=f'head_{i}')(x, train)
      x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
    return nn.Dense(self.num_classes, dtype=jnp.float32, name='output_projection')(x)

  def features(self, x: jax.Array, *, train: bool = False, layers: Sequence[int] = ()) -> Features:
    """As of `Backbone`; tokens [B, N, D] and pooled [B, 2 D], their maximum and mean.

    Raises:
      UsageError: for `layers`; heads read the fusion of all of them.
    """
    if layers:
      raise UsageError(
        f'{type(self).__name__}: heads read the fusion of its layers, and no single one'
      )
    return self(x, train=train, features=True)

  def summary(self) -> str:
    return (
      f'{type(self).__name__}, {self.num_layers} layers of width {self.hidden_size}, '
      f'{self.num_heads} heads, {self.num_neighbors} neighbours'
    )

  def layer_of(self, path: str) -> int:
    """The edge layers are layer 0, each block the next; the fusion and the head are the last."""
    if _EDGE_LAYER.fullmatch(path):
      return 0
    block = _BLOCK.fullmatch(path)
    return int(block[1]) + 1 if block else self.num_layers + 1

  def is_head(self, path: str) -> bool:
    """As of `Backbone`; the dense layers before the logits are part of the head."""
    return _HEAD.fullmatch(path) is not None

  def variable_shapes(self, input_size: Shape | None, channels: int) -> dict[str, Shape]:
    """As of `Backbone`; they don't depend on the number of points."""
    del input_size
    return trace_shapes(self, (self.num_neighbors,), channels)


class DenseLeakyReLU(nn.Module):
  """A dense layer, batch normalisation and leaky ReLU: [..., C] to [..., features].

  Attributes:
    features: width of the output.
    dtype: dtype of the computation; parameters and statistics are float32.
    axis_name: as for `PointBackbone`.
  """

  features: int
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = nn.Dense(self.features, use_bias=False, dtype=self.dtype, name='dense')(x)
    x = layers.BatchNorm(dtype=self.dtype, axis_name=self.axis_name, name='bn')(x, train)
    return nn.leaky_relu(x, 0.2)
