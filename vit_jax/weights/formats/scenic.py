"""scenic's checkpoints: a train state in Flax's msgpack, as flax.training.checkpoints writes it.

github.com/google-research/scenic. The train state's `metadata` holds what the tensors don't tell.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import numpy as np

from vit_jax import models
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.weights import files, hub
from vit_jax.weights.table import Source, Table, read_own_config

SUFFIXES = ('.msgpack',)
ON_HUB = False
_WHAT = 'a Flax msgpack checkpoint'


def holds(path: str) -> bool:
  """Whether it is a msgpack file, a checkpoint by its name, or a folder of those."""
  folder = Path(path)
  if folder.is_dir():
    return any(folder.glob('checkpoint_*')) and not (folder / hub.CONFIG).exists()
  named = folder.name.startswith('checkpoint_') and not path.startswith('hf:')
  return named or files.has_suffix(path, SUFFIXES)


def read(path: str | os.PathLike) -> Source:
  """Returns the parameters of a checkpoint, or of the newest in a folder of them.

  Reads the train states of scenic with optax and with flax.optim, and bare parameter trees.

  Raises:
    UsageError: it can't be read.
  """
  path = _newest(path)
  data = files.read(path)
  with files.bounded_reading(path, _WHAT, len(data)):
    state = flax.serialization.msgpack_restore(data)
  state = _tree(state, path)
  own = _tree(state.get('metadata') or {}, path).get(files.CONFIG_KEY)
  optimizer = _tree(state.get('optimizer') or {}, path)
  tree = _tree(state.get('params') or optimizer.get('target') or state, path)
  tree = _tree(tree.get('params', tree), path)
  return Source(path, _flatten(tree, path), read_own_config(own, path))


def write(
  path: str | os.PathLike, tensors: files.Tensors, config: ModelConfig, table: Table
) -> None:
  """Writes a checkpoint that scenic's restore_pretrained_checkpoint reads."""
  state = {
    'params': models.unflatten(tensors)['params'],
    'model_state': {},
    'global_step': 0,
    'metadata': {files.CONFIG_KEY: json.dumps(table.own_config(config))},
  }
  files.write(path, flax.serialization.msgpack_serialize(state))


def _tree(value: Any, path: object) -> Mapping[str, Any]:
  if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
    raise UsageError(f'{path}: cannot be read as {_WHAT} (no dict by names where it has one)')
  return value


def _flatten(tree: Mapping[str, Any], path: object) -> files.Tensors:
  """Returns name -> array of what is in a tree, which may be deep."""
  flat, trees = {}, [('', tree)]
  for prefix, tree in trees:
    for name, value in _tree(tree, path).items():
      if isinstance(value, dict):
        trees.append((f'{prefix}{name}/', value))
      elif isinstance(value, np.ndarray | np.generic | int | float):
        flat[prefix + name] = np.asarray(value)
      else:
        raise UsageError(f'{path}: cannot be read as {_WHAT} ({prefix}{name} is no array)')
  return flat


def _newest(path: str | os.PathLike) -> str | os.PathLike:
  if '://' in os.fspath(path) or not Path(path).is_dir():
    return path
  steps = {
    int(m[1]): p for p in Path(path).iterdir() if (m := re.fullmatch(r'checkpoint_(\d+)', p.name))
  }
  if not steps:
    raise UsageError(f'{path}: no checkpoint_STEP in this folder')
  return steps[max(steps)]
