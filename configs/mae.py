"""A masked autoencoder (arXiv 2111.06377): configs/mae.py:SIZE,DATASET, as in mae.py:B/16,./photos.

It learns from images without their labels. SIZE and DATASET are as in vit.py. The recipe is the
published one for ImageNet (github.com/facebookresearch/mae, PRETRAIN.md), with the encoder and the
decoder that its files have. Images that are stored small, CIFAR's and MNIST's, have a smaller
decoder and smaller batches. What was learned goes to configs/finetune.py as config.init_from.
"""

from ml_collections import ConfigDict

from configs import common, datasets
from vit_jax.models import sizes

_RATE = 1.5e-4  # for each 256 images in a batch


def get_config(arg: str = 'B/16,imagenet2012') -> ConfigDict:
  """Returns the configuration; `arg` is 'SIZE,DATASET'."""
  c = common.get_config(model='vit', task='mae')
  size, dataset = datasets.split_arg(arg, default_size='B/16')
  c.model.update(sizes.parse(size))
  datasets.apply(c, dataset)
  if c.data.crop == 'inception':
    c.data.crop_area = (0.2, 1.0)
  c.model.positional_embedding = 'sinusoidal_2d'
  c.model.activation = c.model.head.activation = 'gelu_exact'
  c.monitor = 'loss'
  c.optimizer.name = 'adamw'
  c.optimizer.b2 = 0.95
  c.optimizer.weight_decay = 0.05
  c.optimizer.no_decay = r'(^|/)(bias|scale)$'
  c.schedule.name = 'cosine'
  if dataset in datasets.STORED_SIZES:
    c.model.head.update(hidden_size=64, num_layers=2, num_heads=4)
    c.batch_size = 128
    c.num_epochs = 100.0
    c.schedule.warmup_steps = 100
    c.optimizer.learning_rate = 1e-3
  else:
    c.batch_size = 4096
    c.num_epochs = 800.0
    c.schedule.warmup_steps = 12_500  # 40 epochs of ImageNet
    c.optimizer.learning_rate = _RATE / 256 * c.get_ref('batch_size').to_float()
  return c
