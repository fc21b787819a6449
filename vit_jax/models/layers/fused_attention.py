"""Attention in one kernel that keeps the logits on the chip, for devices that have such a one.

On an NVIDIA GPU it is cuDNN's (FlashAttention, arXiv 2205.14135), on a TPU the one of Pallas. Both
compute in 16 bits with float32 logits and softmax, as the products that XLA compiles do, but never
write the [queries, keys] weights to memory. Their speed was not measured here;
`python -m vit_jax.models.layers.attention_times` compares them with XLA's on the present device.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax.models.layers import cpu, devices

# Below a tile of cuDNN's kernel, 128 x 128, much of the tile is padding, and XLA's products of
# short sequences keep the logits in the cache.
_CUDNN_TOKENS = 128
# float32 logits of a head are then 4 MiB: with their softmax and gradients, more than a TPU core's
# vector memory (16 MiB up to v4) holds, so that XLA would write them out. Below, padding tokens to
# blocks and heads of 64 to the 128 lanes costs what the kernel saves.
_PALLAS_TOKENS = 1024
# JAX differentiates no odd number of tokens on cuDNN: it takes a missing bias for one (up to 0.12).
_MULTIPLE = 2
_LANES, _LARGEST_BLOCK = 128, 768

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def implementations(
  query: jax.Array, key: jax.Array, value: jax.Array, padding: int = 0
) -> dict[str, Attend]:
  """Returns the kernels that take these inputs, by the platform in JAX's words ('cuda', 'tpu').

  There are none on a machine without such a device: JAX asks the GPU and its cuDNN where it traces
  the call of a kernel, and raises without them. What is traced is therefore a matter of the devices
  at hand; which of it runs still is decided where it is lowered. There are none for a batch of
  symbolic size (`jax.export`), which kernels don't take.

  Args:
    query: [batch..., queries, heads, d].
    key: [batch..., keys, heads, d].
    value: as `key`; kernels don't take another width.
    padding: how many of the keys, the last ones, no query sees.

  Returns:
    Functions of (query, key, value), as `attention.dot_product_attention` without bias, mask and
    dropout. They have gradients of first order, in reverse mode alone.
  """
  inputs, found = (query, key, value), {}
  sides = (*query.shape, *key.shape)
  if len({x.dtype for x in inputs}) > 1 or not all(isinstance(side, int) for side in sides):
    return found
  if key.shape != value.shape or not cpu.rewrites():
    return found
  tokens = min(query.shape[-3], key.shape[-3])
  cudnn, pallas = (functools.partial(kernel, padding=padding) for kernel in (_cudnn, _pallas))
  if query.dtype in (jnp.bfloat16, jnp.float16) and tokens >= _CUDNN_TOKENS:
    capabilities = [_capability(device) for device in devices.at_hand('cuda')]
    if capabilities and min(capabilities) >= (8, 0) and _takes(cudnn, *inputs):
      found['cuda'] = cudnn
  is_long = query.dtype == jnp.bfloat16 and tokens >= _PALLAS_TOKENS
  if is_long and devices.at_hand('tpu') and _takes(pallas, *inputs):
    found['tpu'] = pallas
  return found


def padding(query: jax.ShapeDtypeStruct) -> int:
  """Returns how many tokens, added to queries and keys alike, save a kernel from adding them.

  Args:
    query: shape [batch..., tokens, heads, d] and dtype.
  """
  return query.shape[-3] % _MULTIPLE if 'cuda' in implementations(query, query, query) else 0


def _capability(device: jax.Device) -> tuple[int, ...]:
  """Returns the compute capability of an NVIDIA GPU; cuDNN's kernel needs 8.0 (Ampere)."""
  return tuple(map(int, device.compute_capability.split('.')))


def _takes(kernel: Attend, *inputs: jax.Array) -> bool:
  """Whether JAX's conditions for a kernel and its gradients hold: width of a head, cuDNN, mesh."""
  try:
    jax.eval_shape(lambda *inputs: jax.vjp(kernel, *inputs)[0], *inputs)
  except (NotImplementedError, RuntimeError, ValueError):
    return False
  return True


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, padding: int = 0) -> jax.Array:
  inputs = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
  query_, key_, value_ = (_pad(x, 1, _MULTIPLE) for x in inputs)
  lengths, count = {}, key.shape[-3] - padding
  if key_.shape[1] > count:  # keys of padding aren't seen; its query is cut off
    # With a sum over nothing of the keys, as JAX's rule for vmap wants lengths that depend on them.
    none = jnp.sum(key_[:, :0, 0, 0], axis=1).astype(jnp.int32)  # [batch]
    lengths = {
      'query_seq_lengths': none + query_.shape[1],
      'key_value_seq_lengths': none + count,
    }
  out = jax.nn.dot_product_attention(query_, key_, value_, implementation='cudnn', **lengths)
  return out[:, : query.shape[-3]].reshape(query.shape)


def _pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
  """Adds zeros at the end of an axis, up to a multiple."""
  padding = [(0, -side % multiple if i == axis else 0) for i, side in enumerate(x.shape)]
  return jnp.pad(x, padding)


def _pallas(query: jax.Array, key: jax.Array, value: jax.Array, padding: int = 0) -> jax.Array:
  # Importing it takes a while, and few need it.
  from jax.experimental.pallas.ops.tpu import flash_attention as flash

  def prepare(x, padding=0):  # [batch, heads, whole lanes, d], and which of them are padding
    tokens = x.shape[-3] - padding
    x = _pad(x.reshape(-1, *x.shape[-3:]).swapaxes(1, 2), 2, _LANES)
    return x, jnp.broadcast_to(jnp.arange(x.shape[2]) >= tokens, (len(x), x.shape[2]))

  (query_, queries), (key_, keys), (value_, _) = (
    prepare(query),
    prepare(key, padding),
    prepare(value),
  )
  q, k = _block(query_.shape[2]), _block(key_.shape[2])
  out = flash.flash_attention(
    query_,
    key_,
    value_,
    # Tokens attend to those of their own segment; padding is one of its own.
    segment_ids=flash.SegmentIds(queries.astype(jnp.int32), keys.astype(jnp.int32)),
    sm_scale=query.shape[-1] ** -0.5,
    block_sizes=flash.BlockSizes(
      block_q=q,
      block_k_major=k,
      block_k=k,
      block_b=1,
      block_q_major_dkv=q,
      block_k_major_dkv=k,
      block_k_dkv=k,
      block_q_dkv=q,
      block_k_major_dq=k,
      block_k_dq=k,
      block_q_dq=q,
    ),
  )
  return out[:, :, : query.shape[-3]].swapaxes(1, 2).reshape(query.shape)


def _block(tokens: int) -> int:
  """Returns the largest block of whole lanes, up to `_LARGEST_BLOCK`, that divides the tokens."""
  return max(b for b in range(_LANES, _LARGEST_BLOCK + 1, _LANES) if tokens % b == 0)
