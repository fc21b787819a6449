"""The data of an experiment as its model is trained on them, in pictures, before or after it runs.

`train.py --mode=preview` and `python -m vit_jax.explain --workdir=RUN --pictures=data,classes`.
"""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from vit_jax.errors import UsageError
from vit_jax.explain import training_data
from vit_jax.run import directory
from vit_jax.train.experiment import Experiment


def experiment_of(workdir: Path) -> Experiment:
  """Returns the experiment that the run in `workdir` is of.

  Raises:
    UsageError: there is none, its data can't be read, or it lacks fields that came later.
  """
  config = ConfigDict(_with_tuples(directory.read_config(workdir)))
  try:
    return Experiment(config, workdir)
  except AttributeError as e:  # as ConfigDict says it
    field = str(e).splitlines()[0].strip('"')
    raise UsageError(
      f'--workdir: {workdir} is of an earlier version, without the field {field}; '
      'train.py --mode=preview draws the data of a config'
    ) from e


def _with_tuples(value: Any) -> Any:
  """Returns values of JSON with tuples for lists, as configurations have them."""
  if isinstance(value, dict):
    return {name: _with_tuples(item) for name, item in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def data(experiment: Experiment, steps_done: int = 0) -> Figure:
  """Draws training examples of a step's batch as the model gets them."""
  config, source = experiment.config, experiment.sets['train'][0]
  count = min(training_data.MOST_EXAMPLES, config.batch_size)
  return training_data.examples_figure(
    experiment.training_rows(steps_done, count),
    experiment.model.INPUT,
    source.class_names,
    config.data.mean,
    config.data.std,
    f'{experiment.data_title}: as the model is trained on it in step {steps_done + 1:,}',
  )


def classes(experiment: Experiment) -> Figure | str:
  """Draws how often each class occurs in each split, or says why it can't."""
  counts = {}
  for split, (source, _) in experiment.sets.items():
    counts[split] = training_data.count_classes(source, experiment.config.data.num_threads)
    if isinstance(counts[split], str):
      return counts[split]
  title = f'{experiment.data_title}: classes'
  return training_data.classes_figure(counts, source.class_names, title)


def write(experiment: Experiment, folder: Path, steps_done: int = 0) -> None:
  """Writes data.png and classes.png, and prints their paths, or why there is no picture.

  Raises:
    UsageError: `folder` can't be written.
  """
  drawn = {'data': data(experiment, steps_done), 'classes': classes(experiment)}
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
      if isinstance(figure, str):
        print(f'{name}: {figure}')
        continue
      figure.savefig(folder / f'{name}.png')
      print(folder / f'{name}.png', flush=True)
  except OSError as e:
    raise UsageError(f'--workdir: {folder} cannot be written ({e.strerror})') from e
