"""Sums over the devices, with as few collective operations as a CPU needs them to be."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

# Bytes of the largest array that is copied to be added up along with others: about as long as
# virtual devices take to meet.
_SMALL = 2**20


def psum(tree: Any, axis_name: str) -> Any:
  """jax.lax.psum of a tree of arrays, on CPUs of all small ones of a dtype as one array.

  GPUs and TPUs add up many arrays in one operation as they are. XLA's CPU devices meet for each of
  them, and threads on a few cores, as processes on a network, wait for each other for longer than
  they add. The sums have the same bits.
  """
  if jax.default_backend() != 'cpu' or jax.lax.axis_size(axis_name) == 1:
    return jax.lax.psum(tree, axis_name)
  leaves, structure = jax.tree.flatten(tree)
  groups = {}
  for i, x in enumerate(leaves):
    groups.setdefault((x.dtype, i if x.nbytes > _SMALL else None), []).append(i)
  packed = [jnp.concatenate([leaves[i].ravel() for i in group]) for group in groups.values()]
  for group, total in zip(groups.values(), jax.lax.psum(packed, axis_name), strict=True):
    ends = itertools.accumulate(leaves[i].size for i in group)
    for i, part in zip(group, jnp.split(total, list(ends)[:-1]), strict=True):
      leaves[i] = part.reshape(leaves[i].shape)
  return jax.tree.unflatten(structure, leaves)
