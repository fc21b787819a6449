"""Tasks: what is learnt. A task turns model outputs and a batch into a loss and other metrics."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax.errors import check_choice
from vit_jax.tasks import classification, localization

# (outputs, batch, train) -> {name: (sum, count)}; the quotient of 'loss' is what is minimised.
# While it is traced, it raises UsageError for outputs that it can't use.
Metrics = dict[str, tuple[jax.Array, jax.Array]]
Task = Callable[[Any, dict[str, jax.Array], bool], Metrics]

# A module of a task has make_task(config, num_classes) -> Task; TARGETS, the entries of a record
# that it learns; and HEAD, the key in models.HEADS of what it needs on a model's features, or None.
_TASKS = {'classification': classification, 'localization': localization}


def task_module(config: ConfigDict) -> ModuleType:
  """Returns the module of the task that `config.task` names.

  Raises:
    UsageError: an unknown task.
  """
  check_choice('config.task', config.task, _TASKS)
  return _TASKS[config.task]


def build_task(config: ConfigDict, num_classes: int) -> Task:
  """Builds the task that `config.task` names.

  Raises:
    UsageError: an unknown task, or an option of it that is out of range.
  """
  return task_module(config).make_task(config, num_classes)
