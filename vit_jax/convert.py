"""Converts weights: python -m vit_jax.convert SRC DST --to=FORMAT."""

from pathlib import Path

from absl import flags

from vit_jax import cli, weight_flags, weights
from vit_jax.data import kinds
from vit_jax.errors import UsageError, field_prefix

_TO = flags.DEFINE_enum('to', None, list(weights.WRITABLE), 'Format of DST.')


def main(source: str, destination: str) -> None:
  """Reads SRC, writes DST, and prints a summary of the model."""
  if _TO.value is None:
    raise UsageError(f'--to: give the format to write: {", ".join(weights.WRITABLE)}')
  if Path(destination).exists():
    raise UsageError(f'{destination}: there already; remove it or give another name')
  variables, config = weight_flags.load(source)
  with field_prefix('--', {'format': 'to'}):
    weights.save(variables, config, destination, format=_TO.value, allow=flags.FLAGS.allow)
  size = 'x'.join(map(str, config.input_size or '?'))
  summary, inputs = config.backbone.summary(), kinds.kind_of(config.model.INPUT).plural
  print(f'{destination}: {summary}, {size} {inputs}, {config.num_classes} classes')


if __name__ == '__main__':
  cli.run(main, arguments=('SRC', 'DST'))
