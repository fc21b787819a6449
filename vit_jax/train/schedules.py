"""Schedules: step -> learning rate, with linear warmup; and from one number to another."""

import math

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vit_jax import user_code
from vit_jax.errors import UsageError, check_choice

SCHEDULES = ('constant', 'linear', 'cosine', 'rsqrt')
_ENDING = ('linear', 'cosine')  # which reach a value at the end of the run


def cosine_between(first: float, last: float, num_steps: int) -> optax.Schedule:
  """Returns half a cosine from `first` at step 0 to `last` at `num_steps`, and from there on."""

  def schedule(step):
    done = jnp.minimum(step / num_steps, 1)
    return last + (first - last) * (1 + jnp.cos(math.pi * done)) / 2

  return schedule


def rsqrt_schedule(peak: float, timescale: int) -> optax.Schedule:
  """Returns peak * sqrt(timescale / (step + timescale)), as arXiv 2106.04560 (big_vision)."""
  # During warmup, optax evaluates it at negative steps too, where the root may not exist.
  return lambda step: peak * jnp.sqrt(timescale / (jnp.maximum(step, 0) + timescale))


def make_schedule(config: ConfigDict, num_steps: int) -> optax.Schedule:
  """Builds the schedule of a run.

  Args:
    config: the experiment; reads `schedule` and `optimizer.learning_rate` (the peak).
    num_steps: optimiser steps of the run; linear and cosine reach `schedule.end` there.

  Raises:
    UsageError: unknown schedule, or a warmup that doesn't fit the run.
  """
  name, warmup = config.schedule.name, config.schedule.warmup_steps
  peak, end = config.optimizer.learning_rate, config.schedule.end
  own = user_code.is_reference(name) and user_code.find_function(name, 'config.schedule.name')
  if not own:
    check_choice('config.schedule.name', name, SCHEDULES)
  if warmup >= num_steps:
    raise UsageError(
      f'config.schedule.warmup_steps: {warmup} is not between 0 and num_steps - 1 = {num_steps - 1}'
    )
  if end > peak:
    raise UsageError(f'config.schedule.end: {end} is not between 0 and the peak, {peak}')
  if end and name not in _ENDING:
    raise UsageError(f'config.schedule.end: {end}, but the schedule {name} has no end; 0 is off')
  decay_steps = num_steps - warmup
  after = {
    'constant': lambda: optax.constant_schedule(peak),
    'linear': lambda: optax.linear_schedule(peak, end, decay_steps),
    'cosine': lambda: optax.cosine_decay_schedule(peak, decay_steps, end / peak if end else 0.0),
    'rsqrt': lambda: rsqrt_schedule(peak, config.schedule.timescale),
  }.get(name, lambda: own(peak, decay_steps))()
  if not callable(after):
    raise UsageError(f'config.schedule.name: {name!r} returned {after!r}, not a function of a step')
  if not warmup:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])
