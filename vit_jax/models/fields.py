"""A module's dataclass fields as the fields of `config.model`: names, defaults, types, ranges.

A type is a plain one, a union, a tuple, a dict, a `Section`, or `typing.Annotated` with a
`ranges.Range`, of a number or of all numbers in a dict. Every number is finite, and where there is
a range also no larger than arrays hold, wherever in a dict or tuple it stands. What is in a
`Mapping` of no type is another's.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from vit_jax.errors import FieldError, field_prefix, nearest
from vit_jax.ranges import MAX_FLOAT, MAX_INT, Range

_FLAX = ('name', 'parent')


class Section:
  """A dataclass that a field has as its type, and its fields are a dict there: `config.data`."""


@functools.cache
def _fields(cls: type) -> dict[str, tuple[dataclasses.Field, Any]]:
  """Returns name -> (field, type) of the fields that a config sets."""
  hints = typing.get_type_hints(cls, include_extras=True)
  left_out = getattr(cls, 'NOT_CONFIG', _FLAX if issubclass(cls, nn.Module) else ())
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
    default = own.get(name, _default(field))
    if isinstance(default, Section):
      config[name] = defaults(type(default), all_open=all_open)
    elif isinstance(default, Mapping):
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


def _default(field: dataclasses.Field) -> Any:
  """Returns a field's default, None where it has none."""
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return field.default if has_default(field) else None


def has_default(field: dataclasses.Field) -> bool:
  """Whether a field has a default, or a function that makes it."""
  missing = dataclasses.MISSING
  return field.default is not missing or field.default_factory is not missing


def _type(value: Any) -> type:
  return value.get_type() if isinstance(value, FieldReference) else type(value)


def _scalar(hint: Any) -> type:
  """Returns the type of a placeholder: the one that is not None, tuple where there are several."""
  options = [option for option in _options(hint) if option is not types.NoneType]
  if len(options) > 1:
    return tuple
  plain_type, _ = _split(options[0])
  return typing.get_origin(plain_type) or plain_type


def _options(hint: Any) -> tuple[Any, ...]:
  is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
  return typing.get_args(hint) if is_union else (hint,)


def _split(hint: Any) -> tuple[Any, Range | None]:
  """Returns a type without its annotation, and the range that this is, None without one."""
  if typing.get_origin(hint) is not typing.Annotated:
    return hint, None
  ranges = [item for item in hint.__metadata__ if isinstance(item, Range)]
  return hint.__origin__, ranges[0] if ranges else None


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
    _check_value(name, values[name], known[name][1])
  for name, (field, _) in known.items():
    if name not in {*values, *besides} and not has_default(field):
      raise FieldError(name, 'not set, and nothing else gives it')
  return values


def check_given(cls: type, given: Mapping[str, Any]) -> None:
  """Raises FieldError for a field that has a value of another type or out of its range.

  Fields that `cls` has not, or that aren't given, are left to others.
  """
  for name, (_, hint) in _fields(cls).items():
    if name in given:
      _check_value(name, plain(given[name]), hint)


@functools.cache
def _ranged(cls: type) -> dict[str, Any]:
  """Returns name -> type of the fields that have a range in it."""
  return {name: hint for name, (_, hint) in _fields(cls).items() if _has_range(hint)}


def _has_range(hint: Any) -> bool:
  return _split(hint)[1] is not None or any(map(_has_range, typing.get_args(hint)))


def check_ranges(instance: Any) -> None:
  """Raises FieldError for a field of a dataclass's instance that is out of its type's range."""
  for name, hint in _ranged(type(instance)).items():
    _check_value(name, plain(getattr(instance, name)), hint)


def plain(value: Any) -> Any:
  """Returns mappings as dicts, lists as tuples and NumPy's numbers as Python's, in all depths."""
  if isinstance(value, ConfigDict):
    value = value.to_dict()
  if isinstance(value, Mapping):
    return {name: plain(item) for name, item in value.items()}
  if isinstance(value, np.generic):
    return value.item()
  return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def _check_value(name: str, value: Any, hint: Any) -> None:
  """Raises FieldError unless a plain value is of a type and within its range."""
  if isinstance(hint, type) and issubclass(hint, Section):
    if not isinstance(value, Mapping):
      raise FieldError(name, f'{value!r} is not a dict of {", ".join(names(hint))}')
    with field_prefix(f'{name}.'):
      check_given(hint, value)
    return
  _, allowed = _split(hint)
  if hint is not Mapping and (allowed is None or allowed.high == math.inf):
    _check_numbers(name, value, _has_range(hint))
  if not _conforms(value, hint):
    raise FieldError(name, f'{value!r} is not {_describe(hint)}')


def _check_numbers(name: str, value: Any, is_bounded: bool) -> None:
  """Raises FieldError for a number that is not finite, or, if bounded, larger than arrays hold."""
  if isinstance(value, Mapping):
    for key, item in value.items():
      _check_numbers(f'{name}.{key}', item, is_bounded)
  elif isinstance(value, tuple):
    for item in value:
      _check_numbers(name, item, is_bounded)
  elif isinstance(value, float) and not math.isfinite(value):
    raise FieldError(name, f'{value!r} is not a finite number')
  elif is_bounded and isinstance(value, int | float):
    most = MAX_INT if isinstance(value, int) else MAX_FLOAT
    if abs(value) > most:
      raise FieldError(name, f'{value!r} is larger than arrays hold, which is {most:.10g}')


def _conforms(value: Any, hint: Any) -> bool:
  hint, allowed = _split(hint)
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return True
  if origin in (types.UnionType, typing.Union):
    return any(_conforms(value, option) for option in args)
  if origin is tuple:
    if not isinstance(value, tuple):
      return False
    items = args[:1] * len(value) if args[-1:] == (Ellipsis,) else args
    return len(value) == len(items) and all(map(_conforms, value, items))
  if hint is float:
    return type(value) in (int, float) and (allowed is None or value in allowed)
  if hint in (int, bool, str):
    return type(value) is hint and (allowed is None or value in allowed)
  return isinstance(value, origin or hint)


_WORDS = {int: 'whole number', float: 'number', str: 'text'}


def _describe(hint: Any) -> str:
  """Returns a type in words, as 'None or 1 or 2 whole numbers from 1 on'."""
  counts = {}  # what there may be -> how many of it, in words
  for option in _options(hint):
    args = typing.get_args(option)
    if typing.get_origin(option) is tuple and args:
      count = 'a tuple of' if args[-1] is Ellipsis else str(len(args))
      counts.setdefault(_describe_several(args[0]), []).append(count)
    else:
      counts[_describe_one(option)] = []
  return ' or '.join(' '.join([' or '.join(n), what]).strip() for what, n in counts.items())


def _describe_one(hint: Any) -> str:
  plain_type, allowed = _split(hint)
  if plain_type in _WORDS:
    return f'a {_WORDS[plain_type]} {allowed or ""}'.strip()
  words = {types.NoneType: 'None', bool: 'True or False', tuple[()]: '()'}
  return words.get(plain_type, 'a dict')


def _describe_several(hint: Any) -> str:
  plain_type, allowed = _split(hint)
  if plain_type in _WORDS:
    return f'{_WORDS[plain_type]}s {allowed or ""}'.strip()
  return f'items, each {_describe(hint)}'
