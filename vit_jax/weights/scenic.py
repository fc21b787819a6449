"""scenic's checkpoints: a train state in Flax's msgpack, as flax.training.checkpoints writes it.

github.com/google-research/scenic. The parameter tree is this project's; the train state's
`metadata` holds what the tree doesn't say.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import numpy as np

from vit_jax.errors import UsageError
from vit_jax.weights import files, hub, model_config, table

SUFFIXES = ('.msgpack',)


def looks_like(path: str) -> bool:
  """Whether it is a msgpack file, a checkpoint by its name, or a folder of those."""
  folder = Path(path)
  if folder.is_dir():
    return any(folder.glob('checkpoint_*')) and not (folder / hub.CONFIG).exists()
  named = folder.name.startswith('checkpoint_') and not path.startswith('hf:')
  return named or files.has_suffix(path, SUFFIXES)


def load(
  path: str | os.PathLike, *, allow: str | None = None, **known: Any
) -> tuple[table.Params, dict[str, Any]]:
  """Returns (params, model config) of a checkpoint, or of the newest in a folder of them.

  Reads the train states of scenic with optax and with flax.optim, and bare parameter trees. Args
  and errors are those of `augreg.load`.
  """
  path = _newest(path)
  data = files.read(path)
  with files.reading(path, 'a Flax msgpack checkpoint'):
    state = flax.serialization.msgpack_restore(data)
    text = (state.get('metadata') or {}).get(files.CONFIG_KEY)
    stated = model_config.from_json(text, path) if text else {}
    tree = state.get('params') or state.get('optimizer', {}).get('target') or state
    tree = tree.get('params', tree)
    flat = flax.traverse_util.flatten_dict(tree, sep='/')
    tensors = {name: np.asarray(leaf) for name, leaf in flat.items()}
  with files.reading(path, 'a ViT'):
    shapes = {name: array.shape for name, array in tensors.items()}
    config = model_config.describe(shapes, model_config.combine(stated, known, path), path)
  return table.to_ours(tensors, _rules(config), config, path, allow), config


def save(
  params: table.Params,
  config: Mapping[str, Any],
  path: str | os.PathLike,
  *,
  allow: str | None = None,
) -> None:
  """Writes a checkpoint that scenic's restore_pretrained_checkpoint reads.

  Raises:
    UsageError: the model has parameters that `allow` doesn't match and that its config doesn't
      account for.
  """
  config = model_config.describe_params(table.flatten(params), config, path)
  flat = table.to_theirs(params, _rules(config), config, path, allow)
  state = {
    'params': flax.traverse_util.unflatten_dict(flat, sep='/'),
    'model_state': {},
    'global_step': 0,
    'metadata': {files.CONFIG_KEY: model_config.to_json(config)},
  }
  files.write(path, flax.serialization.msgpack_serialize(state))


def _rules(config: Mapping[str, Any]) -> list[table.Rule]:
  return [table.Rule((name,), name) for name in model_config.parameter_shapes(config)]


def _newest(path: str | os.PathLike) -> str | os.PathLike:
  if '://' in os.fspath(path) or not Path(path).is_dir():
    return path
  steps = {
    int(m[1]): p for p in Path(path).iterdir() if (m := re.fullmatch(r'checkpoint_(\d+)', p.name))
  }
  if not steps:
    raise UsageError(f'{path}: no checkpoint_STEP in this folder')
  return steps[max(steps)]
