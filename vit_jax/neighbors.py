"""The nearest of some features, and the class that they vote for, as DINO's eval_knn.py does it.

arXiv 2104.14294, after arXiv 1805.01978; github.com/facebookresearch/dino.
"""

import jax
import jax.numpy as jnp

# For each of Q queries, the cosine similarities float32 [Q, k] and the labels int32 [Q, k] of the
# nearest so far; -inf and -1 where there are fewer.
Nearest = tuple[jax.Array, jax.Array]


def none_yet(num_queries: int, k: int) -> Nearest:
  """Returns what `take_nearer` starts from."""
  return jnp.full((num_queries, k), -jnp.inf), jnp.full((num_queries, k), -1)


def take_nearer(
  best: Nearest, queries: jax.Array, features: jax.Array, labels: jax.Array
) -> Nearest:
  """Returns the nearest of those so far and of a block of features.

  Of those at the same distance the first count.

  Args:
    best: so far.
    queries: float32 [Q, D], of length 1.
    features: float32 [N, D], of length 1.
    labels: int32 [N] or, where they differ between queries, [Q, N]; -1 of what doesn't count.
  """
  # The highest precision, since accelerators multiply float32 in fewer bits otherwise.
  similarity = jnp.matmul(queries, features.T, precision='highest')  # [Q, N]
  similarity = jnp.where(labels >= 0, similarity, -jnp.inf)
  labels = jnp.broadcast_to(labels, similarity.shape)
  similarity = jnp.concatenate([best[0], similarity], axis=1)
  labels = jnp.concatenate([best[1], labels], axis=1)
  similarity, index = jax.lax.top_k(similarity, best[0].shape[1])
  return similarity, jnp.take_along_axis(labels, index, axis=1)


def votes(best: Nearest, temperature: float, num_classes: int) -> jax.Array:
  """Returns the shares of the votes that classes get, float32 [Q, num_classes].

  Args:
    best: of k neighbours each.
    temperature: votes are weighted by exp(cosine similarity / temperature).
    num_classes: that labels are below.
  """
  similarity, labels = best
  weights = jax.nn.softmax(similarity / temperature)  # exp, over a sum that is the same for all
  return jnp.einsum('qk,qkc->qc', weights, jax.nn.one_hot(labels, num_classes), precision='highest')


def unit(features: jax.Array) -> jax.Array:
  """Returns vectors [..., D] of length 1; zeros stay zeros."""
  return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
