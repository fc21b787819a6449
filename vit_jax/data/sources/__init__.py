"""The data sets by name: digits, folders of images, videos, points and others, TFDS."""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax import user_code
from vit_jax.data.sources import (
  csv_labels,
  digits,
  digits_in_space,
  folders,
  masks,
  modelnet40,
  moving_mnist,
  point_folders,
  shapenet_part,
  tfds,
  tfds_masks,
  video_folders,
  yolo,
)
from vit_jax.data.sources.records import Source
from vit_jax.errors import FieldError, nearest

# Modules by the name of the data set. A fixed one has load(split); one that reads whatever is in a
# folder, or is made from another, load(split, directory, **options), with OPTIONS, their defaults,
# where it has some.
_FIXED = {'digits': digits}
FOLDERS = {
  'folder': folders,
  'video_folder': video_folders,
  'point_folder': point_folders,
  'csv': csv_labels,
  'yolo': yolo,
  'masks': masks,
  'modelnet40': modelnet40,
  'shapenet_part': shapenet_part,
}
_MADE = {
  'moving_mnist': moving_mnist,
  'digits_in_space': digits_in_space,
  'tfds_masks': tfds_masks,
}
# Of a kind of data that models take, the data set that is a folder with a folder for each class.
FOLDER_OF = {'image': 'folder', 'video': 'video_folder', 'points': 'point_folder'}


def default_options(name: str) -> dict[str, Any]:
  """Returns the options of a data set with their defaults: `config.data.options`.

  Raises:
    FieldError: of `name`, for a function of the user's own that doesn't load data.
  """
  if user_code.is_reference(name):
    return _own(name)[1]
  return dict(getattr((FOLDERS | _MADE).get(name), 'OPTIONS', {}))


def title(name: str, dir: str) -> str:
  """Returns what people call a data set: of one that is read from a folder, the folder's name."""
  return os.path.basename(os.path.abspath(dir)) if name in FOLDERS else name


def load_source(
  name: str, split: str, dir: str = '', options: Mapping[str, Any] | None = None
) -> Source:
  """Opens a split of a data set; imports no TensorFlow.

  Args:
    name: 'digits' (the 1,797 images of scikit-learn, split 80/20 and stratified), 'folder' (see
      `folders.load`), 'video_folder', 'point_folder', 'csv', 'yolo', 'masks', 'modelnet40',
      'shapenet_part' (see the `load` of each), 'moving_mnist', 'digits_in_space', 'tfds_masks' (see
      the module), a data set that TFDS has prepared as array_record, as
      'name[/config][:version]', or a function of the user's own, as 'module:name':
      load(split, dir, option=default, ...) -> Source.
    split: splits and slices in TFDS syntax: 'train', 'train[:90%]', 'train[90%:]+test', 'all'.
    dir: the folder of images, or TFDS's data_dir, where '' stands for $TFDS_DATA_DIR or else
      ~/tensorflow_datasets. Unused by digits.
    options: those of `default_options` that have another value.

  Raises:
    FieldError: of `name`, `split`, `dir` or `options`: an unknown name, option or split, no images,
      or a TFDS data set that isn't prepared, isn't array_record or isn't of classification.
    UsageError: a file there that can't be used.
  """
  defaults, given = default_options(name), dict(options or {})
  for option, value in given.items():
    if option not in defaults:
      raise FieldError(
        f'options.{option}', f'no such option of {name!r}{nearest(option, defaults)}'
      )
    if not (user_code.is_reference(name) or _is_like(value, defaults[option])):
      raise FieldError(f'options.{option}', f'{value!r} is not such as {defaults[option]!r}')
  if user_code.is_reference(name):
    source = _own(name)[0](split, dir, **defaults | given)
    if not isinstance(source, Source):
      raise FieldError('name', f'{name!r} returned {type(source).__name__}, not a data.Source')
    if not len(source):
      raise FieldError('split', f'{split!r} of {name!r} holds no examples')
    if 'label' in source[0] and not source.class_names:
      raise FieldError('name', f'{name!r} gives labels, and no class_names for them')
    return source
  if name in _FIXED:
    return _FIXED[name].load(split)
  if name in FOLDERS | _MADE:
    return (FOLDERS | _MADE)[name].load(split, dir, **defaults | given)
  return tfds.load(name, split, dir, other_names=(*_FIXED, *FOLDERS, *_MADE))


def _is_like(value: Any, default: Any) -> bool:
  """Whether a value is of the type of a default, where that is a scalar or a tuple of such."""
  if isinstance(default, tuple):
    is_several = isinstance(value, tuple | list | str)
    return is_several and all(isinstance(item, str | int | float) for item in value)
  if isinstance(default, float):
    return type(value) in (int, float)
  return type(value) is type(default) or not isinstance(default, str | int)


def depends_on_dir(name: str) -> bool:
  """Whether `dir` is part of what a data set is; one of TFDS's is the same wherever it lies."""
  return name in FOLDERS or user_code.is_reference(name)


def _own(name: str) -> tuple[Callable[..., Source], dict[str, Any]]:
  """Returns a function of the user's own that loads data, and its options with their defaults."""
  function = user_code.find_function(name)
  if not _knows_sources(function):
    raise FieldError('name', f'{name!r} is of a module that imports nothing of vit_jax.data')
  parameters = [*inspect.signature(function).parameters.values()]
  options = {p.name: p.default for p in parameters[2:]}
  if len(parameters) < 2 or inspect.Parameter.empty in options.values():
    raise FieldError('name', f'{name!r} does not take (split, dir, option=default, ...)')
  return function, options


def _knows_sources(function: Callable[..., Any]) -> bool:
  """Whether the module that defines a function imports vit_jax.data or a source, or defines one.

  A run directory from elsewhere may name any function that Python finds, and this one is called
  with texts from there: os:popen would run them as a command.
  """
  known = getattr(inspect.unwrap(function), '__globals__', {})  # none of what C defines
  if known.get('__name__', '').startswith('vit_jax.'):
    return False
  modules = [x.__name__ for x in known.values() if inspect.ismodule(x)]
  has_source = any(isinstance(x, type) and issubclass(x, Source) for x in known.values())
  return has_source or any(name.partition('.')[0] == 'vit_jax' for name in modules)
