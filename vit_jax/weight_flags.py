"""The flags of the commands that read weights: their format, and what their files don't contain."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from vit_jax import models, weights
from vit_jax.errors import FieldError, UsageError, field_prefix
from vit_jax.models import ModelConfig, Preprocessing
from vit_jax.models.config import CROPS, INTERPOLATIONS, MARGIN_CROPS, ROUNDINGS
from vit_jax.models.layers import ACTIVATIONS
from vit_jax.models.variables import Variables
from vit_jax.models.vit import CLASSIFIERS
from vit_jax.regular_files import MAX_TEXT
from vit_jax.run import directory
from vit_jax.weights import files

_FROM = flags.DEFINE_enum('from', None, list(weights.FORMATS), 'Format, else by the name.')
_ALLOW = flags.DEFINE_string('allow', None, 'Regex of whole names of tensors to leave out.')
_KNOWN = (
  flags.DEFINE_string('architecture', None, "timm's name for what a state dict alone is of."),
  flags.DEFINE_integer('num_heads', None, 'Attention heads.', lower_bound=1),
  flags.DEFINE_list('image_size', None, 'HEIGHT,WIDTH in pixels.'),
  flags.DEFINE_integer('num_frames', None, 'Of a video.', lower_bound=1),
  flags.DEFINE_enum('classifier', None, CLASSIFIERS, 'What the head reads.'),
  flags.DEFINE_enum('activation', None, list(ACTIVATIONS), 'Of the MLPs.'),
  flags.DEFINE_float('norm_epsilon', None, 'Of the LayerNorms.', lower_bound=0.0),
)
_CLASS_NAMES = flags.DEFINE_string('class_names', None, 'File of class names, one a line.')
_MEAN = flags.DEFINE_list('mean', None, 'Of pixels in [0, 1], per channel or one. Default: 0.5.')
_STD = flags.DEFINE_list('std', None, 'Likewise.')
_CROP = flags.DEFINE_enum('crop', None, CROPS, 'How images are brought to size. Default: resize.')
_CROP_FRACTION = flags.DEFINE_float(
  'crop_fraction', None, 'Of the resized sides, what --crop=central keeps. Default: 0.875.'
)
_INTERPOLATION = flags.DEFINE_enum('interpolation', None, INTERPOLATIONS, 'Default: bicubic.')
_ROUNDING = flags.DEFINE_enum('rounding', None, ROUNDINGS, "Of a crop's corner. Default: down.")
_CLIPS = (
  flags.DEFINE_integer('frame_stride', None, 'Of a video, from frame to frame.', 1, 10**6),
  flags.DEFINE_integer('temporal_views', None, 'Clips of each video.', 1, 1000),
  flags.DEFINE_integer('spatial_crops', None, '1 or 3; outputs of all views are averaged.'),
)


def either(workdir: str | None, weights_path: str | None) -> str:
  """Returns which of --workdir and --weights is given.

  Raises:
    UsageError: none or both.
  """
  if (workdir is None) == (weights_path is None):
    raise UsageError('give one of --workdir=RUN and --weights=PATH')
  return workdir or weights_path


def format() -> str | None:
  """Returns --from."""
  return _FROM.value


Loaded = tuple[Variables, ModelConfig]


def load(path: str, adapt: Callable[..., Loaded] | None = None, applied: bool = True) -> Loaded:
  """Returns what `weights.load` does; flags take precedence over the files' metadata.

  Args:
    path: as for `weights.load`.
    adapt: makes another model of variables and config, which --class_names is about.
    applied: whether the model is, for which the weights have to be finite.

  Raises:
    UsageError: a wrong flag, or what `weights.load` raises.
  """
  known = {flag.name: flag.value for flag in _KNOWN if flag.value is not None}
  with field_prefix('--', {'format': 'from'}):
    if 'image_size' in known:
      known['image_size'] = _pair(known['image_size'])
    pixels = {flag.name: _numbers(flag) for flag in (_MEAN, _STD) if flag.value is not None}
    views = (_CROP, _CROP_FRACTION, _INTERPOLATION, _ROUNDING, *_CLIPS)
    crop = {flag.name: flag.value for flag in views if flag.value is not None}
    variables, config = weights.load(path, format=_FROM.value, allow=_ALLOW.value, **known)
    if _ALLOW.value is not None:
      _check_whole(variables, config, path)
    if applied:
      _check_finite(variables, path)
    if adapt is not None:
      variables, config = adapt(variables, config)
    if pixels or crop:
      config = _with_preprocessing(config, pixels | crop)
    if _CLASS_NAMES.value is not None and config.num_classes:
      names = _read_class_names(_CLASS_NAMES.value, config.num_classes)
      config = config.replace(class_names=names)
  return variables, config


def _check_whole(variables: Variables, config: ModelConfig, path: str) -> None:
  """Raises FieldError for a model without some of its variables, which can't be applied."""
  there = models.flatten(variables)
  if missing := [name for name in config.variable_shapes() if name not in there]:
    more = f' and {len(missing) - 3} more' if len(missing) > 3 else ''
    raise FieldError(
      'allow',
      f'{path}: without {", ".join(missing[:3])}{more} nothing is computed; only training '
      '(config.init_options.allow) starts what is missing anew',
    )


def _check_finite(variables: Variables, path: str) -> None:
  """Raises UsageError for numbers that aren't finite, as bits that flipped leave them."""
  if bad := [n for n, array in models.flatten(variables).items() if not np.isfinite(array).all()]:
    names = ', '.join([*bad[:3], *['...'][: len(bad) - 3]])
    raise UsageError(f'{path}: the weights have numbers that are not finite, in {names}')


def _with_preprocessing(config: ModelConfig, given: Mapping[str, Any]) -> ModelConfig:
  """Returns the config with some fields of its `preprocess` as given."""
  before, changes = config.preprocess or Preprocessing(), dict(given)
  if changes.get('crop', before.crop) not in MARGIN_CROPS:
    if 'crop_fraction' in changes:
      names = ', '.join(MARGIN_CROPS)
      raise FieldError('crop_fraction', f'only --crop={names} leave a margin out')
    changes['crop_fraction'] = None
  preprocess = dataclasses.replace(before, **changes)
  with field_prefix('', {f'preprocess.{name}': name for name in given}):  # as the flags are called
    return config.replace(preprocess=preprocess)


def loss(workdir: str | None, weights_path: str | None) -> str:
  """Returns the name of the loss that a run was trained with; 'softmax' for other weights.

  Raises:
    UsageError: the run doesn't say.
  """
  # Not every task has several losses to choose from.
  return _loss_options(workdir, weights_path).get('name', 'softmax')


def threshold(workdir: str | None, weights_path: str | None) -> float | None:
  """Returns `config.loss.threshold` of a run, None where it has none.

  Raises:
    UsageError: the run doesn't say.
  """
  return _loss_options(workdir, weights_path).get('threshold')


def _loss_options(workdir: str | None, weights_path: str | None) -> dict[str, Any]:
  """Returns `config.loss` of a run; {} for other weights."""
  path = Path(workdir or weights_path)
  if workdir is None and not (path / 'model.json').exists():
    return {}
  return directory.read_section(path, 'loss', '; weights go to --weights' if workdir else '')


def _pair(sides: list[str]) -> tuple[int, int]:
  if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
    raise FieldError('image_size', f'{",".join(sides)} is not HEIGHT,WIDTH')
  return int(sides[0]), int(sides[1])


def _numbers(flag: flags.FlagHolder) -> tuple[float, ...]:
  try:
    numbers = tuple(map(float, flag.value))
  except ValueError:
    numbers = ()
  if not numbers or not all(map(math.isfinite, numbers)):
    raise FieldError(flag.name, f'{",".join(flag.value)!r} is not a number or one per channel')
  return numbers


def _read_class_names(path: str, num_classes: int) -> list[str]:
  data = files.read(path, max_size=MAX_TEXT)
  try:
    names = data.decode('utf-8-sig').splitlines()
  except UnicodeDecodeError as e:
    raise FieldError('class_names', f'{path} is not text in UTF-8') from e
  if len(names) != num_classes:
    raise FieldError(
      'class_names', f'{path} has {len(names)} lines, and the model {num_classes} classes'
    )
  return names
