"""The error that stands for a user's mistake, raised anywhere, printed as one line by commands."""

import difflib
from collections.abc import Collection
from typing import Any


class UsageError(ValueError):
  """A mistake in what the user gave: commands print it as one line and exit with code 2.

  The message names the field or file, what was given and what is allowed.
  """


def nearest(given: str, allowed: Collection[str]) -> str:
  """Returns "; did you mean 'X'?" for the closest allowed name, or '' where none is close.

  Case doesn't count: 'SGD' is close to 'sgd'.
  """
  names = {name.lower(): name for name in allowed}
  close = difflib.get_close_matches(str(given).lower(), names, n=1, cutoff=0.6)
  return f"; did you mean '{names[close[0]]}'?" if close else ''


def check_choice(field: str, given: Any, allowed: Collection[str]) -> None:
  """Raises UsageError, with the nearest allowed name, unless `given` is one of `allowed`."""
  if given not in allowed:
    names = ', '.join(map(str, allowed))
    raise UsageError(f'{field}: {given!r} is not one of {names}{nearest(given, allowed)}')
