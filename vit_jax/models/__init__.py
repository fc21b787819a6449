"""Flax modules, arrays in and arrays out, and `build_model`, which makes one from a config."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from vit_jax.errors import check_choice
from vit_jax.models.token_learner import TokenLearnerViT
from vit_jax.models.vit import ViT

# What config.model.name can be. A value has from_config(config, num_classes=, dtype=).
MODELS = {
  'vit': ViT,
  'token_learner': TokenLearnerViT,
}


def build_model(
  config: ml_collections.ConfigDict, num_classes: int, dtype: Any = jnp.float32
) -> nn.Module:
  """Builds the model that `config`, an experiment's `config.model`, describes.

  Args:
    config: `name`, a key of `MODELS`, and values for that model's attributes by their names.
      For 'token_learner', `tokenizer` holds all but the patches, which `patches` gives.
    num_classes: number of logits; 0 or less for features.
    dtype: dtype of the computation.

  Raises:
    UsageError: naming the field of `config.model` that is unknown or doesn't fit the others.
  """
  check_choice('config.model.name', config.name, MODELS)
  return MODELS[config.name].from_config(config.to_dict(), num_classes=num_classes, dtype=dtype)
