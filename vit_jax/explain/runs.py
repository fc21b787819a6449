"""What pictures need of a run directory: curves, options, and the images that it is tested on."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vit_jax.data import Source, open_splits, title
from vit_jax.errors import UsageError, field_prefix
from vit_jax.models import ModelConfig, fields
from vit_jax.run import directory, metrics, plots, writers
from vit_jax.tasks import task_for


def curves(workdir: Path) -> Figure | str:
  """Returns metrics of the run over its steps, or in words why there is no figure."""
  history = writers.read_history(workdir / 'metrics.jsonl')
  if not history:
    return 'nothing is logged yet'
  return plots.curves(history, f'Training of {workdir.name}', metrics.read_descriptions(workdir))


def task_options(path: Path, config: ModelConfig) -> dict[str, Any]:
  """Returns the options that a run's task was given; {} for weights that are no run's.

  Args:
    path: of the weights.
    config: of their model.

  Raises:
    UsageError: the run has no configuration that can be read.
  """
  if not (path / 'model.json').exists():
    return {}
  names = fields.names(type(task_for(config)))  # earlier versions had other tasks' as well
  try:
    options = directory.read_config(path)['loss']
    return {name: options[name] for name in names if name in options}
  except (KeyError, TypeError) as e:
    raise UsageError(f'--workdir: {path} holds no run (config.json names no loss)') from e


def read_split(workdir: Path, split: str) -> tuple[Source, str]:
  """Returns the records of a split of a run, and their name, as 'mnist, test'.

  Args:
    workdir: of the run.
    split: 'train', less what the run holds out; 'val', what it holds out; or 'test'.

  Raises:
    UsageError: it holds no run, the run has no such split, or the data can't be read.
  """
  config = directory.read_config(workdir)
  try:
    data, seed = config['data'], config['seed']
    given = {name: data[name] for name in ('name', 'dir', 'train_split', 'test_split')}
  except (KeyError, TypeError) as e:
    raise UsageError(f'--workdir: {workdir} holds no run (config.json names no data)') from e
  given |= {name: data[name] for name in ('val_split', 'options') if name in data}  # came later
  with field_prefix('config.'):
    found = open_splits(given, seed, (split,))
  if not found:
    raise UsageError(f'--split: {workdir} has no validation split')
  source, name = found[split]
  return source, f'{title(given["name"], given["dir"])}, {name}'
