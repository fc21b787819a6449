"""A ResNet (arXiv 1512.03385) on a data set: configs/resnet.py:DEPTH,DATASET or resnet.py:DATASET.

DEPTH is resnet18, resnet34, resnet50, resnet101 or resnet152; DATASET as in vit.py. Weights go to
config.init_from.
"""

from ml_collections import ConfigDict

from configs import common, datasets
from vit_jax.errors import check_choice

_DEPTHS = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152')


def get_config(arg: str = 'resnet18,cifar10') -> ConfigDict:
  """Returns torchvision's recipe for ImageNet, with a cosine in place of steps."""
  depth, dataset = datasets.split_arg(arg, default_size='resnet18', sizes=_DEPTHS)
  check_choice('--config: model', depth, _DEPTHS)
  c = common.get_config(model=depth)
  datasets.apply(c, dataset)
  c.batch_size = 256
  c.num_epochs = 90.0
  c.optimizer.name = 'sgd'
  c.optimizer.momentum = 0.9
  c.optimizer.learning_rate = 0.1
  c.optimizer.weight_decay = 1e-4
  c.optimizer.no_decay = ''
  return c
