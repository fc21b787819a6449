"""The class of each pixel: configs/segmentation.py:HEAD,SIZE,DATASET, as in segvit,B/16,./camvid.

HEAD is linear, a linear layer on each token, or segvit (arXiv 2210.05844). SIZE is that of a ViT,
as in vit.py, or small: a ViT for a CPU and images of 96x128 pixels. DATASET is the path of a folder
of images and masks, with a slash in it. With --config.model.name=swin or another model, the linear
head reads its maps. The test split chooses the best checkpoint; --config.data.val_split=val leaves
that to a folder's own val.

Other sizes than small have SegViT's recipe, and start from --config.init_from: windows of 512
pixels, taken from images at random scales to train, and slid over the image to evaluate. It is made
for ADE20K, whose images it evaluates at 512 pixels in height.
"""

import os

from ml_collections import ConfigDict

from configs import common
from vit_jax import config_fields
from vit_jax.errors import UsageError
from vit_jax.models import sizes


def get_config(arg: str = 'segvit,small,./camvid') -> ConfigDict:
  """Returns the configuration; `arg` is 'HEAD,SIZE,DATASET'."""
  parts = arg.split(',')
  if len(parts) != 3 or os.sep not in parts[2]:
    raise UsageError(f"--config: {arg!r} is not 'HEAD,SIZE,DATASET', as in 'linear,small,./camvid'")
  head, size, folder = parts
  c = common.get_config(model='vit', task='segmentation')
  config_fields.set_head(c, head)
  c.data.update(name='masks', dir=folder, channels=3)
  c.model.classifier = 'gap'
  c.monitor = 'mean_iou'
  c.batch_size = 16
  c.augment.flip = True
  c.optimizer.name = 'adamw'
  c.augment.color_jitter.update(brightness=0.2, contrast=0.2, saturation=0.2)
  if size == 'small':
    c.model.update(hidden_size=128, mlp_dim=512, num_layers=6, num_heads=4)
    c.model.patches.size = (8, 8)
    c.model.posemb_init_stddev = 0.3  # positions must be told apart soon
    c.data.image_size = (96, 128)
    c.augment.crop_padding = 8
    c.num_epochs = 30.0
    c.optimizer.learning_rate = 1e-3
    c.optimizer.weight_decay = 0.05
    c.schedule.warmup_steps = 50
    c.grad_clip_norm = 1.0
  else:
    c.model.update(sizes.parse(size))
    c.model.stochastic_depth = 0.1
    c.data.update(image_size=(512, 683), train_size=(512, 512), crop='scale')
    c.model.head.window, c.model.head.stride = (512, 512), (341, 341)
    c.num_steps = 160_000
    c.optimizer.learning_rate = 2e-5
    c.optimizer.weight_decay = 0.01
    c.optimizer.head_lr_factor = 10.0
    c.schedule.name = 'linear'
    c.schedule.warmup_steps = 1500
    c.grad_clip_norm = 35.0
  if head == 'segvit':
    c.model.head.num_heads = max(c.model.hidden_size // 64, 1)  # of width 32
  return c
