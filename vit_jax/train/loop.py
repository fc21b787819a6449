"""The training loop: steps, evaluations, checkpoints, and every way in which a run can end."""

import collections
import contextlib
import errno
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vit_jax import experiment_config, host_memory
from vit_jax.errors import UsageError
from vit_jax.run import directory, results, writers
from vit_jax.run.ending import Interrupted, NonFiniteError
from vit_jax.run.metrics import format_classes, format_values
from vit_jax.train import feeds, metrics, predictions
from vit_jax.train.experiment import Experiment
from vit_jax.train.length import differing_schedules
from vit_jax.train.profiler import Profiler
from vit_jax.train.signals import StopSignal
from vit_jax.train.state import TrainState, make_plateau

# What the shapes of a checkpoint depend on.
_READ_BACK = ('model', 'task', 'optimizer', 'plateau', 'ema_decay', 'freeze', 'grad_clip_norm')

# Of writing alone, which Orbax's errors name in words; and beside them, with a file in place of a
# folder or the other way round.
_FULL = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG
_DISK_ERRORS = *_FULL, errno.EIO, errno.EACCES, errno.ENOTDIR, errno.EISDIR

# What examples are no part of training depends on.
_HELD_OUT = ('data.train_split', 'data.val_split', 'seed')


def _is_main() -> bool:
  return jax.process_index() == 0


@contextlib.contextmanager
def _disk_errors(workdir: Path) -> Iterator[None]:
  """Turns a full or broken disk, as Python or Orbax report it, into a UsageError."""
  try:
    yield
  except UsageError:
    raise
  except OSError as e:
    if e.errno not in _DISK_ERRORS:
      raise
    file = e.filename and Path(os.fsdecode(e.filename))
    if file and not file.resolve().is_relative_to(workdir.resolve()):
      raise
    raise _unwritable(file or workdir, e.strerror) from e
  except (ValueError, RuntimeError) as e:
    reason = next((text for text in map(os.strerror, _FULL) if text in str(e)), None)
    if reason is None:
      raise
    raise _unwritable(workdir, reason) from e


def _unwritable(path: Path, reason: str) -> UsageError:
  return UsageError(
    f'--workdir: {path} cannot be written ({reason}); what was saved before is intact'
  )


def _metrics_of(
  experiment: Experiment,
  split: str,
  eval_feed,
  variables: Any,
  write: predictions.Write | None = None,
) -> dict[str, float]:
  """Evaluates `variables` on a split, giving metrics the names that they have in metrics.jsonl.

  `write` is called with the rows, which `eval_feed` then must give.
  """
  sums, rows = eval_feed(variables)
  if write:
    write(rows)
  return {f'{split}/{name}': value for name, value in experiment.values(sums, rows).items()}


def _check_finite(found: dict[str, float], step: int) -> None:
  for name, value in found.items():
    if not math.isfinite(value):
      raise NonFiniteError(f'{name} after step {step} is not finite')


def _place(experiment: Experiment) -> dict[str, Any]:
  """Returns what the order depends on in which a step's numbers are added up, beside the config."""
  return {
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'processes': jax.process_count(),
    'data': 'resident' if experiment.resident else 'streamed',
    'shard': experiment.config.shard,
  }


def _moves(old: dict[str, Any], new: dict[str, Any]) -> str:
  """Returns in words how the place of a run that goes on differs from that before; '' if not."""
  return '; '.join(f'{n} {old[n]} before, {new[n]} now' for n in new if old[n] != new[n])


class Run:
  """A run's state, on devices and on the host, and the steps that change it.

  Attributes:
    moves: in words, what may make a step's bits others than where the run was before.
  """

  def __init__(
    self, experiment: Experiment, workdir: Path, initial_state: Callable[[], TrainState]
  ):
    """Takes what gives the state before the first step, where there is no checkpoint."""
    from vit_jax.run.checkpoints import Checkpointer  # Orbax, imported while the step is compiled

    self.experiment, self.config, self.workdir = experiment, experiment.config, workdir
    self.checkpointer = Checkpointer(workdir / directory.CHECKPOINTS)
    # What a checkpoint holds besides the state: the best evaluation, evaluations since, ...
    self.meta = {'best': None, 'waited': 0, 'stopped': False, 'window': {}}
    if found := self.checkpointer.restore(experiment.state_shapes):
      state, self.meta = found
    else:
      state = initial_state()
    place = _place(experiment)
    self.moves = _moves(self.meta.get('place', place), place)  # earlier versions recorded none
    self.meta['place'] = place
    self.state, self.step = feeds.put_on_devices(state, experiment.layout), int(state.step)
    self.window = metrics.Window(experiment.task.metrics, self.meta['window'])
    self.seconds, self.timed_steps = 0.0, 0  # of training, compilation left out
    if self.step < self.config.num_steps and 'best_if_longer' in self.meta:
      self.meta['best'] = self.meta.pop('best_if_longer')

  @property
  def done(self) -> bool:
    return self.step >= self.config.num_steps or self.meta['stopped']

  def next_boundary(self) -> int:
    """Returns the next step after which something happens besides training."""
    c = self.config
    periods = [c.log_every, c.eval_every, c.checkpoint_every]
    periods += self.experiment.evaluators.periods.values()
    ends = [(self.step // period + 1) * period for period in periods]
    ends += [end for end in (c.profile and (c.profile[0] - 1, c.profile[1])) if end > self.step]
    return min(c.num_steps, *ends)

  def evaluate(self, eval_feed) -> dict[str, float]:
    """Returns the metrics that are due after this step, the last step all; empty where none is.

    The task's are due after `config.eval_every` steps each, those of evaluators after their own
    periods, and before the first step.
    """

    def is_due(period: int) -> bool:
      return self.step % period == 0 or self.step == self.config.num_steps

    variables, evaluators = self.state.eval_variables, self.experiment.evaluators
    found = {}
    if self.step and is_due(self.config.eval_every):
      found = _metrics_of(self.experiment, self.experiment.judged, eval_feed, variables)
    due = [name for name, period in evaluators.periods.items() if is_due(period)]
    found |= evaluators(due, variables)
    _check_finite(found, self.step)
    return found

  def keeps(self, name: str) -> bool:
    """Whether metrics.jsonl keeps its number of a metric after this step, when the run goes on.

    A number that was due only because the run was to end here goes.
    """
    period = self.experiment.period(name)
    return self.done or (period is not None and self.step % period == 0)

  def test(self) -> dict[str, dict[str, float]]:
    """Evaluates on the test split what has been judged on another, at the end of the run.

    Returns:
      Metrics of the `final` state and of the `best` checkpoint; of this none where it is damaged.
      Empty where the test split was evaluated all along.
    """
    if self.experiment.judged == 'test':
      return {}
    eval_feed, best = self.experiment.eval_feed('test'), self.meta['best']['step']
    found = {'final': self._test(eval_feed, self.state.eval_variables, self.step)}
    if best == self.step:
      return found | {'best': found['final']}
    state, _ = self.checkpointer.restore(self.experiment.state_shapes, best)
    if state.step == best:
      variables = feeds.put_on_devices(state.eval_variables, self.experiment.layout)
      found['best'] = self._test(eval_feed, variables, best)
    return found

  def _test(self, eval_feed, variables: Any, step: int) -> dict[str, float]:
    found = _metrics_of(self.experiment, 'test', eval_feed, variables)
    _check_finite(found, step)
    return found

  def follow(self, value: float) -> None:
    """Updates whatever follows `config.monitor`, which an evaluation found to be `value`."""
    sign = 1 if self.experiment.monitored.higher_is_better else -1
    best = self.meta['best']
    is_better = best is None or value * sign > best['value'] * sign
    if is_better:
      self.meta['best'] = {'step': self.step, 'value': value}
    if self.step % self.experiment.period(self.config.monitor):
      # Due at the end alone. A longer run, which this may become, doesn't have it here.
      self.meta['best_if_longer'] = best
      return
    self.meta['waited'] = 0 if is_better else self.meta['waited'] + 1
    patience = self.config.early_stopping_patience
    self.meta['stopped'] = bool(patience) and self.meta['waited'] >= patience
    if plateau := make_plateau(self.config):
      # optax reduces the scale where a value doesn't fall.
      old = jax.device_get(self.state.plateau)
      _, new = plateau.update({}, old, value=np.float32(-value * sign))
      plateau = feeds.put_on_devices(jax.device_get(new), self.experiment.layout)
      self.state = self.state.replace(plateau=plateau)

  def save(self) -> None:
    """Starts to save a checkpoint."""
    self.meta['window'] = self.window.to_json()
    self.checkpointer.save(self.state, self.meta)

  def train(self, train_feed, eval_feed, writer, progress, stop_signal, profiler) -> None:
    """Runs to the end of the run.

    Raises:
      Interrupted: a signal came; the run is saved.
      NonFiniteError: nothing was saved since.
    """
    config, pending = self.config, collections.deque()
    first, logged = True, (0.0, 0)
    if not self.step:
      self._evaluate(eval_feed, writer, progress)
    while not self.done:
      profiler.start(self.step)
      boundary, start = self.next_boundary(), time.monotonic()
      self.state, sums, n = train_feed(self.state, self.step, boundary - self.step)
      pending.append((self.step, sums, n))
      self.step += n
      at_boundary = self.step == boundary
      signum = stop_signal.agreed(at_boundary)
      while len(pending) > (0 if at_boundary or signum else feeds.max_in_flight()):
        done_step, sums, n_done = pending.popleft()
        self.window.add(done_step, jax.device_get(sums), n_done)
      if not first:  # the first dispatch compiles
        self.seconds += time.monotonic() - start
        self.timed_steps += n
      profiler.stop(self.step)
      first = False
      progress.advance(self.step)
      if at_boundary and (self.step % config.log_every == 0 or self.step == config.num_steps):
        logged = self._log(writer, progress, logged)
      if at_boundary:
        self._evaluate_and_save(eval_feed, writer, progress)
      if signum and not self.done:
        self.save()
        self.checkpointer.wait()
        raise Interrupted(f'stopped and saved after step {self.step}', signum)

  def _log(self, writer, progress, logged: tuple[float, int]) -> tuple[float, int]:
    # A longer run may have no report here, and goes on adding.
    values = self.window.report(keep=self.step % self.config.log_every > 0)
    seconds, steps = self.seconds - logged[0], self.timed_steps - logged[1]
    if steps:
      values['images_per_second'] = steps * self.config.batch_size / seconds
    if (peak := host_memory.peak_mib()) is not None:
      values['peak_host_memory_mib'] = peak
    writer.write(self.step, values)
    shown = list(self.experiment.task.metrics)[:2]
    names = {n: f'train/{n}' for n in shown} | {'images/s': 'images_per_second'}
    progress.report(self.step, {k: values[name] for k, name in names.items() if name in values})
    return self.seconds, self.timed_steps

  def _evaluate(self, eval_feed, writer, progress) -> dict[str, float]:
    found = self.evaluate(eval_feed)
    if found:
      writer.write(self.step, found)
      text = format_values(found, self.experiment.descriptions)
      progress.note(f'step {self.step}  {text}')
    return found

  def _evaluate_and_save(self, eval_feed, writer, progress) -> None:
    config, improved = self.config, False
    last = self.step == config.num_steps
    found = self._evaluate(eval_feed, writer, progress)
    if config.monitor in found:
      self.follow(found[config.monitor])
      improved = self.meta['waited'] == 0
    if last or improved or self.meta['stopped'] or self.step % config.checkpoint_every == 0:
      self.save()


def _agreed(value: bool) -> bool:
  """Returns what process 0 says."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _finished(workdir: Path, step: int) -> dict[str, Any] | None:
  """Returns the results of a run that ended after a step; None before that, or if damaged."""
  try:
    summary = results.read(workdir)
  except UsageError as e:
    print(f'{e}; it is written anew', flush=True)
    return None
  return summary if summary and summary['step'] == step else None


def _initial_state(experiment: Experiment, workdir: Path) -> Callable[[], TrainState]:
  """Returns what gives the state before the first step.

  Where there is no checkpoint, it is made in the background: it compiles while the step is traced.
  """
  if jax.process_count() > 1 or directory.has_checkpoints(workdir):
    return experiment.initial_state
  background = ThreadPoolExecutor(1)
  state = background.submit(experiment.initial_state)
  background.shutdown(wait=False)
  return state.result


def _unset_values(config: ConfigDict, given: ConfigDict) -> dict[str, Any]:
  return directory.unset_values(config, given, experiment_config.defaults(config))


def train_and_evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
  """Trains the experiment in `workdir`, or goes on where a run there stopped.

  Args:
    config: the experiment, see `experiment_config`.
    workdir: the run directory.

  Returns:
    The content of results.json.

  Raises:
    UsageError: a mistake in the configuration or the folder.
    Interrupted: SIGTERM, SIGHUP or Ctrl-C; the run was saved.
    NonFiniteError: loss or gradients weren't finite; the last good checkpoint is kept.
  """
  experiment = Experiment(config, workdir)
  experiment.check_memory()
  with contextlib.ExitStack() as stack:
    stack.enter_context(_disk_errors(workdir))
    if _is_main():
      depending = functools.partial(differing_schedules, experiment.config)
      unset = _unset_values(experiment.config, config)
      claimed = directory.claimed(
        workdir, experiment.config, experiment.model_config, depending=depending, unset=unset
      )
      stack.enter_context(claimed)
    # Decodes and compiles in the background; a run with results has likely nothing left to train.
    is_new = not (workdir / results.FILE).exists()
    initial_state = _initial_state(experiment, workdir)
    train_feed = experiment.train_feed() if is_new else None
    eval_feed = experiment.eval_feed(experiment.judged) if is_new else None
    run = Run(experiment, workdir, initial_state)
    stack.callback(run.checkpointer.close)
    summary = _finished(workdir, run.step) if run.done and _is_main() else None
    is_complete = _agreed(summary is not None)
    if summary:
      early = ', where it stopped early' if run.meta['stopped'] else ''
      print(f'{workdir}: complete after step {run.step}{early}, nothing is left to train')
      if changed := directory.changed_reports(workdir, run.config, unset):
        names = ', '.join(f'config.{name}' for name in changed)
        advice = '; --mode=eval gives these metrics' if 'metrics' in changed else ''
        print(f'{workdir}: {names}: changed too late to have an effect{advice}')
      print(results.table(summary, workdir), flush=True)
      return summary
    if _is_main() and not is_complete:
      directory.write_configs(workdir, experiment.config, experiment.model_config)
      (workdir / results.FILE).unlink(missing_ok=True)  # of a shorter run, which now goes on
    writer = stack.enter_context(
      writers.MetricWriter(workdir, run.config, run.step, _is_main(), run.keeps)
    )
    shown = writers.Progress(run.config.num_steps, experiment.descriptions, _is_main())
    progress = stack.enter_context(shown)
    progress.note(experiment.describe())
    if run.step:
      progress.note(f'{workdir}: going on after step {run.step}')
      if run.moves and not run.done:
        progress.note(
          f'{workdir}: {run.moves}: numbers may be added up in another order, and the end then '
          "differs in some bits from an uninterrupted run's"
        )
    try:
      if not run.done:
        steps = run.config.profile if _is_main() else ()
        profiler = stack.enter_context(Profiler(steps, workdir / 'profile', progress.note))
        train_feed = train_feed or experiment.train_feed()
        eval_feed = eval_feed or experiment.eval_feed(experiment.judged)
        with train_feed, StopSignal() as stop_signal:
          run.train(train_feed, eval_feed, writer, progress, stop_signal, profiler)
      train_feed = eval_feed = None  # their data make room for those of the test split
      tested = {} if is_complete else run.test()
      lines = [line for line in writer.history if line['step'] == run.step]
      if tested and not any(tested['final'].keys() <= line.keys() for line in lines):
        writer.write(run.step, tested['final'])
    except NonFiniteError as e:
      kept = run.checkpointer.latest_step()
      kept = 'nothing was saved yet' if kept is None else f'the checkpoint of step {kept} is kept'
      raise NonFiniteError(f'{e}; {kept} in {workdir / directory.CHECKPOINTS}') from e
    finally:
      title = f'{run.config.model.name} on {experiment.data_title}'
      writer.draw(title, experiment.descriptions)
    run.checkpointer.wait()
    summary = results.collect(run, writer.history, tested)
    if _is_main():
      directory.write_json(workdir / results.FILE, summary)
      progress.note(results.table(summary, workdir))
  return summary


def evaluate(config: ConfigDict, workdir: Path, path: str | None = None) -> dict[str, Any]:
  """Evaluates the best checkpoint in `workdir` (the last, where there is none) and prints it.

  Args:
    config: the experiment.
    workdir: the run directory.
    path: of a file for what is predicted of each example; see `predictions.writer`.

  Raises:
    UsageError: no run or checkpoint there, or all are damaged; `path` can't be written.
  """
  directory.check_folders(workdir)
  experiment = Experiment(config, workdir)
  experiment.check_memory(trains=False)
  with predictions.writer(experiment, path) as write:
    if _is_main():
      only = _READ_BACK + (_HELD_OUT if experiment.judged == 'val' else ())
      unset = _unset_values(experiment.config, config)
      directory.check(workdir, experiment.config, only, unset=unset)
    return _evaluate_best(experiment, workdir, write)


def _evaluate_best(
  experiment: Experiment, workdir: Path, write: predictions.Write | None
) -> dict[str, Any]:
  from vit_jax.run.checkpoints import Checkpointer

  checkpointer = Checkpointer(workdir / directory.CHECKPOINTS, read_only=True)
  template = experiment.state_shapes
  found = checkpointer.restore(template)
  if found and found[1]['best']:
    found = checkpointer.restore(template, found[1]['best']['step'])
  checkpointer.close()
  if found is None:
    raise UsageError(f'--workdir: {workdir} holds no checkpoint yet')
  state, _ = found
  variables = feeds.put_on_devices(state.eval_variables, experiment.layout)
  found, splits = {}, list(dict.fromkeys((experiment.judged, 'test')))
  for split in splits:
    writes = write if split == 'test' else None
    eval_feed = experiment.eval_feed(split, with_rows=writes is not None)
    found |= _metrics_of(experiment, split, eval_feed, variables, writes)
  found |= experiment.evaluators(experiment.evaluators.periods, variables)
  found = {'step': int(state.step), **found}
  if _is_main():
    lines = [format_values(found, experiment.descriptions)]
    for split in splits:
      values = {name: v for name, v in found.items() if name.startswith(f'{split}/')}
      for name, text in format_classes(values, experiment.descriptions).items():
        lines.append(f'{split} {name}: {text}' if len(splits) > 1 else f'{name}: {text}')
    print('\n'.join(lines), flush=True)
  return found
