"""ViTs on CIFAR-10 in 50 epochs: configs/cifar10.py:basic, :pe, :pe_conv or :strong.

The first three follow a PyTorch write-up: learned positions and patches by a linear layer; fixed
sinusoidal positions; those, and patches by a convolution. A convolution whose stride is its size is
that linear layer computed in another way, so that `pe` and `pe_conv` differ here by rounding alone:
a difference between their accuracies is chance. `strong` is a recipe for the same epochs and size.

The published accuracies are the best of 50 epochs on the test split. So test chooses the best
checkpoint here, too; --config.data.val_split='10%' chooses without it.
"""

from ml_collections import ConfigDict

from configs import common, datasets
from vit_jax.errors import check_choice

# arg -> positional_embedding, patch_embedding, published test accuracy
_PUBLISHED = {
  'basic': ('learned_1d', 'linear', 0.7503),
  'pe': ('sinusoidal_1d', 'linear', 0.7605),
  'pe_conv': ('sinusoidal_1d', 'conv', 0.7855),
}


def get_config(arg: str = 'basic') -> ConfigDict:
  """Returns the configuration; `arg` is 'basic', 'pe', 'pe_conv' or 'strong'."""
  check_choice('--config: cifar10.py', arg, (*_PUBLISHED, 'strong'))
  c = common.get_config('vit')
  datasets.apply(c, 'cifar10')  # crops with padding 4, flips, normalisation per channel
  c.model.update(
    hidden_size=192, mlp_dim=768, num_layers=12, num_heads=12, patches={'size': (4, 4)}
  )
  c.num_epochs = 50.0
  _strong(c) if arg == 'strong' else _published(c, *_PUBLISHED[arg])
  return c


def _published(c: ConfigDict, positions: str, patches: str, accuracy: float) -> None:
  c.model.positional_embedding = positions
  c.model.patch_embedding = patches
  c.batch_size = 256
  c.optimizer.name = 'adam'
  c.optimizer.learning_rate = 1e-3
  c.optimizer.weight_decay = 5e-5  # coupled, and of all parameters, as PyTorch's Adam
  c.optimizer.no_decay = ''
  c.schedule.name = 'constant'
  c.reference.update({'test/accuracy': accuracy, 'source': 'PyTorch write-up, best of 50 epochs'})


def _strong(c: ConfigDict) -> None:
  """What little data and few epochs ask of a ViT: arXiv 2205.01580 for the model and the mild
  mixup, 2112.13492 (ViTs of this size on CIFAR-10) for the rest."""
  c.model.update(
    num_heads=3, classifier='gap', positional_embedding='sinusoidal_2d', stochastic_depth=0.1
  )
  c.augment.rand_augment.update(num_ops=2, magnitude=10.0)
  c.augment.mixup_alpha = 0.2
  c.loss.label_smoothing = 0.1
  c.batch_size = 128
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 1e-3
  c.optimizer.weight_decay = 0.05
  c.schedule.name = 'cosine'
  c.schedule.warmup_steps = 5 * 390  # 5 epochs
  c.grad_clip_norm = 1.0
  c.ema_decay = 0.999
