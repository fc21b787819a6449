"""Optimisers, through optax: what the config says about them, as one transformation."""

import itertools
import math
import re
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from vit_jax.errors import UsageError, check_choice

# name -> optax's constructor, the options that it takes, whether its weight decay is decoupled
_OPTIMIZERS = {
  'sgd': (optax.sgd, ('momentum', 'nesterov'), False),
  'adam': (optax.adam, ('b1', 'b2', 'eps'), False),
  'adamw': (optax.adamw, ('b1', 'b2', 'eps'), True),
  'lion': (optax.lion, ('b1', 'b2'), True),
  'lamb': (optax.lamb, ('b1', 'b2', 'eps'), True),
}
_OPTIONS = ('momentum', 'nesterov', 'b1', 'b2', 'eps')


def path_names(tree: Any) -> Any:
  """Returns a tree like `tree` whose leaves are their own paths, as 'Transformer/.../kernel'."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator='/'), tree
  )


def _regex(field: str, pattern: str) -> re.Pattern:
  try:
    return re.compile(pattern)
  except re.error as e:
    raise UsageError(f'{field}: {pattern!r} is not a regular expression ({e})') from e


def _matches(pattern: re.Pattern, name: str) -> bool:
  ancestors = itertools.accumulate(name.split('/'), '{}/{}'.format)
  return any(pattern.fullmatch(path) for path in ancestors)


def trainable_mask(freeze: tuple[str, ...], params: Any) -> Any:
  """Returns a tree of bools, False on parameters that one of the `freeze` regexes matches.

  A regex matches a parameter where it matches the whole of its path or of a parent's:
  'embedding/bias' freezes one array, 'embedding' all below it,
  'Transformer/encoderblock_[0-5]' six blocks.

  Raises:
    UsageError: a regex that doesn't compile or matches no parameter, or nothing is left to train.
  """
  names = path_names(params)
  patterns = [_regex('config.freeze', p) for p in freeze]
  for pattern in patterns:
    if not any(_matches(pattern, name) for name in jax.tree.leaves(names)):
      raise UsageError(f'config.freeze: {pattern.pattern!r} matches no parameter')
  mask = jax.tree.map(lambda name: not any(_matches(p, name) for p in patterns), names)
  if not any(jax.tree.leaves(mask)):
    raise UsageError(f'config.freeze: {tuple(freeze)!r} leaves no parameter to train')
  return mask


def make_optimizer(
  config: ConfigDict, params: Any, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Builds clipping, weight decay and the optimiser, over the parameters that aren't frozen.

  Weight decay is decoupled, and multiplied by the learning rate, for adamw, lion and lamb (arXiv
  1711.05101, as PyTorch's AdamW); for sgd and adam it is added to the gradient, as PyTorch's
  `weight_decay` is. Frozen parameters get no update and no optimiser state, and don't count
  towards the global norm.

  Args:
    config: the experiment; reads `optimizer`, `grad_clip_norm` and `freeze`.
    params: the parameters, or their shapes.
    schedule: step -> learning rate.

  Raises:
    UsageError: an unknown optimiser, an option that it doesn't have or that needs another, a bad
      regex or number.
  """
  opt = config.optimizer
  check_choice('config.optimizer.name', opt.name, _OPTIMIZERS)
  constructor, allowed, decoupled = _OPTIMIZERS[opt.name]
  options = {name: opt[name] for name in _OPTIONS if opt[name] is not None}
  for name in options:
    if name not in allowed:
      raise UsageError(
        f'config.optimizer.{name}: {opt.name} has no such option; it has {", ".join(allowed)}'
      )
  if opt.nesterov and not opt.momentum:
    raise UsageError(f'config.optimizer.nesterov: needs a momentum above 0, not {opt.momentum}')
  for field, value in (
    ('optimizer.weight_decay', opt.weight_decay),
    ('grad_clip_norm', config.grad_clip_norm),
  ):
    if not 0 <= value < math.inf:
      raise UsageError(f'config.{field}: {value} is not a number from 0 on')
  for name in ('momentum', 'b1', 'b2'):
    if name in options and not 0 <= options[name] < 1:
      raise UsageError(f'config.optimizer.{name}: {options[name]} is not in [0, 1)')
  if not options.get('eps', 1.0) > 0:
    raise UsageError(f'config.optimizer.eps: {opt.eps} is not positive')

  no_decay = _regex('config.optimizer.no_decay', opt.no_decay) if opt.no_decay else None

  def decay_mask(tree):
    return jax.tree.map(lambda name: not (no_decay and no_decay.search(name)), path_names(tree))

  parts = []
  if config.grad_clip_norm:
    parts.append(optax.clip_by_global_norm(config.grad_clip_norm))
  if decoupled:
    options |= {'weight_decay': opt.weight_decay, 'mask': decay_mask}
  elif opt.weight_decay:
    parts.append(optax.add_decayed_weights(opt.weight_decay, decay_mask))
  parts.append(constructor(schedule, **options))
  tx = optax.chain(*parts)
  if not config.freeze:
    return tx
  labels = jax.tree.map(
    lambda trainable: 'train' if trainable else 'freeze', trainable_mask(config.freeze, params)
  )
  return optax.partition({'train': tx, 'freeze': optax.set_to_zero()}, labels)
