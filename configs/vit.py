"""A vision transformer on a data set: configs/vit.py:SIZE,DATASET, as in vit.py:Ti/4,cifar10.

SIZE is Ti, S, B, L, H, g or G with a patch size in pixels; DATASET any that TFDS has prepared,
`digits`, or a folder of images by its path.
"""

from ml_collections import ConfigDict

from configs import common, datasets
from vit_jax.models import sizes


def get_config(arg: str = 'Ti/4,cifar10', model: str = 'vit') -> ConfigDict:
  """Returns a ViT's configuration; `arg` is 'SIZE,DATASET', `model` a backbone with its fields."""
  c = common.get_config(model=model)
  size, dataset = datasets.split_arg(arg, default_size='Ti/4')
  c.model.update(sizes.parse(size))
  datasets.apply(c, dataset)
  c.num_epochs = 100.0
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 1e-3
  c.optimizer.weight_decay = 0.05
  c.schedule.name = 'cosine'
  c.grad_clip_norm = 1.0
  c.model.stochastic_depth = 0.1
  return c
