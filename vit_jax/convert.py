"""Converts weights: python -m vit_jax.convert SRC DST --to=FORMAT.

With --list it prints which weights are known by name, or of these the ones that fit a PATTERN of a
shell or have it in their names: python -m vit_jax.convert --list [PATTERN]
"""

import shutil
from pathlib import Path

from absl import flags

from vit_jax import cli, weight_flags, weights
from vit_jax.data import kinds
from vit_jax.errors import UsageError, field_prefix
from vit_jax.weights import hub, listing

_TO = flags.DEFINE_enum('to', None, list(weights.WRITABLE), 'Format of DST.')
_LIST = flags.DEFINE_bool('list', False, 'Print what is known by name, and whether it opens.')
_PUSH = flags.DEFINE_string('push', None, 'OWNER/NAME on the hub, for --to=huggingface.')
_PRIVATE = flags.DEFINE_bool('private', False, 'With --push: a new model is not public.')
_IMAGES = flags.DEFINE_bool(
  'images', False, "In the card: images of a run's test split, with the attention over them."
)
_LICENSE = flags.DEFINE_string('license', None, 'Of the weights, for the card: as apache-2.0.')


def main(source: str | None = None, destination: str | None = None) -> None:
  """Converts SRC to DST, or with --list prints what is known by names that SRC fits."""
  if _LIST.value:
    if destination:
      raise UsageError(f'--list: {destination!r} is a second pattern; stars need quotes')
    with field_prefix('--'):
      print(listing.text(listing.find(source or '*')))
    return
  if destination is None:
    raise UsageError(cli.missing('DST' if source else 'SRC', __doc__))
  _convert(source, destination)


def _convert(source: str, destination: str) -> None:
  """Reads SRC, writes DST, and prints a summary of the model."""
  if _TO.value is None:
    raise UsageError(f'--to: give the format to write: {", ".join(weights.WRITABLE)}')
  if Path(destination).exists():
    raise UsageError(f'{destination}: there already; remove it or give another name')
  has_card = _TO.value == 'huggingface'  # whose folders are what the hub shows
  for flag in (_PUSH, _PRIVATE, _IMAGES, _LICENSE):
    if flag.value and not has_card:
      raise UsageError(f'--{flag.name}: is for --to=huggingface')
  if _PRIVATE.value and not _PUSH.value:
    raise UsageError('--private: is of --push')
  if has_card:
    from vit_jax.exporting import card  # huggingface_hub, which other formats don't need
  with field_prefix('--'):
    if _PUSH.value is not None:
      hub.check_push(_PUSH.value)
  variables, config = weight_flags.load(source, applied=False)
  remark = ''
  try:
    with field_prefix('--', {'format': 'to'}):
      weights.save(variables, config, destination, format=_TO.value, allow=flags.FLAGS.allow)
    if has_card:
      name = _PUSH.value or Path(destination).name
      remark = card.write(
        Path(destination),
        variables,
        config,
        source,
        name,
        license=_LICENSE.value,
        images=_IMAGES.value,
      )
  except BaseException:  # Ctrl-C, too
    shutil.rmtree(destination, ignore_errors=True)  # a folder that is whole, or none
    raise
  size = 'x'.join(map(str, config.input_size or '?'))
  summary, inputs = config.backbone.summary(), kinds.kind_of(config.model.INPUT).plural
  print(f'{destination}: {summary}, {size} {inputs}, {config.num_classes} classes')
  if remark:
    print(remark)
  if _PUSH.value is not None:
    with field_prefix('--'):
      print(hub.push(destination, _PUSH.value, _PRIVATE.value))


if __name__ == '__main__':
  cli.run(main, arguments=('[SRC]', '[DST]'))
