"""The file of what `train.py --mode=eval --predictions` predicts of each example."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from vit_jax.errors import UsageError
from vit_jax.run import tables
from vit_jax.train.experiment import Experiment

_Rows = Mapping[str, np.ndarray]
Write = Callable[[_Rows], None]


@contextlib.contextmanager
def writer(experiment: Experiment, path: str | None) -> Iterator[Write | None]:
  """Opens a file, and yields what writes it; None where `path` is None.

  Of several processes the first writes.

  Args:
    experiment: whose test split is evaluated.
    path: of the file, which ends in one of `tables.SUFFIXES`.

  Raises:
    UsageError: it can't be written, or the task has no classes of whole examples.
  """
  if path is None:
    yield None
    return
  suffix, (source, _) = Path(path).suffix, experiment.sets['test']
  if suffix not in tables.SUFFIXES:
    raise UsageError(f'--predictions: {path} does not end in {", ".join(tables.SUFFIXES)}')
  if not experiment.task.further_metrics(source[0]):
    name = experiment.config.task
    raise UsageError(f'--predictions: the task {name} predicts no class of each example')
  if jax.process_index():
    yield lambda rows: None
    return
  with tables.NewFile(path, '--predictions') as file:

    def write(rows: _Rows) -> None:
      columns = _columns(rows, source.files)
      file.write(tables.predictions(suffix, columns, experiment.model_config.class_names))

    yield write


def _columns(rows: _Rows, files: Sequence[str]) -> dict[str, np.ndarray]:
  """Returns the columns of the table, in the order of reading."""
  rows = dict(rows)
  probabilities, label, predicted = (rows.pop(n) for n in ('probabilities', 'label', 'predicted'))
  index = np.arange(len(label))
  single = {} if label.ndim > 1 else {'probability': probabilities[index, predicted]}
  return {
    'index': index,
    **({'path': np.array(files)} if files else {}),
    'label': label,
    'predicted': predicted,
    **single,
    **rows,
    'probabilities': probabilities,
  }
