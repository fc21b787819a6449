"""The part of each point: configs/part_segmentation.py:SIZE,DATASET, as in base,shapenet_part.

SIZE is that of a VNT-Net, as in vnt.py. DATASET is shapenet_part, with its folder in
config.data.dir, or digits_in_space: clouds of two digits each, where a point's part is the digit
that it belongs to. Another model of points does it with --config.model.name. It
computes in float32, as vnt.py does and says why.
"""

from ml_collections import ConfigDict

from configs import vnt
from vit_jax import config_fields


def get_config(arg: str = 'small,digits_in_space') -> ConfigDict:
  """Returns the configuration; `arg` is 'SIZE,DATASET'."""
  c = vnt.get_config(arg)
  config_fields.set_task(c, 'part_segmentation')
  c.monitor = 'mean_iou'
  if c.data.name == 'digits_in_space':
    c.data.options.update(digits=2, num_points=192)
  else:
    c.model.head.category = True
  return c
