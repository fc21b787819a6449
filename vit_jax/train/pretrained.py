"""Weights to start from, and the fields of the model that they decide."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.models import layers
from vit_jax.train import run_directory
from vit_jax.weights.model_config import PREPROCESS

# What a configuration may leave open, as None, for the weights to say.
OPEN = (
  'hidden_size',
  'mlp_dim',
  'num_layers',
  'num_heads',
  'classifier',
  'class_token',
  'fc_norm',
  'positional_embedding',
  'norm_epsilon',
  'activation',
)


class Pretrained(NamedTuple):
  """Parameters and the config of the model that they are of; see `vit_jax.weights`."""

  params: Any
  config: dict[str, Any]


def _fill(config: ConfigDict, model: Mapping[str, Any], pixels: Mapping[str, Any]) -> None:
  for name in OPEN:
    if name in config.model and config.model[name] is None and name in model:
      config.model[name] = model[name]
  if config.model.name is None:
    config.model.name = model.get('name', 'vit')
    if 'tokenizer' in model:
      with config.model.unlocked():
        config.model.tokenizer = ConfigDict(model['tokenizer'])
  if 'patches' in config.model and 'patches' in model:
    size = tuple(model['patches']['size'])
    config.model.patches.size = config.model.patches.size or size
    # For patches of another size, the old stride would mean another overlap.
    if tuple(config.model.patches.size) == size and model.get('stride') is not None:
      config.model.stride = config.model.stride or layers.as_pair(model['stride'])
  for name in ('mean', 'std'):
    if config.data[name] is None:
      config.data[name] = tuple(pixels[name])
  if config.data.crop != 'resize' and config.data.crop_fraction is None:
    config.data.crop_fraction = pixels.get('crop_fraction')


def _check_architecture(ours: str | None, theirs: str, path: str) -> None:
  """Raises UsageError unless models of these names have parameters in common; None is a ViT's."""
  ours = ours or 'vit'
  if ours != theirs and not {ours, theirs} <= {'vit', 'token_learner'}:
    config = 'configs/resnet.py' if theirs.startswith('resnet') else 'configs/finetune.py'
    raise UsageError(
      f'config.model.name: {ours!r}, but {path} has weights of a {theirs!r}; start from {config}'
    )


def _check_without_weights(config: ConfigDict) -> None:
  """Raises UsageError for a config that without weights has no model, or no use for a field."""
  for name, value in config.init_options.items():
    if value not in (None, 'auto'):
      raise UsageError(
        f'config.init_from: not set, but config.init_options.{name}={value!r} needs it'
      )
  for name in ('hidden_size', 'mlp_dim', 'num_layers', 'num_heads'):
    if config.model.get(name, 0) is None:
      raise UsageError(
        f'config.init_from: not set, and config.model.{name} is left to the weights to say; '
        'name the weights to start from'
      )


def complete(
  config: ConfigDict, channels: int, workdir: Path | None
) -> tuple[ConfigDict, Pretrained | None]:
  """Returns (a copy of `config` with its open fields filled in, what the run starts from).

  They come from the run in `workdir`, where there is one to go on with, and nothing is loaded;
  otherwise from the weights that `config.init_from` names. Without those, None in a field is the
  model's default, and pixels are scaled to [-1, 1]; so they are where the weights are for images of
  other than these `channels`, whose mean and deviation say nothing here.

  Raises:
    UsageError: the weights can't be loaded, are of another architecture, or are none, and needed.
  """
  config = config.copy_and_resolve_references()
  if workdir and run_directory.has_checkpoints(workdir):
    there = run_directory.read_config(workdir)
    _fill(config, there['model'], there['data'])
    return config, None
  if not config.init_from:
    _check_without_weights(config)
    _fill(config, {}, PREPROCESS)
    return config, None
  options = {k: v for k, v in config.init_options.items() if v is not None and k != 'head'}
  try:
    pretrained = Pretrained(*weights.load(config.init_from, **options))
  except UsageError as e:
    # The commands have flags for what are fields here.
    text = re.sub(r'--from\b', '--format', str(e))
    text = re.sub('--(?=' + '|'.join(config.init_options) + ')', '--config.init_options.', text)
    raise UsageError(f'config.init_from: {text}') from e
  _check_architecture(config.model.name, pretrained.config['name'], config.init_from)
  alike = pretrained.config['channels'] == channels
  _fill(config, pretrained.config, (alike and pretrained.config.get('preprocess')) or PREPROCESS)
  return config, pretrained
