"""Feeds: how batches reach the compiled steps, from the device's memory or streamed from the host.

Both kinds have the same two calls, so that the loop doesn't know which it has, and give the same
batches; they differ in how many steps a dispatch runs.
"""

import collections
import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from vit_jax.data import ResidentLoader, StreamedLoader
from vit_jax.train import step as steps_lib
from vit_jax.train.state import TrainState
from vit_jax.train.step import WHOLE, Whole

MAX_STEPS = 64  # of one dispatch
_STEPS_OF_PROCESSES = 8  # of one dispatch, where several processes take part
_DISPATCH_SECONDS = 0.2  # aimed at: long against a dispatch's cost, short against a person's wait


def put_on_devices(arrays: Any, layout: Whole = WHOLE) -> Any:
  """Returns `arrays` on every local device, laid out as mapped functions take and return them.

  A state that starts like this compiles the step once; as NumPy, it would once more, for the
  second step gets what the first returned.
  """
  return layout.put(arrays)


def max_in_flight() -> int:
  """Returns how many dispatches may wait to be run.

  None on CPU: with several virtual devices, executions that wait for each other's threads hang.
  """
  return 0 if jax.default_backend() == 'cpu' else 2


def _compile(step: Callable, *arguments: Any) -> Future:
  """Traces a mapped function for arguments of these shapes, and compiles it in the background."""
  if jax.process_count() > 1:  # where pmap compiles for arrays alone, at the first call
    called = Future()
    called.set_result(step)
    return called
  lowered, background = step.lower(*arguments), ThreadPoolExecutor(1)
  compiled = background.submit(lowered.compile)
  background.shutdown(wait=False)
  return compiled


class ResidentTrainFeed(contextlib.AbstractContextManager):
  """Trains on data that stay on the device, several steps in one dispatch."""

  def __init__(
    self,
    train_step: Callable,
    loader: ResidentLoader,
    state: TrainState,
    max_steps: int = MAX_STEPS,
    layout: Whole = WHOLE,
  ):
    """Starts to compile the step for a state of these shapes, while the data are decoded."""
    many = steps_lib.many_train_steps(train_step, max_steps, layout)
    steps = layout.compile_training(many, state)
    devices, rows = loader.indices(0, 1)['slot'].shape
    dtypes = {'index': np.int32, 'slot': np.int32, 'weight': np.float32}
    batches = {
      name: jax.ShapeDtypeStruct((devices, max_steps, rows), dtype)
      for name, dtype in dtypes.items()
    }
    self._steps = _compile(steps, state, batches, (loader.shapes, np.int32(0)))
    self._max_steps, self._layout = max_steps, layout
    self._loader, self._arrays = loader, None
    self._num_steps, self._last = 1, None

  def _pace(self) -> int:
    """Adapts the steps of a dispatch to the time that the last one took."""
    if jax.process_count() > 1:  # all run the same number, and their clocks differ
      return min(_STEPS_OF_PROCESSES, self._max_steps)
    now = time.monotonic()
    if self._last is not None:
      then, num_steps = self._last
      fitting = _DISPATCH_SECONDS * num_steps / max(now - then, 1e-6)
      self._num_steps = int(np.clip(fitting, 1, min(2 * self._num_steps, self._max_steps)))
    return self._num_steps

  def __call__(self, state: TrainState, step: int, limit: int) -> tuple[TrainState, Any, int]:
    """Runs up to `limit` steps from `step`; returns (state, sums of each step, how many)."""
    self._load()
    num_steps = min(self._pace(), limit)
    # At a boundary, what comes next isn't training, and says nothing about the pace.
    self._last = (time.monotonic(), num_steps) if num_steps < limit else None
    rows = self._loader.indices(step, num_steps)
    index = np.pad(rows['index'], [(0, 0), (0, self._max_steps - num_steps), (0, 0)])
    rows = {
      'index': index,
      'slot': np.broadcast_to(rows['slot'][:, None], index.shape),
      'weight': np.ones(index.shape, np.float32),
    }
    state, metrics = self._steps.result()(state, rows, (self._arrays, np.int32(num_steps)))
    return state, metrics, num_steps

  def _load(self) -> None:
    """Waits for the data, and puts them on the devices."""
    if self._arrays is None:
      self._arrays = put_on_devices(self._loader.arrays, self._layout)
      del self._loader.arrays  # the devices have it now

  def __enter__(self):
    """Waits for the data and the compiled step: nothing is trained yet that a signal could lose."""
    self._load()
    self._steps.result()
    return self

  def __exit__(self, *unused):
    self._arrays = None


class StreamedTrainFeed(contextlib.AbstractContextManager):
  """Trains on batches that the host makes, one step in a dispatch."""

  def __init__(
    self,
    train_step: Callable,
    loader: StreamedLoader,
    state: TrainState,
    layout: Whole = WHOLE,
  ):
    """Starts to compile the step for a state of these shapes."""
    step = layout.compile_training(steps_lib.one_train_step(train_step), state)
    self._step = _compile(step, state, loader.shapes, ())
    self._loader, self._batches, self._next_step = loader, None, None

  def __call__(self, state: TrainState, step: int, limit: int) -> tuple[TrainState, Any, int]:
    """Runs one step; returns (state, its sums, with an axis of one step, 1)."""
    del limit
    if step != self._next_step:
      self._stop()
      self._batches = self._loader.batches(step)
    state, metrics = self._step.result()(state, next(self._batches), ())
    self._next_step = step + 1
    return state, metrics, 1

  def _stop(self) -> None:
    if self._batches is not None:
      self._batches.close()
    self._batches = self._next_step = None

  def __enter__(self):
    """Waits for the compiled step: nothing is trained yet that a signal could lose."""
    self._step.result()
    return self

  def __exit__(self, *unused):
    self._stop()


def to_host(results: Iterator[Any]) -> Iterator[Any]:
  """Yields results as NumPy arrays, with a bounded number of dispatches under way."""
  waiting = collections.deque()
  for result in results:
    waiting.append(result)
    while len(waiting) > max_in_flight():
      yield jax.device_get(waiting.popleft())
  while waiting:
    yield jax.device_get(waiting.popleft())


def add_up(results: Iterator[Any]) -> Any:
  """Adds sums up on the host, in float64."""
  total = None
  for sums in to_host(results):
    sums = jax.tree.map(np.float64, sums)
    total = sums if total is None else jax.tree.map(np.add, total, sums)
  return total


def _fill(x: np.ndarray, length: int, axis: int) -> np.ndarray:
  """Appends zeros along an axis, up to a length."""
  missing = max(length - x.shape[axis], 0)
  return np.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])


def join_rows(results: Iterator[Any]) -> Any:
  """Returns the rows of all examples, as arrays that can't be written to, in the split's order.

  Args:
    results: what `step.gather_rows` gives of each batch; rows of padding are left out.
  """
  parts = []
  for rows, weight, slot in to_host(results):
    parts.append(jax.tree.map(lambda x, kept=weight > 0: x[kept], (rows, slot)))
  rows, slot = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  rows = jax.tree.map(lambda x: x[np.argsort(slot)], rows)
  jax.tree.map(lambda x: x.setflags(write=False), rows)
  return rows


def evaluate(results: Iterator[tuple[Any, Any]]) -> tuple[Any, Any]:
  """Adds sums up, as `add_up` does, and joins rows; None where the eval step gives none."""
  rows = []

  def sums():
    for batch_sums, batch_rows in to_host(results):
      rows.append(batch_rows)
      yield batch_sums

  total = add_up(sums())
  return total, None if rows[0] is None else join_rows(rows)


class ResidentEvalFeed:
  """Evaluates on data that stay on the device."""

  @staticmethod
  def mapped(eval_step: Callable, layout: Whole = WHOLE) -> Callable:
    """Returns the step as feeds take it; those that share it compile it once for equal shapes."""
    return layout.compile_evaluation(
      lambda variables, rows, shared: eval_step(
        variables, steps_lib.gather(shared[0], rows, shared[1])
      )
    )

  def __init__(
    self,
    mapped_step: Callable,
    loader: ResidentLoader,
    num_examples: int = 0,
    layout: Whole = WHOLE,
  ):
    """Takes data, which go to the devices before the first batch.

    Args:
      mapped_step: see `mapped`.
      loader: of the data.
      num_examples: that the shapes are made for, where that is more than there are.
      layout: that the step is mapped with.
    """
    self._layout = layout
    self._step, self._loader, self._num_examples = mapped_step, loader, num_examples
    rows = loader.indices()
    rows['slot'] = rows['index']  # in order, so that it is the place in the split
    devices, self._num_batches, per_device = rows['index'].shape
    batches = -(-num_examples // (devices * per_device * jax.process_count()))
    self._rows = {name: _fill(x, batches, axis=1) for name, x in rows.items()}

  @functools.cached_property
  def _arrays(self) -> Any:
    arrays = {n: _fill(x, self._num_examples, axis=0) for n, x in self._loader.arrays.items()}
    del self._loader.arrays  # the devices have it now
    return put_on_devices(arrays, self._layout)

  def batches(self, variables: Any) -> Iterator[Any]:
    """Yields what the step gives of each batch, with a model's `variables`."""
    for i in range(self._num_batches):
      yield self._step(variables, self._rows, (self._arrays, np.int32(i)))

  def __call__(self, variables: Any) -> tuple[Any, Any]:
    """Returns (sums, rows) of a model's `variables` over every example, see `evaluate`."""
    return evaluate(self.batches(variables))


class StreamedEvalFeed:
  """Evaluates on batches that the host makes."""

  @staticmethod
  def mapped(eval_step: Callable, layout: Whole = WHOLE) -> Callable:
    """Returns the step as feeds take it, and share it."""
    return layout.compile_evaluation(
      lambda variables, batch, first: eval_step(variables, batch | {'slot': batch['slot'] + first})
    )

  def __init__(
    self,
    mapped_step: Callable,
    loader: StreamedLoader,
    num_examples: int = 0,
    layout: Whole = WHOLE,
  ):
    """Keeps the arguments of `ResidentEvalFeed`; batches are of one shape anyway."""
    del num_examples, layout
    self._step, self._loader = mapped_step, loader

  def batches(self, variables: Any) -> Iterator[Any]:
    """Yields what the step gives of each batch, with a model's `variables`."""
    with contextlib.closing(self._loader.batches()) as batches:
      for i, batch in enumerate(batches):
        batch_size = batch['weight'].size * jax.process_count()
        yield self._step(variables, batch, np.int32(i * batch_size))

  def __call__(self, variables: Any) -> tuple[Any, Any]:
    """Returns (sums, rows) of a model's `variables` over every example, see `evaluate`."""
    return evaluate(self.batches(variables))
