"""The tables, one file a backbone: whatever is in this folder counts.

A file has `TABLES`, a `Table` for each format that has the backbone.
"""

import functools
import importlib
import pkgutil
from collections.abc import Collection, Mapping
from typing import Any

from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig
from vit_jax.models.heads.head import Head
from vit_jax.weights.table import Source, Table, not_such, some_names

_LIST = '`python -m vit_jax.convert --list` prints what is read'
_CLOSEST = 3  # models that an error compares tensors with


@functools.cache
def all_tables() -> tuple[Table, ...]:
  """Returns the tables of all files in this folder."""
  names = sorted(module.name for module in pkgutil.iter_modules(__path__))
  modules = [importlib.import_module(f'{__name__}.{name}') for name in names]
  return tuple(table for module in modules for table in module.TABLES)


def find(source: Source, formats: Collection[str]) -> Table:
  """Returns the table whose tensors, and whose config.json, a source has.

  Args:
    source: as one of the formats has read it.
    formats: those that it can be of.

  Raises:
    FieldError: for `format`, where the caller can settle it.
    UsageError: no table knows the source.
  """
  if source.table is not None:
    return source.table
  if source.their_config is None:
    tables = [table for table in all_tables() if table.format in formats]
  else:
    tables = owners(source.their_config, source.metadata_path, formats)
    claiming = [table for table in tables if table.claims(source.their_config)]
    if len(claiming) == 1:
      return claiming[0]
  named = [table for table in tables if source.entries.get('name') in table.models]
  if len(named) == 1:
    return named[0]
  said = '' if source.their_config is None else _kind(source.their_config)
  return find_by_names(source.tensors, source.path, tables, said)


def owners(config: Mapping[str, Any], path: object, formats: Collection[str]) -> list[Table]:
  """Returns the tables of these formats that a config.json at `path` may be of.

  Raises:
    FieldError: for `format`, where only tables of other formats fit.
    UsageError: no table fits.
  """
  tables = [table for table in all_tables() if table.owns_config(config)]
  fitting = [table for table in tables if table.format in formats]
  if fitting:
    return fitting
  found = _kind(config)
  if tables:
    format, given = tables[0].format, ' or '.join(formats)
    raise FieldError('format', f'{given!r}, but in {path} {found}, which {format!r} reads')
  raise UsageError(f'{path}: {found}, which is not read; {_LIST}')


def _kind(config: Mapping[str, Any]) -> str:
  """Returns, in words, what model a config.json is of."""
  names = [name for name in ('model_type', 'architecture') if config.get(name) is not None]
  stated = ', '.join(f'{name} is {config[name]!r}' for name in names)
  return stated or 'neither model_type nor architecture is there'


def find_by_names(
  names: Collection[str], path: object, tables: Collection[Table], said: str = ''
) -> Table:
  """Returns the one of the tables that tensors of these names are of.

  Where several of one format have these names, the tensors decide (`Table.fits`); of names alone it
  is the first. Where there is none, those that the names are closest to are told.

  Args:
    names: of the tensors.
    path: of them, for messages.
    tables: to choose from.
    said: in words, what model it is by its config.json, for messages.

  Raises:
    FieldError: for `format`, where they are of several formats.
    UsageError: they are of none.
  """
  missing = {table: table.missing_mark(names) for table in tables}
  found = [table for table in tables if missing[table] is None]
  found = [table for table in found if not table.yields] or found
  # A hybrid has all that marks a ViT, and more: it counts alone.
  found = [t for t in found if not any(t.marks.keys() < other.marks.keys() for other in found)]
  if len({table.format for table in found}) == 1:
    fitting = (table for table in found if isinstance(names, Mapping) and table.fits(names))
    return next(fitting, found[0])
  if found:
    titles = ' and of '.join(table.title for table in found)
    formats = ' or '.join(repr(table.format) for table in found)
    raise FieldError('format', f'{path} has the tensors of {titles}; give {formats}')
  closest = _closest(names, tables, even_far=not said or len(tables) <= _CLOSEST)
  reasons = [not_such(table.title, missing[table]) for table in closest] or ['of no model here']
  parts = [said] if said else []
  raise UsageError(f'{path}: {"; ".join(parts + reasons)}; {some_names(names)}; {_LIST}')


def _closest(names: Collection[str], tables: Collection[Table], *, even_far: bool) -> list[Table]:
  """Returns the tables most of whose marks are among the names; if `even_far`, some in any case."""
  shares = {}
  for table in tables:
    found = table.marks.keys() & set(map(table.canonical, names))
    shares[table] = len(found) / len(table.marks)
  closest = [table for table in tables if shares[table] == max(shares.values())]
  return [table for table in closest if even_far or shares[table] > 0.5][:_CLOSEST]


def find_for_model(config: ModelConfig, format: str, path: object) -> Table:
  """Returns the table for writing a model in a format.

  Raises:
    UsageError: the format has no place for it.
  """
  tables = [table for table in all_tables() if table.format == format]
  for table in tables:
    if table.writes(config):
      return table
  if isinstance(config.model, Head):
    raise UsageError(f'{path}: a model for {config.to_dict()["head"]["name"]} has no place there')
  known = dict.fromkeys(name for table in tables for name in table.models)
  names = ' and '.join(f"'{name}'" for name in known)
  raise UsageError(f'{path}: a model {config.name!r} has no place there; {names} have')
