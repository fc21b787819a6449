"""DINO's checkpoints, of github.com/facebookresearch/dino: the backbone of the teacher.

The published files of backbones alone are what timm's are, to the name (`TimmViT`).
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from vit_jax.models import ModelConfig
from vit_jax.weights import files
from vit_jax.weights.table import Source
from vit_jax.weights.tables.timm_vit import TimmViT

_HEAD = re.compile(r'head\.(mlp\.\d+\.\w+|last_layer\.weight_[gv])')
# Of main_dino.py and eval_linear.py, whatever their arguments.
_PREPROCESS = {
  'mean': (0.485, 0.456, 0.406),
  'std': (0.229, 0.224, 0.225),
  'crop': 'central',
  'crop_fraction': 224 / 256,
}


class FacebookDINO(TimmViT):
  """What main_dino.py saves: of its `teacher` and `student` the former, as its evaluations read.

  The projection head is left out, as there. Nothing is written so: a backbone goes into timm's.
  """

  title = "facebookresearch's DINO"
  marks: ClassVar = {**TimmViT.marks, 'head.last_layer.weight_v': 2}

  # As vision_transformer.py there computes.
  assumed: ClassVar = {'activation': 'gelu_exact', 'classifier': 'token', 'norm_epsilon': 1e-6}

  def owns_config(self, config: Mapping[str, Any]) -> bool:
    return False  # it has none

  def canonical(self, name: str) -> str:
    return re.sub(r'^(module\.)?(backbone\.)?', '', name)

  def read_config(self, source: Source) -> dict[str, Any]:
    return {'preprocess': _PREPROCESS}

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    kept = {name: array for name, array in tensors.items() if not _HEAD.fullmatch(name)}
    return super().tidy(kept, entries, source)

  def writes(self, config: ModelConfig) -> bool:
    return False


TABLES = (FacebookDINO(),)
