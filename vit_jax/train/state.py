"""What a training run carries from step to step, and what a checkpoint holds."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vit_jax.train import partition


@flax.struct.dataclass
class TrainState:
  """The state of a run after `step` steps; an ordinary pytree, replicated by the compiled step.

  Attributes:
    step: int32 scalar, optimiser steps done.
    params: float32 parameters, frozen ones too.
    model_state: the model's other variables by collection ({'batch_stats': ...}), which the steps
      update without differentiating; empty for models without.
    opt_state: optax's state, of the parameters that train.
    ema_params: exponential moving average of `params`, or None.
    plateau: optax's reduce-on-plateau state, whose `scale` multiplies updates, or None.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  ema_params: Any = None
  plateau: Any = None
  model_state: dict[str, Any] = flax.struct.field(default_factory=dict)

  @property
  def eval_variables(self) -> dict[str, Any]:
    """What to evaluate: parameters, or their moving average where there is one, and the rest."""
    params = self.params if self.ema_params is None else self.ema_params
    return {'params': params, **self.model_state}


def make_plateau(config: ConfigDict) -> optax.GradientTransformationExtraArgs | None:
  """Returns optax's reduce-on-plateau, to be updated once per evaluation, or None where off."""
  if config.plateau.factor == 1.0:
    return None
  return optax.contrib.reduce_on_plateau(
    factor=config.plateau.factor,
    patience=config.plateau.patience,
    rtol=0.0,
    atol=config.plateau.min_delta,
    cooldown=config.plateau.cooldown,
    min_scale=config.plateau.min_scale,
  )


def create_state(
  config: ConfigDict,
  params: Any,
  tx: optax.GradientTransformation,
  model_state: Mapping[str, Any] | None = None,
) -> TrainState:
  """Returns the state before the first step. Can be traced (jax.jit, jax.eval_shape)."""
  plateau = make_plateau(config)
  trainable, _ = partition.split(config.freeze, params)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=tx.init(trainable),
    ema_params=jax.tree.map(jnp.copy, params) if config.ema_decay else None,
    plateau=plateau.init(params) if plateau else None,
    model_state=dict(model_state or {}),
  )
