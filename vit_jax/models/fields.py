"""A module's dataclass fields as the fields of `config.model`: names, defaults, types."""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from vit_jax.errors import FieldError, nearest

_FLAX = ('name', 'parent')


@functools.cache
def _fields(cls: type) -> dict[str, tuple[dataclasses.Field, Any]]:
  """Returns name -> (field, type) of the fields that a config sets."""
  hints = typing.get_type_hints(cls)
  left_out = getattr(cls, 'NOT_CONFIG', _FLAX)
  return {f.name: (f, hints[f.name]) for f in dataclasses.fields(cls) if f.name not in left_out}


def names(cls: type) -> tuple[str, ...]:
  """Returns the names of the fields."""
  return tuple(_fields(cls))


def defaults(cls: type, *, all_open: bool = False) -> ConfigDict:
  """Returns the fields with their defaults, for a config file to change and flags to override.

  Fields without a value are placeholders of their type.

  Args:
    cls: a module, or another dataclass; `cls.CONFIG_DEFAULTS` stands before its fields' defaults.
    all_open: make all of them placeholders.
  """
  own, config = getattr(cls, 'CONFIG_DEFAULTS', {}), ConfigDict()
  for name, (field, hint) in _fields(cls).items():
    default = own.get(name, None if field.default is dataclasses.MISSING else field.default)
    if isinstance(default, Mapping):
      # A placeholder is a reference; each config has its own.
      entries = {
        n: placeholder(_type(v)) if all_open or isinstance(v, FieldReference) else v
        for n, v in default.items()
      }
      config[name] = ConfigDict(entries)
    elif default is None or all_open:
      config[name] = placeholder(_scalar(hint))
    else:
      config[name] = default
  return config


def _type(value: Any) -> type:
  return value.get_type() if isinstance(value, FieldReference) else type(value)


def _scalar(hint: Any) -> type:
  """Returns the type of a placeholder: the one that is not None, tuple where there are several."""
  options = [option for option in _options(hint) if option is not types.NoneType]
  if len(options) > 1:
    return tuple
  return typing.get_origin(options[0]) or options[0]


def _options(hint: Any) -> tuple[Any, ...]:
  return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def check(cls: type, given: Mapping[str, Any], besides: Collection[str] = ()) -> dict[str, Any]:
  """Returns the fields as plain values, having checked their names and types.

  Args:
    cls: as for `defaults`.
    given: value by name.
    besides: names of fields that are given elsewhere.

  Raises:
    FieldError: a field is unknown, has a value of another type, or has no default and isn't given.
  """
  known, values = _fields(cls), {}
  for name, value in given.items():
    if name not in known:
      raise FieldError(name, f'no such field of {cls.__name__}{nearest(name, known)}')
    values[name] = plain(value)
    if not _conforms(values[name], known[name][1]):
      raise FieldError(name, f'{value!r} is not {_describe(known[name][1])}')
  for name, (field, _) in known.items():
    if name not in {*values, *besides} and field.default is dataclasses.MISSING:
      raise FieldError(name, 'not set, and nothing else gives it')
  return values


def plain(value: Any) -> Any:
  """Returns mappings as dicts and lists as tuples, all the way down."""
  if isinstance(value, ConfigDict):
    value = value.to_dict()
  if isinstance(value, Mapping):
    return {name: plain(item) for name, item in value.items()}
  return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def _conforms(value: Any, hint: Any) -> bool:
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return True
  if isinstance(hint, types.UnionType):
    return any(_conforms(value, option) for option in args)
  if origin is tuple:
    if not isinstance(value, tuple):
      return False
    items = args[:1] * len(value) if args[-1] is Ellipsis else args
    return len(value) == len(items) and all(map(_conforms, value, items))
  if hint is float:
    return type(value) in (int, float) and math.isfinite(value)
  if hint in (int, bool, str):
    return type(value) is hint
  return isinstance(value, origin or hint)


_WORDS = {int: 'a whole number', float: 'a number', bool: 'True or False', str: 'a text'}


def _describe(hint: Any) -> str:
  """Returns a type in words."""
  if isinstance(hint, types.UnionType):
    return ' or '.join(_describe(option) for option in typing.get_args(hint))
  if hint is types.NoneType:
    return 'None'
  if typing.get_origin(hint) is tuple:
    args = typing.get_args(hint)
    if args[-1] is Ellipsis:
      return 'a tuple, of each item ' + _describe(args[0])
    return f'a tuple of {len(args)}, of each item ' + _describe(args[0])
  return _WORDS.get(hint, 'a dict')
