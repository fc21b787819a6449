"""Weights in and out: `load(path) -> (variables, config)`, `save(variables, config, path)`.

Variables are Flax's, {'params': ..., 'batch_stats': ...}, and the config is a `models.ModelConfig`.
`formats` know bytes and metadata, of any model; `tables`, one file a backbone, know names.
"""

import os
from pathlib import Path
from typing import Any

from vit_jax.errors import FieldError, UsageError, check_choice
from vit_jax.models import ModelConfig
from vit_jax.models.variables import Variables
from vit_jax.weights import files, formats, hub, state_dicts, tables
from vit_jax.weights.formats import FORMATS, WRITABLE, timm


def detect(path: str | os.PathLike) -> str:
  """Returns the name in `FORMATS` of a file's or folder's format.

  Of a state dict it reads the names of the tensors, and of a folder, or a name on the hub,
  config.json.

  Raises:
    UsageError: it is of none, or can't be read where that is needed to tell.
  """
  found = formats.holding(path)
  if len(found) == 1:
    return found[0]
  if state_dicts.holds(os.fspath(path)):
    known = [table for table in tables.all_tables() if table.format in found]
    return tables.find_by_names(files.read_tensor_names(path), path, known).format
  owners = {table.format for table in tables.owners(*hub.read_config(path), found)}
  return owners.pop() if len(owners) == 1 else tables.find(state_dicts.read(path), owners).format


def load(
  path: str | os.PathLike,
  *,
  format: str | None = None,
  allow: str | None = None,
  architecture: str | None = None,
  **known: Any,
) -> tuple[Variables, ModelConfig]:
  """Returns the variables, float32, and the config of a model.

  Args:
    path: a local file or folder, gs:// or https:// of a file, or a name on Hugging Face's hub; see
      the modules in `formats`.
    format: a key of `FORMATS`; None for what it is by its content.
    allow: a regular expression for the whole names of tensors that may be missing, left over or of
      another shape; they are left out, of which a `UsageWarning` tells.
    architecture: timm's name for the model of a state dict without config.json, with a tag
      (`vit_base_patch16_224.augreg_in1k`) or without: what timm makes by it, and its images.
    **known: entries of the model config that the file may leave open, as `num_heads`, `image_size`,
      `classifier`, `activation`, `norm_epsilon`; and `class_names` and `preprocess`, which stand
      before the file's.

  Raises:
    FieldError: for an argument that is wrong, or contradicts the file, or has to be given.
    UsageError: the path can't be read, isn't such a model, or tensors don't fit.
  """
  if format is not None:
    check_choice('format', format, FORMATS)
  found = [format] if format else formats.holding(path)
  source = FORMATS[found[0]].read(path)
  if architecture is not None:
    if format not in (None, 'timm'):
      raise FieldError('format', f'{format!r}, but an architecture is one of timm')
    source, found = timm.of_architecture(source, architecture, known), ['timm']
  return tables.find(source, found).load(source, known, allow)


def save(
  variables: Variables,
  config: ModelConfig,
  path: str | os.PathLike,
  *,
  format: str,
  allow: str | None = None,
  label: object = None,
) -> None:
  """Writes a model.

  Args:
    variables: of the model.
    config: its config.
    path: a local file, or for some formats a folder.
    format: a key of `WRITABLE`.
    allow: a regular expression for the paths of variables that may be left out, of which a
      `UsageWarning` tells.
    label: what messages about the model begin with; None for `path`.

  Raises:
    FieldError: the format isn't one, or `allow` no regular expression.
    UsageError: the format has no place for the model, or the path can't be written or is named as a
      file of another format.
  """
  check_choice('format', format, WRITABLE)
  suffix = Path(path).suffix
  named = [name for name, module in WRITABLE.items() if suffix in module.SUFFIXES]
  if named and format not in named:
    raise UsageError(
      f'{path}: {suffix} is for files of the format {" or ".join(named)}, not {format}'
    )
  label = path if label is None else label
  table = tables.find_for_model(config, format, label)
  tensors = table.convert(variables, config, label, allow)
  WRITABLE[format].write(path, tensors, config, table)


def embeds(config: ModelConfig) -> bool:
  """Whether a loaded model's outputs are embeddings of images, and no scores of classes."""
  return any(table.embeds(config) for table in tables.all_tables())


def transformers_class(config: ModelConfig, path: object) -> str:
  """Returns the name of the class in Hugging Face's transformers that computes a model's logits.

  Args:
    config: of a model with a head.
    path: where it is from, for messages.

  Raises:
    UsageError: there is none.
  """
  return tables.find_for_model(config, 'huggingface', path).classifier_class(config, path)


def timm_creation(config: ModelConfig, path: object) -> tuple[str, dict[str, Any]]:
  """Returns the name and the arguments by which timm.create_model makes a model.

  Args:
    config: of the model.
    path: where it is from, for messages.

  Raises:
    UsageError: timm has no such model, or it isn't made here.
  """
  return tables.find_for_model(config, 'timm', path).creation(config, path)


def takes_bgr(path: str | os.PathLike) -> bool:
  """Whether the model at a path of transformers takes images of BGR; `load` makes it one of RGB."""
  return FORMATS['huggingface'].takes_bgr(hub.read_config(path)[1])
