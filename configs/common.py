"""What every experiment starts from: `vit_jax/experiment_config.py` says what the fields are."""

from ml_collections import ConfigDict

from vit_jax import experiment_config
from vit_jax.errors import UsageError


def get_config(model: str, task: str = 'classification') -> ConfigDict:
  """Returns the defaults, with the fields of a backbone (`models.BACKBONES`) and a task."""
  return experiment_config.default_config(model, task)


def refuse_arg(config: str, arg: str) -> None:
  """Raises UsageError where a config that takes no argument (after the colon) is given one."""
  if arg:
    raise UsageError(f'--config: {config} takes no argument, but was given {arg!r}')
