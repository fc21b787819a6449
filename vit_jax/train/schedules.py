"""Learning-rate schedules: step -> learning rate, each with linear warmup."""

import math

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vit_jax.errors import UsageError, check_choice

SCHEDULES = ('constant', 'linear', 'cosine', 'rsqrt')


def rsqrt_schedule(peak: float, timescale: int) -> optax.Schedule:
  """Returns peak * sqrt(timescale / (step + timescale)), as arXiv 2106.04560 (big_vision)."""
  # During warmup, optax evaluates it at negative steps too, where the root may not exist.
  return lambda step: peak * jnp.sqrt(timescale / (jnp.maximum(step, 0) + timescale))


def make_schedule(config: ConfigDict, num_steps: int) -> optax.Schedule:
  """Builds the schedule of a run.

  Args:
    config: the experiment; reads `schedule` and `optimizer.learning_rate` (the peak).
    num_steps: optimiser steps of the run; linear and cosine reach 0 there.

  Raises:
    UsageError: unknown schedule, or a warmup that doesn't fit the run.
  """
  name, warmup = config.schedule.name, config.schedule.warmup_steps
  peak = config.optimizer.learning_rate
  check_choice('config.schedule.name', name, SCHEDULES)
  if not 0 <= warmup < num_steps:
    raise UsageError(
      f'config.schedule.warmup_steps: {warmup} is not between 0 and num_steps - 1 = {num_steps - 1}'
    )
  if not 0 <= peak < math.inf:
    raise UsageError(f'config.optimizer.learning_rate: {peak} is not a number from 0 on')
  if name == 'rsqrt' and config.schedule.timescale <= 0:
    raise UsageError(f'config.schedule.timescale: {config.schedule.timescale} is not positive')
  decay_steps = num_steps - warmup
  after = {
    'constant': lambda: optax.constant_schedule(peak),
    'linear': lambda: optax.linear_schedule(peak, 0.0, decay_steps),
    'cosine': lambda: optax.cosine_decay_schedule(peak, decay_steps),
    'rsqrt': lambda: rsqrt_schedule(peak, config.schedule.timescale),
  }[name]()
  if not warmup:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])
