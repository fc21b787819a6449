"""Flax modules, images in and arrays out; what each offers beside its call is in `backbone`."""

from vit_jax.models.backbone import Backbone, Features
from vit_jax.models.config import ModelConfig, Preprocessing
from vit_jax.models.registry import (
  BACKBONES,
  HEADS,
  backbone,
  build,
  default_config,
  head_config,
  open_config,
)
from vit_jax.models.variables import flatten, num_entries, unflatten

__all__ = [
  'BACKBONES',
  'HEADS',
  'Backbone',
  'Features',
  'ModelConfig',
  'Preprocessing',
  'backbone',
  'build',
  'default_config',
  'flatten',
  'head_config',
  'num_entries',
  'open_config',
  'unflatten',
]
