"""VNT-Net (arXiv 2205.09690) on point clouds: configs/vnt.py:SIZE,DATASET, as in base,modelnet40.

SIZE is base, or small, which learns on a CPU in minutes; DATASET is digits_in_space, modelnet40, or
a folder of point clouds by its path. Rotations are those of `config.augment.rotation` to train and
of `config.data.test_rotation` to evaluate; none in this file.
"""

from ml_collections import ConfigDict

from configs import common, datasets
from vit_jax.errors import check_choice

# What differs from the defaults of the fields.
SIZES = {
  'base': {},
  'small': {
    'num_neighbors': 12,
    'num_edge_layers': 1,
    'hidden_size': 16,
    'num_layers': 2,
    'mlp_dim': 32,
    'fused_size': 32,
    'head_dims': (128, 64),
    'dropout_rate': 0.2,
  },
}


def get_config(arg: str = 'small,digits_in_space', model: str = 'vnt') -> ConfigDict:
  """Returns the configuration; `arg` is 'SIZE,DATASET', `model` a backbone with these fields."""
  size, dataset = datasets.split_arg(
    arg, default_size='small', sizes=SIZES, example='digits_in_space'
  )
  check_choice('--config: size', size, SIZES)
  c = common.get_config(model)
  datasets.apply(c, dataset)
  c.model.update(SIZES[size])
  # In bfloat16 the model is not invariant in practice: rotations changed logits by 0.16 of the
  # largest.
  c.dtype = 'float32'
  c.batch_size = 32
  c.num_epochs = 250.0
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 1e-3
  c.optimizer.weight_decay = 0.05
  c.schedule.name = 'cosine'
  c.grad_clip_norm = 1.0
  if dataset == 'digits_in_space':
    c.data.options.num_points = 128
    c.num_epochs, c.num_steps = 0.0, 1000
    c.optimizer.learning_rate = 1e-2
    c.eval_every = 500
    c.schedule.warmup_steps = 100
  return c
