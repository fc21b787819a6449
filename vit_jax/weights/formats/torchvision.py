"""torchvision's models: state dicts, .pth or .safetensors.

github.com/pytorch/vision. A state dict doesn't tell how large images are and what is done to them:
it is taken to be as in torchvision's ImageNet evaluation. What is otherwise, and class names,
`write` puts into the file's metadata, where PyTorch doesn't look.
"""

import json
import os

from vit_jax.models import ModelConfig, Preprocessing
from vit_jax.weights import files, state_dicts
from vit_jax.weights.table import Source, Table

SUFFIXES = state_dicts.SUFFIXES
ON_HUB = False
IMAGE_SIZE = (224, 224)
PREPROCESS = Preprocessing(
  mean=(0.485, 0.456, 0.406),
  std=(0.229, 0.224, 0.225),
  crop='central',
  crop_fraction=0.875,
  interpolation='bilinear',
  rounding='nearest',
)


def holds(path: str) -> bool:
  """Whether it is a state dict."""
  return state_dicts.holds(path)


def read(path: str | os.PathLike) -> Source:
  """Returns what is in a file."""
  return state_dicts.read(path)


def write(
  path: str | os.PathLike, tensors: files.Tensors, config: ModelConfig, table: Table
) -> None:
  """Writes a state dict, .safetensors or .pth, which torchvision's model takes as it is."""
  own = {files.CONFIG_KEY: json.dumps(table.own_config(config))}
  if files.is_safetensors(path):
    files.write(path, files.format_safetensors(tensors, **own))
  else:
    files.write(path, files.format_torch(tensors, path, **own))
