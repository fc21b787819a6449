"""The run directory: whose it is, and the small files in it."""

import contextlib
import json
import os
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.data.sources import depends_on_dir
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.regular_files import read_json

try:
  import fcntl
except ImportError:  # Windows, where nothing keeps two processes from training in a folder
  fcntl = None

# Fields that change what a run reports, not what it computes; and how fast, and where.
_REPORTED = ('metrics', 'profile', 'reference', 'writers')
_FREE_FIELDS = {'data.resident', 'data.num_workers', 'data.num_threads', 'data.prefetch', 'shard'}

# Those that a run may have another value of when it goes on, where its steps so far don't depend on
# it; log_every follows from num_steps.
_LENGTH = {'num_steps', 'num_epochs', 'log_every'}

# In a run directory.
CONFIG = 'config.json'
CHECKPOINTS, PLOTS, TENSORBOARD = 'checkpoints', 'plots', 'tensorboard'

_ANOTHER = 'give another --workdir, and --config.init_from={} to start from its weights'

# What earlier versions wrote into each run's config. It means the same as the default of a backbone
# that has none of the other parameters.
_FORMER_NO_DECAY = r'(^|/)(bias|scale|pos_embedding|cls|probe)$'
# Data sets of whose slices those versions took contiguous parts, whatever the classes.
_FORMERLY_CONTIGUOUS = ('folder', 'video_folder', 'point_folder', 'yolo')


def _flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {
    name: value
    for key, sub in tree.items()
    for name, value in _flatten(sub, f'{prefix}.{key}' if prefix else key).items()
  }


def _as_json(config: ConfigDict) -> dict[str, Any]:
  return json.loads(config.to_json_best_effort())


def write_text(path: Path, text: str) -> None:
  """Writes `text` so that the file is either the old or the new one, whatever happens."""
  temporary = _temporary(path)
  temporary.write_text(text)
  os.replace(temporary, path)


def _temporary(path: Path) -> Path:
  return path.with_suffix('.tmp')


def write_json(path: Path, value: Any) -> None:
  """Writes `value` as `write_text` does."""
  write_text(path, json.dumps(value, indent=2) + '\n')


def read_config(workdir: Path) -> dict[str, Any]:
  """Returns the configuration of the run in `workdir`.

  Raises:
    UsageError: there is none, or it can't be read.
  """
  path = workdir / CONFIG
  if not path.exists():
    raise UsageError(f'{workdir} holds no run (no {CONFIG})')
  return read_json(path)


def read_section(workdir: Path, name: str, advice: str = '') -> dict[str, Any]:
  """Returns a group of fields of the run in `workdir`, as 'model'.

  Raises:
    UsageError: there is no run, it can't be read, or has no such group, where `advice` ends the
      message.
  """
  section = read_config(workdir).get(name)
  if not isinstance(section, dict):
    raise UsageError(f'{workdir} holds no run ({CONFIG} names no {name}){advice}')
  return section


def checkpoint_steps(checkpoints: Path) -> list[int]:
  """Returns the steps of the checkpoints in a folder, which needn't exist, in order.

  Those that a killed process was writing, and those set aside as damaged, have other names.
  """
  return sorted(int(path.name) for path in checkpoints.glob('[0-9]*') if path.name.isdecimal())


def has_checkpoints(workdir: Path) -> bool:
  """Whether a run in `workdir` saved anything."""
  return bool(checkpoint_steps(workdir / CHECKPOINTS))


def unset_values(config: ConfigDict, given: ConfigDict, defaults: ConfigDict) -> dict[str, Any]:
  """Returns field -> the value that it stands for in runs of versions that didn't have it.

  That is the field's default; or, where `given` has the default, what that is resolved to.

  Args:
    config: the resolved configuration.
    given: the configuration before that; None in it stands for a default.
    defaults: those of all fields.
  """
  resolved, asked, unset = (_flatten(_as_json(c)) for c in (config, given, defaults))
  return {
    name: resolved[name] if asked.get(name) in (None, default) else default
    for name, default in unset.items()
    if name in resolved
  }


def changed_reports(workdir: Path, config: ConfigDict, unset: Mapping[str, Any]) -> list[str]:
  """Returns the fields of what a run reports in which `config` differs from the run in `workdir`.

  Args:
    workdir: the run directory.
    config: the resolved configuration.
    unset: as `unset_values` returns them.
  """
  old, new = {**unset, **read_config(workdir)}, _as_json(config)
  return [name for name in _REPORTED if name in old and old[name] != new[name]]


def check(
  workdir: Path,
  config: ConfigDict,
  only: tuple[str, ...] = (),
  depending: Callable[[int, int], list[str]] | None = None,
  unset: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
  """Raises UsageError unless `workdir` holds a run of the same configuration.

  Fields that one of the two configurations lacks are left out, unless `unset` has their value.

  Args:
    workdir: the run directory.
    config: the resolved configuration.
    only: compares just these sections, for those who only read the run.
    depending: (num_steps, done) -> what in the steps done would have been another, were the run of
      that length; where it is nothing, the length may differ. None where it mustn't.
    unset: values of fields that the run may lack; see `unset_values`.
  """
  old, new = _flatten(read_config(workdir)), _flatten(_as_json(config))
  is_former = 'data.val_split' not in old  # of a version that had none
  old = {**unset, **old}
  # A TFDS data set is the same wherever it is; a folder of images is known by its place.
  is_place = depends_on_dir(config.data.name)
  free = _FREE_FIELDS if is_place else _FREE_FIELDS | {'data.dir'}
  own_no_decay = models.backbone(config.model.name).NO_DECAY

  def is_alike(name: str) -> bool:
    before, now = old[name], new[name]
    if name != 'optimizer.no_decay' or before == now:
      return before == now
    if not isinstance(before, str):
      return False
    return before.replace(_FORMER_NO_DECAY, own_no_decay, 1) == now  # heads add to their backbone's

  names = [
    name
    for name in sorted((old.keys() & new.keys()) - free)
    if not is_alike(name) and (not only or name.startswith(only))
    if not name.startswith(_REPORTED)
  ]
  if config.data.name in _FORMERLY_CONTIGUOUS and is_former:
    for name in ('data.train_split', 'data.test_split'):
      if '[' in str(old.get(name)):
        raise UsageError(
          f'--workdir: {workdir} holds a run of an earlier version, to which {name}='
          f'{old[name]!r} was other examples; {_ANOTHER.format(workdir)}'
        )
  if not names:
    return
  differing = '; '.join(f'{name} {old[name]!r} there, {new[name]!r} now' for name in names)
  problem = f'holds a run of another configuration ({differing})'
  has_length = isinstance(old.get('num_steps'), int)
  if depending and has_length and {'log_every'} < {*names, 'log_every'} <= _LENGTH:
    done = max(checkpoint_steps(workdir / CHECKPOINTS), default=0)
    if 'num_steps' not in names:
      return
    if done >= config.num_steps:
      problem = f'holds a run that has done {done} steps ({differing})'
    elif what := depending(old['num_steps'], done):
      problem = (
        f'holds a run of another length ({differing}), and its {" and ".join(what)} in the {done} '
        'steps done depends on that'
      )
    else:
      return
  raise UsageError(f'--workdir: {workdir} {problem}; {_ANOTHER.format(workdir)}')


def write_configs(workdir: Path, config: ConfigDict, model_config: ModelConfig) -> None:
  """Writes config.json, and model.json for those who load the model."""
  write_json(workdir / CONFIG, _as_json(config))
  write_json(workdir / 'model.json', model_config.to_dict())


def _lock(workdir: Path) -> int | None:
  """Locks `workdir` until this process ends; returns what closes it, None on Windows."""
  if fcntl is None:
    return None
  descriptor = os.open(workdir, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as e:
    raise UsageError(f'--workdir: another process is training in {workdir}') from e
  return descriptor


def check_folders(workdir: Path) -> None:
  """Raises UsageError where there is a file in place of `workdir` or of a folder in it."""
  for path in (workdir, *(workdir / name for name in (CHECKPOINTS, PLOTS, TENSORBOARD))):
    if path.exists() and not path.is_dir():
      raise UsageError(f'--workdir: {path} is not a folder')


@contextlib.contextmanager
def claimed(
  workdir: Path,
  config: ConfigDict,
  model_config: ModelConfig,
  depending: Callable[[int, int], list[str]] | None = None,
  unset: Mapping[str, Any] = types.MappingProxyType({}),
) -> Iterator[None]:
  """Makes `workdir` this experiment's, and no other process's until the end of the context.

  It must be new or empty, but for what a killed start left, or hold a run of the same
  configuration, or one that saved nothing. config.json and model.json are written here, but where
  the run has a checkpoint: there they stay as they are until `write_configs`.

  Args:
    workdir: the run directory.
    config: the resolved configuration.
    model_config: of the model that trains.
    depending: as for `check`.
    unset: as for `check`.

  Raises:
    UsageError: it can't be written, is in use, or holds something else.
  """
  check_folders(workdir)
  path, is_begun = workdir / CONFIG, has_checkpoints(workdir)
  if path.exists():
    if is_begun:
      check(workdir, config, depending=depending, unset=unset)
  elif workdir.is_dir() and set(workdir.iterdir()) - {_temporary(path)}:
    raise UsageError(f'--workdir: {workdir} is not empty and holds no run; give another --workdir')
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(workdir)
    if not is_begun:
      write_configs(workdir, config, model_config)
  except OSError as e:
    raise UsageError(f'--workdir: {workdir} cannot be written ({e.strerror})') from e
  try:
    yield
  finally:
    if descriptor is not None:
      os.close(descriptor)
