"""What pictures need of a run directory: curves, options, and the images that it is tested on."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vit_jax.data import Source, hold_out, load_source, percentage, title
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
    data = config['data']
    share = data.get('val_split', '')  # earlier versions had none, nor options
    percent = percentage(share) if split != 'test' else None
    field = 'train_split' if percent else f'{split}_split'
    name = share if field == 'val_split' else data[field]
    place = data['name'], name, data['dir'], data.get('options')
  except (KeyError, TypeError) as e:
    raise UsageError(f'--workdir: {workdir} holds no run (config.json names no data)') from e
  if split == 'val' and not share:
    raise UsageError(f'--split: {workdir} has no validation split')
  with field_prefix('config.data.', {'split': field}):
    source = load_source(*place)
  name = f'{title(place[0], place[2])}, {place[1]}'
  if not percent:
    return source, name
  left, held_out, _ = hold_out(source, percent, config['seed'])
  return (held_out, f'{name}, {share} held out') if split == 'val' else (left, name)
