"""Weights in and out: `load(path) -> (params, model config)`, `save(params, config, path)`.

The model config is a dict that the model's `from_config` takes; see `model_config`. The running
statistics of a model that has them are beside its parameters, under 'batch_stats'.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax.errors import UsageError, check_choice
from vit_jax.weights import augreg, files, huggingface, run, scenic, timm, torchvision

WRITABLE = {
  'augreg': augreg,
  'huggingface': huggingface,
  'timm': timm,
  'scenic': scenic,
  'torchvision': torchvision,
}
FORMATS = WRITABLE | {'run': run}
_SUFFIXES = {
  '.npz': 'augreg',
  '.safetensors': 'timm',
  '.pth': 'timm',
  '.pt': 'timm',
  '.bin': 'timm',
  '.msgpack': 'scenic',
}
_HEAD = 2**16  # bytes, of all three kinds of state dicts, that hold the names of their tensors


def detect(path: str | os.PathLike) -> str:
  """Returns the name in `FORMATS` of what `path` looks like.

  It is the name of the path that tells, but for state dicts, whose beginning is read.

  Raises:
    UsageError: it looks like none of them, or is a state dict that can't be read.
  """
  name, local = os.fspath(path), Path(path)
  if local.is_dir():
    return _detect_folder(local)
  if name.startswith('hf:'):
    return 'huggingface'
  if local.suffix in _SUFFIXES:
    format = _SUFFIXES[local.suffix]
    if format == 'timm' and torchvision.MARK.encode() in files.read(path, _HEAD):
      return 'torchvision'
    return format
  if local.name.startswith('checkpoint_'):
    return 'scenic'
  if '://' not in name and name.count('/') == 1 and not local.exists():
    return 'huggingface'
  if '://' not in name and not local.exists():
    raise UsageError(f'{name}: no such file or folder; models on the hub are named hf:OWNER/NAME')
  raise UsageError(
    f'{name}: not a file of a kind that is known by its name '
    f'({", ".join(_SUFFIXES)}, checkpoint_STEP); --from says its format'
  )


def _detect_folder(folder: Path) -> str:
  for format, name in (('run', 'model.json'), ('huggingface', 'config.json')):
    if (folder / name).exists():
      return format
  if any(folder.glob('checkpoint_*')):
    return 'scenic'
  raise UsageError(
    f'{folder}: a folder without weights: no model.json (of a run), config.json (Hugging Face) or '
    'checkpoint_STEP (scenic)'
  )


def load(
  path: str | os.PathLike, *, format: str | None = None, allow: str | None = None, **known: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns (params, model config) of a file or folder of a `format`, or of the one it looks like.

  See the modules in `FORMATS` for paths, `allow` and `known`.

  Raises:
    UsageError: it can't be read, isn't such a model, or tensors don't fit.
  """
  format = format or detect(path)
  check_choice('format', format, FORMATS)
  return FORMATS[format].load(path, allow=allow, **known)


def save(
  params: dict[str, Any],
  config: Mapping[str, Any],
  path: str | os.PathLike,
  *,
  format: str,
  allow: str | None = None,
) -> None:
  """Writes a model in a `format`, a key of `WRITABLE`.

  Raises:
    UsageError: the format has no place for it, or the path can't be written or is named as a file
      of another format.
  """
  check_choice('format', format, WRITABLE)
  suffix = Path(path).suffix
  named = _SUFFIXES.get(suffix, format)
  if named != format and (format, named) != ('torchvision', 'timm'):
    raise UsageError(f'{path}: {suffix} is for files of the format {named}, not {format}')
  WRITABLE[format].save(params, config, path, allow=allow)
