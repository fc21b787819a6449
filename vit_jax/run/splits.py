"""The splits of the data that a run was trained and tested on."""

from pathlib import Path

from vit_jax.data import Source, open_splits, title
from vit_jax.errors import UsageError, field_prefix
from vit_jax.run import directory

_TYPES = {
  'name': str,
  'dir': str,
  'train_split': str,
  'test_split': str,
  'val_split': str,
  'options': dict,
}
_LATER = ('val_split', 'options')  # than the first versions


def read_split(workdir: Path, split: str) -> tuple[Source, str]:
  """Returns the records of a split of a run, and their name, as 'mnist, test'.

  Args:
    workdir: of the run.
    split: 'train', less what the run holds out; 'val', what it holds out; or 'test'.

  Raises:
    UsageError: it holds no run, the run has no such split, or the data can't be read.
  """
  data, seed = directory.read_section(workdir, 'data'), directory.read_config(workdir).get('seed')
  given = {name: data[name] for name in _TYPES if name in data}
  wrong = [name for name, kind in _TYPES.items() if not isinstance(given.get(name, kind()), kind)]
  wrong += [name for name in _TYPES if name not in given and name not in _LATER]
  if wrong or type(seed) is not int:
    what = f'data.{wrong[0]}' if wrong else 'seed'
    raise UsageError(f'{workdir / directory.CONFIG}: damaged: {what} is missing or of a wrong type')
  with field_prefix('config.'):
    found = open_splits(given, seed, (split,))
  if not found:
    raise UsageError(f'--split: {workdir} has no validation split')
  source, name = found[split]
  return source, f'{title(given["name"], given["dir"])}, {name}'
