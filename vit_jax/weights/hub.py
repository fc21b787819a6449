"""Folders of config.json and weights, as Hugging Face's hub has them: on disk, or downloaded."""

import os
from pathlib import Path
from typing import Any

from vit_jax.errors import FieldError, UsageError
from vit_jax.regular_files import MAX_JSON, parse_json, reading
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


def is_folder(path: str | os.PathLike) -> bool:
  """Whether it is a local folder with config.json, and no run's, which has model.json too."""
  folder = Path(path)
  return (folder / CONFIG).exists() and not (folder / 'model.json').exists()


def read_config(path: str | os.PathLike) -> tuple[dict[str, Any], Path]:
  """Returns (config.json's content, its path) of a folder or of a name on the hub.

  Raises:
    UsageError: there is no such folder or name, or the file can't be read.
  """
  file = _folder(path, [CONFIG]) / CONFIG
  return read_json(file, "a model's config.json"), file


def find_weights(path: str | os.PathLike) -> Path:
  """Returns the path of the weights, or of their index, after a download if need be.

  Raises:
    UsageError: there is no such folder or name, or it has no weights.
  """
  for whole, index, shards in _WEIGHTS:
    # Pickled weights are asked for only where there are no others.
    folder = _folder(path, [CONFIG, PREPROCESSOR, whole, index, shards])
    for name in (whole, index):
      if (folder / name).is_file():
        return folder / name
  names = ' or '.join(whole for whole, _, _ in _WEIGHTS)
  raise UsageError(f'{os.fspath(path).removeprefix("hf:")}: no {names} there')


def _folder(path: str | os.PathLike, patterns: list[str]) -> Path:
  """Returns the folder, which for a name on the hub is in Hugging Face's cache, filled."""
  name = os.fspath(path)
  if not is_name(name):
    return Path(path)
  import huggingface_hub  # which only names on the hub need

  name = name.removeprefix('hf:')
  with reading(name, 'a folder or a model on the Hugging Face hub'):
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))


def check_push(name: str) -> None:
  """Raises FieldError unless a folder can be pushed under OWNER/NAME: by its form and a login."""
  import huggingface_hub  # as above
  from huggingface_hub.errors import HFValidationError
  from huggingface_hub.utils import validate_repo_id

  try:
    validate_repo_id(name)
    is_valid = name.count('/') == 1
  except HFValidationError:
    is_valid = False
  if not is_valid:
    raise FieldError('push', f'{name!r} is not OWNER/NAME, as the hub names models')
  if huggingface_hub.get_token() is None:
    raise FieldError('push', 'no login to the hub; run `hf auth login`, or set HF_TOKEN')


def push(folder: str | os.PathLike, name: str, private: bool) -> str:
  """Makes OWNER/NAME on the hub where there is none, and uploads a folder; returns its address.

  Raises:
    FieldError: the hub can't be reached or refuses.
  """
  import huggingface_hub  # as above

  api = huggingface_hub.HfApi()
  try:
    made = api.create_repo(name, private=private, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=folder, commit_message='Upload with vit_jax')
  except Exception as e:  # of requests or httpx, by the version of huggingface_hub
    reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
    raise FieldError('push', f'{name} cannot be uploaded ({reason}); {folder} is whole') from e
  return str(made)


def read_json(path: Path, what: str) -> dict[str, Any]:
  """Returns an object; `what` the file should be is for messages.

  Raises:
    UsageError: it can't be read, or holds something else.
  """
  data = files.read(path, max_size=MAX_JSON)
  with reading(path, what):
    content = parse_json(data)
  if not isinstance(content, dict):
    raise UsageError(f'{path}: cannot be read as {what} (not an object)')
  return content


def read_weights(path: Path) -> files.Tensors:
  """Returns the tensors of a file, or of all the shards that an index names."""
  if path.suffix == '.json':
    return {n: t for shard in _shards(path) for n, t in read_weights(shard).items()}
  return files.read_state_dict(path)[0]


def _shards(index: Path) -> list[Path]:
  """Returns the files that an index names, each of which lies beside it."""
  what = 'an index of shards'
  names = read_json(index, what).get('weight_map')
  if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
    raise UsageError(f'{index}: cannot be read as {what} (its weight_map names no files)')
  suffix = Path(index.name.removesuffix('.index.json')).suffix
  for name in (names := sorted(set(names.values()))):
    if Path(name).name != name or Path(name).suffix != suffix:
      raise UsageError(f'{index}: {name!r} is not the name of a {suffix} file in this folder')
  return [index.with_name(name) for name in names]
