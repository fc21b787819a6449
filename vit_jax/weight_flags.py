"""The flags of the commands that read weights: which format, and what a file doesn't say itself."""

from typing import Any

from absl import flags

from vit_jax import weights
from vit_jax.errors import UsageError
from vit_jax.models.layers import ACTIVATIONS
from vit_jax.models.vit import CLASSIFIERS

_FROM = flags.DEFINE_enum('from', None, list(weights.FORMATS), 'Format, else by the name.')
_ALLOW = flags.DEFINE_string('allow', None, 'Tensors, by whole name, that may be left out.')
_KNOWN = (
  flags.DEFINE_integer('num_heads', None, 'Attention heads.', lower_bound=1),
  flags.DEFINE_list('image_size', None, 'HEIGHT,WIDTH in pixels.'),
  flags.DEFINE_enum('classifier', None, CLASSIFIERS, 'What the head reads.'),
  flags.DEFINE_enum('activation', None, list(ACTIVATIONS), 'Of the MLPs.'),
  flags.DEFINE_float('norm_epsilon', None, 'Of the LayerNorms.', lower_bound=0.0),
)


def load(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns what `weights.load` does, with what the flags say.

  Raises:
    UsageError: a wrong flag, or what `weights.load` raises.
  """
  known = {flag.name: flag.value for flag in _KNOWN if flag.value is not None}
  if 'image_size' in known:
    known['image_size'] = _pair(known['image_size'])
  return weights.load(path, format=_FROM.value, allow=_ALLOW.value, **known)


def _pair(sides: list[str]) -> tuple[int, int]:
  if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
    raise UsageError(f'--image_size: {",".join(sides)} is not HEIGHT,WIDTH')
  return int(sides[0]), int(sides[1])
