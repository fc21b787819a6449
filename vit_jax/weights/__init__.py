"""Weights in and out: `load(path) -> (params, model config)`, `save(params, config, path)`.

The model config is a dict that the model's `from_config` takes; see `model_config`. The running
statistics of a model that has them are beside its parameters, under 'batch_stats'.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax.errors import UsageError, check_choice
from vit_jax.weights import augreg, huggingface, run, scenic, timm, torchvision

# A format is a module with `load`, `looks_like`, which tells its files and folders by their name or
# what is in them, and, where it can be written, `save` and SUFFIXES, the endings of its files. A
# path is of the first format that it looks like.
FORMATS = {
  'run': run,
  'augreg': augreg,
  'torchvision': torchvision,
  'timm': timm,
  'scenic': scenic,
  'huggingface': huggingface,
}
WRITABLE = {name: module for name, module in FORMATS.items() if hasattr(module, 'save')}


def detect(path: str | os.PathLike) -> str:
  """Returns the name in `FORMATS` of what `path` looks like.

  Raises:
    UsageError: it looks like none of them, or can't be read where that is needed to tell.
  """
  name, local = os.fspath(path), Path(path)
  for format, module in FORMATS.items():
    if module.looks_like(name):
      return format
  if local.is_dir():
    raise UsageError(
      f'{name}: a folder without weights: no model.json (of a run), config.json (Hugging Face) or '
      'checkpoint_STEP (scenic)'
    )
  if '://' not in name and not local.exists():
    raise UsageError(f'{name}: no such file or folder; models on the hub are named hf:OWNER/NAME')
  suffixes = dict.fromkeys(suffix for module in WRITABLE.values() for suffix in module.SUFFIXES)
  raise UsageError(
    f'{name}: not a file of a kind that is known by its name '
    f'({", ".join(suffixes)}, checkpoint_STEP); --from says its format'
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
  named = [name for name, module in WRITABLE.items() if suffix in module.SUFFIXES]
  if named and format not in named:
    raise UsageError(
      f'{path}: {suffix} is for files of the format {" or ".join(named)}, not {format}'
    )
  WRITABLE[format].save(params, config, path, allow=allow)
