"""The models by name, and how fields become one."""

import importlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vit_jax import user_code
from vit_jax.errors import FieldError, check_choice, field_prefix
from vit_jax.models import fields as fields_lib
from vit_jax.models.backbone import Backbone
from vit_jax.models.heads.head import Head

# What config.model.name can be -> the file in this folder, and the class in it.
BACKBONES = {
  'vit': ('vit', 'ViT'),
  'token_learner': ('token_learner', 'TokenLearnerViT'),
  'resnet18': ('resnet', 'ResNet18'),
  'resnet34': ('resnet', 'ResNet34'),
  'resnet50': ('resnet', 'ResNet50'),
  'resnet101': ('resnet', 'ResNet101'),
  'resnet152': ('resnet', 'ResNet152'),
  'swin': ('swin', 'Swin'),
  'vivit': ('vivit', 'ViViT'),
  'space_time_vivit': ('vivit', 'SpaceTimeViViT'),
  'mobilevit': ('mobilevit', 'MobileViT'),
  'mobilenet_v3_large': ('mobilenet', 'MobileNetV3Large'),
  'mobilenet_v3_small': ('mobilenet', 'MobileNetV3Small'),
  'bit': ('bit', 'BiT'),
  'hybrid': ('hybrid', 'HybridViT'),
  'vnt': ('vnt', 'VNTNet'),
  'point_transformer': ('point_transformer', 'PointTransformer'),
}
# What tasks put on features, likewise.
HEADS = {
  'localization': ('heads.localization', 'Localizer'),
  'linear': ('heads.segmentation', 'LinearSegmenter'),
  'segvit': ('heads.segvit', 'SegViT'),
  'part_segmentation': ('heads.part_segmentation', 'PartSegmenter'),
  'mae': ('heads.mae', 'MAE'),
  'simmim': ('heads.simmim', 'SimMIM'),
  'dino': ('heads.dino', 'DINOHead'),
}


def find(table: Mapping[str, tuple[str, str]], name: str) -> type[nn.Module]:
  """Returns a class by its name in `BACKBONES` or `HEADS`, or one of the user's own.

  Raises:
    FieldError: there is none of that name, or it is no backbone, or no head.
  """
  if user_code.is_reference(name):
    base = Head if table is HEADS else Backbone
    return user_code.find_class(name, base, 'name', ('num_classes', '__call__'))
  check_choice('name', name, table)
  module, class_name = table[name]
  return getattr(importlib.import_module(f'vit_jax.models.{module}'), class_name)


def name_of(table: Mapping[str, tuple[str, str]], cls: type[nn.Module]) -> str:
  """Returns the name that a class has in `BACKBONES` or `HEADS`, else its 'module:name'."""
  place = cls.__module__.removeprefix('vit_jax.models.'), cls.__name__
  names = (name for name, entry in table.items() if entry == place)
  return next(names, user_code.reference_of(cls))


def backbone(name: str) -> type[Backbone]:
  """Returns the class of a backbone; FieldError as for `find`."""
  return find(BACKBONES, name)


def default_config(name: str, *, all_open: bool = False) -> ConfigDict:
  """Returns the fields of a backbone with their defaults, and its `name`: `config.model`.

  Where `all_open`, all fields but the name are unset.
  """
  config = fields_lib.defaults(backbone(name), all_open=all_open)
  config.name = name
  return config


def open_config() -> ConfigDict:
  """Returns the fields of all backbones, unset; the weights decide the backbone and its fields."""
  config = ConfigDict({'name': placeholder(str)})
  for name in BACKBONES:
    fields = fields_lib.defaults(backbone(name), all_open=True)
    for field, value in fields.items(preserve_field_references=True):
      if field not in config:
        config[field] = value
      elif config.get_type(field) != fields.get_type(field):  # one's number is another's tuple
        del config[field]
        config[field] = placeholder(object)
  return config


def head_config(name: str) -> ConfigDict:
  """Returns the options of a head with their defaults, and its `name`: `config.model.head`."""
  config = fields_lib.defaults(find(HEADS, name))
  config.name = name
  return config


def build(fields: Mapping[str, Any], **attributes: Any) -> nn.Module:
  """Returns the model that fields describe.

  Args:
    fields: `name`, as for `find` in `BACKBONES`; the fields of that backbone; and, where a task's
      head reads its features, `head`, a dict of its `name`, likewise in `HEADS`, and its options.
    **attributes: those that no config sets: `num_classes`, `dtype` and `axis_name`.

  Raises:
    FieldError: a field is unknown, has a wrong value, or has no default and isn't given.
  """
  kind, fields = backbone(fields['name']), dict(fields)
  head = fields.pop('head', None)
  if not head:
    return kind.from_config(fields, **attributes)
  if not isinstance(head, Mapping | ConfigDict):
    raise FieldError('head', f'{head!r} is not a dict')
  options = dict(head)
  with field_prefix('head.'):
    cls = find(HEADS, options.pop('name', None))
    options = fields_lib.check(cls, options)
  num_classes = attributes.pop('num_classes', 0)
  inner = kind.from_config(fields, num_classes=0, **attributes)
  attributes = {name: attributes[name] for name in ('dtype', 'axis_name') if name in attributes}
  with field_prefix('head.'):
    return cls(backbone=inner, num_classes=num_classes, **attributes, **options)
