"""A linear classifier on frozen features: logistic regression with L2 regularisation."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import experiment_config

_BLOCK = 2**14  # examples whose logits are in memory at a time
_TOLERANCE = 1e-6  # of the gradient's norm, at which the fit ends


@dataclasses.dataclass(frozen=True)
class LinearProbe:
  """Logistic regression on features that are standardised by the training examples.

  It minimises the mean cross-entropy plus `l2` / 2 times the squared norm of the kernel: a convex
  problem, which L-BFGS solves from zeros, in the same way each time. scikit-learn's
  LogisticRegression has the same solution with C = 1 / (l2 * number of examples).

  Attributes:
    options: `config.evaluators.linear`.
  """

  options: experiment_config.Linear

  def check(self, num_examples: int) -> None:
    """Any number of training examples will do."""
    del num_examples

  def accuracy(
    self,
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int,
  ) -> float:
    """Returns the share of the test examples that are classified rightly; see `KNN.accuracy`."""
    logits = self.fit(features, labels, num_classes)(test_features)
    return float(np.mean(logits.argmax(axis=-1) == test_labels))

  def fit(
    self, features: np.ndarray, labels: np.ndarray, num_classes: int
  ) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the classifier: features [M, D] to logits [M, num_classes].

    Args:
      features: float32 [N, D].
      labels: int [N], below `num_classes`.
      num_classes: number of logits.
    """
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    std = np.where(std > 1e-6 * np.abs(mean), std, 1)  # what hardly varies tells nothing

    def standardize(features):
      return ((features - mean) / std).astype(np.float32)

    count = math.ceil(len(labels) / _BLOCK)
    padding = (0, -len(labels) % count)
    features, weights = standardize(features), np.ones(len(labels), np.float32)
    arrays = np.pad(features, (padding, (0, 0))), np.pad(labels, padding), np.pad(weights, padding)
    blocks = [array.reshape(count, -1, *array.shape[1:]) for array in arrays]
    found = _minimize(*blocks, self.options.l2, self.options.max_steps, num_classes)
    kernel, bias = (np.asarray(array) for array in found)
    return lambda features: standardize(features) @ kernel + bias


@functools.partial(jax.jit, static_argnames=('max_steps', 'num_classes'))
def _minimize(
  features: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  l2: jax.Array,
  max_steps: int,
  num_classes: int,
) -> tuple[jax.Array, jax.Array]:
  """Returns (kernel, bias) for features [blocks, N, D], labels and weights [blocks, N]."""

  def loss(parameters):
    kernel, bias = parameters

    @jax.checkpoint
    def add_block(total, block):
      features, labels, weights = block
      logits = jnp.matmul(features, kernel, precision='highest') + bias
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return total + (losses * weights).sum(), None

    total, _ = jax.lax.scan(add_block, 0.0, (features, labels, weights))
    return total / weights.sum() + l2 / 2 * jnp.square(kernel).sum()

  optimizer, value_and_grad = optax.lbfgs(), optax.value_and_grad_from_state(loss)

  def is_unfinished(carry):
    _, _, i, norm = carry
    return (i < max_steps) & (norm > _TOLERANCE)

  def improve(carry):
    parameters, state, i, _ = carry
    value, grad = value_and_grad(parameters, state=state)
    updates, state = optimizer.update(
      grad, state, parameters, value=value, grad=grad, value_fn=loss
    )
    return optax.apply_updates(parameters, updates), state, i + 1, optax.tree.norm(grad)

  start = jnp.zeros((features.shape[-1], num_classes)), jnp.zeros(num_classes)
  return jax.lax.while_loop(is_unfinished, improve, (start, optimizer.init(start), 0, jnp.inf))[0]
