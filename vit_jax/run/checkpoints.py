"""Checkpoints: asynchronous, atomic, last and best kept (Orbax), each verified when it is read.

A checkpoint has two items: `state`, a TrainState, and `meta`, JSON: what the run carries on the
host, and the CRC-32 of the state and of its evaluation variables.
"""

import contextlib
import dataclasses
import json
import logging
import shutil
import sys
import time
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

from vit_jax.errors import UsageError


def checksum(state: Any) -> int:
  """Returns the CRC-32 of all leaves, in order: Orbax itself doesn't notice flipped bits."""
  crc = 0
  for leaf in jax.tree.leaves(state):
    crc = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).reshape(-1), crc)
  return crc


@contextlib.contextmanager
def _quiet():
  """Swallows what background readers of a damaged checkpoint print after the first error."""
  asyncio_logger, hook = logging.getLogger('asyncio'), sys.unraisablehook
  level = asyncio_logger.level
  asyncio_logger.setLevel(logging.CRITICAL)
  sys.unraisablehook = lambda unraisable: None
  try:
    yield
  except Exception:
    time.sleep(0.3)  # the other readers are still failing
    raise
  finally:
    asyncio_logger.setLevel(level)
    sys.unraisablehook = hook


def _verify(state: Any, crc: int | None) -> None:
  if checksum(state) != crc:
    raise ValueError('contents differ from their checksum')


def _in_turn(steps: Iterable[int], first: int | None) -> list[int]:
  """Returns the steps from the newest on, `first`, unless None, before them."""
  steps = sorted(steps, reverse=True)
  return steps if first is None else [first, *(step for step in steps if step != first)]


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
      with _quiet():
        found = read(step)
    except (MemoryError, PermissionError):
      raise
    except Exception as e:  # whatever a damaged file makes Orbax raise
      damaged[step] = f'{type(e).__name__}: {e}'.splitlines()[0][:120]
      continue
    for bad, reason in damaged.items():
      print(
        f'{directory / str(bad)}: damaged checkpoint ({reason}); '
        f'falling back to that of step {step}',
        flush=True,
      )
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
  handlers = ocp.JsonCheckpointHandler, ocp.PyTreeCheckpointHandler
  meta_handler, tree_handler = (handler(multiprocessing_options=options) for handler in handlers)
  metas, trees = (
    ocp.Checkpointer(handler, multiprocessing_options=options)
    for handler in (meta_handler, tree_handler)
  )

  def read(step):
    state, meta = directory / str(step) / 'state', metas.restore(directory / str(step) / 'meta')
    # The checkpointer's own would warn of a file that CheckpointManager doesn't write.
    tree = tree_handler.metadata(epath.Path(state)).tree
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
  steps = [int(path.name) for path in directory.glob('[0-9]*') if path.name.isdecimal()]
  if not steps:
    raise UsageError(f'{directory}: no checkpoint yet')
  best = None
  with contextlib.suppress(Exception), _quiet():  # whatever damage there is, `read` will meet it
    best = (metas.restore(directory / str(max(steps)) / 'meta')['best'] or {}).get('step')
  variables, _ = _first_intact(directory, _in_turn(steps, best), read)
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
      multiprocessing_options=ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix='process_0'
      ),
    )
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
          meta | {'crc32': checksum(state), 'eval_crc32': checksum(state.eval_variables)}
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
    found = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(_entries(template)), meta=ocp.args.JsonRestore()
      ),
    )
    state, meta = template.replace(**found['state']), found['meta']
    _verify(state, meta.pop('crc32', None))
    del meta['eval_crc32']
    return state, meta

  def _restore(self, template: Any, first: int | None) -> tuple[Any, dict[str, Any]] | None:
    """Restores `first`, else the newest, else the one before it, and so on."""
    if self._manager is None:
      return None
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
