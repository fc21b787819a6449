"""transformers' vit_msn, ijepa and deit: `vit` with other tokens, or by another name."""

from typing import Any, ClassVar

from vit_jax.weights import files
from vit_jax.weights.table import Source
from vit_jax.weights.tables.vit import HuggingFaceRelative, HuggingFaceViT

_NAMES = HuggingFaceViT.names


class HuggingFaceMSN(HuggingFaceRelative):
  """models/vit_msn: a ViT without a pooler."""

  model_type = 'vit_msn'
  title = 'a Hugging Face ViTMSN'
  yields = True  # without config.json, its tensors are a ViT's
  by_origin = True
  classes = ('ViTMSNForImageClassification', 'ViTMSNModel')
  names: ClassVar = {ours: name for ours, name in _NAMES.items() if ours != 'pre_logits'}
  defaults: ClassVar = {
    **{field: value for field, value in HuggingFaceViT.defaults.items() if field != 'pooler_act'},
    'layer_norm_eps': 1e-6,
  }


class HuggingFaceIJEPA(HuggingFaceRelative):
  """models/ijepa: no class token; the head of IJepaForImageClassification reads the mean."""

  model_type = 'ijepa'
  title = 'a Hugging Face I-JEPA'
  yields = True  # its tensors are among a ViT's
  classes = ('IJepaForImageClassification', 'IJepaModel')
  base = 'ijepa.'
  names: ClassVar = {
    ours: name for ours, name in _NAMES.items() if ours not in ('cls', 'pre_logits')
  }
  class_token = False
  places: ClassVar = HuggingFaceViT.places | {'classifier': ('gap',)}

  def classifier(self, source: Source) -> str:
    return 'gap'


class HuggingFaceDeiT(HuggingFaceRelative):
  """models/deit: DeiTForImageClassification, whose head reads the class token, and DeiTModel.

  The distillation token takes part in attention alone there, which makes it a register.
  """

  model_type = 'deit'
  title = 'a Hugging Face DeiT'
  classes = ('DeiTForImageClassification', 'DeiTModel')
  marks: ClassVar = HuggingFaceViT.marks | {'embeddings.distillation_token': 3}
  base = 'deit.'
  names: ClassVar = {**_NAMES, 'registers': 'embeddings.distillation_token'}
  places: ClassVar = HuggingFaceViT.places | {'num_registers': (1,)}

  def options(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    return {**super().options(tensors, source), 'num_registers': 1}


class HuggingFaceDistilledDeiT(HuggingFaceRelative):
  """DeiTForImageClassificationWithTeacher: two heads, whose logits are averaged."""

  model_type = 'deit'
  title = "Hugging Face's DeiTForImageClassificationWithTeacher"
  classes = ('DeiTForImageClassificationWithTeacher', 'DeiTModel')
  marks: ClassVar = HuggingFaceDeiT.marks | {'distillation_classifier.weight': 2}
  base = 'deit.'
  names: ClassVar = {
    **_NAMES,
    'dist': 'embeddings.distillation_token',
    'output_projection': 'cls_classifier',
    'output_projection_dist': 'distillation_classifier',
  }
  places: ClassVar = HuggingFaceViT.places | {'distillation': (True,)}

  def options(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    return {**super().options(tensors, source), 'distillation': True}


TABLES = (HuggingFaceMSN(), HuggingFaceIJEPA(), HuggingFaceDeiT(), HuggingFaceDistilledDeiT())
