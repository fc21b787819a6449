"""PyTorch's state dicts, wherever they lie: .safetensors or .pth, or a folder with config.json."""

import os
from pathlib import Path

from vit_jax.weights import files, hub
from vit_jax.weights.table import Source, read_own_config

SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin')


def holds(path: str) -> bool:
  """Whether it is a file of a state dict, by its name."""
  return files.has_suffix(path, SUFFIXES)


def read(path: str | os.PathLike) -> Source:
  """Returns what is in a file, or in a folder or under a name on the hub.

  A file of any other name, as timm's model_best.pth.tar, is taken to be what torch.save wrote.

  Raises:
    UsageError: it can't be read.
  """
  name = os.fspath(path)
  if holds(name) or '://' in name or Path(name).is_file():
    tensors, own = files.read_state_dict(path)
    return Source(path, tensors, read_own_config(own, path))
  weights = hub.find_weights(path)
  config, config_path = hub.read_config(weights.parent)
  tensors = hub.read_weights(weights)
  return Source(weights, tensors, their_config=config, entries_path=config_path)
