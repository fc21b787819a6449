"""A MobileNetV3 (arXiv 1905.02244) on a data set: configs/mobilenet.py:SIZE,DATASET.

SIZE is large or small, as in mobilenet.py:small,cifar10; DATASET is as in vit.py. Images that are
stored small, CIFAR's and MNIST's, keep their size: the first two strides are 1. torchvision's
weights go to config.init_from. From random weights, evaluation is at chance for the first thousand
steps or so: the variances of depthwise convolutions start near 1e-4, and the running ones come down
from 1 by 1 % a step, as in torchvision.
"""

from ml_collections import ConfigDict

from configs import common, datasets
from vit_jax.errors import check_choice

_SIZES = ('large', 'small')
_STRIDES_OF_SMALL_IMAGES = (1, 1, 2, 2, 2)


def get_config(arg: str = 'small,cifar10') -> ConfigDict:
  """Returns a recipe for ImageNet, with a cosine in place of torchvision's steps."""
  size, dataset = datasets.split_arg(arg, default_size='small', sizes=_SIZES)
  check_choice('--config: MobileNetV3 size', size, _SIZES)
  c = common.get_config(f'mobilenet_v3_{size}')
  datasets.apply(c, dataset)
  if dataset in datasets.STORED_SIZES:
    c.model.strides = _STRIDES_OF_SMALL_IMAGES
  c.batch_size = 256
  c.num_epochs = 300.0
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 2e-3
  c.optimizer.weight_decay = 0.05
  c.schedule.name = 'cosine'
  c.schedule.warmup_steps = 1000
  c.loss.label_smoothing = 0.1
  return c
