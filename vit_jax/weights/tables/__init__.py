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
  named = [table for table in tables if source.entries.get('name') in table.models]
  if len(named) == 1:
    return named[0]
  return find_by_names(source.tensors, source.path, tables)


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
  names = {name: config.get(name) for name in ('model_type', 'architecture')}
  found = ', '.join(f'{name} is {value!r}' for name, value in names.items())
  if tables:
    format, given = tables[0].format, ' or '.join(formats)
    raise FieldError('format', f'{given!r}, but in {path} {found}, which {format!r} reads')
  titles = ', '.join(table.title for table in all_tables() if table.format in formats)
  raise UsageError(f'{path}: {found}; what is read is {titles}')


def find_by_names(names: Collection[str], path: object, tables: Collection[Table]) -> Table:
  """Returns the one of the tables that tensors of these names are of.

  Where several of one format have these names, the tensors decide (`Table.fits`); of names alone it
  is the first.

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
  reasons = '; '.join(not_such(table.title, name) for table, name in missing.items())
  raise UsageError(f'{path}: {reasons}; {some_names(names)}')


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
