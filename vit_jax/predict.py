"""Says what is in images: python -m vit_jax.predict --workdir=RUN|--weights=PATH IMAGE..."""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import UnidentifiedImageError
from tqdm import tqdm

from vit_jax import cli, weight_flags
from vit_jax.data.images import decode_image, find_images
from vit_jax.predictor import Prediction, Predictor
from vit_jax.train.experiment import resolve_dtype

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory; its best checkpoint predicts.')
_WEIGHTS = flags.DEFINE_string('weights', None, 'In place of --workdir: a file, folder or hf:NAME.')
_TOP = flags.DEFINE_integer('top', 5, 'Classes to show of each image.', lower_bound=1)
_JSON = flags.DEFINE_boolean('json', False, 'Print a JSON object a line.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 32, 'Images computed at once.', lower_bound=1)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'auto', ['auto', 'float32', 'bfloat16'], 'To compute in; auto: bfloat16 on GPU and TPU.'
)


def main(*images: str) -> int:
  """Prints the most probable classes of each image, and the box of its object where the model finds
  one; returns the exit code, 1 if an image is damaged.
  """
  warnings.filterwarnings('ignore', module='PIL')  # of odd files, which it reads all the same
  model = _WORKDIR.value, _WEIGHTS.value
  source = weight_flags.either(*model)
  paths = [file for image in images for file in find_images(image)]
  loss, dtype = weight_flags.loss(*model), resolve_dtype(_DTYPE.value)
  predictor = Predictor(*weight_flags.load(source), loss=loss, dtype=dtype)
  num_damaged = 0
  hidden = None if len(paths) > 1 else True  # None shows it on terminals alone
  with tqdm(total=len(paths), unit='image', disable=hidden, leave=False, dynamic_ncols=True) as bar:
    for path, outcome in predictor.map(decode_image, paths, _BATCH_SIZE.value):
      if isinstance(outcome, Exception):
        num_damaged += 1
        bar.write(f'{path}: {_reason(outcome)}', file=sys.stderr)
      if text := _format(path, outcome, predictor.class_names):
        bar.write(text, file=sys.stdout)
        sys.stdout.flush()
      bar.update()
  return 1 if num_damaged else 0


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
