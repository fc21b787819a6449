"""The splits of the data that a run was trained and tested on."""

from pathlib import Path

from vit_jax.data import Source, open_splits, title
from vit_jax.errors import UsageError, field_prefix
from vit_jax.run import directory


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
    raise UsageError(f'{workdir} holds no run (config.json names no data)') from e
  given |= {name: data[name] for name in ('val_split', 'options') if name in data}  # came later
  with field_prefix('config.'):
    found = open_splits(given, seed, (split,))
  if not found:
    raise UsageError(f'--split: {workdir} has no validation split')
  source, name = found[split]
  return source, f'{title(given["name"], given["dir"])}, {name}'
