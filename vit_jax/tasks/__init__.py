"""Tasks: what is learnt. `config.task` names one, `config.loss` has its options."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

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
  'default_options',
  'find',
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
  """Returns a task's class by its name; FieldError, of 'task', if there is none."""
  check_choice('task', name, TASKS)
  return TASKS[name]


def default_options(name: str) -> ConfigDict:
  """Returns the options of a task with their defaults: `config.loss`."""
  return fields.defaults(find(name))


def build(name: str, options: Mapping[str, Any], num_classes: int, input: str = 'image') -> Task:
  """Builds a task.

  Args:
    name: a key of `TASKS`.
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
  """Returns the task that a loaded model does: that of its head, or else classification.

  Args:
    config: of the model.
    **options: of the task.

  Raises:
    FieldError: as `build`.
  """
  head = (config.to_dict().get('head') or {}).get('name')
  found = (name for name, task in TASKS.items() if (head in task.HEADS if head else not task.HEADS))
  name = next(found)
  return build(name, options, config.num_classes, config.model.INPUT)
