"""Folders of config.json and weights, as Hugging Face's hub has them: on disk, or downloaded."""

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub

from vit_jax.errors import UsageError
from vit_jax.weights import files

CONFIG, PREPROCESSOR = 'config.json', 'preprocessor_config.json'
# A file of all weights, the index of several, and those; in the order of preference.
_WEIGHTS = (
  ('model.safetensors', 'model.safetensors.index.json', 'model-*-of-*.safetensors'),
  ('pytorch_model.bin', 'pytorch_model.bin.index.json', 'pytorch_model-*-of-*.bin'),
)


def is_name(path: str) -> bool:
  """Whether it is hf:OWNER/NAME, or OWNER/NAME and no file or folder."""
  if path.startswith('hf:'):
    return True
  return '://' not in path and path.count('/') == 1 and not Path(path).exists()


def find(path: str | os.PathLike) -> tuple[Path, Path]:
  """Returns the paths of the config and the weights, after a download if need be.

  Raises:
    UsageError: there is no such folder or name, or it has no weights.
  """
  name = os.fspath(path)
  folder = Path(name)
  if is_name(name):
    name = name.removeprefix('hf:')
    with files.reading(name, 'a folder or a model on the Hugging Face hub'):
      folder = _download(name)
  for whole, index, _ in _WEIGHTS:
    for weights in (whole, index):
      if (folder / weights).is_file():
        return folder / CONFIG, folder / weights
  raise UsageError(f'{name}: no {" or ".join(whole for whole, _, _ in _WEIGHTS)} there')


def _download(name: str) -> Path:
  """Returns the folder in Hugging Face's cache, filled; pickled weights only where need be."""
  for patterns in _WEIGHTS:
    allowed = [CONFIG, PREPROCESSOR, *patterns]
    folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=allowed))
    if any((folder / weights).is_file() for weights in patterns):
      break
  return folder


def read_json(path: Path, what: str) -> dict[str, Any]:
  """Returns an object; `what` the file should be is for messages.

  Raises:
    UsageError: it can't be read, or holds something else.
  """
  data = files.read(path)
  with files.reading(path, what):
    content = json.loads(data)
    if not isinstance(content, dict):
      raise TypeError(f'a {type(content).__name__}, not an object')
  return content


def read_weights(path: Path) -> files.Tensors:
  """Returns the tensors of a file, or of all the shards that an index names."""
  if path.suffix == '.json':
    return {n: t for shard in _shards(path) for n, t in read_weights(shard).items()}
  return files.read_state_dict(path)[0]


def _shards(index: Path) -> list[Path]:
  """Returns the files that an index names, each of which lies beside it."""
  what = 'an index of shards'
  content = read_json(index, what)
  suffix = Path(index.name.removesuffix('.index.json')).suffix
  with files.reading(index, what):
    names = sorted(set(content['weight_map'].values()))
    for name in names:
      if Path(name).name != name or Path(name).suffix != suffix:
        raise UsageError(f'{index}: {name!r} is not the name of a {suffix} file in this folder')
    return [index.with_name(name) for name in names]
