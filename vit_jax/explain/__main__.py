"""Draws what a model learnt, looks at and gets wrong.

python -m vit_jax.explain --workdir=RUN|--weights=PATH [IMAGE_OR_FOLDER...]

Without images, some of a run's test split are taken, and what it gets wrong is counted on all of
it. Images in folders of the classes' names are taken to be of these classes.
"""

import collections
import functools
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from matplotlib.figure import Figure

from vit_jax import cli, preview, weight_flags
from vit_jax.data import Preprocess, decoding, kinds
from vit_jax.errors import UsageError, check_choice, field_prefix, nearest, printable
from vit_jax.explain import runs
from vit_jax.explain.attention import HEAD_FUSIONS, has_attention
from vit_jax.explain.context import (
  NOT_OF_MODEL,
  Context,
  Nothing,
  class_names,
  of_records,
  spread,
)
from vit_jax.explain.evaluation import evaluate
from vit_jax.explain.masks import evaluate as evaluate_masks
from vit_jax.explain.pictures import PICTURES, WITHOUT_IMAGES, shown
from vit_jax.models import ModelConfig
from vit_jax.predictor import Predictor, preparation
from vit_jax.run import splits
from vit_jax.train.experiment import Experiment


def _curves(context: Context) -> Figure | str:
  """Loss and accuracy of the run over its steps."""
  del context
  if _WORKDIR.value is None:
    return 'only of a run, as --workdir'
  return runs.curves(Path(_WORKDIR.value))


def _data(context: Context) -> Figure | str:
  """Training images as the model gets them."""
  del context
  return preview.data(_experiment()) if _WORKDIR.value else 'only of a run, as --workdir'


def _classes(context: Context) -> Figure | str:
  """How many examples of each class the data of the run have."""
  del context
  return preview.classes(_experiment()) if _WORKDIR.value else 'only of a run, as --workdir'


@functools.cache
def _experiment() -> Experiment:
  return preview.experiment_of(Path(_WORKDIR.value))


# Name of the file -> what draws it.
_OF_ALL = PICTURES | {'curves': _curves}
_ON_DEMAND = {'data': _data, 'classes': _classes}  # which read the training data
_PICTURES = _OF_ALL | _ON_DEMAND
_WITHOUT_IMAGES = (*WITHOUT_IMAGES, 'curves', *_ON_DEMAND)
_PIXELS_PER_INCH = 100  # for a README, which is about 900 wide

_WORKDIR = flags.DEFINE_string('workdir', None, 'Run directory; its best checkpoint is explained.')
_WEIGHTS = flags.DEFINE_string('weights', None, 'In place of --workdir: a file, folder or hf:NAME.')
_OUT = flags.DEFINE_string('out', None, 'Folder to write to. Default: plots/explain of the run.')
_CHOSEN = flags.DEFINE_list(
  'pictures',
  list(_OF_ALL),
  f'What to draw of these, else all; and of {" and ".join(_ON_DEMAND)}.',
)
_NUM_IMAGES = flags.DEFINE_integer('num_images', 8, 'At most.', lower_bound=1, upper_bound=64)
_LAYER = flags.DEFINE_integer('layer', None, 'Of the picture `attention`, from 0. Default: last.')
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
  with field_prefix('--'):
    for name in _CHOSEN.value:
      check_choice('pictures', name, _PICTURES)
  variables, config = weight_flags.load(source)
  kind = kinds.kind_of(config.model.INPUT)
  files = [file for path in paths for file in kind.find_files(path)]
  with field_prefix('--'):
    preprocessing = preparation(config)
  options = _options(variables, config)
  examples, name = _examples(files, config)
  context = _context(variables, config, preprocessing, examples, name, options)
  _draw(context, Path(_OUT.value or Path(_WORKDIR.value, 'plots', 'explain')))
  return int(len(context.images) < len(files[: _NUM_IMAGES.value]))


def _options(variables: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
  """Returns the class names, and what the flags ask for, checked against the model."""
  names = class_names(config)
  return {
    'class_names': names,
    'layer': _layer(config),
    'target': _target(variables, config, names),
    'head_fusion': _HEAD_FUSION.value,
    'discard_ratio': _DISCARD_RATIO.value,
    'task_options': runs.task_options(Path(_WORKDIR.value or _WEIGHTS.value), config),
  }


def _layer(config: ModelConfig) -> int | None:
  """Returns the layer that --layer names."""
  layer, count = _LAYER.value, config.backbone.num_attention_layers
  if layer is not None and not count:
    raise UsageError(f'--layer: {config.name} has no choice of layers for the picture `attention`')
  if layer is not None and not 0 <= layer < count:
    raise UsageError(f'--layer: {layer} is not a layer; the model has 0 to {count - 1}')
  return layer


def _target(variables: Mapping[str, Any], config: ModelConfig, names: Sequence[str]) -> int | None:
  """Returns the index of the class that --class names."""
  target, num_classes = _CLASS.value, config.num_classes
  if target is None:
    return None
  classifies_alone = config.model is config.backbone and num_classes > 0
  if not classifies_alone or not has_attention(
    config.backbone, variables, config.input_size, config.channels
  ):
    raise UsageError(
      '--class: for the gradients of models that only classify, and whose layers all attend to '
      'the patches'
    )
  if target in names:
    return names.index(target)
  if not target.isdecimal() or int(target) >= num_classes:
    raise UsageError(
      f'--class: {target!r} is neither the name nor the index of one of the '
      f'{num_classes} classes{nearest(target, names)}'
    )
  return int(target)


def _examples(
  files: Sequence[Path], config: ModelConfig
) -> tuple[Sequence[Mapping[str, Any]], str]:
  """Returns records to look at, and their name."""
  if files:
    return _read(files, config), f'the {kinds.kind_of(config.model.INPUT).plural} given'
  if _WEIGHTS.value or set(_CHOSEN.value) <= set(_WITHOUT_IMAGES):
    return [], ''
  return splits.read_split(Path(_WORKDIR.value), 'test')


def _sample(files: Sequence[Path], count: int) -> list[Path]:
  """Returns `count` of the files at most, in their order, of each folder about as many."""
  seen, turns = collections.Counter(), []
  for i, file in enumerate(files):
    turns.append((seen[file.parent], i))
    seen[file.parent] += 1
  return [files[i] for i in sorted(i for _, i in sorted(turns)[:count])]


def _read(files: Sequence[Path], config: ModelConfig) -> list[dict[str, Any]]:
  """Returns records of some of the files; prints which can't be decoded."""
  name = config.model.INPUT
  kind = kinds.kind_of(name)
  chosen = _sample(files, _NUM_IMAGES.value)
  if len(chosen) < len(files):
    print(f'taking {len(chosen)} of {len(files):,} {kind.plural}; --num_images says how many')
  labels = {name: label for label, name in enumerate(config.class_names or ())}
  records = []
  for file in chosen:
    try:
      value = kind.decode(file)
    except decoding.Undecoded as e:
      print(printable(f'{file}: cannot be decoded ({e.reason})'), file=sys.stderr)
      continue
    folder = file.absolute().parent.name
    label = {'label': labels[folder]} if folder in labels else {}
    records.append({name: value, 'file': file.name} | label)
  if not records:
    raise UsageError(f'no {name} can be decoded')
  return records


def _context(
  variables: Mapping[str, Any],
  config: ModelConfig,
  preprocessing: tuple[Preprocess, Sequence[float], Sequence[float]],
  examples: Sequence[Mapping[str, Any]],
  source: str,
  options: Mapping[str, Any],
) -> Context:
  return of_records(
    variables,
    config,
    preprocessing,
    spread(examples, _NUM_IMAGES.value),
    evaluate=functools.partial(_evaluate, evaluate, variables, config, examples, source),
    evaluate_masks=functools.partial(
      _evaluate, evaluate_masks, variables, config, examples, source
    ),
    **options,
  )


def _evaluate(
  evaluate: Callable[..., Any],
  variables: Mapping[str, Any],
  config: ModelConfig,
  examples: Sequence[Mapping[str, Any]],
  name: str,
) -> Any:
  loss = weight_flags.loss(_WORKDIR.value, _WEIGHTS.value)
  return evaluate(Predictor(variables, config, loss=loss), examples, name)


def _draw(context: Context, out: Path) -> None:
  """Writes every picture that was chosen; prints its path, or why there is none.

  Raises:
    UsageError: some that are asked for by name can't be drawn; the message tells which can.
  """
  lacking = {}
  try:
    out.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(_CHOSEN.value):
      needs_images = name not in _WITHOUT_IMAGES and not len(context.images)
      figure = 'needs images; give some' if needs_images else _PICTURES[name](context)
      if isinstance(figure, str):
        if _CHOSEN.present and not isinstance(figure, Nothing):
          lacking[name] = figure
        else:
          print(f'{name}: {figure}')
        continue
      path = out / f'{name}.png'
      figure.savefig(path, dpi=_PIXELS_PER_INCH)
      print(path, flush=True)
  except OSError as e:
    raise UsageError(f'--out: {out} cannot be written ({e.strerror})') from e
  if lacking:
    reasons = [f'{name}: {reason}' for name, reason in lacking.items()]
    if NOT_OF_MODEL in lacking.values():
      reasons.append(f'of this model there are {", ".join(shown(context)) or "none"}')
    raise UsageError(f'--pictures: {"; ".join(reasons)}')


if __name__ == '__main__':
  cli.run(main, arguments=('[IMAGE_OR_FOLDER...]',))
