"""SegViT's decoder (arXiv 2210.05844): the attention of class queries is the mask of the class.

github.com/zbwxp/SegVit, decode_heads/atm_head.py, without its shrunk variant; parameters have its
names, but `layers.0` is `layers_0`, and self-attention those of `layers.attention`.
"""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import FieldError, UsageError
from vit_jax.models import layers
from vit_jax.models.heads.segmentation import Segmenter, upsample
from vit_jax.models.layers import cpu
from vit_jax.ranges import Count, Layers, Number, Rate, Width

_normal = nn.initializers.normal(0.02)


class AttentionToMask(nn.Module):
  """Attention of queries to tokens that also gives its logits, averaged over heads.

  Attributes:
    num_heads: divides the width of the queries.
    dropout_rate: dropout of the attention weights.
    dtype: dtype of the computation; parameters, logits and softmax are float32.
  """

  num_heads: int
  dropout_rate: float = 0.1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, queries: jax.Array, tokens: jax.Array, deterministic: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Maps queries [B, K, D] and tokens [B, N, D] to [B, K, D] and mask logits [B, K, N]."""
    width = queries.shape[-1]
    dense = functools.partial(nn.Dense, width, dtype=self.dtype, kernel_init=_normal)

    def split(name: str, x: jax.Array) -> jax.Array:
      return dense(name=name)(x).reshape(*x.shape[:2], self.num_heads, -1)  # [B, ..., heads, d]

    q, k, v = split('q', queries), split('k', tokens), split('v', tokens)
    q = q * (width // self.num_heads) ** -0.5
    logits = jnp.einsum('bqhd,bnhd->bhqn', q, k, preferred_element_type=jnp.float32)
    weights = nn.Dropout(self.dropout_rate)(cpu.softmax(logits), deterministic)
    x = jnp.einsum('bhqn,bnhd->bqhd', weights.astype(v.dtype), v).reshape(queries.shape)
    return dense(name='proj')(x), logits.mean(axis=1)


class DecoderLayer(nn.Module):
  """Self-attention of queries, attention to tokens, MLP, with a norm after each residual sum.

  Attributes: as those of `AttentionToMask`; dropout is of all branches.
  """

  num_heads: int
  dropout_rate: float = 0.1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, queries: jax.Array, tokens: jax.Array, deterministic: bool
  ) -> tuple[jax.Array, jax.Array]:
    """As `AttentionToMask`."""
    options = {'num_heads': self.num_heads, 'dropout_rate': self.dropout_rate, 'dtype': self.dtype}
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_normal)

    def drop(x: jax.Array) -> jax.Array:
      return nn.Dropout(self.dropout_rate)(x, deterministic)

    def norm(name: str, x: jax.Array) -> jax.Array:
      return nn.LayerNorm(1e-5, self.dtype, name=name)(x)

    attend = layers.MultiHeadDotProductAttention(**options, name='self_attn')
    queries = norm('norm1', queries + drop(attend(queries, deterministic=deterministic)))
    y, mask = AttentionToMask(**options, name='multihead_attn')(queries, tokens, deterministic)
    queries = norm('norm2', queries + drop(y))
    y = drop(nn.relu(dense(4 * queries.shape[-1], name='linear1')(queries)))
    y = dense(queries.shape[-1], name='linear2')(y)
    return norm('norm3', queries + drop(y)), mask


class SegViT(Segmenter, kw_only=True):
  """Attention-to-mask decoder on layers of a plain ViT.

  Query i stands for class i. From the last of the chosen layers to the first, the queries attend to
  its tokens; what they are then tells whether their class is in the image, and the logits of the
  attention, added up over the layers so far, where it is. A pixel's score of a class is the
  product of both, added up over queries.

  Maps images [B, H, W, C], float, to 'scores' [B, H, W, num_classes], and, for each of L layers in
  that order, 'class_logits' [B, windows, L, K queries, K + 1], the last of no class, and
  'mask_logits' [B, windows, L, K, rows, columns] on the grid of tokens.

  Attributes, beside those of `Segmenter`:
    layers: of the backbone, from 0, whose outputs are read; None is three, at every third of it.
    embed_dim: width of the decoder; None is half the backbone's.
    num_heads: of each attention; divides `embed_dim`.
    num_layers: decoder layers for each layer of the backbone.
    dropout_rate: dropout in the decoder.

  Raises:
    FieldError: for fields out of range.
    UsageError: when called, for a backbone whose layers aren't tokens on one grid.
  """

  QUERIES: ClassVar[bool] = True

  layers: tuple[Number, ...] | None = None
  embed_dim: Width | None = None
  num_heads: Count = 12
  num_layers: Layers = 3
  dropout_rate: Rate = 0.1

  @nn.compact
  def segment(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
    found = self.backbone.features(x, train=train, layers=self._layers())
    if found.grid is None:
      raise UsageError('SegViT reads layers of tokens on one grid, which this model has not')
    self.backbone.layout(x.shape[1:3]).check_covers(x.shape[1:3])
    width = self.embed_dim or found.layers[0].shape[-1] // 2
    if width % self.num_heads:
      raise FieldError('head.num_heads', f'{self.num_heads} heads do not divide a width of {width}')
    queries = self.param('q', nn.initializers.normal(1.0), (self.num_classes, width))
    queries = jnp.tile(queries.astype(self.dtype), (x.shape[0], 1, 1))  # [B, K, D]
    states, masks = [], []
    for i, tokens in enumerate(reversed(found.layers), 1):
      tokens = tokens[:, found.num_prefix :]  # [B, N, backbone's D]
      tokens = nn.Dense(width, dtype=self.dtype, kernel_init=_normal, name=f'input_proj_{i}')(
        tokens
      )
      tokens = nn.LayerNorm(1e-5, self.dtype, name=f'proj_norm_{i}')(tokens)  # [B, N, D]
      for layer in range(self.num_layers):
        queries, mask = DecoderLayer(
          self.num_heads, self.dropout_rate, self.dtype, name=f'decoder_{i}_layers_{layer}'
        )(queries, tokens, not train)
      states.append(queries)
      masks.append(mask.reshape(*mask.shape[:2], *found.grid))  # [B, K, rows, columns]
    classify = nn.Dense(
      self.num_classes + 1, dtype=jnp.float32, kernel_init=_normal, name='class_embed'
    )
    class_logits = classify(jnp.stack(states, axis=1))  # [B, L, K, K + 1]
    mask_logits = jnp.cumsum(jnp.stack(masks, axis=1), axis=1)  # [B, L, K, rows, columns]
    where = jax.nn.sigmoid(upsample(mask_logits[:, -1], x.shape[1:3]))
    whether = jax.nn.softmax(class_logits[:, -1])[..., :-1]
    scores = jnp.einsum('bqc,bqhw->bhwc', whether, where)  # [B, H, W, K]
    return {'scores': scores, 'class_logits': class_logits, 'mask_logits': mask_logits}

  @nn.nowrap
  def _layers(self) -> tuple[int, ...]:
    """Returns the indices of the backbone's layers that are read."""
    last = self.backbone.layer_of('output_projection/kernel')  # the layers, and what precedes them
    if last is None:
      raise UsageError("SegViT reads layers, and this model's aren't counted")
    count = last - 1
    chosen = self.layers or tuple(sorted({max(count * i // 3, 1) - 1 for i in (1, 2, 3)}))
    if list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= count:
      raise FieldError(
        'head.layers', f'{chosen} are not layers in order, from 0 to {count - 1} of the model'
      )
    return chosen
