"""The flags of the commands that read weights: which format, and what a file doesn't say itself."""

import math
from pathlib import Path
from typing import Any

from absl import flags

from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.models.layers import ACTIVATIONS
from vit_jax.models.vit import CLASSIFIERS
from vit_jax.predictor import preparation
from vit_jax.train import run_directory
from vit_jax.weights import files
from vit_jax.weights.model_config import PREPROCESS

_FROM = flags.DEFINE_enum('from', None, list(weights.FORMATS), 'Format, else by the name.')
_ALLOW = flags.DEFINE_string('allow', None, 'Tensors, by whole name, that may be left out.')
_KNOWN = (
  flags.DEFINE_integer('num_heads', None, 'Attention heads.', lower_bound=1),
  flags.DEFINE_list('image_size', None, 'HEIGHT,WIDTH in pixels.'),
  flags.DEFINE_enum('classifier', None, CLASSIFIERS, 'What the head reads.'),
  flags.DEFINE_enum('activation', None, list(ACTIVATIONS), 'Of the MLPs.'),
  flags.DEFINE_float('norm_epsilon', None, 'Of the LayerNorms.', lower_bound=0.0),
)
_CLASS_NAMES = flags.DEFINE_string('class_names', None, 'File of class names, one a line.')
_MEAN = flags.DEFINE_list('mean', None, 'Of pixels in [0, 1], per channel or one. Default: 0.5.')
_STD = flags.DEFINE_list('std', None, 'Likewise.')
_CROP = flags.DEFINE_enum(
  'crop', None, ['resize', 'central'], 'How images are brought to size. Default: resize.'
)
_CROP_FRACTION = flags.DEFINE_float(
  'crop_fraction', None, 'Of the resized sides, what --crop=central keeps. Default: 0.875.'
)


def either(workdir: str | None, weights_path: str | None) -> str:
  """Returns which of --workdir and --weights is given.

  Raises:
    UsageError: none or both.
  """
  if (workdir is None) == (weights_path is None):
    raise UsageError('give one of --workdir=RUN and --weights=PATH')
  return workdir or weights_path


def load(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns what `weights.load` does, with what the flags say in place of what the files say.

  Raises:
    UsageError: a wrong flag, or what `weights.load` raises.
  """
  known = {flag.name: flag.value for flag in _KNOWN if flag.value is not None}
  if 'image_size' in known:
    known['image_size'] = _pair(known['image_size'])
  preprocess = {flag.name: _numbers(flag) for flag in (_MEAN, _STD) if flag.value is not None}
  preprocess |= {
    flag.name: flag.value for flag in (_CROP, _CROP_FRACTION) if flag.value is not None
  }
  params, config = weights.load(path, format=_FROM.value, allow=_ALLOW.value, **known)
  if preprocess:
    config = config | {'preprocess': _combine(config.get('preprocess') or {}, preprocess)}
    preparation(config)  # whether they fit
  if _CLASS_NAMES.value is not None and config['num_classes']:
    names = _read_class_names(_CLASS_NAMES.value, config['num_classes'])
    config = config | {'class_names': names}
  return params, config


def _combine(said: dict[str, Any], flagged: dict[str, Any]) -> dict[str, Any]:
  """Returns the model config's `preprocess` as the flags change it."""
  combined = PREPROCESS | said | flagged
  if not 0 < flagged.get('crop_fraction', 1) <= 1:
    raise UsageError(f'--crop_fraction: {flagged["crop_fraction"]} is not over 0 and up to 1')
  if combined['crop'] == 'resize':
    if 'crop_fraction' in flagged:
      raise UsageError('--crop_fraction: only --crop=central leaves a margin out')
    combined.pop('crop_fraction', None)
  return combined


def loss(workdir: str | None, weights_path: str | None) -> str:
  """Returns the name of the loss that a run was trained with; 'softmax' for other weights.

  Raises:
    UsageError: the run doesn't say.
  """
  path = Path(workdir or weights_path)
  if workdir is None and not (path / 'model.json').exists():
    return 'softmax'
  try:
    return run_directory.read_config(path)['loss']['name']
  except (KeyError, TypeError) as e:
    raise UsageError(
      f'--workdir: {path} holds no run (config.json names no loss); weights go to --weights'
    ) from e


def _pair(sides: list[str]) -> tuple[int, int]:
  if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
    raise UsageError(f'--image_size: {",".join(sides)} is not HEIGHT,WIDTH')
  return int(sides[0]), int(sides[1])


def _numbers(flag: flags.FlagHolder) -> tuple[float, ...]:
  try:
    numbers = tuple(map(float, flag.value))
  except ValueError:
    numbers = ()
  if not numbers or not all(map(math.isfinite, numbers)):
    raise UsageError(f'--{flag.name}: {",".join(flag.value)!r} is not a number or one per channel')
  return numbers


def _read_class_names(path: str, num_classes: int) -> list[str]:
  data = files.read(path)
  try:
    names = data.decode('utf-8-sig').splitlines()
  except UnicodeDecodeError as e:
    raise UsageError(f'--class_names: {path} is not text in UTF-8') from e
  if len(names) != num_classes:
    raise UsageError(
      f'--class_names: {path} has {len(names)} lines, and the model {num_classes} classes'
    )
  return names
