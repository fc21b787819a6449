"""Says what is in images: python -m vit_jax.predict --workdir=RUN|--weights=PATH IMAGE..."""

import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from PIL import UnidentifiedImageError
from tqdm import tqdm

from vit_jax import cli, weight_flags
from vit_jax.data.images import find_images
from vit_jax.data.preprocess import CROPS
from vit_jax.errors import UsageError
from vit_jax.predictor import Prediction, Predictor
from vit_jax.train import run_directory
from vit_jax.train.experiment import resolve_dtype
from vit_jax.weights import files

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory; its best checkpoint predicts.')
_WEIGHTS = flags.DEFINE_string('weights', None, 'In place of --workdir: a file, folder or hf:NAME.')
_TOP = flags.DEFINE_integer('top', 5, 'Classes to show of each image.', lower_bound=1)
_JSON = flags.DEFINE_boolean('json', False, 'Print a JSON object a line.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 32, 'Images computed at once.', lower_bound=1)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'auto', ['auto', 'float32', 'bfloat16'], 'To compute in; auto: bfloat16 on GPU and TPU.'
)
_CLASS_NAMES = flags.DEFINE_string('class_names', None, 'File of class names, one a line.')
_MEAN = flags.DEFINE_list('mean', None, 'Of pixels in [0, 1], per channel or one. Default: 0.5.')
_STD = flags.DEFINE_list('std', None, 'Likewise.')
_CROP = flags.DEFINE_enum('crop', None, CROPS, 'How images are brought to size. Default: resize.')


def main(*images: str) -> int:
  """Prints the most probable classes of each image, and the box of its object where the model finds
  one; returns the exit code, 1 if an image is damaged.
  """
  warnings.filterwarnings('ignore', module='PIL')  # of odd files, which it reads all the same
  if (_WORKDIR.value is None) == (_WEIGHTS.value is None):
    raise UsageError('give one of --workdir=RUN and --weights=PATH')
  preprocess = _preprocess_flags()
  paths = [file for image in images for file in find_images(image)]
  predictor = _load(preprocess)
  num_damaged = 0
  hidden = None if len(paths) > 1 else True  # None shows it on terminals alone
  with tqdm(total=len(paths), unit='image', disable=hidden, leave=False, dynamic_ncols=True) as bar:
    for path, outcome in predictor.files(paths, _BATCH_SIZE.value):
      if isinstance(outcome, Exception):
        num_damaged += 1
        bar.write(f'{path}: {_reason(outcome)}', file=sys.stderr)
      if text := _format(path, outcome, predictor.class_names):
        bar.write(text, file=sys.stdout)
        sys.stdout.flush()
      bar.update()
  return 1 if num_damaged else 0


def _preprocess_flags() -> dict[str, Any]:
  """Returns what the flags say on `preprocess` of a model config."""
  values = {flag.name: _numbers(flag) for flag in (_MEAN, _STD) if flag.value is not None}
  return values | ({} if _CROP.value is None else {'crop': _CROP.value})


def _numbers(flag: flags.FlagHolder) -> tuple[float, ...]:
  try:
    numbers = tuple(map(float, flag.value))
  except ValueError:
    numbers = ()
  if not numbers or not all(map(math.isfinite, numbers)):
    raise UsageError(f'--{flag.name}: {",".join(flag.value)!r} is not a number or one per channel')
  return numbers


def _load(preprocess: Mapping[str, Any]) -> Predictor:
  """Reads the model; what flags say stands in place of what its files say."""
  source = _WORKDIR.value or _WEIGHTS.value
  is_run = _WORKDIR.value is not None or Path(source, 'model.json').exists()
  loss = _loss(Path(source)) if is_run else 'softmax'
  params, config = weight_flags.load(source)
  config = dict(config, preprocess={**(config.get('preprocess') or {}), **preprocess})
  if _CLASS_NAMES.value is not None and config['num_classes']:
    config['class_names'] = _read_class_names(_CLASS_NAMES.value, config['num_classes'])
  return Predictor(params, config, loss=loss, dtype=resolve_dtype(_DTYPE.value))


def _loss(workdir: Path) -> str:
  try:
    return run_directory.read_config(workdir)['loss']['name']
  except (KeyError, TypeError) as e:
    raise UsageError(
      f'--workdir: {workdir} holds no run (config.json names no loss); weights go to --weights'
    ) from e


def _read_class_names(path: str, num_classes: int) -> list[str]:
  data = files.read(path)
  try:
    names = data.decode('utf-8-sig').splitlines()
  except UnicodeDecodeError as e:
    raise UsageError(f'--class_names: {path} is not text in UTF-8') from e
  if len(names) != num_classes:
    raise UsageError(
      f'--class_names: {path} has {len(names)} lines, and the model {num_classes} classes'
    )
  return names


def _format(path: Path, outcome: Prediction | Exception, class_names: Sequence[str]) -> str:
  """Returns what is printed of an image: in text, nothing of a damaged one."""
  if isinstance(outcome, Exception):
    return json.dumps({'image': str(path), 'error': _reason(outcome)}) if _JSON.value else ''
  box = None
  if isinstance(outcome, dict):
    outcome, box = outcome['probabilities'], outcome['box'].tolist()
  labels = np.argsort(-outcome, kind='stable')[: _TOP.value].tolist()
  if not _JSON.value:
    lines = [f'{100 * outcome[label]:8.2f} %  {class_names[label]}' for label in labels]
    if box:
      numbers = ' '.join(f'{100 * number:.2f} %' for number in box)
      lines.append(f'  box (centre x, y, width, height): {numbers}')
    return '\n'.join([str(path), *lines])
  predictions = [
    {'class': class_names[label], 'label': label, 'probability': float(outcome[label])}
    for label in labels
  ]
  found = {'box': box} if box else {}
  return json.dumps({'image': str(path), 'predictions': predictions, **found})


def _reason(error: Exception) -> str:
  """Returns why a file can't be decoded, without its name."""
  if isinstance(error, UnidentifiedImageError):
    return 'not an image in BMP, GIF, JPEG, PNG or WebP'
  message = getattr(error, 'strerror', None) or str(error) or type(error).__name__
  return message.splitlines()[0]


if __name__ == '__main__':
  cli.run(main, arguments=('IMAGE_OR_FOLDER...',))
