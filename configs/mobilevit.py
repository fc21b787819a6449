"""A MobileViT (arXiv 2110.02178) on a data set: configs/mobilevit.py:SIZE,DATASET.

SIZE is XXS, XS or S, as in mobilevit.py:XXS,cifar10; DATASET is as in vit.py. Images that are
stored small, CIFAR's and MNIST's, keep their size: the first convolution and the last layer have a
stride of 1, so that the last maps of CIFAR have 4x4 positions. Weights go to config.init_from.
"""

from ml_collections import ConfigDict

from configs import common, datasets
from vit_jax.errors import check_choice
from vit_jax.models.mobilevit import SIZES

_STRIDES_OF_SMALL_IMAGES = (1, 1, 2, 2, 2, 1)


def get_config(arg: str = 'XXS,cifar10') -> ConfigDict:
  """Returns the published recipe for ImageNet, but for its images of several sizes."""
  size, dataset = datasets.split_arg(arg, default_size='XXS')
  check_choice('--config: MobileViT size', size, SIZES)
  c = common.get_config('mobilevit')
  datasets.apply(c, dataset)
  neck_hidden_sizes, hidden_sizes, expand_ratio = SIZES[size]
  c.model.update(neck_hidden_sizes=neck_hidden_sizes, hidden_sizes=hidden_sizes)
  c.model.expand_ratio = expand_ratio
  if dataset in datasets.STORED_SIZES:
    c.model.strides = _STRIDES_OF_SMALL_IMAGES
  else:
    c.data.image_size = (256, 256)
  c.batch_size = 1024
  c.num_epochs = 300.0
  c.loss.label_smoothing = 0.1
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 2e-3
  c.optimizer.weight_decay = 0.01
  c.schedule.name = 'cosine'
  c.schedule.warmup_steps = 3000
  return c
