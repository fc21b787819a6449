"""Tasks: what is learnt. A task turns model outputs and a batch into a loss and other metrics."""

from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_jax.errors import check_choice
from vit_jax.tasks import classification

# (outputs, batch, train) -> {name: (sum, count)}; the quotient of 'loss' is what is minimised.
Metrics = dict[str, tuple[jax.Array, jax.Array]]
Task = Callable[[Any, dict[str, jax.Array], bool], Metrics]

_TASKS = {'classification': classification.make_task}


def build_task(config: ConfigDict, num_classes: int) -> Task:
  """Builds the task that `config.task` names.

  Raises:
    UsageError: an unknown task, or an option of it that is out of range.
  """
  check_choice('config.task', config.task, _TASKS)
  return _TASKS[config.task](config, num_classes)
