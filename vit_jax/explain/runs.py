"""What pictures need of a run directory: curves, options, and the images that it is tested on."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vit_jax.data import Source, load_source, title
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


def test_split(workdir: Path) -> tuple[Source, str]:
  """Returns the records that the run is tested on, and their name, as 'mnist, test'.

  Raises:
    UsageError: it holds no run, or the data can't be read.
  """
  return read_split(workdir, 'test_split')


def read_split(workdir: Path, field: str) -> tuple[Source, str]:
  """Returns the records of a split that a field of the run's `config.data` names, and their name.

  Raises:
    UsageError: as `test_split`.
  """
  try:
    data = directory.read_config(workdir)['data']
    name, split, folder = data['name'], data[field], data['dir']
    options = data.get('options')  # earlier versions had none
  except (KeyError, TypeError) as e:
    raise UsageError(f'--workdir: {workdir} holds no run (config.json names no data)') from e
  with field_prefix('config.data.', {'split': field}):
    return load_source(name, split, folder, options), f'{title(name, folder)}, {split}'
