"""A trace of some steps of a run, which TensorBoard and Perfetto open."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax


class Profiler(contextlib.AbstractContextManager):
  """Traces steps of a run by jax.profiler; only one process of several does.

  Of a run that goes on from a step among them, the rest are traced.
  """

  def __init__(self, steps: Sequence[int], folder: Path, note: Callable[[str], None]):
    """Starts nothing yet.

    Args:
      steps: (first, last), counted from 1; () for none.
      folder: to write to.
      note: prints a line.
    """
    self._steps, self._folder, self._note, self._begun = tuple(steps), folder, note, None

  def start(self, step: int) -> None:
    """Called before each dispatch, when `step` steps are done: starts where it is due."""
    if self._steps and self._begun is None and self._steps[0] <= step + 1 <= self._steps[1]:
      self._begun = step + 1
      jax.profiler.start_trace(self._folder, create_perfetto_trace=True)

  def stop(self, step: int) -> None:
    """Called when `step` steps are computed: stops after the last of those to trace."""
    if self._begun is not None and step >= self._steps[1]:
      self._write(f'steps {self._begun} to {step}')

  def _write(self, what: str) -> None:
    self._steps = self._begun = None
    jax.profiler.stop_trace()
    traces = self._folder.rglob('perfetto_trace.json.gz')
    newest = max(traces, key=lambda path: path.stat().st_mtime)
    self._note(f'{what} are traced: {newest} for ui.perfetto.dev, {self._folder} for TensorBoard')

  def __exit__(self, *unused):
    if self._begun is not None:
      self._write(f'steps from {self._begun} on')
    elif self._steps:
      first, last = self._steps
      self._note(f'config.profile: steps {first} to {last} did not run here, and are not traced')
