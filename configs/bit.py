"""BiT on a data set: configs/bit.py:SIZE,DATASET, as in bit.py:R50x1,cifar10.

SIZE is R50x1, R50x3, R101x1, R101x3, R152x2 or R152x4 (arXiv 1912.11370); DATASET is as in vit.py.
Weights go to config.init_from.
"""

from ml_collections import ConfigDict

from configs import common, datasets
from vit_jax.errors import check_choice
from vit_jax.models.bit import SIZES


def get_config(arg: str = 'R50x1,cifar10') -> ConfigDict:
  """Returns the paper's recipe for training from scratch, with a cosine in place of steps."""
  size, dataset = datasets.split_arg(arg, default_size='R50x1')
  check_choice('--config: BiT size', size, SIZES)
  c = common.get_config(model='bit')
  datasets.apply(c, dataset)
  c.model.depths, c.model.width_factor = SIZES[size]
  c.batch_size = 256
  c.num_epochs = 90.0
  c.optimizer.name = 'sgd'
  c.optimizer.momentum = 0.9
  c.optimizer.learning_rate = 0.03
  c.optimizer.weight_decay = 1e-4
  c.optimizer.no_decay = ''
  c.schedule.warmup_steps = 500
  return c
