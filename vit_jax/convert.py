"""Converts weights of ViTs: python -m vit_jax.convert SRC DST --to=FORMAT."""

from pathlib import Path

from absl import flags

from vit_jax import cli, weights
from vit_jax.errors import UsageError
from vit_jax.models.layers import ACTIVATIONS
from vit_jax.models.vit import CLASSIFIERS

_TO = flags.DEFINE_enum('to', None, list(weights.FORMATS), 'Format of DST.')
_FROM = flags.DEFINE_enum('from', None, list(weights.FORMATS), 'Format of SRC, else by its name.')
_ALLOW = flags.DEFINE_string('allow', None, 'Tensors, by whole name, that may be left out.')

# What SRC may not say.
_KNOWN = (
  flags.DEFINE_integer('num_heads', None, 'Attention heads.', lower_bound=1),
  flags.DEFINE_list('image_size', None, 'HEIGHT,WIDTH in pixels.'),
  flags.DEFINE_enum('classifier', None, CLASSIFIERS, 'What the head reads.'),
  flags.DEFINE_enum('activation', None, list(ACTIVATIONS), 'Of the MLPs.'),
  flags.DEFINE_float('norm_epsilon', None, 'Of the LayerNorms.', lower_bound=0.0),
)


def main(source: str, destination: str) -> None:
  """Reads SRC, writes DST, and says what the model is."""
  if _TO.value is None:
    raise UsageError(f'--to: give the format to write: {", ".join(weights.FORMATS)}')
  if Path(destination).exists():
    raise UsageError(f'{destination}: there already; remove it or give another name')
  known = {flag.name: flag.value for flag in _KNOWN if flag.value is not None}
  if 'image_size' in known:
    known['image_size'] = _pair(known['image_size'])
  params, config = weights.load(source, format=_FROM.value, allow=_ALLOW.value, **known)
  weights.save(params, config, destination, format=_TO.value, allow=_ALLOW.value)
  patch, image = (
    'x'.join(map(str, s or '?')) for s in (config['patches']['size'], config['image_size'])
  )
  print(
    f'{destination}: ViT, {config["num_layers"]} layers of width {config["hidden_size"]}, '
    f'{config["num_heads"]} heads, {patch} patches of {image} images, '
    f'{config["num_classes"]} classes'
  )


def _pair(sides: list[str]) -> tuple[int, int]:
  if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
    raise UsageError(f'--image_size: {",".join(sides)} is not HEIGHT,WIDTH')
  return int(sides[0]), int(sides[1])


if __name__ == '__main__':
  cli.run(main, arguments=('SRC', 'DST'))
