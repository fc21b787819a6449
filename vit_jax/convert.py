"""Converts weights of ViTs: python -m vit_jax.convert SRC DST --to=FORMAT."""

from pathlib import Path

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
  patch, image = (
    'x'.join(map(str, s or '?')) for s in (config['patches']['size'], config['image_size'])
  )
  print(
    f'{destination}: ViT, {config["num_layers"]} layers of width {config["hidden_size"]}, '
    f'{config["num_heads"]} heads, {patch} patches of {image} images, '
    f'{config["num_classes"]} classes'
  )


if __name__ == '__main__':
  cli.run(main, arguments=('SRC', 'DST'))
