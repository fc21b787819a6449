"""Differential attention (arXiv 2410.05258): the difference of two softmaxes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers.attention import MultiHeadDotProductAttention

_SUB_NORM_EPSILON = 1e-5  # of github.com/microsoft/unilm, whatever the model's norms have


class DifferentialAttention(MultiHeadDotProductAttention):
  """Attention whose weights are a difference, in which what both see by chance cancels.

  The first half of a head's query and key gives one softmax, the second half another; its value is
  weighed by the first less lambda times the second. `query`, `key`, `value` and `out` have the same
  shapes as without. More parameters, all float32: `lambda_q1`, `lambda_k1`, `lambda_q2` and
  `lambda_k2` [d / 2], of which lambda is made, and `sub_norm`, the scale [d] of an RMSNorm of each
  head. `qk_norm` norms halves.

  Captured weights are both softmaxes: [B, 2 * heads, Q, K], the first and the second of a head
  after one another.

  Attributes:
    layer: its number in the model, from 0, which decides where lambda starts: at 0.2 in the first,
      near 0.8 in deep ones.
  """

  layer: int | jax.Array = 0

  @nn.nowrap
  def padding(self, tokens: jax.Array, deterministic: bool) -> int:
    del tokens, deterministic
    return 0  # values are wider than keys, which no kernel takes

  @nn.nowrap
  def attend(
    self, query: jax.Array, key: jax.Array, value: jax.Array, **inputs: jax.Array | bool | None
  ) -> jax.Array:
    query, key = (x.reshape(*x.shape[:-2], -1, x.shape[-1] // 2) for x in (query, key))
    x = super().attend(query, key, jnp.repeat(value, 2, axis=-2), **inputs)  # [B, Q, 2 heads, d]
    start = 0.8 - 0.6 * jnp.exp(-0.3 * self.layer)
    factor = start + self._exponential(1, query) - self._exponential(2, query)
    x = x[..., ::2, :] - factor.astype(x.dtype) * x[..., 1::2, :]  # [B, Q, heads, d]
    x = nn.RMSNorm(_SUB_NORM_EPSILON, self.dtype, name='sub_norm')(x)
    return x * (1 - start).astype(x.dtype)

  @nn.nowrap
  def _exponential(self, number: int, query: jax.Array) -> jax.Array:
    """Returns the exponential of the product of two parameters."""
    init, shape = nn.initializers.normal(0.1), query.shape[-1:]
    q, k = (self.param(f'lambda_{x}{number}', init, shape) for x in 'qk')
    return jnp.exp(jnp.sum(q * k))
