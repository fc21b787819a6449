"""A ViT with TokenLearner (arXiv 2106.11297): configs/token_learner.py:SIZE,DATASET.

token_learner.py:mnist and token_learner.py:mnist,plain, with TokenLearner and without, are the pair
of a PyTorch write-up, which is after their accuracies and speeds on the same 196 patches. The
test split, which those are of, chooses the best checkpoint.
"""

from ml_collections import ConfigDict

from configs import vit


def get_config(arg: str = 'Ti/4,cifar10') -> ConfigDict:
  """Returns the configuration of vit.py:`arg` with a TokenLearner halfway up the encoder."""
  if arg in ('mnist', 'mnist,plain'):
    return _mnist(plain=arg == 'mnist,plain')
  c = vit.get_config(arg, model='token_learner')
  c.model.classifier = 'gap'
  return c


def _mnist(plain: bool) -> ConfigDict:
  """Returns the write-up's experiment; what it leaves open is chosen so that a CPU can run it."""
  c = get_config('Ti/2,mnist')
  # Heads and the ratio of the MLP are those of Keras's example of TokenLearner, at half its width.
  c.model.update(hidden_size=64, mlp_dim=128, num_layers=4, num_heads=4, stochastic_depth=0.0)
  c.model.posemb_init_stddev = 0.5  # patches this small say little without their place
  c.model.tokenizer.update(num_tokens=2, tokenlearner_loc=1)  # after the first layer
  c.model.tokenizer.use_v11 = False  # learns much faster here: its maps see a neighbourhood
  if plain:
    c.model.tokenizer.type = 'patch'
  c.num_epochs = 20.0
  c.optimizer.learning_rate = 3e-3
  c.schedule.warmup_steps = 468  # an epoch
  c.reference.update(
    {
      'test/accuracy': 0.99,
      'steps_per_second': 26.0 if plain else 72.0,
      'source': 'PyTorch write-up, about 20 epochs; speed on its own hardware',
    }
  )
  return c
