"""Draws what a model looks at: python -m vit_jax.explain --workdir=RUN|--weights=PATH [IMAGE...].

Without images, those are the first of the run's test split.
"""

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from vit_jax import cli, weight_flags
from vit_jax.data import augment, decode_image, load_source, make_preprocess
from vit_jax.data.images import find_images
from vit_jax.errors import UsageError, nearest
from vit_jax.explain.attention import HEAD_FUSIONS
from vit_jax.explain.pictures import PICTURES, Context
from vit_jax.models import MODELS
from vit_jax.predictor import PREPROCESS, check_images
from vit_jax.train import run_directory

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory; its best checkpoint is explained.')
_WEIGHTS = flags.DEFINE_string('weights', None, 'In place of --workdir: a file, folder or hf:NAME.')
_OUT = flags.DEFINE_string('out', None, 'Folder to write to. Default: plots/explain of the run.')
_NUM_IMAGES = flags.DEFINE_integer('num_images', 8, 'At most.', lower_bound=1, upper_bound=64)
_LAYER = flags.DEFINE_integer(
  'layer', None, "Of the class token's attention, from 0. Default: last."
)
_HEAD_FUSION = flags.DEFINE_enum('head_fusion', 'mean', list(HEAD_FUSIONS), 'Of rollouts.')
_DISCARD_RATIO = flags.DEFINE_float(
  'discard_ratio', 0.0, 'Share of attention that rollouts leave out.', 0.0, 0.99
)
_CLASS = flags.DEFINE_string('class', None, 'Name or index, of gradients. Default: the predicted.')

_PIXELS_PER_INCH = 150


def main(*paths: str) -> int:
  """Draws and writes the pictures; returns the exit code, 1 if an image is damaged."""
  warnings.filterwarnings('ignore', module='PIL')  # of odd files, which it reads all the same
  if (_WORKDIR.value is None) == (_WEIGHTS.value is None):
    raise UsageError('give one of --workdir=RUN and --weights=PATH')
  if _WEIGHTS.value and not (paths and _OUT.value):
    raise UsageError('--weights: give images and --out=DIR, too; only --workdir has its own')
  files = [file for path in paths for file in find_images(path)]
  params, config = weight_flags.load(_WORKDIR.value or _WEIGHTS.value)
  settings = _settings(config)
  preprocess = PREPROCESS | (config.get('preprocess') or {})
  check_images(config, preprocess)
  records = _read(files) if files else _test_records(Path(_WORKDIR.value))
  fit = make_preprocess(config['image_size'], config['channels'], preprocess['crop'], train=False)
  images = np.stack([fit(record)['image'] for record in records])
  context = Context(
    model=MODELS[config['name']].from_config(config),
    params=params,
    config=config,
    images=images,
    inputs=np.asarray(augment.normalize(images, preprocess['mean'], preprocess['std'])),
    labels=None if files else _one_hot([r['label'] for r in records], config['num_classes']),
    file_names=[record.get('file', '') for record in records],
    **settings,
  )
  _draw(context, Path(_OUT.value or Path(_WORKDIR.value, 'plots', 'explain')))
  return int(len(records) < len(files[: _NUM_IMAGES.value]))


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the class names, and what the flags ask for, checked against the model."""
  num_classes, num_layers = config['num_classes'], config['num_layers']
  names = config['class_names'] or [f'class {i}' for i in range(num_classes)]
  layer, target = _LAYER.value, _CLASS.value
  if layer is not None and config['classifier'] != 'token':
    raise UsageError(f'--layer: for models with a class token; this one is {config["classifier"]}')
  if layer is not None and not 0 <= layer < num_layers:
    raise UsageError(f'--layer: {layer} is not a layer; the model has 0 to {num_layers - 1}')
  if target in names:
    target = names.index(target)
  elif target is not None:
    if not target.isdecimal() or int(target) >= num_classes:
      raise UsageError(
        f'--class: {target!r} is neither the name nor the index of one of the '
        f'{num_classes} classes{nearest(target, names)}'
      )
    target = int(target)
  return {
    'class_names': names,
    'layer': layer,
    'target': target,
    'head_fusion': _HEAD_FUSION.value,
    'discard_ratio': _DISCARD_RATIO.value,
  }


def _read(files: Sequence[Path]) -> list[dict[str, Any]]:
  """Returns records of the first image files, told which can't be decoded."""
  if len(files) > _NUM_IMAGES.value:
    print(f'taking {_NUM_IMAGES.value} of {len(files):,} images; --num_images says how many')
  records = []
  for file in files[: _NUM_IMAGES.value]:
    try:
      records.append({'image': decode_image(file), 'file': file.name})
    except Exception as e:  # Pillow raises many types on damaged files
      print(f'{file}: cannot be decoded ({str(e).splitlines()[0]})', file=sys.stderr)
  if not records:
    raise UsageError('no image can be decoded')
  return records


def _test_records(workdir: Path) -> list[dict[str, Any]]:
  """Returns the first records of the run's test split."""
  try:
    data = run_directory.read_config(workdir)['data']
    place = data['name'], data['test_split'], data['dir']
  except (KeyError, TypeError) as e:
    raise UsageError(f'--workdir: {workdir} holds no run (config.json names no data)') from e
  source = load_source(*place, field='config.data.test_split')
  return list(source.read(range(min(_NUM_IMAGES.value, len(source)))))


def _one_hot(labels: Sequence[int | np.ndarray], num_classes: int) -> np.ndarray:
  """Labels, or rows of a number per class, to bool [N, num_classes]."""
  rows = np.eye(num_classes, dtype=bool)
  return np.stack([rows[label] if np.ndim(label) == 0 else label > 0 for label in labels])


def _draw(context: Context, out: Path) -> None:
  """Writes every picture that the model has, and says which."""
  try:
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
      figure = draw(context)
      if figure is None:
        print(f'{name}: not of this model')
        continue
      path = out / f'{name}.png'
      figure.savefig(path, dpi=_PIXELS_PER_INCH)
      print(path, flush=True)
  except OSError as e:
    raise UsageError(f'--out: {out} cannot be written ({e.strerror})') from e


if __name__ == '__main__':
  cli.run(main, arguments=('[IMAGE_OR_FOLDER...]',))
