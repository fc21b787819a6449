"""Run directories of this project: the best checkpoint's evaluation parameters, of any model."""

import json
import os
from pathlib import Path
from typing import Any

from vit_jax import checkpoints
from vit_jax.errors import UsageError
from vit_jax.weights import files, model_config, table


def looks_like(path: str) -> bool:
  """Whether it is a folder with model.json."""
  return (Path(path) / 'model.json').exists()


def load(
  path: str | os.PathLike, *, allow: str | None = None, **known: Any
) -> tuple[table.Params, dict[str, Any]]:
  """Returns (params, model config): the moving average of the parameters, where the run keeps one.

  Running statistics, if any, are under 'batch_stats'. Where nothing was evaluated yet, or the best
  checkpoint is damaged, all are the newest's. Args and errors are those of `augreg.load`; the
  config has every attribute of the model.
  """
  path = Path(path)
  stated = _read_config(path / 'model.json')
  for name in sorted(known.keys() - stated.keys()):
    raise UsageError(
      f'--{name}: {known[name]!r}, but the {stated["name"]} of {path} has no such option'
    )
  config = model_config.combine(stated, known, path)
  tensors = table.flatten(checkpoints.read_params(path / 'checkpoints'))
  with files.reading(path / 'model.json', 'a model config'):
    rules = [table.Rule((name,), name) for name in model_config.parameter_shapes(config)]
  return table.to_ours(tensors, rules, config, path, allow), config


def _read_config(path: Path) -> dict[str, Any]:
  data = files.read(path)
  with files.reading(path, 'a model config'):
    return {key: _tuples(value) for key, value in json.loads(data).items()}


def _tuples(value: Any) -> Any:
  """Undoes what JSON does to tuples; class names alone are a list."""
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  is_numbers = isinstance(value, list) and not any(isinstance(item, str) for item in value)
  return tuple(value) if is_numbers else value
