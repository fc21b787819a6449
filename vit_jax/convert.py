"""Converts weights: python -m vit_jax.convert SRC DST --to=FORMAT."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from vit_jax import cli, weight_flags, weights
from vit_jax.errors import UsageError

_TO = flags.DEFINE_enum('to', None, list(weights.WRITABLE), 'Format of DST.')


def main(source: str, destination: str) -> None:
  """Reads SRC, writes DST, and says what the model is."""
  if _TO.value is None:
    raise UsageError(f'--to: give the format to write: {", ".join(weights.WRITABLE)}')
  if Path(destination).exists():
    raise UsageError(f'{destination}: there already; remove it or give another name')
  params, config = weight_flags.load(source)
  weights.save(params, config, destination, format=_TO.value, allow=flags.FLAGS.allow)
  print(f'{destination}: {_describe(config)}, {config["num_classes"]} classes')


def _describe(config: Mapping[str, Any]) -> str:
  image = 'x'.join(map(str, config['image_size'] or '?'))
  if 'patches' not in config:
    return f'{config["name"]}, {image} images'
  patch = 'x'.join(map(str, config['patches']['size']))
  return (
    f'ViT, {config["num_layers"]} layers of width {config["hidden_size"]}, '
    f'{config["num_heads"]} heads, {patch} patches of {image} images'
  )


if __name__ == '__main__':
  cli.run(main, arguments=('SRC', 'DST'))
