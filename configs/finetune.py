"""Fine-tuning the model of config.init_from: configs/finetune.py:[SIZE,]DATASET.

Without SIZE, the model is that of the weights, whichever it is. What else they decide (for a ViT,
activation, norm_epsilon, classifier, positional_embedding; and the mean and std of pixels) is
theirs too, unless it is set. SIZE is that of a ViT. Images keep the size that the data set has, but
for patches too large for it, which SIZE tells.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import common, datasets
from vit_jax import models
from vit_jax.models import sizes

# Steps and warmup steps, at a batch of 512, as big_vision and vision_transformer.
_STEPS = {'cifar10': (10_000, 500), 'cifar100': (10_000, 500), 'imagenet2012': (20_000, 500)}
_STEPS_OF_SMALL_SETS = (500, 100)
_LARGE_PATCH = 8  # pixels; from larger ones little is left of an image that is stored small


def get_config(arg: str = 'B/16,oxford_iiit_pet') -> ConfigDict:
  """Returns the configuration: SGD without weight decay (arXiv 2010.11929, 2106.10270)."""
  c = common.get_config('vit')
  size, dataset = datasets.split_arg(arg, default_size=None)
  datasets.apply(c, dataset)
  leave_open(c)
  if size:
    c.model.update(sizes.parse(size))
    if not c.data.image_size and max(c.model.patches.size) > _LARGE_PATCH:
      datasets.enlarge(c, 224)
  c.batch_size = 512
  c.num_epochs = 0.0  # in place of which stands
  c.num_steps, c.schedule.warmup_steps = _STEPS.get(dataset, _STEPS_OF_SMALL_SETS)
  c.optimizer.name = 'sgd'
  c.optimizer.momentum = 0.9
  c.optimizer.learning_rate = 0.01
  c.grad_clip_norm = 1.0
  return c


def leave_open(config: ConfigDict) -> None:
  """Leaves to the weights of config.init_from what they decide about model and pixels."""
  head = config.model.get('head')
  config.model = models.open_config()
  if head is not None:
    config.model.head = head
  config.data.mean = placeholder(tuple)
  config.data.std = placeholder(tuple)
