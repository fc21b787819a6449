"""What a run leaves and shows: metrics.jsonl, TensorBoard events, curves, progress, a summary."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vit_jax.run import directory
from vit_jax.run.metrics import Descriptions, format_values


def read_history(path: Path) -> list[dict[str, Any]]:
  """Returns the lines of a metrics.jsonl; a last line cut short by a crash is left out."""
  lines = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        lines.append(json.loads(line))
      except ValueError:
        break
  return lines


class MetricWriter(contextlib.AbstractContextManager):
  """Appends metrics to metrics.jsonl and TensorBoard, and draws plots/curves.png from them."""

  def __init__(self, workdir: Path, start_step: int, enabled: bool = True):
    """Opens the files; lines after `start_step`, which a resumed run writes again, are dropped.

    Only the history is kept where not `enabled`: one process of several writes.
    """
    self._workdir, self._enabled, self.history = workdir, enabled, []
    if not enabled:
      return
    path = workdir / 'metrics.jsonl'
    if start_step:  # else the first evaluation will be written again, too
      self.history = [line for line in read_history(path) if line['step'] <= start_step]
    directory.write_text(path, ''.join(json.dumps(line) + '\n' for line in self.history))
    self._file = path.open('a', buffering=1)
    from tensorboardX import SummaryWriter  # imports PyTorch, where that is installed: seconds

    self._tensorboard = SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=start_step and start_step + 1, write_to_disk=True
    )

  def write(self, step: int, values: dict[str, float]) -> None:
    """Appends one line; `values` maps names like 'train/loss' to numbers."""
    self.history.append({'step': step, **values})
    if not self._enabled:
      return
    self._file.write(json.dumps(self.history[-1]) + '\n')
    for name, value in values.items():
      self._tensorboard.add_scalar(name, value, step)

  def draw(self, title: str, descriptions: Descriptions) -> None:
    """Draws plots/curves.png, where there is anything to draw."""
    if not (self._enabled and self.history):
      return
    from vit_jax.run import plots  # Matplotlib, which takes half a second to import

    (self._workdir / 'plots').mkdir(exist_ok=True)
    figure = plots.curves(self.history, title, descriptions)
    figure.savefig(self._workdir / 'plots' / 'curves.png', dpi=120)

  def __exit__(self, *unused):
    if self._enabled:
      self._file.close()
      self._tensorboard.close()


def format_seconds(seconds: float) -> str:
  """Returns h:mm:ss."""
  minutes, seconds = divmod(round(seconds), 60)
  return f'{minutes // 60}:{minutes % 60:02}:{seconds:02}'


def _terminal_width() -> int:
  try:
    return os.get_terminal_size(sys.stderr.fileno()).columns
  except (OSError, ValueError):  # not a terminal, or replaced by something without a file
    return 0


class Progress(contextlib.AbstractContextManager):
  """One bar on a terminal, plain lines elsewhere, nothing where `enabled` is False.

  The pace counts from the first `advance`, which comes after loading and compiling.
  """

  def __init__(self, num_steps: int, descriptions: Descriptions, enabled: bool = True):
    self._enabled, self._num_steps, self._descriptions = enabled, num_steps, descriptions
    self._terminal, self._bar, self._start = enabled and _terminal_width() > 0, None, None

  def advance(self, step: int) -> None:
    """Moves to `step`."""
    if self._start is None:
      self._start = step, time.monotonic()
      if self._terminal:
        self._bar = tqdm(total=self._num_steps, initial=step, unit='step', dynamic_ncols=True)
    elif self._bar is not None:
      self._bar.update(step - self._bar.n)

  def report(self, step: int, values: dict[str, float]) -> None:
    """Shows training metrics after `step`, with the time left at the pace so far."""
    text = format_values(values, self._descriptions)
    if self._bar is not None:
      self._bar.set_postfix_str(text, refresh=False)
      return
    first, start = self._start
    left = ''
    if step > first:
      pace = (time.monotonic() - start) / (step - first)
      left = f'  {format_seconds(pace * (self._num_steps - step))} left'
    self.note(f'step {step}/{self._num_steps}  {text}{left}')

  def note(self, text: str) -> None:
    """Prints a line of its own."""
    if not self._enabled:
      return
    if self._bar is not None:
      self._bar.write(text, file=sys.stdout)
    else:
      print(text, flush=True)

  def __exit__(self, *unused):
    if self._bar is not None:
      self._bar.close()
