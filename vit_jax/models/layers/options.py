"""Checks of a field that is a mapping of options, for the layers that such a field describes."""

from collections.abc import Mapping
from typing import Any

from vit_jax.errors import FieldError, nearest


def merge(
  field: str, options: Mapping[str, Any] | None, defaults: Mapping[str, Any], key: str, unset: str
) -> dict[str, Any] | None:
  """Returns options with defaults for what they lack; None where they, or `key` of them, are None.

  Args:
    field: that they are of, for messages.
    options: as given.
    defaults: of all options that there are.
    key: the option without which the others mean nothing.
    unset: what is said where others are given without it.

  Raises:
    FieldError: they are no mapping, one is unknown, or `key` is missing.
  """
  if options is None:
    return None
  if not isinstance(options, Mapping):
    raise FieldError(field, f'{options!r} is not a dict')
  for name in options:
    if name not in defaults:
      raise FieldError(f'{field}.{name}', f'no such option{nearest(name, defaults)}')
  given = {**defaults, **options}
  if given[key] is None:
    if given != defaults:
      raise FieldError(f'{field}.{key}', unset)
    return None
  return given


def check_flag(field: str, value: Any) -> None:
  """Raises FieldError unless a value is True or False."""
  if type(value) is not bool:
    raise FieldError(field, f'{value!r} is not True or False')


def check_grid(field: str, value: Any) -> tuple[int, int]:
  """Returns (rows, columns); raises FieldError for a value that is something else."""
  pair = isinstance(value, list | tuple) and len(value) == 2
  if not (pair and all(type(side) is int and side > 0 for side in value)):
    raise FieldError(field, f'{value!r} is not (rows, columns)')
  return tuple(value)
