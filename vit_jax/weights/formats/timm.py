"""timm's models: state dicts, .safetensors or .pth, and folders or names on Hugging Face's hub.

github.com/huggingface/pytorch-image-models. On the hub, most of what the tensors don't tell is in
config.json. What `write` writes has it in the file's metadata.
"""

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig, Preprocessing
from vit_jax.models.config import INTERPOLATIONS, MARGIN_CROPS
from vit_jax.weights import architectures, files, hub, state_dicts
from vit_jax.weights.table import Source, Table, choice, errors_of_file, with_own_words

SUFFIXES = state_dicts.SUFFIXES
ON_HUB = True

_CROP_MODES = {'center': 'central', 'squash': 'squash', 'border': 'border'}
# What timm's `resolve_data_config` takes where config.json says nothing.
_CROP_PCT = 0.875
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def holds(path: str) -> bool:
  """Whether it is a state dict or a folder with config.json."""
  return state_dicts.holds(path) or hub.is_folder(path)


def read(path: str | os.PathLike) -> Source:
  """Returns what is in a file, or in a folder or under a name on the hub."""
  return state_dicts.read(path)


def write(
  path: str | os.PathLike, tensors: files.Tensors, config: ModelConfig, table: Table
) -> None:
  """Writes a state dict, .safetensors or .pth, or a folder that timm.create_model opens.

  Args:
    path: of a folder, if it is one or has no suffix: `local-dir:PATH` there.
    tensors: of the model.
    config: its config.
    table: whose tensors they are.

  Raises:
    UsageError: the path can't be written, or timm doesn't make such a model.
  """
  if Path(path).is_dir() or not Path(path).suffix:
    _write_folder(Path(path), tensors, config, table)
    return
  own = json.dumps(table.own_config(config))
  if files.is_safetensors(path):
    data = files.format_safetensors(tensors, **{files.CONFIG_KEY: own})
  else:
    data = files.format_torch({table.entry: tensors, files.CONFIG_KEY: own}, path)
  files.write(path, data)


def of_architecture(source: Source, name: str, known: Mapping[str, Any]) -> Source:
  """Returns a source with the config.json that a model of this name has.

  Args:
    source: of a state dict alone.
    name: of an architecture, which a tag may follow.
    known: entries of the model config that the caller gives; `image_size` stands before the tag's.

  Raises:
    FieldError: for `architecture`, if it isn't known, or the source says what its model is.
  """
  if source.their_config is not None or source.entries:
    raise FieldError('architecture', f'{name!r}, but {source.metadata_path} says what its model is')
  config = architectures.config_of(name)
  if (size := known.get('image_size')) is not None:
    cfg = config['pretrained_cfg']
    cfg['input_size'] = [cfg['input_size'][0], *size]
  return source.replace(their_config=config)


def _write_folder(folder: Path, tensors: files.Tensors, config: ModelConfig, table: Table) -> None:
  """Writes config.json and model.safetensors, as timm's save_for_hf does."""
  architecture, arguments = table.creation(config, folder)
  content = {
    'architecture': architecture,
    'num_classes': config.num_classes,
    'model_args': arguments,
    'pretrained_cfg': _their_images(config) | {'first_conv': table.first_conv},
  }
  # Where nothing is known, timm has its defaults, and this project still nothing.
  own = None if config.preprocess is None else config.preprocess.to_dict()
  content[files.CONFIG_KEY] = {'preprocess': own}
  if config.class_names is not None:
    content['label_names'] = list(config.class_names)
  files.write(folder / 'model.safetensors', files.format_safetensors(tensors))
  files.write(folder / hub.CONFIG, json.dumps(content, indent=2).encode())


def _their_images(config: ModelConfig) -> dict[str, Any]:
  """Returns `pretrained_cfg` of config.json: what is done to images."""
  size = [config.channels, *config.image_size]
  cfg = {'input_size': size, 'fixed_input_size': True, 'num_classes': config.num_classes}
  cfg |= {'classifier': 'head', 'custom_load': False}
  if config.preprocess is not None:
    cfg |= timm_pixels(config.preprocess, config.image_size, config.channels)
  return cfg


class TimmTable(Table):
  """A backbone in timm; config.json has what is done to images, and how the model was made.

  Attributes:
    first_conv: the module that timm adapts to images of other channels.
  """

  format = 'timm'
  first_conv: ClassVar[str | None] = 'patch_embed.proj'
  foreign: ClassVar = {
    r'\.(ls[12]\.)?gamma(_[12])?$': 'layer scale',
    r'^reg_token$': 'register tokens',
    r'^(dist_token$|head_dist\.)': 'a distillation token',
    r'\.[qk]_norm\.': 'a norm of queries and keys',
    r'\brel(ative)?_pos': 'relative positions',
    r'\brope\.|\bfreqs': 'rotary positions',
    r'^norm_pre\.': 'a norm before the blocks',
    r'\.mlp\.(w12|fc1_[gx]|w[123])\.': 'a gated MLP',
    r'\.(attn|mlp)\.norm\.': 'norms inside of branches',
  }

  def owns_config(self, config: Mapping[str, Any]) -> bool:
    """Whether it is timm's: the tensors tell whose model it is."""
    return 'architecture' in config

  def read_config(self, source: Source) -> dict[str, Any]:
    """Returns what config.json states of images and classes."""
    if source.their_config is None:
      return {}
    config, entries = source.their_config, {}
    cfg, made_with = pretrained_cfg(source), model_args(source)
    channels, *size = _list(cfg, 'input_size', source) or (len(_MEAN),)
    size = made_with.get('img_size', size)
    if size:
      entries['image_size'] = (size, size) if isinstance(size, int) else size
    if isinstance(names := config.get('label_names', cfg.get('label_names')), list):
      entries['class_names'] = names
    if made_with.get('in_chans', channels) == channels:
      entries['preprocess'] = _pixels(cfg, channels, source)
    return entries

  def creation(self, config: ModelConfig, path: object) -> tuple[str, dict[str, Any]]:
    """Returns the name and the arguments by which timm.create_model makes a model.

    Args:
      config: of the model, which the table writes.
      path: for messages.

    Raises:
      UsageError: timm has no such model, or it isn't made here.
    """
    del config
    raise UsageError(f"{path}: {self.title} isn't made here")


def pretrained_cfg(source: Source) -> Mapping[str, Any]:
  """Returns what config.json states of the pretrained model; older ones have it all in one."""
  return _dict(source.their_config.get('pretrained_cfg', source.their_config), source)


def model_args(source: Source) -> Mapping[str, Any]:
  """Returns the arguments that, by config.json, the model was made with."""
  return _dict((source.their_config or {}).get('model_args', {}), source)


def _pixels(cfg: Mapping[str, Any], channels: int, source: Source) -> Preprocessing | None:
  """Returns what timm's evaluation does to images by a config; None where it has no mean for them.

  Raises:
    UsageError: it does something else than what is done here.
  """
  # This project's own words stand in the file of the tensors or, in a folder, in config.json.
  own, path = source.entries, source.path
  if files.CONFIG_KEY in source.their_config:
    own, path = _dict(source.their_config[files.CONFIG_KEY], source), source.metadata_path
    if own.get('preprocess', own) is None:
      return None
  if channels != len(_MEAN) and not (cfg.get('mean') and cfg.get('std')):
    return None
  names = {name: name for name in INTERPOLATIONS}
  crop = choice(source, 'crop_mode', cfg.get('crop_mode') or 'center', _CROP_MODES)
  interpolation = choice(source, 'interpolation', cfg.get('interpolation') or 'bicubic', names)
  fraction = cfg.get('crop_pct') or _CROP_PCT
  if type(fraction) not in (int, float) or not 0 < fraction <= 2:
    raise UsageError(f'{source.metadata_path}: crop_pct: {fraction!r} is not over 0 and up to 2')
  part = {'crop': crop, 'crop_fraction': fraction, 'rounding': 'nearest'}
  if crop == 'squash' and fraction == 1:
    part = {'crop': 'resize'}
  with errors_of_file(source.metadata_path):
    mean, std = cfg.get('mean') or _MEAN, cfg.get('std') or _STD
    preprocess = Preprocessing(mean=mean, std=std, interpolation=interpolation, **part)
  return with_own_words(preprocess, own.get('preprocess'), path)


def timm_pixels(
  preprocess: Preprocessing, image_size: tuple[int, int], channels: int = 3
) -> dict[str, Any]:
  """Returns the fields of timm's `pretrained_cfg` that say what is done to images.

  timm's transforms then give the same pixels, but that they round the corner of a crop to the
  nearest: of a `rounding` 'down', it may be the pixel beside. The file's metadata keeps that.

  Args:
    preprocess: of the model.
    image_size: (height, width) of its images.
    channels: of its images.

  Raises:
    FieldError: timm has no such crop.
  """
  crop, fraction = preprocess.crop, preprocess.crop_fraction or _CROP_PCT
  if crop == 'resize':
    crop, fraction = 'squash', 1.0
  if crop not in MARGIN_CROPS:
    raise FieldError('preprocess.crop', f'timm has no crop {crop!r}')
  # timm rounds sides down. So does `rounding` 'down', but it first corrects a side that is below a
  # whole number by floating point's error alone.
  sides = [side / fraction for side in image_size]
  if preprocess.rounding == 'down' and any(math.floor(s) != math.floor(s + 1e-6) for s in sides):
    fraction *= 1 - 1e-9
  return {
    'input_size': [channels, *image_size],
    'interpolation': preprocess.interpolation,
    'crop_pct': fraction,
    'crop_mode': next(theirs for theirs, ours in _CROP_MODES.items() if ours == crop),
    'mean': list(preprocess.mean) * (channels if len(preprocess.mean) == 1 else 1),
    'std': list(preprocess.std) * (channels if len(preprocess.std) == 1 else 1),
  }


def refuse_args(source: Source, names: Iterable[str]) -> None:
  """Raises UsageError where there are names: those of arguments that a table doesn't read."""
  if left := sorted(names):
    raise UsageError(f'{source.metadata_path}: model_args {", ".join(left)} are not read')


def check_architecture(source: Source, names: Collection[str]) -> None:
  """Raises UsageError where config.json is of a model of another name, or of another make.

  Args:
    source: with a config.json, or without one, where there is nothing to check.
    names: of models that are read where they were made with arguments for channels and classes
      alone, and average over positions.
  """
  config = source.their_config
  if config is None:
    return
  name = str(config.get('architecture')).partition('.')[0]
  choice(source, 'architecture', name, {name: name for name in names})
  refuse_args(source, model_args(source).keys() - {'in_chans', 'num_classes', 'global_pool'})
  check_average(source)


def check_average(source: Source) -> None:
  """Raises UsageError where the head doesn't read the mean over positions, by config.json."""
  pool = source.their_config.get('global_pool', 'avg')
  choice(source, 'global_pool', model_args(source).get('global_pool', pool), {'avg': 'avg'})


def _dict(value: Any, source: Source) -> Mapping[str, Any]:
  if not isinstance(value, dict):
    raise _unreadable(value, source)
  return value


def _list(cfg: Mapping[str, Any], name: str, source: Source) -> list[Any]:
  if not isinstance(cfg.get(name, []), list):
    raise _unreadable(cfg[name], source)
  return cfg.get(name, [])


def _unreadable(value: Any, source: Source) -> UsageError:
  return UsageError(
    f"{source.metadata_path}: cannot be read as timm's config.json ({value!r} is of another type)"
  )
