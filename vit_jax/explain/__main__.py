"""Draws what a model learnt, looks at and gets wrong.

python -m vit_jax.explain --workdir=RUN|--weights=PATH [IMAGE_OR_FOLDER...]

Without images, those of a run are the first of its test split, and what it gets wrong is counted on
all of it. Images in folders of the classes' names are taken to be of these classes.
"""

import functools
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from vit_jax import cli, weight_flags
from vit_jax.data import augment, decode_image, load_source
from vit_jax.data.images import find_images
from vit_jax.errors import UsageError, check_choice, nearest
from vit_jax.explain import pictures
from vit_jax.explain.attention import HEAD_FUSIONS
from vit_jax.explain.evaluation import Evaluation, evaluate
from vit_jax.models import from_description
from vit_jax.predictor import Predictor, preparation
from vit_jax.train import plots, run_directory, writers


def _curves(context: pictures.Context) -> Figure | str:
  """Loss and accuracy of the run over its steps."""
  del context
  if _WORKDIR.value is None:
    return 'only of a run, as --workdir'
  workdir = Path(_WORKDIR.value)
  history = writers.read_history(workdir / 'metrics.jsonl')
  return (
    plots.curves(history, f'Training of {workdir.name}') if history else 'nothing is logged yet'
  )


# Name of the file -> what draws it.
_PICTURES = pictures.PICTURES | {'curves': _curves}
_WITHOUT_IMAGES = (*pictures.WITHOUT_IMAGES, 'curves')
_PIXELS_PER_INCH = 100  # for a README, which is about 900 wide

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory; its best checkpoint is explained.')
_WEIGHTS = flags.DEFINE_string('weights', None, 'In place of --workdir: a file, folder or hf:NAME.')
_OUT = flags.DEFINE_string('out', None, 'Folder to write to. Default: plots/explain of the run.')
_CHOSEN = flags.DEFINE_list('pictures', list(_PICTURES), 'What to draw of these, else all.')
_NUM_IMAGES = flags.DEFINE_integer('num_images', 8, 'At most.', lower_bound=1, upper_bound=64)
_LAYER = flags.DEFINE_integer(
  'layer', None, "Of the class token's attention, from 0. Default: last."
)
_HEAD_FUSION = flags.DEFINE_enum('head_fusion', 'mean', list(HEAD_FUSIONS), 'Of rollouts.')
_DISCARD_RATIO = flags.DEFINE_float(
  'discard_ratio', 0.0, 'Share of attention that rollouts leave out.', 0.0, 0.99
)
_CLASS = flags.DEFINE_string('class', None, 'Name or index, of gradients. Default: the predicted.')


def main(*paths: str) -> int:
  """Draws and writes the pictures; returns the exit code, 1 if an image is damaged."""
  warnings.filterwarnings('ignore', module='PIL')  # of odd files, which it reads all the same
  source = weight_flags.either(_WORKDIR.value, _WEIGHTS.value)
  if _WEIGHTS.value and not _OUT.value:
    raise UsageError('--weights: give --out=DIR, too; only --workdir has its own')
  for name in _CHOSEN.value:
    check_choice('--pictures', name, _PICTURES)
  files = [file for path in paths for file in find_images(path)]
  params, config = weight_flags.load(source)
  if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
    raise UsageError(f'{source}: the weights have numbers that are not finite')
  settings = _settings(config)
  examples, name = _examples(files, config['class_names'])
  context = _context(params, config, examples, name, settings)
  _draw(context, Path(_OUT.value or Path(_WORKDIR.value, 'plots', 'explain')))
  return int(len(context.images) < len(files[: _NUM_IMAGES.value]))


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the class names, and what the flags ask for, checked against the model."""
  num_classes, num_layers = config['num_classes'], config.get('num_layers')
  names = config['class_names'] or [f'class {i}' for i in range(num_classes)]
  layer, target = _LAYER.value, _CLASS.value
  if layer is not None and config.get('classifier') != 'token':
    kind = config.get('classifier', config['name'])
    raise UsageError(f'--layer: for models with a class token; this one is {kind}')
  if layer is not None and not 0 <= layer < num_layers:
    raise UsageError(f'--layer: {layer} is not a layer; the model has 0 to {num_layers - 1}')
  if target is not None and ('head' in config or 'classifier' not in config):
    raise UsageError('--class: for the gradients of transformers that classify alone')
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


def _examples(
  files: Sequence[Path], class_names: Sequence[str] | None
) -> tuple[Sequence[Mapping[str, Any]], str]:
  """Returns records to look at, and what they are, in words."""
  if files:
    records = _read(files, class_names)
    return records, 'the images given'
  if _WEIGHTS.value or set(_CHOSEN.value) <= set(_WITHOUT_IMAGES):
    return [], ''
  return _test_split(Path(_WORKDIR.value))


def _read(files: Sequence[Path], class_names: Sequence[str] | None) -> list[dict[str, Any]]:
  """Returns records of the first image files, told which can't be decoded."""
  if len(files) > _NUM_IMAGES.value:
    print(f'taking {_NUM_IMAGES.value} of {len(files):,} images; --num_images says how many')
  labels = {name: label for label, name in enumerate(class_names or ())}
  records = []
  for file in files[: _NUM_IMAGES.value]:
    try:
      image = decode_image(file)
    except Exception as e:  # Pillow raises many types on damaged files
      print(f'{file}: cannot be decoded ({str(e).splitlines()[0]})', file=sys.stderr)
      continue
    label = labels.get(file.absolute().parent.name)
    records.append({'image': image, 'file': file.name, 'label': label})
  if not records:
    raise UsageError('no image can be decoded')
  return records


def _test_split(workdir: Path) -> tuple[Sequence[Mapping[str, Any]], str]:
  """Returns what the run is tested on."""
  try:
    data = run_directory.read_config(workdir)['data']
    name, split, folder = data['name'], data['test_split'], data['dir']
  except (KeyError, TypeError) as e:
    raise UsageError(f'--workdir: {workdir} holds no run (config.json names no data)') from e
  return load_source(name, split, folder, field='config.data.test_split'), f'{name}, {split}'


def _context(
  params: Mapping[str, Any],
  config: Mapping[str, Any],
  examples: Sequence[Mapping[str, Any]],
  name: str,
  settings: Mapping[str, Any],
) -> pictures.Context:
  fit, mean, std = preparation(config)
  shape = *config['image_size'], config['channels']
  records = [examples[i] for i in range(min(_NUM_IMAGES.value, len(examples)))]
  fitted = [fit(record) for record in records]
  images = np.array([record['image'] for record in fitted], np.uint8).reshape(-1, *shape)
  known = all(record['label'] is not None for record in records)
  boxes = [record['box'] for record in fitted if 'box' in record]
  return pictures.Context(
    model=from_description(config),
    params=params,
    images=images,
    inputs=np.asarray(augment.normalize(images, mean, std)),
    labels=_one_hot([r['label'] for r in records], config['num_classes']) if known else None,
    boxes=np.stack(boxes) if boxes else None,
    file_names=[record.get('file', '') for record in records],
    evaluate=functools.partial(_evaluate, params, config, examples, name),
    **settings,
  )


def _one_hot(labels: Sequence[int | np.ndarray], num_classes: int) -> np.ndarray:
  """Labels, or rows of a number per class, to bool [N, num_classes]."""
  rows = np.eye(num_classes, dtype=bool)
  return np.array([rows[label] if np.ndim(label) == 0 else label > 0 for label in labels])


def _evaluate(
  params: Mapping[str, Any],
  config: Mapping[str, Any],
  examples: Sequence[Mapping[str, Any]],
  name: str,
) -> Evaluation | str:
  loss = weight_flags.loss(_WORKDIR.value, _WEIGHTS.value)
  return evaluate(Predictor(params, config, loss=loss), examples, name)


def _draw(context: pictures.Context, out: Path) -> None:
  """Writes every picture that was chosen, and says which, or why not."""
  try:
    out.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(_CHOSEN.value):
      needs_images = name not in _WITHOUT_IMAGES and not len(context.images)
      figure = 'needs images; give some' if needs_images else _PICTURES[name](context)
      if isinstance(figure, str):
        print(f'{name}: {figure}')
        continue
      path = out / f'{name}.png'
      figure.savefig(path, dpi=_PIXELS_PER_INCH)
      print(path, flush=True)
  except OSError as e:
    raise UsageError(f'--out: {out} cannot be written ({e.strerror})') from e


if __name__ == '__main__':
  cli.run(main, arguments=('[IMAGE_OR_FOLDER...]',))
