"""scikit-learn's handwritten digits, 1,797 real 8x8 images: trains on two CPU cores in a minute.

There are too few for a validation split: the test split chooses the best checkpoint.
"""

from ml_collections import ConfigDict

from configs import common, datasets


def get_config(arg: str = '') -> ConfigDict:
  """Returns the configuration of a small ViT on 2x2 patches."""
  common.refuse_arg(__name__, arg)
  c = common.get_config('vit')
  datasets.apply(c, 'digits')
  c.batch_size = 128
  c.num_epochs = 120.0
  c.model.update(
    hidden_size=64,
    mlp_dim=256,
    num_layers=3,
    num_heads=4,
    patches={'size': (2, 2)},
    classifier='gap',
    posemb_init_stddev=0.5,  # on images this small, positions must be told apart from the start
  )
  c.optimizer.learning_rate = 2e-3
  c.optimizer.weight_decay = 0.05
  c.eval_every = 100
  return c
