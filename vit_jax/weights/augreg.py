"""AugReg's .npz files: the names of vision_transformer, as published, and of big_vision.

github.com/google-research/vision_transformer, github.com/google-research/big_vision. Their models
use the tanh approximation of GELU and a LayerNorm epsilon of 1e-6. What is otherwise, class names
and preprocessing, `save` puts into the archive's comment, where other readers don't look.
"""

import io
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.errors import UsageError
from vit_jax.weights import files, model_config, table
from vit_jax.weights.table import FLAX_DENSE, FLAX_NORM, Module, tensor

_BLOCK = 'Transformer/encoderblock_{}'
_PREFIXES = ('params/img/', 'params/', 'opt/target/')
_MAX_COMMENT = 2**16 - 1  # of the zip format


def _table(attention: str, second_norm: str, mlp: str) -> tuple[Module, ...]:
  """Returns the table for one way to number the modules of a block."""
  parts = ('query', 'key', 'value', 'out')
  return (
    Module('embedding', 'embedding', FLAX_DENSE),
    tensor('cls', 'cls'),
    tensor(model_config.POSITIONS, model_config.POSITIONS),
    Module(f'{_BLOCK}/LayerNorm_0', f'{_BLOCK}/LayerNorm_0', FLAX_NORM),
    *(
      Module(
        f'{_BLOCK}/MultiHeadDotProductAttention_0/{part}',
        f'{_BLOCK}/{attention}/{part}',
        FLAX_DENSE,
      )
      for part in parts
    ),
    Module(f'{_BLOCK}/LayerNorm_1', f'{_BLOCK}/{second_norm}', FLAX_NORM),
    Module(f'{_BLOCK}/MlpBlock_0/Dense_0', f'{_BLOCK}/{mlp}/Dense_0', FLAX_DENSE),
    Module(f'{_BLOCK}/MlpBlock_0/Dense_1', f'{_BLOCK}/{mlp}/Dense_1', FLAX_DENSE),
    Module('Transformer/encoder_norm', 'Transformer/encoder_norm', FLAX_NORM),
    tensor('MAPHead_0/probe', 'MAPHead_0/probe'),
    *(
      Module(f'MAPHead_0/{module}', f'MAPHead_0/{module}', leaves)
      for module, leaves in (
        *((f'MultiHeadDotProductAttention_0/{part}', FLAX_DENSE) for part in parts),
        ('LayerNorm_0', FLAX_NORM),
        ('MlpBlock_0/Dense_0', FLAX_DENSE),
        ('MlpBlock_0/Dense_1', FLAX_DENSE),
      )
    ),
    Module('pre_logits', 'pre_logits', FLAX_DENSE),
    Module('output_projection', 'head', FLAX_DENSE),
  )


# Published files count all the modules of a block together, Flax's linen those of each kind.
_PUBLISHED = _table('MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3')
_LINEN = _table('MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0')

SUFFIXES = ('.npz',)


def looks_like(path: str) -> bool:
  """Whether it is an .npz file."""
  return files.has_suffix(path, SUFFIXES)


def load(
  path: str | os.PathLike, *, allow: str | None = None, **known: Any
) -> tuple[table.Params, dict[str, Any]]:
  """Returns (params, model config) of an .npz file.

  Position embeddings that leave the class token out, big_vision's, get a row of zeros for it, and
  its scanned blocks, stacked along a leading axis, are taken apart.

  Args:
    path: local, gs:// or https://.
    allow: a regular expression for the names of tensors that may be missing, left over or of
      another shape; they are left out.
    **known: entries of the model config that the file doesn't say: `activation`, `norm_epsilon`,
      `image_size`, `classifier`, `positional_embedding`.

  Raises:
    UsageError: the file can't be read, isn't a ViT, or tensors don't fit.
  """
  tensors, stated = _read(path)
  known = model_config.combine(stated, known, path)
  with files.reading(path, 'a ViT'):
    _unstack_blocks(tensors)
    _to_old_positions(tensors, known.get('image_size'))
    linen = 'Transformer/encoderblock_0/LayerNorm_1/scale' in tensors
    num_layers = model_config.count_layers(tensors, r'Transformer/encoderblock_(\d+)/')
    rules = table.expand(_LINEN if linen else _PUBLISHED, num_layers, separator='/')
    shapes = {r.ours[0]: tensors[r.theirs].shape for r in rules if r.theirs in tensors}
    config = model_config.describe(shapes, known, path)
  return table.to_ours(tensors, rules, config, path, allow), config


def save(
  params: table.Params,
  config: Mapping[str, Any],
  path: str | os.PathLike,
  *,
  allow: str | None = None,
) -> None:
  """Writes an .npz file with the published names, which all of Google's loaders read.

  Class names are kept where they fit into 64 KiB.

  Raises:
    UsageError: the published models can't compute what this one does, or parameters without a
      place there aren't matched by `allow`.
  """
  config = model_config.describe_params(table.flatten(params), config, path)
  for field in ('class_token', 'fc_norm'):
    if config[field]:
      raise UsageError(f'{path}: {field}=True has no place there; timm and scenic files have one')
  rules = table.expand(_PUBLISHED, config['num_layers'], separator='/')
  archive = io.BytesIO()
  np.savez(archive, **table.to_theirs(params, rules, config, path, allow))
  comment = model_config.to_json(config).encode()
  if len(comment) > _MAX_COMMENT:
    comment = model_config.to_json({**config, 'class_names': None}).encode()
  with zipfile.ZipFile(archive, 'a') as f:
    f.comment = comment
  files.write(path, archive.getvalue())


def _read(path: str | os.PathLike) -> tuple[files.Tensors, dict[str, Any]]:
  """Returns a file's tensors, without what their names have in front, and what it says itself."""
  data = files.read(path)
  with files.reading(path, 'an .npz file of arrays'):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      comment = archive.comment.decode()
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
      tensors = {name: _recover_bfloat16(archive[name]) for name in archive.files}
    stated = model_config.from_json(comment, path) if comment.startswith('{') else {}
  for prefix in _PREFIXES:
    if f'{prefix}embedding/kernel' in tensors:
      return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}, stated
  return tensors, stated


def _recover_bfloat16(array: np.ndarray) -> np.ndarray:
  # NumPy has no name for the type, and reads it as two bytes of nothing in particular.
  return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype('V2') else array


def _unstack_blocks(tensors: files.Tensors) -> None:
  """Makes one tensor a layer of those that big_vision's scan stacks."""
  stack = 'Transformer/encoderblock/'
  # An empty array can claim any number of layers.
  for name in [name for name in tensors if name.startswith(stack) and tensors[name].size]:
    for layer, array in enumerate(tensors.pop(name)):
      tensors[f'{_BLOCK.format(layer)}/{name.removeprefix(stack)}'] = array


def _to_old_positions(tensors: files.Tensors, image_size: model_config.Shape | None) -> None:
  """Moves big_vision's position embeddings to where the published files have them."""
  for name in ('pos_embedding', 'Transformer/pos_embedding'):
    if name in tensors:
      tensors[model_config.POSITIONS] = tensors.pop(name)
  positions, kernel = tensors.get(model_config.POSITIONS), tensors.get('embedding/kernel')
  if 'cls' not in tensors or positions is None or kernel is None or positions.ndim != 3:
    return
  if not model_config.has_class_position(positions.shape[1], kernel.shape[:2], image_size):
    tensors[model_config.POSITIONS] = np.pad(positions, ((0, 0), (1, 0), (0, 0)))
