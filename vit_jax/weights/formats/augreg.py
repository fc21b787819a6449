"""Google's .npz files: of AugReg, as published with vision_transformer, and of big_vision.

github.com/google-research/vision_transformer, github.com/google-research/big_vision. What the
tensors don't tell, class names and preprocessing, `write` puts into the archive's comment, where
other readers don't look.
"""

import io
import json
import os
import zipfile

import ml_dtypes
import numpy as np

from vit_jax.models import ModelConfig
from vit_jax.regular_files import reading
from vit_jax.weights import files
from vit_jax.weights.table import Source, Table, read_own_config

SUFFIXES = ('.npz',)
ON_HUB = False
_PREFIXES = ('params/img/', 'params/', 'opt/target/')
_MAX_COMMENT = 2**16 - 1  # of the zip format


def holds(path: str) -> bool:
  """Whether it is an .npz file."""
  return files.has_suffix(path, SUFFIXES)


def read(path: str | os.PathLike) -> Source:
  """Returns a file's tensors, without what the names of parameters have in front.

  Raises:
    UsageError: it can't be read.
  """
  data = files.read(path)
  with reading(path, 'an .npz file of arrays'):
    tensors, comment = files.parse_npz(data, path)
    comment = comment.decode()
  tensors = {name: _recover_bfloat16(array) for name, array in tensors.items()}
  entries = read_own_config(comment if comment.startswith('{') else None, path)
  for prefix in _PREFIXES:
    if any(name.startswith(prefix) for name in tensors):
      tensors = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
      break
  return Source(path, tensors, entries)


def _recover_bfloat16(array: np.ndarray) -> np.ndarray:
  # NumPy has no name for the type, and reads it as two bytes of nothing in particular.
  return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype('V2') else array


def write(
  path: str | os.PathLike, tensors: files.Tensors, config: ModelConfig, table: Table
) -> None:
  """Writes an .npz file; class names are kept where they fit into 64 KiB."""
  archive = io.BytesIO()
  np.savez(archive, **tensors)
  entries = table.own_config(config)
  comment = json.dumps(entries).encode()
  if len(comment) > _MAX_COMMENT:
    comment = json.dumps(entries | {'class_names': None}).encode()
  with zipfile.ZipFile(archive, 'a') as f:
    f.comment = comment
  files.write(path, archive.getvalue())
