"""Multi-head attention (arXiv 1706.03762) with a bias, a mask, and weights to be captured.

`dot_product_attention` chooses what computes it, by device and inputs, for all models.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.layers import cpu, fused_attention

WEIGHTS = 'attention_weights'  # the name of captured ones, unless another is given


def dot_product_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  bias: jax.Array | None = None,
  mask: jax.Array | None = None,
  dropout_rng: jax.Array | None = None,
  dropout_rate: float = 0.0,
  deterministic: bool = True,
  padding: int = 0,
  module: nn.Module | None = None,
  name: str = WEIGHTS,
) -> jax.Array:
  """Computes softmax(q k^T / sqrt(d) + bias) v per head.

  The products run in the inputs' dtype; logits and softmax are float32 whatever it is. Given a
  `module`, the weights before dropout, float32 [batch..., heads, queries, keys], are sown into its
  'intermediates' as `name`, which costs nothing unless that collection is mutable; and `name` of
  its 'perturbations', where `apply` is given that collection, is added to them, so that the
  gradient with respect to it is that with respect to the weights.

  Where weights are needed for none of these, nor dropped, and there is neither bias nor mask, a
  kernel of `fused_attention` computes the same without them, on devices that have one. A bias
  would have to be rounded to 16 bits for it (Swin's is float32, its windows of 49 tokens are odd,
  which cuDNN doesn't differentiate with a bias).

  Args:
    query: [batch..., queries, heads, d].
    key: [batch..., keys, heads, d].
    value: [batch..., keys, heads, d'].
    bias: added to the logits; broadcasts to [batch..., heads, queries, keys].
    mask: bool, False where a query doesn't see a key; broadcasts likewise. Each query must see one.
    dropout_rng: key for dropout, one draw for each weight.
    dropout_rate: share of the weights that are zeroed unless `deterministic`.
    deterministic: turns dropout off.
    padding: how many of the keys, the last ones, no query sees.
    module: where the weights are sown, and perturbations looked up.
    name: under which they are.

  Returns:
    [batch..., queries, heads, d'] in the inputs' dtype.
  """
  drops = dropout_rate > 0 and not deterministic
  kernels = {}
  if bias is None and mask is None and not (drops or _is_observed(module, name)):
    kernels = fused_attention.implementations(query, key, value, padding)
  if padding:
    seen = jnp.arange(key.shape[-3]) < key.shape[-3] - padding
    mask = seen if mask is None else mask & seen
  if kernels:
    # Gradients keep what any of the branches needs of the forward pass, whichever was lowered; the
    # weights mustn't be among it.
    usual = jax.checkpoint(functools.partial(attend, mask=mask))
    return jax.lax.platform_dependent(query, key, value, default=usual, **kernels)

  def change(weights):
    if module is not None:
      module.sow('intermediates', name, weights)
      if module.has_variable('perturbations', name):
        weights += module.get_variable('perturbations', name)
    if drops:
      keep = jax.random.bernoulli(dropout_rng, 1 - dropout_rate, weights.shape)
      weights = jnp.where(keep, weights / (1 - dropout_rate), 0)
    return weights

  return attend(query, key, value, bias=bias, mask=mask, change=change)


def _is_observed(module: nn.Module | None, name: str) -> bool:
  """Whether the weights are captured, or perturbed."""
  return module is not None and (
    module.is_mutable_collection('intermediates') or module.has_variable('perturbations', name)
  )


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  bias: jax.Array | None = None,
  mask: jax.Array | None = None,
  change: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> jax.Array:
  """`dot_product_attention` with products that XLA compiles, for any device.

  Args: as there, and
    change: applied to the weights, float32 [batch..., heads, queries, keys].
  """
  query = query * query.shape[-1] ** -0.5
  # With heads in front, the products are of plain matrices; on a CPU that is far faster.
  query, key, value = (jnp.swapaxes(x, -3, -2) for x in (query, key, value))
  narrow = query.dtype == key.dtype and query.dtype.itemsize == 2
  logits = _narrow_logits(query, key) if narrow else cpu.product(query, jnp.swapaxes(key, -2, -1))
  if bias is not None:
    logits += bias
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = change(cpu.softmax(logits))
  return jnp.swapaxes(cpu.product(weights.astype(value.dtype), value), -3, -2)


@jax.custom_jvp
def _narrow_logits(query: jax.Array, key: jax.Array) -> jax.Array:
  """Returns q k^T in float32 of inputs of 16 bits, whose gradients are products of 16 bits, too.

  JAX multiplies the float32 gradient of the logits with the inputs otherwise: products in float32.
  """
  return jnp.matmul(query, jnp.swapaxes(key, -2, -1), preferred_element_type=jnp.float32)


@_narrow_logits.defjvp
def _narrow_logits_jvp(primals, tangents):
  (query, key), (query_, key_) = primals, tangents
  change = query_ @ jnp.swapaxes(key, -2, -1) + query @ jnp.swapaxes(key_, -2, -1)
  return _narrow_logits(query, key), change.astype(jnp.float32)


class MultiHeadDotProductAttention(nn.Module):
  """Attention with the parameters of Flax's module of this name: query, key, value, out.

  Attributes:
    num_heads: divides the width of the queries.
    dtype: dtype of the computation; parameters are float32.
    dropout_rate: dropout of the attention weights.
    attention_fn: `dot_product_attention`, or a function that takes the same arguments.
    out_kernel_init: initialiser of the kernel of `out`.
    qkv_bias: whether query, key and value have a bias; 'qv' for the query and the value alone.
    use_bias: whether `out` has one.
    norm: makes the norms, as `norm_layer` does.
    qk_norm: norm the queries and keys of each head: `query_norm`, `key_norm` (arXiv 2302.05442).
    attention_norm: norm what goes into `out`, of all heads together: `norm`.
    num_kv_heads: of keys and values, each for as many heads of queries (arXiv 2305.13245); None: as
      many as heads.
  """

  num_heads: int
  dtype: Any = jnp.float32
  dropout_rate: float = 0.0
  attention_fn: Callable[..., jax.Array] = dot_product_attention
  out_kernel_init: Callable[..., jax.Array] = nn.initializers.xavier_uniform()
  qkv_bias: bool | str = True
  use_bias: bool = True
  norm: Callable[..., nn.Module] = nn.LayerNorm
  qk_norm: bool = False
  attention_norm: bool = False
  num_kv_heads: int | None = None

  @nn.compact
  def __call__(
    self,
    queries: jax.Array,
    keys: jax.Array | None = None,
    *,
    bias: jax.Array | Callable[[jax.Array], jax.Array] | None = None,
    mask: jax.Array | None = None,
    rotation: Callable[[jax.Array], jax.Array] | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Maps queries [B, Q, D] and what they attend to, [B, K, D'] or themselves, to [B, Q, D].

    Args:
      queries: see above.
      keys: likewise.
      bias: as of `dot_product_attention`, or what makes it of the queries [B, Q, heads, d].
      mask: as of `dot_product_attention`.
      rotation: applied to queries and keys, [B, N, heads, d] each, such as `rotary.Rotation`.
      deterministic: turns dropout off.
    """
    tokens, width = queries.shape[-2:]
    padding = 0
    if keys is None and bias is None and mask is None and rotation is None:
      padding = self.padding(queries, deterministic)
    if padding:
      queries = jnp.pad(queries, ((0, 0), (0, padding), (0, 0)))
    keys = queries if keys is None else keys
    dense = functools.partial(
      nn.DenseGeneral,
      dot_general=cpu.dot_general,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
    )
    shape = (self.num_heads, width // self.num_heads)
    kv_shape = (self.num_kv_heads or self.num_heads, shape[1])
    query = dense(shape, use_bias=bool(self.qkv_bias), name='query')(queries)
    key = dense(kv_shape, use_bias=self.qkv_bias is True, name='key')(keys)
    value = dense(kv_shape, use_bias=bool(self.qkv_bias), name='value')(keys)
    inputs = {'bias': bias, 'mask': mask, 'rotation': rotation, 'deterministic': deterministic}
    x = self.attend(query, key, value, padding=padding, **inputs)  # [B, Q, heads, D / heads]
    if self.attention_norm:
      x = self.norm(name='norm')(x.reshape(queries.shape)).reshape(x.shape)
    x = dense(
      width,
      axis=(-2, -1),
      kernel_init=self.out_kernel_init,
      use_bias=self.use_bias,
      name='out',
    )(x)
    return x[:, :tokens] if padding else x

  @nn.nowrap
  def padding(self, tokens: jax.Array, deterministic: bool) -> int:
    """Returns how many tokens to append to [B, N, D], for a kernel that takes even numbers alone.

    Appended here they cost nothing, since XLA writes them along with the tokens. A kernel that
    appends them itself copies queries, keys, values and the result.
    """
    drops = self.dropout_rate > 0 and not deterministic
    if self.attention_fn is not dot_product_attention or drops or _is_observed(self, WEIGHTS):
      return 0
    shape = (*tokens.shape[:-1], self.num_heads, tokens.shape[-1] // self.num_heads)
    return fused_attention.padding(jax.ShapeDtypeStruct(shape, self.dtype))

  @nn.nowrap
  def attend(
    self,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    bias: jax.Array | Callable[[jax.Array], jax.Array] | None,
    mask: jax.Array | None,
    rotation: Callable[[jax.Array], jax.Array] | None,
    deterministic: bool,
    padding: int,
  ) -> jax.Array:
    """Attends with queries [B, Q, heads, d] to keys, likewise, and values [B, K, heads, d'].

    Keys and values may have fewer heads; the last `padding` of them aren't seen. The other inputs
    are those of the call.
    """
    if self.qk_norm:
      query, key = self.norm(name='query_norm')(query), self.norm(name='key_norm')(key)
    if rotation is not None:
      query, key = rotation(query), rotation(key)
    if (groups := query.shape[-2] // key.shape[-2]) > 1:
      key, value = (jnp.repeat(x, groups, axis=-2) for x in (key, value))
    drops = self.dropout_rate > 0 and not deterministic
    return self.attention_fn(
      query,
      key,
      value,
      bias=bias(query) if callable(bias) else bias,
      mask=mask,
      dropout_rng=self.make_rng('dropout') if drops else None,
      dropout_rate=self.dropout_rate,
      deterministic=deterministic,
      module=self,
      **({'padding': padding} if padding else {}),
    )
