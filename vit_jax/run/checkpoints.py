"""Checkpoints: asynchronous, atomic, last and best kept (Orbax), each verified when it is read.

A checkpoint has two items: `state`, a TrainState, and `meta`, JSON: what the run carries on the
host, the CRC-32 of the state and of its evaluation variables, and around all that its own.
"""

import dataclasses
import json
import logging
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vit_jax.errors import UsageError, printable
from vit_jax.regular_files import read_json
from vit_jax.run.directory import checkpoint_steps

# Else Orbax opens no folder in which one checkpoint's _CHECKPOINT_METADATA is damaged, as its
# releases without this option don't.
_LIGHT = {
  name: True
  for name in ocp.CheckpointManagerOptions.__dataclass_fields__
  if name == 'lightweight_initialize'
}

# What earlier versions wrote into each meta, beside the checksums.
_FORMER_META = 'best', 'crc32', 'stopped', 'waited', 'window'
_FORMER_BEST = 'step', 'value'


def checksum(state: Any) -> int:
  """Returns the CRC-32 of all leaves, in order: Orbax itself doesn't notice flipped bits."""
  crc = 0
  for leaf in jax.tree.leaves(state):
    crc = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).reshape(-1), crc)
  return crc


class _OneErrorIsEnough:
  """Has nothing printed of what fails in the background after the first error of many arrays.

  The first closes the event loop. The answers of TensorStore's threads then find it closed, and
  others' errors nobody asks for, until long after the caller has the first.
  """

  def __init__(self, others: Callable):
    self._others = others

  def __call__(self, unraisable):
    if str(unraisable.exc_value) != 'Event loop is closed':
      self._others(unraisable)

  @staticmethod
  def _is_asked_for(record: logging.LogRecord) -> bool:
    return 'tensorstore_spec' not in record.getMessage()

  @classmethod
  def install(cls) -> None:
    """Keeps Python's hook, and the messages of asyncio, for all else."""
    if not isinstance(sys.unraisablehook, cls):
      sys.unraisablehook = cls(sys.unraisablehook)
    logging.getLogger('asyncio').addFilter(cls._is_asked_for)  # which adds it once


def _verify(state: Any, crc: int | None) -> None:
  if checksum(state) != crc:
    raise ValueError('contents differ from their checksum')


def _with_checksum(meta: dict[str, Any]) -> dict[str, Any]:
  return {'meta': meta, 'meta_crc32': _checksum_of_json(meta)}


def _checksum_of_json(meta: Any) -> int:
  return zlib.crc32(json.dumps(meta).encode())


def _read_meta(checkpoint: Path) -> dict[str, Any]:
  """Returns the item `meta` of a checkpoint.

  Raises:
    ValueError: as UsageError, or as KeyError, it is damaged.
  """
  # Read without Orbax, whose handler reads what isn't a regular file.
  found = read_json(checkpoint / 'meta' / 'metadata')
  if 'eval_crc32' in found:  # of an earlier version, which had no checksum around it
    for expected, there in ((_FORMER_META, found), (_FORMER_BEST, found['best'] or _FORMER_BEST)):
      if lacking := set(expected) - set(there):
        raise ValueError(f'meta has no {min(lacking)}')
    return found
  if _checksum_of_json(found['meta']) != found['meta_crc32']:
    raise ValueError('meta differs from its checksum')
  return found['meta']


def _check_regular(checkpoint: Path) -> None:
  """Raises ValueError where reading a file would wait for somebody who writes."""
  for path in checkpoint.rglob('*'):
    if not (path.is_file() or path.is_dir()):
      raise ValueError(f'{path.name} is not a regular file')


def _in_turn(steps: Iterable[int], first: int | None) -> list[int]:
  """Returns the steps from the newest on, but `first`, where it is one of them, before them."""
  return sorted(steps, key=lambda step: (step == first, step), reverse=True)


def _first_intact(
  directory: Path, steps: Iterable[int], read: Callable[[int], Any]
) -> tuple[Any, list[int]]:
  """Returns (what `read` gives of the first step that it can read, the damaged ones before it).

  It is None where there are no steps.

  Raises:
    UsageError: all are damaged.
  """
  damaged = {}
  for step in steps:
    try:
      _check_regular(directory / str(step))
      found = read(step)
    except (MemoryError, PermissionError):
      raise
    except Exception as e:  # whatever a damaged file makes Orbax raise
      if isinstance(e.__cause__, PermissionError):
        raise
      damaged[step] = f'{type(e).__name__}: {e}'.splitlines()[0][:120]
      continue
    for bad, reason in damaged.items():
      line = f'{directory / str(bad)}: damaged checkpoint ({reason}); '
      print(printable(f'{line}falling back to that of step {step}'), flush=True)
    return found, list(damaged)
  if damaged:
    reasons = '; '.join(f'step {step}: {reason}' for step, reason in damaged.items())
    raise UsageError(f'{directory}: every checkpoint is damaged ({reasons})')
  return None, []


def read_variables(directory: Path) -> dict[str, Any]:
  """Returns the variables that were evaluated, NumPy arrays, of the best checkpoint.

  Their 'params' are the moving average where the run keeps one. They alone are read, without the
  optimiser's state. Where that checkpoint is damaged, or none was evaluated yet, they are those of
  the newest intact one. Any process may call it.

  Raises:
    UsageError: there is no checkpoint, or all are damaged.
  """
  options = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(),
    active_processes={jax.process_index()},
    barrier_sync_key_prefix=f'process_{jax.process_index()}_reads',
  )
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
  trees = ocp.Checkpointer(handler, multiprocessing_options=options)

  def read(step):
    state, meta = directory / str(step) / 'state', _read_meta(directory / str(step))
    # The checkpointer's own would warn of a file that CheckpointManager doesn't write.
    tree = handler.metadata(epath.Path(state)).tree
    part = 'params' if tree['ema_params'] is None else 'ema_params'
    wanted = {name: tree[name] for name in (part, 'model_state') if name in tree}
    item = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), wanted)
    args = ocp.args.PyTreeRestore(
      item, ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
    )
    found = trees.restore(state, args=args)
    variables = {'params': found[part], **found.get('model_state', {})}
    _verify(variables, meta['eval_crc32'])
    return variables

  directory = directory.resolve()
  steps = checkpoint_steps(directory)
  if not steps:
    raise UsageError(f'{directory}: no checkpoint yet')
  _OneErrorIsEnough.install()

  def best_step(step):
    best = _read_meta(directory / str(step))['best']
    return best and best['step']

  best, damaged = _first_intact(directory, _in_turn(steps, None), best_step)
  variables, _ = _first_intact(directory, _in_turn(set(steps) - set(damaged), best), read)
  return variables


def _entries(state: Any) -> dict[str, Any]:
  """Returns what is saved of a state: its fields, but not empty dicts, which old runs lack."""
  fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
  return {name: v for name, v in fields.items() if not isinstance(v, dict) or v}


@dataclasses.dataclass
class _KeepBest(preservation_policy.PreservationPolicy):
  """Keeps the checkpoints of some steps, those of the best evaluation so far."""

  steps: set[int] = dataclasses.field(default_factory=set)

  def should_preserve(self, checkpoints, *, context):
    del context
    return [checkpoint.step in self.steps for checkpoint in checkpoints]


def _has_place(template: Any) -> bool:
  return isinstance(template, jax.ShapeDtypeStruct) and template.sharding is not None


def _zeros(template: Any) -> Any:
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)


def _broadcast_to_place(x: np.ndarray, template: Any) -> jax.Array:
  whole = np.asarray(multihost_utils.broadcast_one_to_all(x))
  return jax.make_array_from_callback(x.shape, template.sharding, lambda index: whole[index])


class Checkpointer:
  """The checkpoints of one run directory: the last two, and the best.

  Process 0 alone reads and writes; what it reads reaches the other processes by broadcast, so
  that they need no shared file system. Arrays are saved whole, wherever their parts are.
  """

  def __init__(self, directory: Path, read_only: bool = False):
    """Opens `directory`, and makes it unless `read_only`."""
    self._directory, self._read_only = directory, read_only
    self._best, self._manager = _KeepBest(), None
    if jax.process_index() == 0 and (directory.exists() or not read_only):
      directory.mkdir(parents=True, exist_ok=True)
      self._open()

  def _open(self) -> None:
    options = ocp.CheckpointManagerOptions(
      preservation_policy=preservation_policy.AnyPreservationPolicy(
        [preservation_policy.LatestN(2), self._best]
      ),
      create=False,
      cleanup_tmp_directories=not self._read_only,
      read_only=self._read_only,
      **_LIGHT,
      multiprocessing_options=ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix='process_0'
      ),
    )
    _OneErrorIsEnough.install()
    self._manager = ocp.CheckpointManager(self._directory.resolve(), options=options)

  def save(self, state: Any, meta: dict[str, Any]) -> None:
    """Starts to save `state`; returns when the devices' buffers may change again.

    Args:
      state: a TrainState; arrays on devices or host.
      meta: what the run carries on the host, JSON-able; `meta['best']`, where it isn't None, has
        the `step` of the best checkpoint, which is kept. So is that of `meta['best_if_longer']`.
    """
    state = jax.tree.map(self._copy, state)
    if self._manager is None:
      return
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    found = (meta.get(name) for name in ('best', 'best_if_longer'))
    self._best.steps = {best['step'] for best in found if best}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_entries(state)),
        meta=ocp.args.JsonSave(
          _with_checksum(
            meta | {'crc32': checksum(state), 'eval_crc32': checksum(state.eval_variables)}
          )
        ),
      ),
      force=True,
    )

  def _copy(self, x: Any) -> np.ndarray | None:
    """Returns a whole array on the host; None in processes that don't write."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
      x = multihost_utils.process_allgather(x, tiled=True)  # by all processes
    return None if self._manager is None else np.array(x, copy=True)

  def latest_step(self) -> int | None:
    """Returns the step of the newest checkpoint on disk, or None."""
    self.wait()
    return None if self._manager is None else self._manager.latest_step()

  def _read(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
    meta = _read_meta(self._directory / str(step))
    args = ocp.args.Composite(state=ocp.args.StandardRestore(_entries(template)))
    state = template.replace(**self._manager.restore(step, args=args)['state'])
    _verify(state, meta.pop('crc32'))
    del meta['eval_crc32']
    return state, meta

  def _restore(self, template: Any, first: int | None) -> tuple[Any, dict[str, Any]] | None:
    """Restores `first`, else the newest, else the one before it, and so on."""
    if self._manager is None:
      return None
    self.wait()
    steps = _in_turn(self._manager.all_steps(), first)
    found, damaged = _first_intact(self._directory, steps, lambda step: self._read(step, template))
    if damaged and not self._read_only:
      self._set_aside(damaged)
    return found

  def _set_aside(self, steps: list[int]) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again and nothing is lost."""
    for step in steps:
      aside = self._directory / f'damaged_{step}'
      shutil.rmtree(aside, ignore_errors=True)
      (self._directory / str(step)).rename(aside)
    self._manager.close()
    self._open()

  def restore(self, template: Any, step: int | None = None) -> tuple[Any, dict[str, Any]] | None:
    """Returns (state, meta) of the newest intact checkpoint, or None where there is none.

    Args:
      template: a state of the same structure; its values don't matter. Arrays are NumPy's, but
        those of a `jax.ShapeDtypeStruct` with a sharding are restored there.
      step: the checkpoint to try first, where it isn't the newest.

    Raises:
      UsageError: there are checkpoints, and all are damaged.
    """
    has_places = all(map(_has_place, jax.tree.leaves(template)))
    if jax.process_count() == 1:
      return self._restore(template if has_places else _zeros(template), step)
    return self._restore_and_broadcast(_zeros(template), template if has_places else None, step)

  def _restore_and_broadcast(self, arrays, places, step):
    """Sends what process 0 restored to all; its meta serves host-side state that all agree on."""
    found = self._restore(arrays, step)
    state, meta = found or (arrays, {})
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text) if found else -1)))
    if length < 0:
      return None
    if jax.process_index():
      text = np.zeros(length, np.uint8)
    if places is not None:  # array by array: a device may have no room for all
      text = multihost_utils.broadcast_one_to_all(text)
      state = jax.tree.map(_broadcast_to_place, state, places)
    else:
      state, text = multihost_utils.broadcast_one_to_all((state, text))
      state = jax.tree.map(np.asarray, state)
    return state, json.loads(bytes(np.asarray(text)).decode())

  def wait(self) -> None:
    """Blocks until everything saved is on disk."""
    if self._manager is not None:
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and frees Orbax's threads."""
    if self._manager is not None:
      self._manager.wait_until_finished()
      self._manager.close()
