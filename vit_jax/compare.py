"""Compares this project with PyTorch: python -m vit_jax.compare --weights=PATH|hf:NAME|RUN.

And runs with the published values that their configs name, in a table of Markdown:
python -m vit_jax.compare --runs [--over_seeds] RUN...

With weights, PyTorch's side is the model in Hugging Face's transformers, with the same images and
kind of device. Each side has a process of its own and all cores, and they are timed in turns;
compilation is left out. On a busy CPU, PyTorch's threads lose much time waiting for each other;
OMP_WAIT_POLICY=passive in the environment makes that less.
"""

import functools
import importlib.util
import json
import os
import sys
import tempfile
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from vit_jax import cli, weight_flags, weights
from vit_jax.comparison import measure, runs, sides, table
from vit_jax.comparison.images import DatasetImages, RandomImages
from vit_jax.comparison.processes import Remote
from vit_jax.comparison.torch_models import Transformers
from vit_jax.errors import UsageError, printable
from vit_jax.models import ModelConfig
from vit_jax.models.variables import Variables

_WEIGHTS = flags.DEFINE_string('weights', None, 'A file, a folder, hf:NAME on the hub, or a run.')
_RUNS = flags.DEFINE_bool('runs', False, 'Compare run directories, which follow as arguments.')
_OVER_SEEDS = flags.DEFINE_bool(
  'over_seeds', False, 'With --runs: those that differ in seeds alone are one, with their mean.'
)
_DATASET = flags.DEFINE_string('dataset', None, 'As in configs: a name or the path of a folder.')
_SPLIT = flags.DEFINE_string('split', 'test', 'Of the data set, in the syntax of TFDS.')
_DATA_DIR = flags.DEFINE_string('data_dir', '', "Of TFDS's data sets, else $TFDS_DATA_DIR.")
_NUM_IMAGES = flags.DEFINE_integer(
  'num_images', 0, 'Images to compare logits on; 0: all, or 64 random ones.', lower_bound=0
)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 32, 'Images of a step.', lower_bound=1)
_DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of what is timed.')
_TURNS = flags.DEFINE_integer('turns', 5, 'How often each side is timed.', 1, measure.MOST_TURNS)
_SECONDS = flags.DEFINE_float('seconds', 2.0, 'About the time of a turn, above 0.')
_COMPILE = flags.DEFINE_bool('torch_compile', False, "Time PyTorch's model under torch.compile.")
_JSON = flags.DEFINE_bool('json', False, 'Print JSON instead of a table.')

_BAR = {'delay': 2, 'disable': None, 'leave': False}


def main(*workdirs: str) -> None:
  """Compares weights in JAX and PyTorch, or runs with published values, and prints the result."""
  if _RUNS.value and _WEIGHTS.value is not None:
    raise UsageError('--weights, --runs: give one of them')
  if _OVER_SEEDS.value and not _RUNS.value:
    raise UsageError('--over_seeds: is of runs; give --runs and their folders')
  if workdirs and not _RUNS.value:
    raise UsageError(f'{workdirs[0]!r} is not a flag; run directories need --runs before them')
  if not _RUNS.value:
    _compare_with_pytorch()
  elif not workdirs:
    raise UsageError('--runs: give the folders of runs after it')
  else:
    # Where none is finished, reading the first says so.
    finished = [workdir for workdir in workdirs if runs.is_finished(workdir)] or workdirs
    for workdir in workdirs:
      if workdir not in finished:
        print(printable(f'{workdir}: left out, no finished run'), file=sys.stderr)
    read = runs.over_seeds if _OVER_SEEDS.value else lambda dirs: list(map(runs.read, dirs))
    report = read(finished)
    print(json.dumps(report, indent=2) if _JSON.value else runs.format_runs(report))


def _compare_with_pytorch() -> None:
  """Prints differences of logits, and speeds of inference and training."""
  missing = [name for name in ('torch', 'transformers') if not importlib.util.find_spec(name)]
  measure.check_seconds(_SECONDS.value)
  if missing:
    raise UsageError(f'{" and ".join(missing)} not installed; pip install torch transformers')
  if _WEIGHTS.value is None:
    raise UsageError(
      '--weights: give a file, a folder, hf:NAME on the hub, or the folder of a run '
      '(or --runs and the folders of several)'
    )
  report = {'weights': _WEIGHTS.value, 'load_average': os.getloadavg()[0]}
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # leaves PyTorch some of a GPU
  device = sides.torch_device(jax.default_backend())
  variables, config = weight_flags.load(_WEIGHTS.value)
  if not config.num_classes:
    raise UsageError(f'{_WEIGHTS.value}: the model has no head, so there are no logits to compare')
  class_name = weights.transformers_class(config, _WEIGHTS.value)
  with tempfile.TemporaryDirectory() as folder:
    path = _for_pytorch(variables, config, os.path.join(folder, 'model'))
    images, size = _images(config), _BATCH_SIZE.value
    batch = np.resize(next(images.batches(size))[0], (size, *images.shape))
    dtype = _DTYPE.value
    ours = Remote('JAX', sides.JaxSide, variables, config.to_dict(), batch, dtype)
    model = Transformers(path, class_name)
    theirs = Remote('PyTorch', sides.TorchSide, model, batch, dtype, device, _COMPILE.value)
    with ours, theirs:
      report |= _compare(ours, theirs, images)
  print(json.dumps(report, indent=2) if _JSON.value else table.format_report(report))


def _for_pytorch(variables: Variables, config: ModelConfig, folder: str) -> str:
  """Returns what PyTorch loads: the given weights where it can, else `folder`, written here."""
  path = _WEIGHTS.value
  is_theirs = (flags.FLAGS['from'].value or weights.detect(path)) == 'huggingface'
  if is_theirs and not weights.takes_bgr(path):
    return path.removeprefix('hf:')
  weights.save(variables, config, folder, format='huggingface', label=path)
  return folder


def _images(config: ModelConfig) -> RandomImages | DatasetImages:
  if _DATASET.value is None:
    return RandomImages(config, _NUM_IMAGES.value)
  return DatasetImages(config, _DATASET.value, _SPLIT.value, _DATA_DIR.value, _NUM_IMAGES.value)


def _compare(ours: Remote, theirs: Remote, images: RandomImages | DatasetImages) -> dict[str, Any]:
  """Returns most of what --json prints."""
  report = {
    'jax': ours.call('describe'),
    'pytorch': theirs.call('describe'),
    'images': {'from': images.name, 'count': len(images), 'shape': images.shape},
  }
  with tqdm(total=len(images), desc='Comparing logits', unit='image', **_BAR) as bar:

    def logits():
      for batch, labels in images.batches(_BATCH_SIZE.value):
        yield ours.call('logits', batch), theirs.call('logits', batch), labels
        bar.update(len(batch))

    report['logits'] = measure.compare_logits(logits())
  report |= {'dtype': _DTYPE.value, 'batch_size': _BATCH_SIZE.value, 'turns': _TURNS.value}
  report['first_losses'] = {'jax': ours.call('warm_up'), 'pytorch': theirs.call('warm_up')}
  for task in tqdm(sides.TASKS, desc='Timing', **_BAR):
    speeds = (
      functools.partial(side.call, 'images_per_second', task, _SECONDS.value)
      for side in (ours, theirs)
    )
    report[task] = measure.compare_speeds(*speeds, turns=_TURNS.value)
  return report


if __name__ == '__main__':
  cli.run(main, arguments=('[RUN...]',))
