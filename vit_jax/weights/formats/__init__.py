"""The formats by name: what is in files and folders, whatever the model.

A format is a module with
  `holds(path)`: whether a path can be of this format, by its name and the names of files in it;
  `ON_HUB`: whether a name on Hugging Face's hub can be of this format;
  `read(path)`: returns a `Source`. Where several formats hold a path, they read it in one way.
A format that can be written also has
  `SUFFIXES`: the endings of its files;
  `write(path, tensors, config, table)`: writes tensors under the names that `table` gave them.
"""

import os
from pathlib import Path

from vit_jax.errors import UsageError
from vit_jax.weights import hub
from vit_jax.weights.formats import augreg, huggingface, run, scenic, timm, torchvision

FORMATS = {
  'run': run,
  'augreg': augreg,
  'torchvision': torchvision,
  'timm': timm,
  'scenic': scenic,
  'huggingface': huggingface,
}
WRITABLE = {name: module for name, module in FORMATS.items() if hasattr(module, 'write')}


def holding(path: str | os.PathLike) -> list[str]:
  """Returns the formats that a path can be of, which its content tells apart.

  Raises:
    UsageError: there are none.
  """
  name, local = os.fspath(path), Path(path)
  if found := [format for format, module in FORMATS.items() if module.holds(name)]:
    return found
  if hub.is_name(name):
    return [format for format, module in FORMATS.items() if module.ON_HUB]
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
    f'({", ".join(suffixes)}, checkpoint_STEP); give its format'
  )
