"""What is known by name: weights that other libraries publish, and the sizes of models here."""

import difflib
import fnmatch
from collections.abc import Iterator

from vit_jax import models
from vit_jax.errors import FieldError
from vit_jax.weights import tables
from vit_jax.weights.table import Known

_OURS = 'vit_jax'
_CLOSE = 5  # names that an error suggests


def find(pattern: str = '*') -> list[Known]:
  """Returns what is known under names that fit a pattern, sorted; each once for a source.

  Args:
    pattern: as of a shell, or a part of the names.

  Raises:
    FieldError: for `list`, where there is none.
  """
  found: dict[tuple[str, str], Known] = {}
  for row in [*_sizes(), *(row for table in tables.all_tables() for row in table.known())]:
    key = (row.source, row.name)
    # One table may read what another refuses.
    if key not in found or found[key].refused is not None:
      found[key] = row
  rows = [row for _, row in sorted(found.items()) if _fits(row.name, pattern)]
  if not rows:
    names = {row.name.lower(): row.name for row in found.values()}
    close = difflib.get_close_matches(pattern.lower(), names, n=_CLOSE, cutoff=0.5)
    advice = f'; close to it are {", ".join(names[name] for name in close)}' if close else ''
    raise FieldError('list', f'no name fits {pattern!r}{advice}')
  return rows


def text(rows: list[Known]) -> str:
  """Returns a table for people: name, source, and whether it opens."""
  cells = [('name', 'source', 'opens')]
  cells += [(r.name, r.source, 'yes' if r.refused is None else f'no: {r.refused}') for r in rows]
  widths = [max(map(len, column)) for column in list(zip(*cells, strict=True))[:2]]
  lines = ['  '.join([*map(str.ljust, line[:2], widths), line[2]]) for line in cells]
  return '\n'.join(lines)


def _sizes() -> Iterator[Known]:
  for name in models.BACKBONES:
    for size in models.backbone(name).NAMED_SIZES or ('',):
      yield Known(f'{name}:{size}' if size else name, _OURS)


def _fits(name: str, pattern: str) -> bool:
  name, pattern = name.lower(), pattern.lower()
  either = fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(pattern, name)
  return either or pattern in name
