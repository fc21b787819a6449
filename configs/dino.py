"""Features without labels by DINO (arXiv 2104.14294): configs/dino.py:SIZE,DATASET.

SIZE and DATASET are those of configs/vit.py. The values are the defaults of facebookresearch/dino's
main_dino.py, at a batch of 1024; those of small images are at the end.
"""

from ml_collections import ConfigDict

from configs import common, datasets
from vit_jax.models import sizes

_EXAMPLES = {
  'digits': 1437,
  'mnist': 60_000,
  'fashion_mnist': 60_000,
  'cifar10': 50_000,
  'cifar100': 50_000,
  'imagenet2012': 1_281_167,
}
_EXAMPLES_OF_OTHERS = 50_000  # what steps are counted by


def get_config(arg: str = 'S/16,imagenet2012') -> ConfigDict:
  """Returns the configuration of DINO; `arg` is 'SIZE,DATASET'."""
  c = common.get_config('vit', task='dino')
  size, dataset = datasets.split_arg(arg, default_size='S/16')
  c.model.update(sizes.parse(size))
  datasets.apply(c, dataset)
  c.augment.update(crop_padding=0, shift=0)  # which the views have no need of
  c.model.update(activation='gelu_exact', stochastic_depth=0.1)
  c.batch_size = 1024
  c.num_epochs = 100.0
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 0.0005 / 256 * c.get_ref('batch_size').to_float()
  c.optimizer.weight_decay = 0.04
  c.optimizer.weight_decay_end = 0.4
  c.optimizer.no_decay = r'(^|/)(bias|scale)$'
  c.schedule.end = 1e-6
  c.grad_clip_norm_of_each = 3.0
  c.ema_decay = 0.996
  c.ema_decay_end = 1.0
  c.freeze_first = ('last_layer',)
  c.monitor = 'loss'
  c.augment.color_jitter.update(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
  c.augment.color_jitter.probability = 0.8
  c.augment.grayscale = 0.2
  if dataset in datasets.STORED_SIZES:
    _shrink(c, datasets.STORED_SIZES[dataset])
  epoch = _EXAMPLES.get(dataset, _EXAMPLES_OF_OTHERS) // c.batch_size
  c.schedule.warmup_steps = 10 * epoch
  c.freeze_first_steps = epoch
  return c


def _shrink(config: ConfigDict, side: int) -> None:
  """Brings the recipe to images of `side` pixels, smaller sets and shorter runs."""
  patch = config.model.patches.size[0]
  config.loss.local_size = max(round(96 / 224 * side / patch), 1) * patch
  config.loss.blur = config.loss.solarize = (0.0, 0.0, 0.0)  # little would be left to see
  # Small parts of them tell little, and a short run needs a sharper teacher not to collapse.
  config.loss.update(local_views=0, global_area=(0.6, 1.0))
  config.loss.update(teacher_temperature=0.02, teacher_temperature_start=0.02)
  config.batch_size = 256
  config.optimizer.learning_rate = 0.001 / 256 * config.get_ref('batch_size').to_float()
  config.optimizer.weight_decay_end = 0.04
  config.ema_decay = 0.99
  config.model.head.update(out_dim=256, hidden_size=512, bottleneck_size=128)
