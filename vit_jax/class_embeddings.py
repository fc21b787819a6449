"""Zero-shot classifiers of vision towers: embeddings of classes' names, from a file, are the head.

A text tower makes the embeddings, in the library that the checkpoint is from.
"""

import dataclasses
import json
import os

import ml_dtypes
import numpy as np

from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig
from vit_jax.models.heads.zero_shot import ZeroShot
from vit_jax.models.variables import Variables
from vit_jax.regular_files import reading
from vit_jax.weights import files, formats
from vit_jax.weights.formats import augreg

_SCALING = ('logit_scale', 'logit_bias')


@dataclasses.dataclass(frozen=True)
class ClassEmbeddings:
  """What a file says of classes.

  Attributes:
    embeddings: float32 [C, D]; lengths don't matter.
    names: of the classes; None where the file has none.
    logit_scale: logarithm of what cosines are multiplied by; None where it isn't known.
    logit_bias: added to that; None where it isn't known, or nothing is added.
  """

  embeddings: np.ndarray
  names: tuple[str, ...] | None = None
  logit_scale: float | None = None
  logit_bias: float | None = None


def read(path: str | os.PathLike) -> ClassEmbeddings:
  """Reads `embeddings`, and `names`, `logit_scale` and `logit_bias` where they are there.

  Args:
    path: of an .npz file of arrays, or a .safetensors file, whose metadata have `names` as JSON.

  Raises:
    UsageError: it can't be read, or has something else.
  """
  if files.is_safetensors(path):
    data = files.read(path)
    with reading(path, 'a .safetensors file'):
      tensors, metadata = files.parse_safetensors(data)
      names = json.loads(metadata['names']) if 'names' in metadata else None
  elif augreg.holds(os.fspath(path)):
    tensors = dict(augreg.read(path).tensors)
    names = tensors.pop('names').tolist() if 'names' in tensors else None
  else:
    raise UsageError(f'{path}: class embeddings are in .npz or .safetensors files')
  if unknown := tensors.keys() - {'embeddings', *_SCALING}:
    names = ', '.join(sorted(unknown))
    raise UsageError(f'{path}: {names}: not embeddings, names, logit_scale or logit_bias')
  embeddings = tensors.get('embeddings')
  if embeddings is None or embeddings.ndim != 2 or not embeddings.size:
    raise UsageError(f"{path}: no 'embeddings' of the shape [classes, width]")
  embeddings = _floats(embeddings, 'embeddings', path)
  if not np.linalg.norm(embeddings, axis=1).all():
    raise UsageError(f'{path}: embeddings has a row of zeros, which has no direction')
  if names is not None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
      raise UsageError(f'{path}: names is not a list of texts')
    if len(names) != len(embeddings):
      raise UsageError(f'{path}: {len(names)} names for {len(embeddings)} embeddings')
    names = tuple(names)
  scaling = {name: _scalar(tensors[name], name, path) for name in _SCALING if name in tensors}
  return ClassEmbeddings(embeddings, names, **scaling)


def complete(
  classes: ClassEmbeddings, path: str | os.PathLike, format: str | None = None
) -> ClassEmbeddings:
  """Returns the classes with the `logit_scale` and the `logit_bias` of a checkpoint.

  Args:
    classes: whose own values stand before the checkpoint's, each by itself.
    path: of the checkpoint, which may have both towers, one value or none.
    format: a key of `weights.FORMATS`; None for what the checkpoint is by its content.

  Raises:
    UsageError: the checkpoint can't be read, or has something else than one number.
  """
  if missing := [name for name in _SCALING if getattr(classes, name) is None]:
    tensors = formats.FORMATS[format or formats.holding(path)[0]].read(path).tensors
    found = {name: _scalar(tensors[name], name, path) for name in missing if name in tensors}
    classes = dataclasses.replace(classes, **found)
  return classes


def classify(
  variables: Variables, config: ModelConfig, classes: ClassEmbeddings
) -> tuple[Variables, ModelConfig]:
  """Returns a model whose classes are those of the embeddings.

  Its logits are CLIP's or, with a `logit_bias`, SigLIP's, which are a yes or no for each class.

  Args:
    variables: of a tower, which embeds images.
    config: of the tower.
    classes: with a `logit_scale`.

  Raises:
    FieldError: of 'class_embeddings': the tower's embeddings have another width.
  """
  found, width = classes.embeddings.shape
  kind = 'softmax' if classes.logit_bias is None else 'sigmoid'
  config = config.replace(
    model=ZeroShot(backbone=config.model, num_classes=found),
    class_names=classes.names,
    task={'name': 'classification', 'options': {'name': kind}},
  )
  if (expected := config.variable_shapes()['class_embeddings'][1]) != width:
    raise FieldError('class_embeddings', f'of width {width}, but those of images have {expected}')
  head = {
    'class_embeddings': classes.embeddings,
    'logit_scale': np.float32(classes.logit_scale),
    'logit_bias': np.float32(classes.logit_bias or 0),
  }
  return {'params': {'backbone': variables['params'], **head}}, config


def _floats(array: np.ndarray, name: str, path: object) -> np.ndarray:
  if not np.issubdtype(array.dtype, np.number) and array.dtype != ml_dtypes.bfloat16:
    raise UsageError(f'{path}: {name} is {array.dtype}, not numbers')
  array = np.asarray(array, np.float32)
  if not np.isfinite(array).all():
    raise UsageError(f'{path}: {name} has values that are not finite')
  return array


def _scalar(array: np.ndarray, name: str, path: object) -> float:
  if array.size != 1:
    raise UsageError(f'{path}: {name} has the shape {array.shape}, not one value')
  return float(_floats(array, name, path).reshape(()))
