"""Parts of the user's own: 'module:name' where a name of this project could stand."""

import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from vit_jax.errors import FieldError, nearest

_REFERENCE = re.compile(r'(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)')


def is_reference(name: Any) -> bool:
  """Whether `name` is written as 'module:name'; 'mnist:3.0.1' and 'folder/file.py:x' are not."""
  return isinstance(name, str) and _REFERENCE.fullmatch(name) is not None


def find(reference: str, field: str = 'name') -> Any:
  """Returns what 'module:name' refers to.

  The module is imported from where Python finds modules, and else from the current folder. A file
  can't be named by its path: a run directory from elsewhere must not bring code along.

  Args:
    reference: as `is_reference` accepts it.
    field: the field that holds it, for errors.

  Raises:
    FieldError: there is no such module, or nothing of that name in it. What the module's own code
      raises comes through.
  """
  module_name, name = _REFERENCE.fullmatch(reference).group('module', 'name')
  if os.getcwd() not in sys.path and '' not in sys.path:
    sys.path.append(os.getcwd())
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as e:
    if e.name is None or not f'{module_name}.'.startswith(f'{e.name}.'):
      raise  # of something that the module imports
    raise FieldError(
      field,
      f'{reference!r}: there is no module {e.name!r}; it must be installed, or lie in the current '
      'folder',
    ) from e
  if not hasattr(module, name):
    names = [n for n in vars(module) if not n.startswith('_')]
    raise FieldError(field, f'{reference!r}: {module_name} has no {name!r}{nearest(name, names)}')
  return getattr(module, name)


def find_class(reference: str, base: type, field: str = 'name', needs: Sequence[str] = ()) -> type:
  """Returns the class that 'module:name' refers to.

  Args:
    reference: as for `find`, which names the module that defines the class.
    base: what it is a subclass of.
    field: as for `find`.
    needs: methods and attributes that it must have beside those of `base`.

  Raises:
    FieldError: it isn't such a class, or lacks some of `needs`; and as `find`.
  """
  cls = find(reference, field)
  if not (isinstance(cls, type) and issubclass(cls, base)):
    there = f'{base.__module__}.{base.__name__}'
    raise FieldError(field, f'{reference!r} is not a subclass of {there}')
  if reference != reference_of(cls):  # a run directory has one name for it
    raise FieldError(field, f'{reference!r} is defined elsewhere: write {reference_of(cls)!r}')
  there = {*getattr(cls, '__dataclass_fields__', ())}
  there.update(*(vars(part) for part in cls.__mro__ if not issubclass(base, part)))
  if lacking := [name for name in needs if name not in there]:
    raise FieldError(field, f'{reference!r} lacks {", ".join(lacking)}')
  return cls


def reference_of(cls: type) -> str:
  """Returns the 'module:name' by which `find_class` finds a class."""
  return f'{cls.__module__}:{cls.__qualname__}'


def find_function(reference: str, field: str = 'name') -> Callable[..., Any]:
  """Returns the function that 'module:name' refers to.

  Raises:
    FieldError: it isn't one; and as `find`.
  """
  function = find(reference, field)
  if not callable(function):
    raise FieldError(field, f'{reference!r} is not a function')
  return function
