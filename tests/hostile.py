"""Folders of config.json and weights in which one thing is wrong, and what opening them may do."""

import json
import shutil
import tracemalloc
import warnings

from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.weights import files

# Values that a field of config.json may be given, whatever it is for.
VALUES = (
  10**9,
  2**63,
  10**400,
  -1,
  0,
  1,
  True,
  False,
  None,
  '',
  'x',
  '../../etc/passwd',
  0.5,
  float('nan'),
  float('inf'),
  -1e308,
  [],
  {},
  [1, [2, [3]]],
  2048,
  [2048, 2048],
  [10**9, 10**9],
  ['x', None],
  {'name': 'x', 'type': 'x'},
)
_MEMORY = 2**30  # bytes that opening a small folder may take at most


def mutations(config):
  """Yields (label, config.json) with each field, and each in its dicts, set to each of `VALUES`."""
  for name, value in config.items():
    for wrong in VALUES:
      yield f'{name}={wrong!r:.40}', {**config, name: wrong}
    if isinstance(value, dict) and len(value) < 40:
      for label, inner in mutations(value):
        yield f'{name}.{label}', {**config, name: inner}
  yield 'an unknown field', {**config, 'surprise': True}


def tensor_mutations(tensors):
  """Yields (label, tensors) with each lacking, flat, of another rank, half as large, or empty."""
  for name, array in tensors.items():
    rest = {n: a for n, a in tensors.items() if n != name}
    yield f'without {name}', rest
    changes = {'flat': array.reshape(-1), 'deeper': array[None], 'empty': array.reshape(-1)[:0]}
    changes['halved'] = array[..., : array.shape[-1] // 2] if array.ndim else array[None]
    for label, changed in changes.items():
      if changed.shape != array.shape:
        yield f'{name} {label}', {**rest, name: changed}


def open_changed(folder, work, config=None, tensors=None):
  """Opens a copy of a folder with another config.json or other tensors; returns what is wrong.

  Args:
    folder: with config.json and model.safetensors.
    work: a folder for the copy, which is made anew.
    config: what config.json has; None for the folder's.
    tensors: what model.safetensors has, likewise.

  Returns:
    None where the folder opens, or is refused in one line.
  """
  shutil.rmtree(work, ignore_errors=True)
  shutil.copytree(folder, work)
  if config is not None:
    (work / 'config.json').write_text(json.dumps(config))
  if tensors is not None:
    (work / 'model.safetensors').write_bytes(files.format_safetensors(tensors))
  tracemalloc.start()  # of Python and NumPy, whatever was taken before
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      weights.load(work)
  except UsageError as e:
    # What doesn't fit is a table below the line.
    first, *rows = str(e).splitlines() or ['']
    if not first.strip() or (rows and 'tensors that do not fit' not in first):
      return f'not one line: {e}'
  except Exception as e:
    return f'{type(e).__name__}: {str(e)[:200]}'
  finally:
    _, taken = tracemalloc.get_traced_memory()
    tracemalloc.stop()
  return f'{taken >> 20} MiB taken' if taken > _MEMORY else None
