"""ViViT (arXiv 2103.15691) on videos: configs/vivit.py:SIZE-MODEL,DATASET, as in B/16x2-2,ucf101.

SIZE is Ti, S, B, L, H, g or G with the side of a tubelet in pixels and its frames. MODEL is the
paper's: 1 attends over space and time at once, 2 has a factorised encoder, 3 factorises the
self-attention of each layer, 4 its dot products. DATASET is a set of videos that TFDS has prepared,
or a folder of videos by its path. vivit.py:MODEL,moving_mnist learns on a CPU, in minutes, where
moving digits go; of eight directions. Weights, of videos or of images, go to config.init_from.
"""

import os
import re

from ml_collections import ConfigDict

from configs import common, datasets
from vit_jax import config_fields
from vit_jax.errors import UsageError
from vit_jax.models import sizes

# The paper's model -> the backbone, and its attention.
_MODELS = {
  '1': ('vivit', 'spacetime'),
  '2': ('space_time_vivit', 'factorized_encoder'),
  '3': ('vivit', 'factorized_self_attention_block'),
  '4': ('vivit', 'factorized_dot_product_attention'),
}
_TEMPORAL_LAYERS = 4  # of model 2, as published for B


def get_config(arg: str = '1,moving_mnist') -> ConfigDict:
  """Returns a ViViT's configuration; `arg` is 'SIZE-MODEL,DATASET' or 'MODEL,moving_mnist'."""
  variant, dataset = datasets.split_arg(arg, default_size='1', example='moving_mnist')
  size, _, number = variant.rpartition('-')
  match = re.fullmatch(r'(\w+/\d+)x([1-9]\d*)', size)
  if number not in _MODELS or not (match or (not size and dataset == 'moving_mnist')):
    raise UsageError(
      f"--config: {arg!r} is not 'SIZE-MODEL,DATASET', as in 'B/16x2-1,ucf101', or "
      "'MODEL,moving_mnist'"
    )
  name, attention = _MODELS[number]
  c = common.get_config(name)
  datasets.apply(c, dataset)
  if os.sep in dataset:
    config_fields.set_data(c, 'video_folder')
  c.model.attention_config.type = attention
  c.model.classifier = 'token' if number in '12' else 'gap'  # as published
  c.num_epochs = 30.0
  c.batch_size = 64
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 1e-3
  c.optimizer.weight_decay = 0.05
  c.schedule.name = 'cosine'
  c.grad_clip_norm = 1.0
  if match:
    fields = sizes.parse(match[1])
    fields['patches'] = {'size': (*fields['patches']['size'], int(match[2]))}
    _set_size(c, temporal_layers=_TEMPORAL_LAYERS, **fields)
    c.model.stochastic_droplayer_rate = 0.1
    c.data.num_frames = 32
    c.data.frame_stride = 2
    c.data.temporal_views = 4
  else:
    _moving_mnist(c)
  return c


def _set_size(
  c: ConfigDict, *, temporal_layers: int, hidden_size: int, patches: dict, **encoder: int
) -> None:
  """Sets the size of the encoder, or of model 2's two."""
  c.model.update(hidden_size=hidden_size, patches=patches)
  if c.model.name == 'vivit':
    c.model.update(encoder)
  else:
    c.model.update({f'spatial_{name}': value for name, value in encoder.items()})
    encoder['num_layers'] = temporal_layers
    c.model.update({f'temporal_{name}': value for name, value in encoder.items()})


def _moving_mnist(c: ConfigDict) -> None:
  """Sets what a CPU learns in minutes: clips of 8 x 32 x 32 pixels, 64 tubelets each."""
  c.data.options.size = 32
  c.data.mean, c.data.std = (0.1,), (0.28,)
  _set_size(
    c,
    temporal_layers=2,
    hidden_size=64,
    patches={'size': (8, 8, 2)},
    mlp_dim=128,
    num_layers=4,
    num_heads=4,
  )
  c.model.posemb_init_stddev = 0.5  # tubelets this small say little without their place
  # Frames that are alike, or but one, say nothing of the order at first.
  c.model.temporal_encoding_config.kernel_init_method = 'lecun_normal'
  c.data.resident = 'no'  # it sees no clip twice
  c.num_epochs, c.num_steps = 0.0, 400
  c.eval_every = 400
  c.schedule.warmup_steps = 100
