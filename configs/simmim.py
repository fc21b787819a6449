"""SimMIM, pre-training without labels (arXiv 2111.09886): configs/simmim.py:BACKBONE,DATASET.

BACKBONE is a ViT's size, as in simmim.py:B/16,imagenet2012, or swin- and a Swin's, which may have a
window, as in simmim.py:swin-B,imagenet2012; sizes and DATASET are as in vit.py and swin.py. The
recipe is the published one of 100 epochs (github.com/microsoft/SimMIM, configs/swin_base__100ep),
with images of 192 pixels for a Swin, and of 224 for a ViT. Images that are stored small, CIFAR's
and MNIST's, have blocks of 4 pixels. What was learned goes to configs/finetune.py as
config.init_from.
"""

from ml_collections import ConfigDict

from configs import datasets, swin, vit
from vit_jax import config_fields
from vit_jax.errors import check_choice

_RATE = 2e-4  # for each 512 images in a batch
_SWIN_SIZE = 192  # pixels; windows of 6 divide the maps of all stages
_WARMUP = {'imagenet2012': 6255}  # 10 epochs


def get_config(arg: str = 'swin-B,imagenet2012') -> ConfigDict:
  """Returns the configuration; `arg` is 'BACKBONE,DATASET'."""
  backbone, dataset = datasets.split_arg(arg, default_size='swin-B')
  kind, is_swin, size = backbone.partition('-')
  if is_swin:
    check_choice('--config: SimMIM backbone', kind, ('swin',))
  c = swin.get_config(f'{size},{dataset}') if is_swin else vit.get_config(f'{kind},{dataset}')
  config_fields.set_task(c, 'simmim')
  c.data.val_split = ''  # that of a folder: nothing depends on classes here
  c.model.activation = 'gelu_exact'
  c.model.stochastic_depth = 0.0 if is_swin else 0.1
  c.monitor = 'loss'
  c.grad_clip_norm = 5.0
  if dataset in datasets.STORED_SIZES:
    c.loss.mask_patch_size = 4
    c.model.stochastic_depth = 0.0
    c.batch_size = 256
    c.num_epochs = 100.0
    c.schedule.warmup_steps = 500
    if not is_swin:
      c.model.posemb_init_stddev = 0.3  # positions must be told apart soon
      c.optimizer.learning_rate = 3e-3
    return c
  if is_swin:
    c.data.image_size = (_SWIN_SIZE, _SWIN_SIZE)
    c.model.window_size = c.model.window_size if '/' in size else (6,)
  if c.data.crop == 'inception':
    c.data.crop_area = (0.67, 1.0)
  c.batch_size = 2048
  c.num_epochs = 100.0
  c.schedule.warmup_steps = _WARMUP.get(dataset, 0)
  c.optimizer.learning_rate = _RATE / 512 * c.get_ref('batch_size').to_float()
  c.schedule.end = c.optimizer.get_ref('learning_rate') / 20
  return c
