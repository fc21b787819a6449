"""What a run leaves and shows: metrics.jsonl and other writers, curves, progress."""

import contextlib
import functools
import importlib.util
import json
import math
import os
import sys
import time
import types
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from ml_collections import ConfigDict
from tqdm import tqdm

from vit_jax import user_code
from vit_jax.errors import FieldError, UsageError, UsageWarning, check_choice
from vit_jax.regular_files import MAX_JSON, open_regular, read_text
from vit_jax.run import directory
from vit_jax.run.metrics import Descriptions, format_values

_FLUSH_SECONDS = 20
# Damaged lines that a warning names.
_MAX_SHOWN = 5


def read_history(path: Path) -> list[dict[str, Any]]:
  """Returns the lines of a metrics.jsonl; empty where there is none.

  A last line cut short by a crash is left out; of other damaged lines, a UsageWarning tells.

  Raises:
    UsageError: it can't be read.
  """
  if not path.exists():
    return []
  found, damaged = [], []
  try:
    with open_regular(path) as file:
      for number, line in enumerate(_lines(file), 1):
        if (values := _parse(line)) is not None:
          found.append(values)
        elif line.endswith(b'\n'):
          damaged.append(str(number))
  except OSError as e:
    raise UsageError(f'{path}: cannot be read ({e.strerror})') from e
  if damaged:
    shown = ', '.join(damaged[:_MAX_SHOWN]) + (', ...' if len(damaged) > _MAX_SHOWN else '')
    text = f'{path}: damaged, and left out: line {shown}'
    warnings.warn(text, UsageWarning, stacklevel=2)
  return found


def _lines(file: BinaryIO) -> Iterator[bytes]:
  """Yields the lines of a file, of any length; of a line that is too long, its end after a NUL."""
  while line := file.readline(MAX_JSON):
    while len(line) == MAX_JSON and not line.endswith(b'\n'):
      line = b'\0' + file.readline(MAX_JSON - 1)
    yield line


def _parse(line: bytes) -> dict[str, Any] | None:
  """Returns a line of metrics.jsonl: its step, and numbers by name; None of anything else.

  Numbers may be NaN and infinite, as metrics are that have no value.
  """
  try:
    found = json.loads(line)
    for value in found.values():
      math.isnan(value)  # raises for what isn't a number, or larger than any float
    return found if type(found['step']) is int else None
  except (ValueError, RecursionError, LookupError, TypeError, AttributeError, OverflowError):
    return None


class Writer:
  """Base class of what is told a run's metrics; only one process of several has writers.

  A run that was killed goes on from its last checkpoint, and its steps since are written again,
  with the same values but for speed and memory.
  """

  # What has to be installed for it.
  PACKAGE: ClassVar[str] = ''

  def __init__(self, workdir: Path, config: ConfigDict, start_step: int):
    """Opens the writer.

    Args:
      workdir: the run directory.
      config: the experiment, resolved.
      start_step: that the run goes on from. What was written of later steps counts no longer: the
        run writes these steps again. Where it is 0, all is written again.
    """

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Takes numbers by name, as 'train/loss' and 'images_per_second', after a step.

    Several calls for one step have different names.
    """
    raise NotImplementedError

  def close(self) -> None:
    """Called once at the end, however the run ends, unless its process is killed."""


class TensorBoard(Writer):
  """Events for TensorBoard in RUN/tensorboard, without TensorFlow.

  TensorBoard drops what was written of later steps than a resumed run's first.
  """

  PACKAGE = 'tensorboardX'

  def __init__(self, workdir: Path, config: ConfigDict, start_step: int):
    del config
    self._folder, self._flush_time = workdir / directory.TENSORBOARD, 0.0
    self._purge_step = start_step and start_step + 1

  def write(self, step: int, values: Mapping[str, float]) -> None:
    if '_writer' not in vars(self):
      status = _tensorboard().proto.event_pb2.SessionLog.START
      self._add(self._purge_step, session_log={'status': status})
    scalars = (_tensorboard().summary.scalar(name, value) for name, value in values.items())
    self._add(step, summary={'value': [value for scalar in scalars for value in scalar.value]})
    if time.monotonic() > self._flush_time:
      self._writer.flush()
      self._flush_time = time.monotonic() + _FLUSH_SECONDS

  def _add(self, step: int, **fields: Any) -> None:
    event = _tensorboard().proto.event_pb2.Event(wall_time=time.time(), step=step, **fields)
    self._writer.write_event(event)

  @functools.cached_property
  def _writer(self) -> Any:
    # Not a SummaryWriter, whose thread dies of a full disk, and who then waits for it.
    self._folder.mkdir(exist_ok=True)
    return _tensorboard().event_file_writer.EventsWriter(str(self._folder / 'events'))

  def close(self) -> None:
    if '_writer' in vars(self):
      self._writer.close()


@functools.cache
def _tensorboard() -> types.ModuleType:
  """Imports tensorboardX without PyTorch, which it would import for seconds, and needs not."""
  hides = 'torch' not in sys.modules
  if hides:
    sys.modules['torch'] = None
  try:
    import tensorboardX
  finally:
    if hides:
      del sys.modules['torch']
  return tensorboardX


class WeightsAndBiases(Writer):
  """A run of Weights & Biases, as its own environment variables say where: WANDB_MODE and others.

  Its id is kept in RUN/wandb/id, so that a resumed run goes on there. W&B leaves out steps that it
  has, whose values are the same.
  """

  PACKAGE = 'wandb'

  def __init__(self, workdir: Path, config: ConfigDict, start_step: int):
    del start_step
    import wandb

    path = workdir / 'wandb' / 'id'
    if not path.exists():
      path.parent.mkdir(exist_ok=True)
      directory.write_text(path, uuid.uuid4().hex)
    try:
      self._run = wandb.init(
        project=os.environ.get('WANDB_PROJECT', 'vit_jax'),
        name=workdir.resolve().name,
        id=read_text(path),
        resume='allow',
        dir=str(workdir),
        config=json.loads(config.to_json_best_effort()),
      )
    except wandb.Error as e:  # not logged in, or not reached
      raise UsageError(f"config.writers: 'wandb' does not start: {e}") from e

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    self._run.finish()


# What config.writers can name, beside 'module:Class'.
WRITERS = {'tensorboard': TensorBoard, 'wandb': WeightsAndBiases}


def find(name: str) -> type[Writer]:
  """Returns a writer's class by its name, a key of `WRITERS` or 'module:Class'.

  Raises:
    FieldError: of 'writers': there is none, or what it needs isn't installed.
  """
  if user_code.is_reference(name):
    return user_code.find_class(name, Writer, 'writers', ('write',))
  check_choice('writers', name, WRITERS)
  package = WRITERS[name].PACKAGE
  if importlib.util.find_spec(package) is None:
    raise FieldError('writers', f'{name!r} needs the package {package}: pip install {package}')
  return WRITERS[name]


class MetricWriter(contextlib.AbstractContextManager):
  """Appends metrics to metrics.jsonl, tells them writers, and draws plots/curves.png from them."""

  def __init__(
    self,
    workdir: Path,
    config: ConfigDict,
    start_step: int,
    enabled: bool = True,
    is_kept: Callable[[str], bool] = lambda name: True,
  ):
    """Opens the files, and the writers that `config.writers` names.

    Lines after `start_step`, which a resumed run writes again, are dropped.

    Args:
      workdir: the run directory.
      config: the experiment, resolved.
      start_step: that the run goes on from.
      enabled: else only the history is kept: one process of several writes.
      is_kept: whether a metric of `start_step` is, by its name. A run that goes on from its former
        end had more there.
    """
    self._workdir, self._enabled, self.history = workdir, enabled, []
    self._writers, self._stack = [], contextlib.ExitStack()
    if not enabled:
      return
    path = workdir / 'metrics.jsonl'
    if start_step:  # else the first evaluation will be written again, too
      self.history = [line for line in read_history(path) if line['step'] <= start_step]
    last, again = [line for line in self.history if line['step'] == start_step], []
    kept = [{k: v for k, v in line.items() if k == 'step' or is_kept(k)} for line in last]
    if kept != last:
      self.history[-len(last) :] = [line for line in kept if len(line) > 1]
      start_step -= 1  # writers drop what they have of that step
      # Where it is 0, writers start anew.
      again = [line for line in self.history if line['step'] > start_step or not start_step]
    directory.write_text(path, ''.join(json.dumps(line) + '\n' for line in self.history))
    self._file = self._stack.enter_context(path.open('a', buffering=1))
    for name in config.writers:
      self._writers.append(find(name)(workdir, config, start_step))
      self._stack.callback(self._writers[-1].close)
    for line in again:
      self._tell(line['step'], {name: value for name, value in line.items() if name != 'step'})

  def write(self, step: int, values: dict[str, float]) -> None:
    """Appends one line; `values` maps names like 'train/loss' to numbers."""
    self.history.append({'step': step, **values})
    if self._enabled:
      self._file.write(json.dumps(self.history[-1]) + '\n')
    self._tell(step, values)

  def _tell(self, step: int, values: dict[str, float]) -> None:
    for writer in self._writers:
      writer.write(step, values)

  def draw(self, title: str, descriptions: Descriptions) -> None:
    """Draws plots/curves.png, where there is anything to draw."""
    if not (self._enabled and self.history):
      return
    from vit_jax.run import plots  # Matplotlib, which takes half a second to import

    folder = self._workdir / directory.PLOTS
    folder.mkdir(exist_ok=True)
    figure = plots.curves(self.history, title, descriptions)
    figure.savefig(folder / 'curves.png', dpi=120)

  def __exit__(self, *unused):
    self._stack.close()


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
