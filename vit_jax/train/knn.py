"""Classification of a split's features by their k nearest neighbours in another: `neighbors`."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import numpy as np

from vit_jax import experiment_config, neighbors
from vit_jax.data.loader import Plan
from vit_jax.errors import FieldError
from vit_jax.train import feeds, step

# Rows of the two sides whose similarities a device computes at a time: 16 MiB in float32.
_QUERIES, _BANK = 256, 2**14


@dataclasses.dataclass(frozen=True)
class KNN:
  """Votes of the nearest training examples, weighted by exp(cosine similarity / temperature).

  Attributes:
    options: `config.evaluators.knn`.
  """

  options: experiment_config.KNN

  def check(self, num_examples: int) -> None:
    """Raises FieldError where the training split has fewer examples than vote."""
    if self.options.k > num_examples:
      raise FieldError('k', f'{self.options.k}, but the training split has {num_examples} examples')

  def accuracy(
    self,
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    num_classes: int,
  ) -> float:
    """Returns the share of the test examples that are classified rightly.

    All devices of all processes share the test examples, and each has the whole bank. The
    arguments are the same in every process.

    Args:
      features: float32 [N, D] of the training examples, the bank.
      labels: int [N].
      test_features: float32 [M, D].
      test_labels: int [M].
      num_classes: that labels are below.
    """
    bank = feeds.put_on_devices(_blocks(features, labels))
    count = _count_hits(self.options.k, self.options.temperature, num_classes)
    devices = jax.local_device_count()
    plan = Plan(
      num_examples=len(test_labels),
      batch_size=_QUERIES * jax.device_count(),
      seed=None,
      num_devices=devices,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

    def batches():
      for i in range(plan.num_batches):
        index, weight = plan.examples(plan.positions(i * plan.rows, plan.rows))
        batch = test_features[index], test_labels[index], weight
        yield count(bank, jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch), ())

    return float(feeds.add_up(batches()) / len(test_labels))


def _blocks(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns features [blocks, rows, D] and labels [blocks, rows], -1 in rows that fill the last."""
  count = math.ceil(len(labels) / _BANK)
  rows = math.ceil(len(labels) / count)
  padding = count * rows - len(labels)
  features = np.pad(features, ((0, padding), (0, 0))).reshape(count, rows, -1)
  labels = np.pad(labels, (0, padding), constant_values=-1).reshape(count, rows)
  return features, labels.astype(np.int32)


@functools.cache
def _count_hits(k: int, temperature: float, num_classes: int) -> Callable:
  """Returns the compiled function of (bank, queries, ()) that counts hits over all devices."""

  def count(bank, queries, _):
    features, labels, weight = queries
    guesses = vote(*bank, features, k, temperature, num_classes).argmax(axis=-1)
    return jax.lax.psum(((guesses == labels) * weight).sum(), 'batch')

  return step.map_over_devices(count)


def vote(
  bank: jax.Array,
  labels: jax.Array,
  queries: jax.Array,
  k: int,
  temperature: float,
  num_classes: int,
) -> jax.Array:
  """Returns the shares of the votes that classes get, float32 [Q, num_classes].

  Of neighbours at the same distance the first in the bank count.

  Args:
    bank: float32 [blocks, N, D], compared to the queries block by block.
    labels: int32 [blocks, N], -1 in rows that don't count.
    queries: float32 [Q, D].
    k: neighbours that vote.
    temperature: of their weights.
    num_classes: that labels are below.
  """
  queries = neighbors.unit(queries)

  def nearer(best, block):
    features, labels = block
    return neighbors.take_nearer(best, queries, neighbors.unit(features), labels), None

  best, _ = jax.lax.scan(nearer, neighbors.none_yet(len(queries), k), (bank, labels))
  return neighbors.votes(best, temperature, num_classes)
