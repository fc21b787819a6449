"""From a configuration to one in which every field has its final value, and they fit each other."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vit_jax import models, tasks
from vit_jax.data import Source, kinds
from vit_jax.errors import FieldError, UsageError, check_choice, field_prefix
from vit_jax.models import Backbone, registry
from vit_jax.models import fields as fields_lib
from vit_jax.models.heads.head import Head
from vit_jax.precision import resolve_dtype
from vit_jax.ranges import MAX_INT
from vit_jax.run import writers
from vit_jax.tasks import Task


def resolve(config: ConfigDict, num_examples: int) -> ConfigDict:
  """Returns a copy in which every field that stands for another value has that value.

  Args:
    config: the experiment, each field valid by `experiment_config.check`.
    num_examples: size of the training split.

  Raises:
    UsageError: fields that don't fit each other, as a batch that doesn't divide.
  """
  c = config.copy_and_resolve_references()
  with field_prefix('config.'):
    c.dtype = resolve_dtype(c.dtype)
  c.eval_batch_size = c.eval_batch_size or c.batch_size
  for field in ('batch_size', 'eval_batch_size'):
    if c[field] % jax.device_count():
      raise UsageError(
        f'config.{field}: {c[field]} does not divide over {jax.device_count()} devices'
      )
  per_device = c.batch_size // jax.device_count()
  if per_device % c.grad_accum_steps:
    raise UsageError(
      f'config.grad_accum_steps: {c.grad_accum_steps} does not divide the '
      f'{per_device} examples of a device'
    )
  if per_device % 2 and (c.augment.mixup_alpha or c.augment.cutmix_alpha):
    raise UsageError(
      f'config.batch_size: {c.batch_size} gives a device {per_device} examples, '
      'and mixup and cutmix pair them: give an even number'
    )
  epoch = max(num_examples // c.batch_size, 1)
  c.num_steps = c.num_steps or steps_of_epochs(c, num_examples)
  if not 0 < c.num_steps <= MAX_INT:
    count = f'{c.num_steps:.3g} steps, more than {MAX_INT}' if c.num_steps else 'no step'
    raise UsageError(f'config.num_epochs: {c.num_epochs} gives {count}, and config.num_steps is 0')
  if c.schedule.warmup_steps >= c.num_steps:  # a short trial of a long experiment
    c.schedule.warmup_steps = c.num_steps // 2
  c.eval_every = c.eval_every or epoch
  c.checkpoint_every = c.checkpoint_every or c.eval_every
  c.log_every = c.log_every or max(min(c.eval_every, c.num_steps, 400) // 4, 1)
  with field_prefix('config.'):
    for name in c.writers:
      writers.find(name)
  if c.profile and not c.profile[0] <= c.profile[1] <= c.num_steps:
    raise UsageError(
      f'config.profile: {c.profile} is not (first, last) of the steps 1 to {c.num_steps}'
    )
  for evaluator in c.evaluators.values():
    evaluator.every = evaluator.every or c.eval_every
  if c.ema_decay_end is not None and not 0 < c.ema_decay <= c.ema_decay_end:
    raise UsageError(
      f'config.ema_decay_end: {c.ema_decay_end} is not between config.ema_decay={c.ema_decay}, '
      'above 0, and 1'
    )
  return c


def steps_of_epochs(config: ConfigDict, num_examples: int) -> int:
  """Returns how many steps config.num_epochs is."""
  return round(config.num_epochs * num_examples / config.batch_size)


def find_task(config: ConfigDict) -> type[Task]:
  """Returns the class of the task that `config.task` names; UsageError if there is none."""
  with field_prefix('config.'):
    return tasks.find(config.task)


def find_monitor(
  config: ConfigDict, split: str, of_task: Collection[str], of_evaluators: Collection[str]
) -> str:
  """Returns the metric that `config.monitor` stands for, with its split: 'val/accuracy'.

  Args:
    config: the experiment.
    split: that is evaluated during the run, 'val' or 'test'.
    of_task: names of metrics, without a split.
    of_evaluators: likewise, as 'knn/accuracy'.

  Raises:
    UsageError: there is no such metric, or it is of the other split.
  """
  monitor, data = config.monitor, config.data
  prefix, _, name = monitor.partition('/')
  if name in of_task and prefix in {'val', 'test'} - {split}:
    if split == 'val':
      raise UsageError(
        f'config.monitor: {monitor!r}, but the test split is evaluated once, at the end, as there '
        f'is config.data.val_split={data.val_split!r}; give {name!r}, or an empty val_split'
      )
    raise UsageError(
      f"config.monitor: {monitor!r}, but config.data.val_split is empty; give it, such as '10%'"
    )
  full = f'{split}/{monitor}' if monitor in of_task else monitor
  check_choice('config.monitor', full, [*(f'{split}/{name}' for name in of_task), *of_evaluators])
  return full


def build_model(config: ConfigDict, num_classes: int) -> Backbone | Head:
  """Returns the model of `config.model`, with the task's head, to train on the mapped axis 'batch'.

  Raises:
    UsageError: a field is unknown or has a wrong value.
  """
  fields, heads = fields_lib.plain(config.model), find_task(config).HEADS
  with field_prefix('config.model.'):
    if heads:
      fields['head'] = {'name': heads[0], **fields.get('head', {})}
      tasks.check_head('head.name', fields['head']['name'], find_task(config))
    elif 'head' in fields:
      raise FieldError('head', f'{fields["head"]}, but the task {config.task} has none')
    dtype = jnp.dtype(config.dtype)
    return models.build(fields, num_classes=num_classes, dtype=dtype, axis_name='batch')


def build_task(
  config: ConfigDict, model: Backbone | Head, num_classes: int, source: Source
) -> Task:
  """Returns the task of `config.task` and `config.loss`, on a model and a training split.

  Raises:
    UsageError: there is no such task, or an option is unknown or has a wrong value.
  """
  find_task(config)
  with field_prefix('config.loss.'):
    return tasks.build(config.task, config.loss, num_classes, model.INPUT).for_data(source)


def check_input(config: ConfigDict, model: Backbone | Head, record: Mapping[str, Any]) -> None:
  """Raises UsageError where a record of the data lacks what the model takes."""
  if model.INPUT not in record:
    has = ', '.join(name for name, *_ in kinds.entries(record))
    raise UsageError(
      f'config.model.name: {config.model.name!r} takes {kinds.kind_of(model.INPUT).plural}, and '
      f'the records of config.data.name={config.data.name!r} have {has} alone'
    )


def check_task(config: ConfigDict, model: Backbone | Head, task: Task) -> None:
  """Raises UsageError for a task that the model or the configuration doesn't suit."""
  with field_prefix('config.loss.'):
    task.check_model(model)
  if task.TEACHER and not config.ema_decay:
    raise UsageError(
      f'config.ema_decay: 0.0, but the task {config.task} learns from a moving average'
    )


def complete(config: ConfigDict, model: Backbone | Head, task: Task) -> None:
  """Sets the fields of `config` that its model and its task decide."""
  if isinstance(model, Head):
    options = {name: getattr(model, name) for name in fields_lib.names(type(model))}
    config.model.head = ConfigDict(
      {'name': registry.name_of(registry.HEADS, type(model)), **options}
    )
  config.loss = ConfigDict({n: getattr(task, n) for n in fields_lib.names(type(task))})
  if config.optimizer.no_decay is None:
    config.optimizer.no_decay = model.NO_DECAY
