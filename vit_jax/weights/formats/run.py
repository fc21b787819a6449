"""Run directories of this project: the best checkpoint's evaluation variables, of any model."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig
from vit_jax.models import fields as fields_lib
from vit_jax.weights import files, hub, rules
from vit_jax.weights.rules import Module, tensor
from vit_jax.weights.table import Source, Table, check_entries, errors_of_file, variable_shapes

ON_HUB = False


def holds(path: str) -> bool:
  """Whether it is a folder with model.json."""
  return (Path(path) / 'model.json').exists()


def read(path: str | os.PathLike) -> Source:
  """Returns a run's variables: of the parameters the moving average, where the run keeps one.

  Where nothing was evaluated yet, or the best checkpoint is damaged, they are the newest's.

  Raises:
    UsageError: they can't be read.
  """
  from vit_jax.run import checkpoints  # Orbax, which takes a while to import

  path = Path(path)
  entries = hub.read_json(path / 'model.json', 'a model config')
  variables = checkpoints.read_variables(path / 'checkpoints')
  tensors = rules.flatten(variables)
  return Source(path, tensors, entries, entries_path=path / 'model.json', table=RunTable())


class RunTable(Table):
  """Any model, under its own names; model.json states all its fields."""

  title, marks = 'a run', {}

  def check_overrides(self, known: Mapping[str, Any], source: Source) -> None:
    """Raises FieldError for what the caller gives and the model hasn't."""
    for name in sorted(known.keys() - source.entries.keys()):
      kind = source.entries.get('name')
      raise FieldError(name, f'{known[name]!r}, but the {kind} of {source.path} has no such option')

  def metadata_entries(self, source: Source) -> dict[str, Any]:
    """Returns model.json's entries, which `ModelConfig.from_dict` checks."""
    if 'name' not in source.entries:
      raise UsageError(f'{source.metadata_path}: cannot be read as a model config (no name)')
    with errors_of_file(source.metadata_path):
      check_entries({}, source.entries['name'])  # whether there is such a backbone
    return fields_lib.plain(source.entries)

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    """Returns the entries."""
    return dict(entries)

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> list[Module]:
    """Returns a module for each variable."""
    return [tensor(name, name) for name in variable_shapes(config)]
