"""Flax modules, arrays in and arrays out, and `build_model`, which makes one from a config."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from vit_jax.errors import check_choice
from vit_jax.models.resnet import ResNet18, ResNet34
from vit_jax.models.token_learner import TokenLearnerViT
from vit_jax.models.vit import ViT

# What config.model.name can be. A value has from_config(config, num_classes=, dtype=).
MODELS = {
  'vit': ViT,
  'token_learner': TokenLearnerViT,
  'resnet18': ResNet18,
  'resnet34': ResNet34,
}
_STATISTICS = 'batch_stats'  # the one collection of variables beside the parameters


def build_model(
  config: ml_collections.ConfigDict,
  num_classes: int,
  dtype: Any = jnp.float32,
  axis_name: str | None = None,
) -> nn.Module:
  """Builds the model that `config`, an experiment's `config.model`, describes.

  Args:
    config: `name`, a key of `MODELS`, and values for that model's attributes by their names.
      For 'token_learner', `tokenizer` holds all but the patches, which `patches` gives.
    num_classes: number of logits; 0 or less for features.
    dtype: dtype of the computation.
    axis_name: the mapped axis over which batches are spread in training, for the models that
      normalise by the batch.

  Raises:
    UsageError: naming the field of `config.model` that is unknown or doesn't fit the others.
  """
  check_choice('config.model.name', config.name, MODELS)
  return MODELS[config.name].from_config(
    config.to_dict(), num_classes=num_classes, dtype=dtype, axis_name=axis_name
  )


def variables(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what `apply` takes, {'params': ...}, with 'batch_stats' where the model has them.

  Args:
    tree: parameters, and beside them the running statistics under 'batch_stats', if any, as
      `vit_jax.weights` loads them.
  """
  params = {name: leaf for name, leaf in tree.items() if name != _STATISTICS}
  return {'params': params} | {n: leaf for n, leaf in tree.items() if n == _STATISTICS}


def tree(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Returns one tree of all variables of a model, what `variables` takes."""
  return {**variables['params'], **{n: v for n, v in variables.items() if n != 'params'}}
