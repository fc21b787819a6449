"""What pictures need of a run directory: curves and options."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vit_jax.models import ModelConfig, fields
from vit_jax.run import directory, plots, results, writers
from vit_jax.tasks import task_for


def curves(workdir: Path) -> Figure | str:
  """Returns metrics of the run over its steps, or in words why there is no figure."""
  history = writers.read_history(workdir / 'metrics.jsonl')
  if not history:
    return 'nothing is logged yet'
  return plots.curves(history, f'Training of {workdir.name}', results.read_descriptions(workdir))


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
  options = directory.read_section(path, 'loss')
  return {name: options[name] for name in names if name in options}
