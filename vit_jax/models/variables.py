"""Flax's variables, {'params': ..., 'batch_stats': ...}, as one flat dict and back."""

from collections.abc import Mapping
from typing import Any

import flax
import jax

Variables = dict[str, Any]


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Returns path -> leaf: of parameters 'embedding/kernel', of others 'batch_stats/bn1/mean'."""
  rest = {name: tree for name, tree in variables.items() if name != 'params'}
  flat = flax.traverse_util.flatten_dict(variables.get('params', {}), sep='/')
  return flat | flax.traverse_util.flatten_dict(rest, sep='/')


def unflatten(
  flat: Mapping[str, Any], collections: tuple[str, ...] = ('batch_stats',)
) -> Variables:
  """Returns the variables that `flatten` took apart.

  Args:
    flat: path -> leaf.
    collections: what paths may begin with that isn't a parameter's.
  """
  paths = {
    name if name.partition('/')[0] in collections else f'params/{name}': leaf
    for name, leaf in flat.items()
  }
  return {'params': {}} | flax.traverse_util.unflatten_dict(paths, sep='/')


def num_entries(tree: Any) -> int:
  """Returns how many numbers a tree of arrays has, or of their shapes."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
