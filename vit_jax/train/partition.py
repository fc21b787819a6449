"""Parameters chosen by their paths: those that train, and those that stay as they are."""

import itertools
import re
from typing import Any

import jax

from vit_jax.errors import UsageError


def path_names(tree: Any) -> Any:
  """Returns a tree like `tree` whose leaves are their own paths, as 'Transformer/.../kernel'."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator='/'), tree
  )


def compile_regex(field: str, pattern: str) -> re.Pattern:
  """Returns `pattern` compiled; raises UsageError, naming `field`, where it can't be."""
  try:
    return re.compile(pattern)
  except re.error as e:
    raise UsageError(f'{field}: {pattern!r} is not a regular expression ({e})') from e


def _matches(pattern: re.Pattern, name: str) -> bool:
  ancestors = itertools.accumulate(name.split('/'), '{}/{}'.format)
  return any(pattern.fullmatch(path) for path in ancestors)


def trainable_mask(freeze: tuple[str, ...], params: Any, field: str = 'config.freeze') -> Any:
  """Returns a tree of bools, False on parameters that one of the `freeze` regexes matches.

  `field` is what errors name.

  A regex matches a parameter where it matches the whole of its path or of a parent's:
  'embedding/bias' freezes one array, 'embedding' all below it, '(?!output_projection).*' all but
  the head.

  Raises:
    UsageError: a regex that doesn't compile or matches no parameter, or nothing is left to train.
  """
  names = path_names(params)
  patterns = [compile_regex(field, p) for p in freeze]
  for pattern in patterns:
    if not any(_matches(pattern, name) for name in jax.tree.leaves(names)):
      raise UsageError(f'{field}: {pattern.pattern!r} matches no parameter')
  mask = jax.tree.map(lambda name: not any(_matches(p, name) for p in patterns), names)
  if not any(jax.tree.leaves(mask)):
    raise UsageError(f'{field}: {tuple(freeze)!r} leaves no parameter to train')
  return mask


def split(freeze: tuple[str, ...], params: Any) -> tuple[Any, Any]:
  """Returns (trainable, frozen): two trees like `params`, each None where the other has the leaf.

  None has no leaves, so that what is computed from the trainable tree (gradients, their sum over
  devices, their norm, the optimiser's state) knows nothing of frozen parameters.

  Raises:
    UsageError: see `trainable_mask`.
  """
  mask = trainable_mask(freeze, params)
  trainable = jax.tree.map(lambda trains, p: p if trains else None, mask, params)
  return trainable, jax.tree.map(lambda trains, p: None if trains else p, mask, params)


def merge(trainable: Any, frozen: Any) -> Any:
  """Returns the whole tree that `split` took apart."""
  return jax.tree.map(
    lambda t, f: f if t is None else t, trainable, frozen, is_leaf=lambda x: x is None
  )
