"""The model config that goes with a parameter tree, from what its shapes and its file say.

It is a dict that the model's `from_config` takes: the entries of an experiment's `config.model`
that parameters depend on, and `num_classes`, `channels`, `image_size` (height, width) or None where
nothing depends on it, `class_names`, a list or None, and `preprocess`, None or a dict of what is
done to images: `mean` and `std`, of pixels scaled to [0, 1], and `crop`, 'resize' or 'central', the
latter with `crop_fraction` if it is known, all as in an experiment's `config.data`. Where a task
has put a head of its own on the model's features, which are then in `backbone`, `head` describes
it; see `models.describe`.
"""

import functools
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp

from vit_jax.errors import UsageError, check_choice
from vit_jax.models import MODELS, from_description, tree

Shape = tuple[int, ...]

POSITIONS = 'Transformer/posembed_input/pos_embedding'
# What AugReg's, big_vision's and Hugging Face's ViTs were trained with, where files don't say.
PREPROCESS = {'mean': (0.5,), 'std': (0.5,), 'crop': 'resize'}
_QUERY = 'Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel'
_HIDDEN = 'Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel'


def _is_pair(value: Any) -> bool:
  return isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int for v in value)


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def _is_preprocess(value: Any) -> bool:
  if not isinstance(value, dict):
    return False
  keys = {'crop_fraction'} if value.get('crop') == 'central' else set()
  if value.keys() - keys != PREPROCESS.keys():
    return False
  mean, std, fraction = value['mean'], value['std'], value.get('crop_fraction', 1)
  return (
    all(isinstance(numbers, list | tuple) and numbers for numbers in (mean, std))
    and all(map(_is_number, (*mean, *std, fraction)))
    and min(std) > 0
    and value['crop'] in ('resize', 'central')
    and 0 < fraction <= 1
  )


# What shapes don't tell: a file's own words, or the caller's. Each with its test.
_SAID = {
  'num_heads': lambda value: type(value) is int and value > 0,
  'activation': lambda value: isinstance(value, str),
  'norm_epsilon': lambda value: isinstance(value, int | float),
  'classifier': lambda value: isinstance(value, str),
  'positional_embedding': lambda value: isinstance(value, str),
  'image_size': lambda value: value is None or _is_pair(value),
  'class_names': lambda value: (
    value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))
  ),
  'preprocess': lambda value: value is None or _is_preprocess(value),
}


def said(config: Mapping[str, Any], path: object) -> dict[str, Any]:
  """Returns those entries of a model config that shapes don't tell.

  Raises:
    UsageError: one of them has a value that it can't have.
  """
  entries = {}
  for key in _SAID.keys() & config.keys():
    value = tuple(config[key]) if _is_pair(config[key]) else config[key]
    if not _SAID[key](value):
      raise UsageError(f'{path}: its model config has {key}={value!r}')
    if key == 'preprocess' and value is not None:
      value = value | {name: tuple(map(float, value[name])) for name in ('mean', 'std')}
    entries[key] = value
  return entries


def combine(stated: Mapping[str, Any], known: Mapping[str, Any], path: object) -> dict[str, Any]:
  """Returns what the file at `path` says of its model, and what the caller knows besides.

  Class names and preprocessing, which no parameter depends on, are the caller's where given.

  Raises:
    UsageError: the two contradict each other in something else.
  """
  known = {key: tuple(value) if _is_pair(value) else value for key, value in known.items()}
  for key in (stated.keys() & known.keys()) - {'class_names', 'preprocess'}:
    theirs, ours = stated[key], known[key]
    close = _is_number(theirs) and _is_number(ours) and math.isclose(theirs, ours, rel_tol=1e-6)
    if theirs is not None and theirs != ours and not close:
      raise UsageError(f'--{key}: {ours!r}, but {path} says {theirs!r}')
  return {**stated, **known}


def to_json(config: Mapping[str, Any]) -> str:
  """Returns the text that a file carries to describe itself."""
  return json.dumps({key: config[key] for key in ('name', *_SAID) if key in config})


def from_json(text: str, path: object, names: Collection[str] = ('vit',)) -> dict[str, Any]:
  """Reads what `to_json` wrote of a model that has one of the `names`.

  Raises:
    UsageError: it is of another model, or not of this project's making.
  """
  config = json.loads(text)
  if not isinstance(config, dict) or config.get('name') not in names:
    raise UsageError(f'{path}: its model config is not one of a model {" or ".join(names)}')
  return said(config, path)


def require(tensors: Iterable[str], names: Iterable[str], path: object, what: str) -> None:
  """Raises UsageError, naming some of the tensors, unless all of `names` are among them."""
  missing = [name for name in names if name not in tensors]
  if missing:
    there = ', '.join(sorted(tensors)[:4]) or 'none at all'
    raise UsageError(f'{path}: not {what}: no {missing[0]!r}; its tensors are {there}, ...')


def count_layers(names: Iterable[str], pattern: str) -> int:
  """Returns how many numbers `pattern`'s group takes among the names."""
  return len({match[1] for name in names if (match := re.match(pattern, name))})


def square_image(num_patches: int, patch: Shape, path: object) -> Shape:
  """Returns the (height, width) of an image of as many rows as columns of patches.

  Raises:
    UsageError: `num_patches` is not a square number.
  """
  side = math.isqrt(num_patches)
  if side**2 != num_patches:
    raise UsageError(
      f'{path}: {num_patches} patches are no square grid, and the file does not say which; '
      'give the image size: --image_size=HEIGHT,WIDTH'
    )
  return side * patch[0], side * patch[1]


def has_class_position(num_positions: int, patch: Shape, image: Shape | None) -> bool:
  """Whether the first position embedding, in a model with a class token, is that token's."""
  if image is not None:
    return num_positions != image[0] // patch[0] * (image[1] // patch[1])
  return num_positions > 1 and not (
    math.isqrt(num_positions) ** 2 == num_positions
    and math.isqrt(num_positions - 1) ** 2 != num_positions - 1
  )


def check_said(config: Mapping[str, Any], path: object) -> None:
  """Raises UsageError unless what was said fits the shapes.

  There are as many class names, if any, as logits, and as many means and standard deviations as
  channels, or one for all.
  """
  names, num_classes = config['class_names'], config['num_classes']
  if names is not None and len(names) != num_classes:
    raise UsageError(f'{path}: {len(names)} class names for {num_classes} classes')
  for name in ('mean', 'std') if config['preprocess'] else ():
    values, channels = config['preprocess'][name], config['channels']
    if len(values) not in (1, channels):
      raise UsageError(
        f'{path}: preprocess.{name} has {len(values)} values for {channels} channels'
      )


def describe_pooling(
  known: Mapping[str, Any], *, probe: bool, class_token: bool, fc_norm: bool
) -> dict[str, Any]:
  """Returns `classifier`, `class_token` and `fc_norm` of a model that has these parameters or not.

  What they leave open, the classifier beside a class token, is in `known` or is 'token'.
  """
  default = 'map' if probe else 'token' if class_token else 'gap'
  classifier = known.get('classifier', default)
  beside = class_token and classifier != 'token'
  return {
    'classifier': classifier,
    'class_token': True if beside else None,
    'fc_norm': fc_norm,
  }


def describe(shapes: Mapping[str, Shape], known: Mapping[str, Any], path: object) -> dict[str, Any]:
  """Returns the model config of a ViT with parameters of these shapes, by this project's names.

  `known` holds what shapes don't tell; what it leaves out takes this project's defaults, which
  are those of vision_transformer, big_vision and scenic.

  Raises:
    UsageError: these are not the parameters of a ViT, or the image size is unclear.
  """
  require(shapes, ('embedding/kernel', _QUERY, _HIDDEN), path, 'a ViT')
  ranks = [len(shapes[name]) for name in ('embedding/kernel', _QUERY, _HIDDEN)]
  if ranks != [4, 3, 2]:
    raise UsageError(f'{path}: not a ViT: its patch, query and MLP kernels have {ranks} axes')
  *patch, channels, hidden_size = shapes['embedding/kernel']
  pooling = describe_pooling(
    known,
    probe='MAPHead_0/probe' in shapes,
    class_token='cls' in shapes,
    fc_norm='fc_norm/scale' in shapes,
  )
  config = {
    'name': 'vit',
    'hidden_size': hidden_size,
    'mlp_dim': shapes[_HIDDEN][1],
    'num_layers': count_layers(shapes, r'Transformer/encoderblock_(\d+)/'),
    'num_heads': shapes[_QUERY][1],
    'patches': {'size': tuple(patch)},
    **pooling,
    'positional_embedding': 'learned_1d',
    'representation_size': shapes.get('pre_logits/bias', (None,))[0],
    'norm_epsilon': 1e-6,
    'activation': 'gelu',
    'num_classes': shapes.get('output_projection/bias', (0,))[0],
    'channels': channels,
    'image_size': None,
    'class_names': None,
    'preprocess': None,
    **known,
  }
  check_said(config, path)
  if config['image_size'] is None and len(shapes.get(POSITIONS, ())) == 3:
    own = bool(config['class_token'] or config['classifier'] == 'token')
    num_patches = shapes[POSITIONS][1] - own
    config['image_size'] = square_image(num_patches, patch, path)
  return config


def describe_params(
  flat: Mapping[str, Any], model_config: Mapping[str, Any], path: object
) -> dict[str, Any]:
  """Completes the config of a model whose parameters, flat, are to be written to `path`.

  Raises:
    UsageError: the model is not a plain ViT.
  """
  if 'head' in model_config:
    raise UsageError(f'{path}: a model for {model_config["head"]["name"]} has no place there')
  if model_config.get('name', 'vit') != 'vit':
    raise UsageError(f"{path}: a model {model_config['name']!r} has no place there; a 'vit' has")
  config = describe({name: a.shape for name, a in flat.items()}, said(model_config, path), path)
  stride, patch = model_config.get('stride'), config['patches']['size']
  if stride is not None and tuple(stride if _is_pair(stride) else (stride,) * 2) != patch:
    raise UsageError(f'{path}: overlapping patches (stride {stride}) have no place there')
  return config


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
  """Returns path -> shape of the variables that a model of this config has.

  Those are its parameters, and running statistics under 'batch_stats'.

  Raises:
    UsageError: the config's fields don't fit each other.
  """
  check_choice('model name', config['name'], MODELS)
  # A ViT's layers are all alike, and tracing dozens takes seconds.
  copies = config['num_layers'] if config['name'] == 'vit' else 1
  traced_config = {**config, 'class_names': None} | ({'num_layers': 1} if copies > 1 else {})
  shapes = {}
  for name, shape in _trace(json.dumps(traced_config, sort_keys=True, default=str)):
    for layer in range(copies):
      shapes[name.replace('/encoderblock_0/', f'/encoderblock_{layer}/')] = shape
  return shapes


@functools.lru_cache  # reading and writing a file ask several times
def _trace(config: str) -> list[tuple[str, Shape]]:
  """Returns (path, shape) of the variables of a model whose config is given as JSON."""
  config = json.loads(config)
  size = config['image_size'] or config['patches']['size']
  images = jax.ShapeDtypeStruct((1, *size, config['channels']), jnp.float32)
  model = from_description(config)
  variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
  flat = flax.traverse_util.flatten_dict(tree(variables), sep='/')
  return [(name, leaf.shape) for name, leaf in flat.items()]
