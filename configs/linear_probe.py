"""A linear classifier on frozen features of config.init_from: configs/linear_probe.py:DATASET."""

from ml_collections import ConfigDict

from configs import finetune


def get_config(arg: str = 'B/16,oxford_iiit_pet') -> ConfigDict:
  """Returns the configuration of finetune.py:`arg` with all but a new head frozen."""
  c = finetune.get_config(arg)
  c.freeze = (r'(?!output_projection).*',)
  c.init_options.head = 'new'
  c.optimizer.learning_rate = 0.1
  return c
