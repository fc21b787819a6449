"""Optimisers: one optax transformation from the config (clipping, decay, rates of layers)."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vit_jax import user_code
from vit_jax.errors import UsageError, check_choice
from vit_jax.models import Backbone
from vit_jax.models.heads.head import Head
from vit_jax.train.partition import compile_regex, path_names, trainable_mask
from vit_jax.train.schedules import cosine_between

# name -> optax's constructor, the options that it takes, whether its weight decay is decoupled
_OPTIMIZERS = {
  'sgd': (optax.sgd, ('momentum', 'nesterov'), False),
  'adam': (optax.adam, ('b1', 'b2', 'eps'), False),
  'adamw': (optax.adamw, ('b1', 'b2', 'eps'), True),
  'lion': (optax.lion, ('b1', 'b2'), True),
  'lamb': (optax.lamb, ('b1', 'b2', 'eps'), True),
}
_OPTIONS = ('momentum', 'nesterov', 'b1', 'b2', 'eps')


def _find(name: str) -> tuple[Callable[..., optax.GradientTransformation], tuple[str, ...], bool]:
  """Returns an entry of `_OPTIMIZERS`, or what a function of 'module:name' takes of the same."""
  field = 'config.optimizer.name'
  if not user_code.is_reference(name):
    check_choice(field, name, _OPTIMIZERS)
    return _OPTIMIZERS[name]
  constructor = user_code.find_function(name, field)
  taken = inspect.signature(constructor).parameters
  options = tuple(option for option in _OPTIONS if option in taken)
  return constructor, options, {'weight_decay', 'mask'} <= taken.keys()


def _made(name: str, optimizer: Any) -> optax.GradientTransformation:
  """Returns what a constructor made; UsageError where it is no optimiser."""
  if not isinstance(optimizer, optax.GradientTransformation):
    found = type(optimizer).__name__
    raise UsageError(
      f'config.optimizer.name: {name!r} returned {found}, not an optax.GradientTransformation'
    )
  return optimizer


def _options(opt: ConfigDict, allowed: tuple[str, ...]) -> dict[str, Any]:
  """Returns the options that are set, all of them ones that the optimiser has and in range."""
  # On the command line nothing can be set back to None, but 0 means the same to an optimiser
  # that has no such option.
  options = {n: opt[n] for n in _OPTIONS if opt[n] is not None and (n in allowed or opt[n])}
  for name in options:
    if name not in allowed:
      raise UsageError(
        f'config.optimizer.{name}: {opt.name} has no such option (0 is off); '
        f'it has {", ".join(allowed)}'
      )
  if opt.nesterov and not opt.momentum:
    raise UsageError(f'config.optimizer.nesterov: needs a momentum above 0, not {opt.momentum}')
  if not options.get('eps', 1.0) > 0:
    raise UsageError(f'config.optimizer.eps: {opt.eps} is not positive')
  return options


def learning_rate_factors(
  model: Backbone | Head, params: Any, layer_decay: float = 1.0, head_lr_factor: float = 1.0
) -> dict[str, float]:
  """Returns, by parameter path, what the learning rate is multiplied by.

  Layer-wise decay is that of BEiT (arXiv 2106.08254), MAE (arXiv 2111.06377) and timm: layer l of
  0 to L has the factor layer_decay ** (L - l), where the model counts its layers, and L is that of
  the head. `head_lr_factor` is for what the model calls its head alone.

  Args:
    model: whose layers they are.
    params: all parameters, or their shapes; frozen ones count as layers.
    layer_decay: above 0, up to 1.
    head_lr_factor: above 0.

  Raises:
    UsageError: a factor for layers that the model doesn't have.
  """
  names = jax.tree.leaves(path_names(params))
  layers = {name: model.layer_of(name) for name in names}
  heads = {name for name in names if model.is_head(name)}
  if layer_decay != 1 and None in layers.values():
    raise UsageError(
      f'config.optimizer.layer_decay: {layer_decay} needs a model whose layers are counted; '
      '1.0 is off'
    )
  if head_lr_factor != 1 and not heads:
    raise UsageError(
      f'config.optimizer.head_lr_factor: {head_lr_factor} needs a model with a head; 1.0 is off'
    )
  if layer_decay == 1:
    decays = dict.fromkeys(names, 1.0)
  else:
    decays = {name: layer_decay ** (max(layers.values()) - layer) for name, layer in layers.items()}
  return {n: decay * (head_lr_factor if n in heads else 1.0) for n, decay in decays.items()}


def _multiply(factors: dict[str, float]) -> optax.GradientTransformation:
  """Multiplies each update by its path's factor."""
  return optax.stateless(
    lambda updates, _: jax.tree.map(lambda u, p: u * factors[p], updates, path_names(updates))
  )


def _clip_each(norm: float) -> optax.GradientTransformation:
  """Scales each array's gradient down to a norm, as facebookresearch/dino's clip_gradients."""

  def clip(gradient):
    return gradient * jnp.minimum(norm / (jnp.linalg.norm(gradient.ravel()) + 1e-6), 1)

  return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


def _from_step(first: int, schedule: optax.ScalarOrSchedule) -> optax.ScalarOrSchedule:
  """Returns a schedule as seen by who counts from step `first`."""
  return (lambda count: schedule(count + first)) if callable(schedule) else schedule


def _freeze_first(
  config: ConfigDict, params: Any, make: Callable[[int], list[optax.GradientTransformation]]
) -> list[optax.GradientTransformation]:
  """Returns `make(0)`, but for what `config.freeze_first` matches: that starts later.

  Args:
    config: the experiment.
    params: all parameters, or their shapes.
    make: gives the parts of the optimiser of parameters that train from a step on.
  """
  patterns, steps = config.freeze_first, config.freeze_first_steps
  if bool(patterns) != bool(steps):
    raise UsageError(
      f'config.freeze_first_steps: {steps}, but config.freeze_first is {tuple(patterns)!r}'
    )
  if not patterns:
    return make(0)
  mask = trainable_mask(patterns, params, 'config.freeze_first')
  if steps >= config.num_steps:
    raise UsageError(
      f'config.freeze_first_steps: {steps}, but the run ends after {config.num_steps}, and what '
      'config.freeze_first matches would never train'
    )
  at_once = dict(zip(jax.tree.leaves(path_names(params)), jax.tree.leaves(mask), strict=True))
  later = optax.conditionally_mask(optax.chain(*make(steps)), lambda step: step >= steps)
  partition = optax.partition(
    {True: optax.chain(*make(0)), False: later},
    lambda tree: jax.tree.map(lambda name: at_once[name], path_names(tree)),
  )
  return [partition]


def weight_decay(config: ConfigDict) -> optax.ScalarOrSchedule:
  """Returns the weight decay, by steps done where it changes."""
  first, last = config.optimizer.weight_decay, config.optimizer.weight_decay_end
  return first if last is None else cosine_between(first, last, config.num_steps)


def make_optimizer(
  config: ConfigDict, model: Backbone | Head, params: Any, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Builds clipping, weight decay, the optimiser and its layers' learning rates.

  Weight decay is decoupled, and multiplied by the learning rate, for adamw, lion and lamb (arXiv
  1711.05101, as PyTorch's AdamW); for sgd and adam it is added to the gradient, as PyTorch's
  `weight_decay` is. A function of the user's own, or of optax, gets the learning rate and the
  options that it names, and decay where it takes `weight_decay` and `mask`; else decay is added to
  the gradient. `layer_decay` and `head_lr_factor` multiply the learning rate as parameter
  groups of PyTorch do, so decoupled decay too; see `learning_rate_factors`. What `freeze_first`
  matches has neither updates nor decay nor moments until `freeze_first_steps` are done, as a
  parameter of PyTorch whose gradient is None; its gradient counts towards the global norm.

  Args:
    config: the experiment, resolved; reads `optimizer`, `num_steps`, `grad_clip_norm`,
      `grad_clip_norm_of_each`, `freeze_first` and `freeze_first_steps`.
    model: whose parameters they are.
    params: the parameters, or their shapes; all, though the result may be used on some alone.
    schedule: step -> learning rate.

  Raises:
    UsageError: an unknown optimiser, an option that it doesn't have or that needs another, or a
      bad regex.
  """
  opt = config.optimizer
  constructor, allowed, decoupled = _find(opt.name)
  options = _options(opt, allowed)
  factors = learning_rate_factors(model, params, opt.layer_decay, opt.head_lr_factor)
  no_decay = compile_regex('config.optimizer.no_decay', opt.no_decay) if opt.no_decay else None

  def decay_mask(tree):
    return jax.tree.map(lambda name: not (no_decay and no_decay.search(name)), path_names(tree))

  decay = weight_decay(config)

  def make(first):
    rates, decays = _from_step(first, schedule), _from_step(first, decay)
    if decoupled:
      return [_made(opt.name, constructor(rates, **options, weight_decay=decays, mask=decay_mask))]
    coupled = [optax.add_decayed_weights(decays, decay_mask)] if decay else []
    return [*coupled, _made(opt.name, constructor(rates, **options))]

  parts = []
  if config.grad_clip_norm:
    parts.append(optax.clip_by_global_norm(config.grad_clip_norm))
  if config.grad_clip_norm_of_each:
    parts.append(_clip_each(config.grad_clip_norm_of_each))
  parts += _freeze_first(config, params, make)
  if any(factor != 1 for factor in factors.values()):
    parts.append(_multiply(factors))
  return optax.chain(*parts)
