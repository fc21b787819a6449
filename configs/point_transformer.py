"""A plain point transformer, to compare VNT-Net with: configs/point_transformer.py:SIZE,DATASET.

Sizes, data sets and training are those of vnt.py.
"""

from ml_collections import ConfigDict

from configs import vnt


def get_config(arg: str = 'small,digits_in_space') -> ConfigDict:
  """Returns the configuration of vnt.py:`arg` with ordinary neurons."""
  return vnt.get_config(arg, model='point_transformer')
