"""Parts of a configuration that are not every experiment's: a model's, a task's, a data set's.

`config.model` has the fields of a backbone, with a task's head in it, `config.loss` the options of
a task, `config.data.options` those of a data set; each comes from its owner, with its defaults.
"""

import contextlib

from ml_collections import ConfigDict

from vit_jax import models, tasks
from vit_jax.data import sources


def set_model(config: ConfigDict, name: str) -> None:
  """Gives `config.model` the fields of another backbone.

  Those that both have keep their values, unless these are the former backbone's defaults; a task's
  head stays. Where the config left its model open, the fields are open, too.

  Raises:
    FieldError: there is no such backbone.
  """
  old = config.get('model') or ConfigDict()
  new = models.default_config(name, all_open=old.get('name', name) is None)
  if old.get('name') is not None:
    _keep_changes(new, old, models.default_config(old.name))
  if 'head' in old:
    new.head = old.head
  with config.unlocked():
    config.model = new


def set_task(config: ConfigDict, name: str) -> None:
  """Names a task and gives `config.loss` its options, and `config.model.head` those of its head.

  Options that the former task has as well keep their values.

  Raises:
    FieldError: there is no such task.
  """
  new, heads = tasks.default_options(name), tasks.find(name).HEADS
  with config.unlocked():
    former = config.get('task')
    if former is not None:
      _keep_changes(new, config.loss, tasks.default_options(former))
    if config.model.get('head', {}).get('name') not in heads:
      if 'head' in config.model:
        del config.model.head
      if heads:
        config.model.head = models.head_config(heads[0])
    config.task, config.loss = name, new


def set_data(config: ConfigDict, name: str) -> None:
  """Names a data set and gives `config.data.options` its options with their defaults."""
  with config.unlocked():
    config.data.name, config.data.options = name, ConfigDict(sources.default_options(name))


def set_head(config: ConfigDict, name: str) -> None:
  """Gives `config.model.head` the options of another head of the task.

  Options that the former head has as well keep their values.

  Raises:
    FieldError: the task has no such head.
  """
  tasks.check_head('name', name, tasks.find(config.task))
  new, old = models.head_config(name), config.model.head
  _keep_changes(new, old, models.head_config(old.name))
  new.name = name
  with config.unlocked():
    config.model.head = new


def _keep_changes(new: ConfigDict, old: ConfigDict, defaults: ConfigDict) -> None:
  """Sets fields of `new` to what they are in `old`, where that isn't a default of its own.

  Those that have another type there, as one number for what is now a tuple, stay as they are.
  """
  for name in new:
    if name in old and old[name] != defaults.get(name):
      with contextlib.suppress(TypeError):
        new[name] = old[name]
