"""The errors that stand for a user's mistake, raised anywhere, printed as one line by commands."""

import contextlib
import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

# What moves the cursor, ends a line, turns text around, is not seen, or is half a character.
_UNPRINTABLE = re.compile(
  '[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]'
)
MAX_NAME = 200  # characters that are printed of a name
_NOTE = 20  # half of those that tell how many are left out, at most


def printable(text: object, max_length: int = 2000) -> str:
  """Returns text for a terminal, in one line, whatever file it is from.

  Control characters, those that change the direction of writing, and lone surrogates are escaped.
  What is longer than `max_length`, 100 or more, lacks its middle, with how many characters that is.
  """
  text = _UNPRINTABLE.sub(lambda m: m[0].encode('unicode_escape').decode(), str(text))
  if len(text) <= max_length:
    return text
  half = max_length // 2 - _NOTE
  return f'{text[:half]}[... {len(text) - 2 * half:,} characters ...]{text[-half:]}'


class UsageError(ValueError):
  """A mistake in what the user gave: commands print it as one line and exit with code 2.

  The message names the field or file, what was given and what is allowed.

  Attributes:
    lines: of the message. A table may follow the first; then each is an argument of its own.
  """

  @property
  def lines(self) -> Sequence[str]:
    return tuple(map(str, self.args))

  def __str__(self) -> str:
    return '\n'.join(self.lines)


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

  @property
  def lines(self) -> Sequence[str]:
    return (f'{self.field}: {self.problem}',)


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
