"""A ResNet with a ViT on it: configs/hybrid.py:SIZE,DATASET, as in hybrid.py:R50+B/16,imagenet2012.

SIZE is R+Ti/16, R26+S/32, R26+B/32, R50+B/16 or R50+L/32 (arXiv 2010.11929, 2106.10270); DATASET is
as in vit.py. Images that are stored small, CIFAR's and MNIST's, are enlarged until the ViT sees 8x8
positions. Weights go to config.init_from.
"""

from ml_collections import ConfigDict

from configs import common, datasets
from vit_jax.models import hybrid

_SIDE = 8  # positions of small images


def get_config(arg: str = 'R26+S/32,cifar10') -> ConfigDict:
  """Returns vit.py's recipe for these models."""
  size, dataset = datasets.split_arg(arg, default_size='R26+S/32')
  c = common.get_config(model='hybrid')
  c.model.update(hybrid.parse(size))
  datasets.apply(c, dataset)
  if dataset in datasets.STORED_SIZES:
    pixels = hybrid.HybridViT.reduction_of(c.model.resnet.num_layers) * c.model.patches.size[0]
    datasets.enlarge(c, _SIDE * pixels)
  c.num_epochs = 100.0
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 1e-3
  c.optimizer.weight_decay = 0.05
  c.schedule.name = 'cosine'
  c.grad_clip_norm = 1.0
  c.model.stochastic_depth = 0.1
  return c
