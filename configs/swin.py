"""A Swin Transformer on a data set: configs/swin.py:SIZE[/WINDOW],DATASET, as in swin.py:T,cifar10.

SIZE is T, S, B or L (arXiv 2103.14030); WINDOW is the side of a window in patches, 7 if left out;
DATASET is as in vit.py. Images that are stored small, CIFAR's and MNIST's, have patches of 2 pixels
and windows of 4, so that four stages fit. Weights go to config.init_from.
"""

from ml_collections import ConfigDict

from configs import common, datasets
from vit_jax.errors import FieldError, check_choice
from vit_jax.models.swin import SIZES

_STOCHASTIC_DEPTH = {'T': 0.2, 'S': 0.3, 'B': 0.5, 'L': 0.5}  # as published, for ImageNet


def get_config(arg: str = 'T,cifar10') -> ConfigDict:
  """Returns the published recipe for ImageNet; of small images, with less stochastic depth."""
  variant, dataset = datasets.split_arg(arg, default_size='T')
  size, _, window = variant.partition('/')
  check_choice('--config: Swin size', size, SIZES)
  c = common.get_config('swin')
  datasets.apply(c, dataset)
  embed_dim, depths, num_heads = SIZES[size]
  c.model.update(embed_dim=embed_dim, depths=depths, num_heads=num_heads)
  c.model.stochastic_depth = _STOCHASTIC_DEPTH[size]
  if dataset in datasets.STORED_SIZES:
    c.model.patches.size = (2, 2)
    c.model.window_size = (4,)
    c.model.stochastic_depth = 0.1
  if window:
    if not window.isdecimal() or not int(window):
      raise FieldError('--config: Swin window', f'{window!r} is not a number of patches from 1 on')
    c.model.window_size = (int(window),)
  c.num_epochs = 300.0
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 1e-3
  c.optimizer.weight_decay = 0.05
  c.schedule.name = 'cosine'
  c.grad_clip_norm = 5.0
  return c
