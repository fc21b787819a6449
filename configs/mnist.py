"""A shallow ViT on MNIST, after a PyTorch write-up: configs/mnist.py:fixed or mnist.py:faithful.

`faithful` has that code's loss, which applies softmax before a cross-entropy that applies it again;
`fixed` hasn't. Both are printed beside its accuracy on the training split. As there, all of that
is trained on, and the test split chooses the best checkpoint.
"""

from ml_collections import ConfigDict

from configs import common
from vit_jax.errors import check_choice

_LOSSES = {'fixed': 'softmax', 'faithful': 'softmax_twice'}


def get_config(arg: str = 'fixed') -> ConfigDict:
  """Returns the configuration; `arg` is 'fixed' or 'faithful'."""
  check_choice('--config: mnist.py', arg, _LOSSES)
  c = common.get_config('vit')
  c.data.name = 'mnist'
  c.data.mean, c.data.std = (0.0,), (1.0,)  # pixels in [0, 1], as ToTensor gives them
  c.model.update(
    hidden_size=32,
    mlp_dim=128,
    num_layers=3,
    num_heads=4,
    patches={'size': (7, 7)},
    classifier='token',
    activation='relu',
  )
  c.loss.name = _LOSSES[arg]
  c.optimizer.name = 'adam'
  c.optimizer.learning_rate = 3e-4
  c.schedule.name = 'constant'
  c.batch_size = 64
  # 20 epochs of 937 whole batches, each with one line of metrics: train/accuracy is, as in the
  # write-up, the mean over an epoch while it is trained on.
  c.num_epochs, c.num_steps = 0.0, 20 * 937
  c.log_every = c.eval_every = 937
  c.reference.update(
    {'train/accuracy': 0.946, 'source': 'PyTorch write-up, softmax applied twice, 20 epochs'}
  )
  return c
