"""Weights to start from, and what they decide of a configuration."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vit_jax import models, weights
from vit_jax.data.preprocess import CENTRAL_CROPS
from vit_jax.errors import FieldError, UsageError, field_prefix, nearest
from vit_jax.models import Backbone, ModelConfig, Preprocessing
from vit_jax.models import fields as fields_lib
from vit_jax.run import directory
from vit_jax.weights import adapt


class Pretrained(NamedTuple):
  """Variables and the config of the model that they are of; see `vit_jax.weights`."""

  variables: dict[str, Any]
  config: ModelConfig


def complete(
  config: ConfigDict, channels: int, workdir: Path | None
) -> tuple[ConfigDict, Pretrained | None]:
  """Returns (a copy of `config` with its open fields filled in, what the run starts from).

  Open fields are those that are None. If `workdir` holds a run to resume, they come from that run,
  and no weights are loaded. Otherwise they come from the weights that `config.init_from` names.
  Without weights, the model's fields get their defaults, and pixels are scaled to [-1, 1]. Pixels
  are scaled like that, too, where the weights are for images of another number of `channels`.

  Raises:
    UsageError: the weights can't be loaded or are of another architecture; a field is left to
      weights, and none are given; or a field is set that the model doesn't have.
  """
  config = config.copy_and_resolve_references()
  if workdir and directory.has_checkpoints(workdir):
    _fill_model(config, directory.read_section(workdir, 'model'))
    _fill_pixels(config.data, directory.read_section(workdir, 'data'))
    return config, None
  if not config.init_from:
    _check_options_unused(config)
    _fill_model(config, {})
    _check_complete(config)
    _fill_pixels(config.data, Preprocessing().to_dict())
    return config, None
  fitting = ('head', 'resize')  # for `fit`
  options = {k: v for k, v in config.init_options.items() if v is not None and k not in fitting}
  with _names_the_weights(), field_prefix('config.init_options.'):
    start = Pretrained(*weights.load(config.init_from, **options))
  _check_architecture(config, start.config)
  _fill_model(config, {'name': start.config.name, **start.config.backbone.config()})
  preprocess = (start.config.channels == channels and start.config.preprocess) or Preprocessing()
  _fill_pixels(config.data, preprocess.to_dict())
  return config, start


def fit(start: Pretrained, target: ModelConfig, config: ConfigDict) -> tuple[dict, list[str]]:
  """Returns (the variables that a run takes from `start`, what was changed, in words).

  Args:
    start: the weights.
    target: of the model that trains.
    config: the experiment.

  Raises:
    UsageError: they don't fit.
  """
  sections = dict.fromkeys(config.init_options, 'init_options') | {'channels': 'data'}
  sections |= dict.fromkeys(('name', *fields_lib.names(type(target.backbone))), 'model')
  names = {field: f'{section}.{field}' for field, section in sections.items()}
  with _names_the_weights(), field_prefix('config.', names):
    return adapt.adapt(
      start.variables,
      start.config,
      target,
      config.init_from,
      head=config.init_options.head,
      allow=config.init_options.allow,
      resize=config.init_options.resize,
    )


@contextlib.contextmanager
def _names_the_weights() -> Iterator[None]:
  """Puts config.init_from in front of mistakes that are no field's."""
  try:
    yield
  except FieldError:
    raise
  except UsageError as e:
    first, *table = e.lines
    raise UsageError(f'config.init_from: {first}', *table) from e


def _fill_model(config: ConfigDict, theirs: Mapping[str, Any]) -> None:
  """Fills in config.model's name and fields, those that are None, and drops what isn't its own.

  Args:
    config: the experiment.
    theirs: `name` and fields of the weights' model; empty for none.
  """
  given, theirs = fields_lib.plain(config.model), fields_lib.plain(theirs)
  head, name = given.pop('head', None), given.pop('name')
  name = name or theirs.get('name') or next(iter(models.BACKBONES))
  with field_prefix('config.model.'):
    kind = models.backbone(name)
    own = _own_fields(kind, given)
  completed = kind.complete(own, theirs)
  defaults = fields_lib.plain(models.default_config(name))
  for field, value in completed.items():
    if value is None and field not in kind.WEIGHT_FIELDS:
      completed[field] = defaults[field]
  config.model = ConfigDict({'name': name, **completed} | ({} if head is None else {'head': head}))


def _own_fields(kind: type[Backbone], given: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields that a backbone has, None where nothing is given.

  Others may be given, left open, but not set.
  """
  names = fields_lib.names(kind)
  for field, value in given.items():
    if field not in names and _is_set(value):
      raise FieldError(field, f'no such field of {kind.__name__}{nearest(field, names)}')
  return {field: given.get(field) for field in names}


def _is_set(value: Any) -> bool:
  if isinstance(value, Mapping):
    return any(map(_is_set, value.values()))
  return value is not None


def _fill_pixels(data: ConfigDict, preprocess: Mapping[str, Any]) -> None:
  for name in ('mean', 'std'):
    if data[name] is None:
      data[name] = tuple(preprocess[name])
  if data.crop in CENTRAL_CROPS and data.crop_fraction is None:
    data.crop_fraction = preprocess.get('crop_fraction')


def _check_architecture(config: ConfigDict, theirs: ModelConfig) -> None:
  """Raises UsageError unless the model, if it is named, can take weights of theirs."""
  name = config.model.name
  with field_prefix('config.model.'):
    fits = name is None or models.backbone(name).takes_weights_of(type(theirs.backbone))
  if not fits:
    raise UsageError(
      f'config.model.name: {name!r}, but {config.init_from} has weights of a {theirs.name!r}; '
      'start from configs/finetune.py'
    )


def _check_options_unused(config: ConfigDict) -> None:
  """Raises UsageError for an option of weights in a config without any."""
  for name, value in config.init_options.items():
    if value not in (None, 'auto', adapt.RESIZE):
      raise UsageError(
        f'config.init_from: not set, but config.init_options.{name}={value!r} needs it'
      )


def _check_complete(config: ConfigDict) -> None:
  """Raises UsageError for a config that without weights has no model."""
  kind, defaults = models.backbone(config.model.name), models.default_config(config.model.name)
  # The model's size has to be given. It is where no field has a default that states it, or else
  # where anything is set of what weights decide.
  all_open = not any(_is_set(config.model.get(name)) for name in kind.WEIGHT_FIELDS)
  for field in dataclasses.fields(kind):
    name, default = field.name, defaults.get(field.name)
    is_needed = not fields_lib.has_default(field) or isinstance(default, ConfigDict)
    if name in config.model and (is_needed or (all_open and name in kind.WEIGHT_FIELDS)):
      _check_set(config.model[name], default, f'config.model.{name}')


def _check_set(value: Any, default: Any, name: str) -> None:
  """Raises UsageError where a value, or one in a dict, is None, and its default isn't."""
  if isinstance(value, ConfigDict):
    for entry in default:
      _check_set(value.get(entry), default[entry], f'{name}.{entry}')
  elif value is None and default is not None:
    raise UsageError(
      f'config.init_from: not set, and {name} is left to the weights to say; '
      'name the weights to start from'
    )
