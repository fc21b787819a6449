"""Flax modules, arrays in and arrays out, and `build_model`, which makes one from a config."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from vit_jax.errors import check_choice
from vit_jax.models.localization import Localizer
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

# What a task can put on a model's features, in place of the model's own linear head. A value is a
# module with the attributes `backbone`, `num_classes`, `dtype`, and those of config.model.head.
HEADS = {'localization': Localizer}


def describe(config: ml_collections.ConfigDict, head: str | None) -> dict[str, Any]:
  """Returns the fields of an experiment's `config.model` and, of its head, those that count.

  `head`, a key of `HEADS`, is in the entry `head` as its `name`; where None, there is no entry.
  """
  fields = config.to_dict()
  options = fields.pop('head', {})
  return fields | {'head': {'name': head, **options}} if head else fields


def from_description(config: Mapping[str, Any], **attributes: Any) -> nn.Module:
  """Builds a model from what `describe` returns; `attributes` stand before its fields.

  Raises:
    UsageError: see `build_model`.
  """
  constructor = MODELS[config['name']].from_config
  if 'head' not in config:
    return constructor(config, **attributes)
  options = dict(config['head'])
  head = HEADS[options.pop('name')]
  num_classes = attributes.pop('num_classes', config.get('num_classes'))
  dtype = attributes.get('dtype', jnp.float32)
  backbone = constructor(config, num_classes=0, **attributes)
  return head(backbone=backbone, num_classes=num_classes, dtype=dtype, **options)


def build_model(
  config: ml_collections.ConfigDict,
  num_classes: int,
  dtype: Any = jnp.float32,
  axis_name: str | None = None,
  head: str | None = None,
) -> nn.Module:
  """Builds the model that `config`, an experiment's `config.model`, describes.

  Args:
    config: `name`, a key of `MODELS`, and values for that model's attributes by their names.
      For 'token_learner', `tokenizer` holds all but the patches, which `patches` gives.
    num_classes: number of logits; 0 or less for features.
    dtype: dtype of the computation.
    axis_name: the mapped axis over which batches are spread in training, for the models that
      normalise by the batch.
    head: a key of `HEADS`, whose attributes are in `config.head`; None for the model's own.

  Raises:
    UsageError: naming the field of `config.model` that is unknown or doesn't fit the others.
  """
  check_choice('config.model.name', config.name, MODELS)
  return from_description(
    describe(config, head), num_classes=num_classes, dtype=dtype, axis_name=axis_name
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
