"""A ViT with TokenLearner (arXiv 2106.11297): configs/token_learner.py:SIZE,DATASET."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import vit


def get_config(arg: str = 'Ti/4,cifar10') -> ConfigDict:
  """Returns the configuration of vit.py:`arg` with a TokenLearner halfway up the encoder."""
  c = vit.get_config(arg)
  c.model.name = 'token_learner'
  c.model.classifier = 'gap'
  c.model.tokenizer = ConfigDict()
  c.model.tokenizer.type = 'dynamic'  # patch: no TokenLearner
  c.model.tokenizer.num_tokens = 8
  c.model.tokenizer.tokenlearner_loc = placeholder(int)  # layer that it precedes; None: the middle
  c.model.tokenizer.use_tokenfuse = False  # put the learned tokens back on the grid, every layer
  c.model.tokenizer.use_v11 = True  # MLP and softmax; False: four convolutions and a sigmoid
  return c
