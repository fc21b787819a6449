"""The part that each point of a cloud belongs to."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import UsageError
from vit_jax.models.heads.head import Head
from vit_jax.ranges import Rate, Width


class PartSegmenter(Head, kw_only=True):
  """Classifies each point by its own token, and by what is known of the whole cloud.

  Maps points [B, N, 3], float, to {'logits': float32 [B, N, num_classes]}: two layers with ReLU and
  dropout, and a linear one, on each token beside the pooled feature, or where there is none the
  largest of each feature over the tokens. Parameters are in `backbone`, `token_layer`,
  `cloud_layer`, which together are the first layer, `hidden_layer` and `part_projection`.

  Attributes, beside those of `Head`:
    hidden_size: width of both layers.
    dropout_rate: dropout after each of them.
    category: whether it is told which parts the object's category has, as PointNet (arXiv
      1612.00593) is: `label`, float32 [B, num_classes], in the call. Without, as in predictions for
      files, these are zeros.

  Raises:
    FieldError: on construction, for a size or a rate out of range.
    UsageError: when called, for a backbone that doesn't give a token for each point.
  """

  hidden_size: Width = 128
  dropout_rate: Rate = 0.0
  category: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, label: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    found = self.backbone.features(x, train=train)
    tokens = None if found.tokens is None else found.tokens[:, found.num_prefix :]  # [B, N, D]
    if tokens is None or tokens.shape[:2] != x.shape[:2]:
      raise UsageError('parts are read from a token of each point, and the model gives none')
    cloud = tokens.max(axis=1) if found.pooled is None else found.pooled  # [B, D]
    if self.category:
      given = jnp.zeros((x.shape[0], self.num_classes)) if label is None else label
      cloud = jnp.concatenate([cloud, given.astype(cloud.dtype)], axis=-1)
    size, dtype = self.hidden_size, self.dtype
    y = nn.Dense(size, dtype=dtype, name='token_layer')(tokens)  # [B, N, hidden_size]
    y += nn.Dense(size, use_bias=False, dtype=dtype, name='cloud_layer')(cloud)[:, None]
    y = nn.Dropout(self.dropout_rate)(nn.relu(y), deterministic=not train)
    y = nn.relu(nn.Dense(size, dtype=dtype, name='hidden_layer')(y))
    y = nn.Dropout(self.dropout_rate)(y, deterministic=not train)
    # [B, N, num_classes]
    return {'logits': nn.Dense(self.num_classes, dtype=jnp.float32, name='part_projection')(y)}
