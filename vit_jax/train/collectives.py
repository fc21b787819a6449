"""Collective operations of many arrays; between CPUs, of several arrays side by side.

GPUs and TPUs send many arrays at once as it is. CPU devices meet for each of them, and threads on
fewer cores, or processes on a network, wait for each other for longer than it takes to copy small
arrays into one and back. The results have the same bits.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

_SIZE = 2**20  # bytes of a device up to which arrays are put side by side


def psum(tree: Any, axis_name: str) -> Any:
  """Returns jax.lax.psum of a tree of arrays."""
  if jax.default_backend() != 'cpu' or jax.lax.axis_size(axis_name) == 1:
    return jax.lax.psum(tree, axis_name)
  leaves, structure = jax.tree.flatten(tree)
  operation = functools.partial(jax.lax.psum, axis_name=axis_name)
  sums = _side_by_side(operation, [x.ravel() for x in leaves])
  return structure.unflatten(y.reshape(x.shape) for x, y in zip(leaves, sums, strict=True))


def all_gather(parts: Sequence[jax.Array], axes: Sequence[int], axis_name: str) -> list[jax.Array]:
  """Returns whole arrays, each put together of the devices' parts along its own one of `axes`."""
  pairs = [*zip(parts, axes, strict=True)]
  if jax.default_backend() != 'cpu':
    return [jax.lax.all_gather(x, axis_name, axis=axis, tiled=True) for x, axis in pairs]
  operation = functools.partial(jax.lax.all_gather, axis_name=axis_name)
  gathered = _side_by_side(operation, [x.ravel() for x in parts])
  return [
    jnp.moveaxis(y.reshape(-1, *x.shape), 0, axis).reshape(
      *x.shape[:axis], -1, *x.shape[axis + 1 :]
    )
    for (x, axis), y in zip(pairs, gathered, strict=True)
  ]


def psum_scatter(
  arrays: Sequence[jax.Array], axes: Sequence[int], axis_name: str
) -> list[jax.Array]:
  """Returns this device's parts of the sums of arrays, each along its own one of `axes`."""
  pairs = [*zip(arrays, axes, strict=True)]
  if jax.default_backend() != 'cpu':
    return [
      jax.lax.psum_scatter(x, axis_name, scatter_dimension=axis, tiled=True) for x, axis in pairs
    ]
  count = jax.lax.axis_size(axis_name)
  parts = [
    jnp.moveaxis(x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :]), axis, 0)
    for x, axis in pairs
  ]
  operation = functools.partial(jax.lax.psum_scatter, axis_name=axis_name)
  sums = _side_by_side(operation, [x.reshape(count, -1) for x in parts])
  return [y.reshape(x.shape[1:]) for x, y in zip(parts, sums, strict=True)]


def _side_by_side(
  operation: Callable[[jax.Array], jax.Array], arrays: Sequence[jax.Array]
) -> list[jax.Array]:
  """Applies an operation, which keeps the last axis, to small arrays put together along it."""
  results = [*arrays]
  for group in _groups(arrays):
    ends = itertools.accumulate(arrays[i].shape[-1] for i in group)
    joined = operation(jnp.concatenate([arrays[i] for i in group], axis=-1))
    for i, result in zip(group, jnp.split(joined, [*ends][:-1], axis=-1), strict=True):
      results[i] = result
  return results


def _groups(arrays: Sequence[jax.Array]) -> list[list[int]]:
  """Returns the places of arrays that are put together: of one dtype, and of `_SIZE` at most."""
  groups, last = [], {}  # dtype -> its last group, and the bytes of that
  for i, x in enumerate(arrays):
    num_bytes = x.shape[-1] * x.dtype.itemsize
    group, total = last.get(x.dtype, ([], _SIZE + 1))
    if total + num_bytes <= _SIZE:
      group.append(i)
      last[x.dtype] = group, total + num_bytes
      continue
    groups.append([i])
    if num_bytes <= _SIZE:  # else smaller ones still join the group before it
      last[x.dtype] = groups[-1], num_bytes
  return groups
