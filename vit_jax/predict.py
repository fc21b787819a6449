"""Predicts what is in images.

python -m vit_jax.predict --workdir=RUN|--weights=PATH IMAGE_OR_FOLDER...

A model of videos predicts what is in videos.
"""

import contextlib
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from vit_jax import class_embeddings, cli, weight_flags, weights
from vit_jax.data import kinds
from vit_jax.data.decoding import reason
from vit_jax.errors import FieldError, UsageError, field_prefix, printable
from vit_jax.models import ModelConfig
from vit_jax.models.variables import Variables
from vit_jax.precision import DTYPES, resolve_dtype
from vit_jax.predictor import Prediction, Predictor
from vit_jax.run import tables

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory; its best checkpoint predicts.')
_WEIGHTS = flags.DEFINE_string('weights', None, 'In place of --workdir: a file, folder or hf:NAME.')
_TOP = flags.DEFINE_integer('top', 5, 'Classes to show of each image.', lower_bound=1)
_THRESHOLD = flags.DEFINE_float(
  'threshold', None, "Least probability of classes, of a sigmoid loss. Default: the run's."
)
_JSON = flags.DEFINE_boolean('json', False, 'Print a JSON object a line.')
_CSV = flags.DEFINE_string('csv', None, 'File to write a row of each image to, and no text.')
_OUT = flags.DEFINE_string('out', None, 'Folder to write masks to, and drawings over the images.')
_CLASS_EMBEDDINGS = flags.DEFINE_string(
  'class_embeddings', None, 'File of embeddings of classes, for --weights of CLIP or SigLIP.'
)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 32, 'Images computed at once.', lower_bound=1)
_DTYPE = flags.DEFINE_enum('dtype', 'auto', DTYPES, 'To compute in; auto: bfloat16 on GPU and TPU.')


def main(*paths: str) -> int:
  """Prints what the model predicts of each file; returns the exit code, 1 if one is damaged."""
  warnings.filterwarnings('ignore', module='PIL')  # of odd files, which it reads all the same
  model = _WORKDIR.value, _WEIGHTS.value
  source = weight_flags.either(*model)
  loss, dtype = weight_flags.loss(*model), resolve_dtype(_DTYPE.value)
  threshold = weight_flags.threshold(*model) if _THRESHOLD.value is None else _THRESHOLD.value
  variables, config = weight_flags.load(source, _zero_shot if _CLASS_EMBEDDINGS.value else None)
  kind = kinds.kind_of(config.model.INPUT)
  files = [file for path in paths for file in kind.find_files(path)]
  with field_prefix('--'):
    if config.class_names is None and weights.embeds(config):
      raise FieldError('class_embeddings', f'needed, since {source} has no classes of its own')
    predictor = Predictor(variables, config, loss=loss, threshold=threshold, dtype=dtype)
  write = _writer(predictor, files) if _OUT.value else None
  num_damaged, rows = 0, []
  hidden = None if len(files) > 1 else True  # None shows it on terminals alone
  unit = config.model.INPUT
  with (
    tables.NewFile(_CSV.value, '--csv') if _CSV.value else contextlib.nullcontext() as table,
    tqdm(total=len(files), unit=unit, disable=hidden, leave=False, dynamic_ncols=True) as bar,
  ):
    for file, outcome in predictor.map(kind.decode, files, _BATCH_SIZE.value):
      if isinstance(outcome, Exception):
        num_damaged += 1
        bar.write(printable(f'{file}: {reason(outcome)}'), file=sys.stderr)
      elif write:
        write(file, kind.picture(kind.decode(file)), outcome)
      if table:
        rows.append(_row(unit, file, outcome, predictor))
      if text := _format(unit, file, outcome, predictor):
        bar.write(text, file=sys.stdout)
        sys.stdout.flush()
      bar.update()
    if table:
      table.write(tables.dicts_to_csv(rows))
  return 1 if num_damaged else 0


def _zero_shot(variables: Variables, config: ModelConfig) -> tuple[Variables, ModelConfig]:
  """Returns the model that tells the classes of --class_embeddings."""
  path = _CLASS_EMBEDDINGS.value
  if _WEIGHTS.value is None:
    raise FieldError('class_embeddings', 'a run predicts its own classes; give --weights')
  classes = class_embeddings.read(path)
  classes = class_embeddings.complete(classes, _WEIGHTS.value, weight_flags.format())
  if classes.logit_scale is None:
    raise FieldError('class_embeddings', f'neither {path} nor {_WEIGHTS.value} has logit_scale')
  return class_embeddings.classify(variables, config, classes)


def _writer(
  predictor: Predictor, files: Sequence[Path]
) -> Callable[[Path, np.ndarray, Prediction], None]:
  """Returns what writes the drawings of predictions of files to the folder --out."""
  from vit_jax.explain import drawings  # Matplotlib, which takes a second to import

  folder, names = Path(_OUT.value), set()
  if not drawings.DRAWINGS.keys() & set(predictor([])):
    wanted = ' or '.join(drawings.DRAWINGS)
    raise UsageError(f'--out: the model predicts no {wanted}, and nothing else is drawn')
  if folder.resolve() in {file.parent.resolve() for file in files}:
    raise UsageError(f'--out: {folder} holds the images, and their masks would replace them')

  def write(file: Path, image: np.ndarray, prediction: Prediction) -> None:
    name = next(n for n in _names(file) if n not in names)  # files of several folders may be alike
    names.add(name)
    drawings.write(folder, name, image, prediction, predictor.class_names)

  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UsageError(f'--out: {folder} cannot be written ({e.strerror})') from e
  return write


def _names(file: Path) -> Iterator[str]:
  """Yields 'NAME', 'NAME_1', 'NAME_2', ... of a file."""
  yield file.stem
  yield from (f'{file.stem}_{i}' for i in itertools.count(1))


def _format(unit: str, path: Path, outcome: Prediction | Exception, predictor: Predictor) -> str:
  """Returns what is printed of an image or other `unit`: in text, nothing of a damaged one."""
  if isinstance(outcome, Exception):
    return json.dumps({unit: str(path), 'error': reason(outcome)}) if _JSON.value else ''
  shown = outcome, predictor.class_names, _TOP.value
  if _JSON.value:
    return json.dumps({unit: str(path), **predictor.task.entry(*shown)})
  if _CSV.value:
    return ''
  return '\n'.join(map(printable, [path, *predictor.task.lines(*shown)]))


def _row(
  unit: str, path: Path, outcome: Prediction | Exception, predictor: Predictor
) -> dict[str, Any]:
  """Returns the row of an image in --csv; one that is damaged has the reason alone."""
  if isinstance(outcome, Exception):
    return {unit: path, 'error': reason(outcome)}
  return {
    unit: path,
    'error': '',
    **predictor.task.cells(outcome, predictor.class_names, _TOP.value),
  }


if __name__ == '__main__':
  cli.run(main, arguments=('IMAGE_OR_FOLDER...',))
