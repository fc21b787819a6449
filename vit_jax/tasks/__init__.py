"""Tasks: what is learnt. `config.task` names one, `config.loss` has its options."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vit_jax import user_code
from vit_jax.errors import check_choice
from vit_jax.models import ModelConfig, fields
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.dino import DINO
from vit_jax.tasks.localization import Localization
from vit_jax.tasks.mae import MaskedAutoencoding
from vit_jax.tasks.part_segmentation import PartSegmentation
from vit_jax.tasks.segmentation import Segmentation
from vit_jax.tasks.simmim import SimMIM
from vit_jax.tasks.task import Apply, Batch, Metric, Outputs, Sums, Task

__all__ = [
  'TASKS',
  'Apply',
  'Batch',
  'Metric',
  'Outputs',
  'Sums',
  'Task',
  'build',
  'check_head',
  'default_options',
  'find',
  'stated',
  'task_for',
]

# What config.task can be.
TASKS = {
  'classification': Classification,
  'localization': Localization,
  'segmentation': Segmentation,
  'part_segmentation': PartSegmentation,
  'mae': MaskedAutoencoding,
  'simmim': SimMIM,
  'dino': DINO,
}


def find(name: str) -> type[Task]:
  """Returns a task's class by its name; FieldError, of 'task', if there is none.

  A class of the user's own is found by 'module:name'.
  """
  if user_code.is_reference(name):
    return user_code.find_class(name, Task, 'task', ('loss', 'metrics'))
  check_choice('task', name, TASKS)
  return TASKS[name]


def check_head(field: str, name: str, task: type[Task]) -> None:
  """Raises FieldError, of `field`, unless a task can put a head on features.

  It can put those in its `HEADS` there, or else, where it has some, one of the user's own.
  """
  if not (task.HEADS and user_code.is_reference(name)):
    check_choice(field, name, task.HEADS)


def default_options(name: str) -> ConfigDict:
  """Returns the options of a task with their defaults: `config.loss`."""
  return fields.defaults(find(name))


def build(name: str, options: Mapping[str, Any], num_classes: int, input: str = 'image') -> Task:
  """Builds a task.

  Args:
    name: as for `find`.
    options: by name; those left out have their defaults.
    num_classes: of the data.
    input: `Backbone.INPUT` of the model.

  Raises:
    FieldError: there is no such task, or an option is unknown or has a wrong value.
  """
  cls = find(name)
  options = fields.check(cls, options, cls.NOT_CONFIG)
  return cls(num_classes=num_classes, input=input, **options)


def task_for(config: ModelConfig, **options: Any) -> Task:
  """Returns the task that a loaded model does: what it states, or that of its head.

  A model with neither classifies.

  Args:
    config: of the model.
    **options: of the task, which stand before those that the model states.

  Raises:
    FieldError: as `build`.
  """
  head = (config.to_dict().get('head') or {}).get('name')
  told = config.task or {'name': _of_head(head), 'options': {}}
  return build(told['name'], {**told['options'], **options}, config.num_classes, config.model.INPUT)


def stated(name: str, task: Task, head: str | None) -> dict[str, Any] | None:
  """Returns `ModelConfig.task` of a model: None where its head tells the task.

  Args:
    name: of the task, as for `find`.
    task: what it learned.
    head: the name of the model's head; None for the backbone's own.
  """
  if name == _of_head(head):
    return None
  options = {option: getattr(task, option) for option in fields.names(type(task))}
  return {'name': name, 'options': fields.plain(options)}


def _of_head(head: str | None) -> str | None:
  """Returns the name of the first task that puts this head on features."""
  names = (name for name, task in TASKS.items() if (head in task.HEADS if head else not task.HEADS))
  return next(names, None)
