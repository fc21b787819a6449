"""The errors that stand for a user's mistake, raised anywhere, printed as one line by commands."""

import contextlib
import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any


class UsageError(ValueError):
  """A mistake in what the user gave: commands print it as one line and exit with code 2.

  The message names the field or file, what was given and what is allowed.
  """


class FieldError(UsageError):
  """A field has a value that it can't have.

  Whoever checks a field names it as its owner does ('patches.size'); whoever knows where the value
  comes from puts the rest in front, by `field_prefix` ('config.model.', '--').

  Attributes:
    field: dotted name of the field.
    problem: what was given and what is allowed.
  """

  def __init__(self, field: str, problem: str):
    super().__init__(field, problem)
    self.field, self.problem = field, problem

  def __str__(self) -> str:
    return f'{self.field}: {self.problem}'


class UsageWarning(UserWarning):
  """What the user has to know of a result: commands print it as one line and go on."""


@contextlib.contextmanager
def field_prefix(prefix: str, renamed: Mapping[str, str] | None = None) -> Iterator[None]:
  """Puts `prefix` in front of the field that a FieldError from inside the context names.

  Args:
    prefix: as 'config.model.' or '--'.
    renamed: field -> the name that it has out here, where that is another one.
  """
  try:
    yield
  except FieldError as e:
    raise FieldError(prefix + (renamed or {}).get(e.field, e.field), e.problem) from e


def nearest(given: str, allowed: Collection[str]) -> str:
  """Returns "; did you mean 'X'?" for the closest allowed name, or '' where none is close.

  Case doesn't count: 'SGD' is close to 'sgd'.
  """
  names = {name.lower(): name for name in allowed}
  close = difflib.get_close_matches(str(given).lower(), names, n=1, cutoff=0.6)
  return f"; did you mean '{names[close[0]]}'?" if close else ''


def check_choice(field: str, given: Any, allowed: Collection[str]) -> None:
  """Raises FieldError, with the nearest allowed name, unless `given` is one of `allowed`."""
  if given not in tuple(allowed):  # which, other than a dict, may be asked for a list
    names = ', '.join(map(str, allowed))
    raise FieldError(field, f'{given!r} is not one of {names}{nearest(given, allowed)}')
