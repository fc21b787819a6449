"""Writes a model for other programs: python -m vit_jax.export RUN|WEIGHTS FILE.onnx|FILE.stablehlo.

The file has the parameters in it, and takes any number of images, videos or clouds of points.
"""

from pathlib import Path

from absl import flags

from vit_jax import cli, weight_flags
from vit_jax.errors import FieldError, UsageError, field_prefix
from vit_jax.exporting import FORMATS, function
from vit_jax.exporting.stablehlo import PLATFORMS

_NORMALIZE = flags.DEFINE_bool(
  'normalize', True, 'Take uint8 pixels and normalise them inside; else float32, normalised.'
)
_PREDICTIONS = flags.DEFINE_bool(
  'predictions', False, 'Give what vit_jax.predict does, as probabilities; else logits.'
)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', list(function.TOLERANCES), 'To compute in; bfloat16 of .stablehlo alone.'
)
_PLATFORMS = flags.DEFINE_list(
  'platforms', None, f'Of .stablehlo, of {", ".join(PLATFORMS)}. Default: cpu,cuda,tpu.'
)


def main(source: str, destination: str) -> None:
  """Reads RUN|WEIGHTS, writes FILE, and prints what it takes and gives, and how exact it is."""
  path = Path(destination)
  if path.suffix not in FORMATS:
    raise UsageError(f'{path}: give a name that ends in {" or ".join(FORMATS)}')
  form, options = FORMATS[path.suffix], {}
  for file in (path, *(Path(f'{path}{suffix}') for suffix in form.BESIDE)):
    if file.exists():
      raise UsageError(f'{file}: there already; remove it or give another name')
  if _PLATFORMS.value is not None:
    options['platforms'] = _PLATFORMS.value
  given = {*options, *(['dtype'] if _DTYPE.value != 'float32' else [])}
  for name in sorted(given - {*form.OPTIONS}):
    raise FieldError(f'--{name}', f'{path.suffix} has no such choice')
  variables, config = weight_flags.load(source)
  with field_prefix('--'):
    made = function.make(
      variables,
      config,
      loss=weight_flags.loss(None, source),
      dtype=_DTYPE.value,
      normalize=_NORMALIZE.value,
      predictions=_PREDICTIONS.value,
    )
    difference = form.write(path, made, **options)
  print(_summary(path, made.description))
  if difference is not None:
    batches = ' and '.join(map(str, function.BATCHES))
    print(
      f'  largest difference from vit_jax: {difference:.1e} of the largest output '
      f'(batches of {batches})'
    )
  else:
    print('  not compared with vit_jax: this device is of none of the platforms')


def _summary(path: Path, description: dict) -> str:
  taken, size = description['input'], description['size']
  outputs = ', '.join(f'{n} {_shape(x)}' for n, x in description['outputs'].items())
  return (
    f'{path}: {description["model"]}, {path.stat().st_size / 1e6:.3g} MB\n'
    f'  takes {taken["name"]} {_shape(taken)}: {taken["values"]}; {size}\n'
    f'  gives {outputs}'
  )


def _shape(array: dict) -> str:
  return f'{array["dtype"]} [{", ".join(map(str, array["shape"]))}]'


if __name__ == '__main__':
  cli.run(main, arguments=('RUN_OR_WEIGHTS', 'FILE'))
