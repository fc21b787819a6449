"""The length of a run: whether one may get another length after some of its steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vit_jax.train.optimizers import weight_decay
from vit_jax.train.schedules import make_schedule
from vit_jax.train.step import ema_decay


def _schedules(config: ConfigDict) -> dict[str, optax.ScalarOrSchedule]:
  """Returns what may depend on the length of a run; tasks schedule by steps, and don't know it."""
  return {
    'learning rate': make_schedule(config, config.num_steps),
    'weight decay': weight_decay(config),
    'decay of the moving average': ema_decay(config),
  }


def differing_schedules(config: ConfigDict, num_steps: int, done: int) -> list[str]:
  """Returns names of what would have been another in the steps done, were the run of a length.

  Args:
    config: the experiment, resolved.
    num_steps: the other length.
    done: steps of which the numbers are compared.
  """
  other = config.copy_and_resolve_references()
  other.num_steps = num_steps

  def values(schedule):
    at = jax.vmap(lambda step: jnp.asarray(schedule(step) if callable(schedule) else schedule))
    return np.asarray(at(jnp.arange(done)))

  ours, theirs = _schedules(config), _schedules(other)
  return [name for name in ours if not np.array_equal(values(ours[name]), values(theirs[name]))]
