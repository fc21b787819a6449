"""The vision towers of transformers' CLIP and SigLIP, alone or of checkpoints that have both.

Of a whole checkpoint the text tower, and what turns cosines into logits, is left unread. It is
written as the vision tower alone.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.models.variables import Variables
from vit_jax.weights import files
from vit_jax.weights.formats import huggingface
from vit_jax.weights.rules import Layout, Module
from vit_jax.weights.table import Known, Source
from vit_jax.weights.tables.vit import HuggingFaceRelative

_ATTENTION = 'MultiHeadDotProductAttention_0'
_POOL = f'MAPHead_0/{_ATTENTION}'
_POSITIONS = 'Transformer/posembed_input/pos_embedding'
_PROJECTION = 'visual_projection'
_MAP_HEAD = 'head.'
_TEXT = ('text_model.', 'text_projection.', 'logit_scale', 'logit_bias')
_ROWS = Layout((2, 1), (0, 1))  # [1, N, D] here, [N, D] there
_VECTOR = Layout((3,), (0,))  # [1, 1, D] here, [D] there
# A dense layer of flat patches, [D, height * width * channels].
_FLAT_PATCHES = (('kernel', 'weight', Layout((3, 1), (1, 0))), ('bias', 'bias', Layout((1,), (0,))))
# PyTorch's nn.MultiheadAttention, in which query, key and value are one tensor.
_QKV = (
  ('kernel', 'in_proj_weight', Layout((1, 2), (1, 0))),
  ('bias', 'in_proj_bias', Layout((2,), (0,))),
)


class _Tower(HuggingFaceRelative):
  """What both towers have.

  Attributes:
    whole: `model_type` of checkpoints with both towers.
    vision_fields: where this tower's config may stand in their config.json; the first one counts.
  """

  whole: ClassVar[str]
  vision_fields: ClassVar[tuple[str, ...]] = ('vision_config',)
  base = 'vision_model.'
  squares = True
  renames = ()
  unread = r'embeddings\.position_ids'  # numbers from 0 on, in files of transformers 4
  names: ClassVar = {
    'embedding': 'embeddings.patch_embedding',
    'Transformer/encoder_norm': 'post_layernorm',
  }
  block = 'encoder.layers.{}.'
  block_names: ClassVar = {
    'LayerNorm_0': 'layer_norm1',
    f'{_ATTENTION}/query': 'self_attn.q_proj',
    f'{_ATTENTION}/key': 'self_attn.k_proj',
    f'{_ATTENTION}/value': 'self_attn.v_proj',
    f'{_ATTENTION}/out': 'self_attn.out_proj',
    'LayerNorm_1': 'layer_norm2',
    'MlpBlock_0/Dense_0': 'mlp.fc1',
    'MlpBlock_0/Dense_1': 'mlp.fc2',
  }
  defaults: ClassVar = {
    'hidden_size': 768,
    'intermediate_size': 3072,
    'num_hidden_layers': 12,
    'num_attention_heads': 12,
    'num_channels': 3,
    'image_size': 224,
    'patch_size': 16,
  }

  def owns_config(self, config: Mapping[str, Any]) -> bool:
    return config.get('model_type') in (self.model_type, self.whole)

  def known(self) -> Iterable[Known]:
    return [*super().known(), Known(self.whole, self.format)]

  def load(
    self, source: Source, known: Mapping[str, Any], allow: str | None
  ) -> tuple[Variables, ModelConfig]:
    """As of `Table`, also of a checkpoint with both towers."""
    config = source.their_config or {}
    if config.get('model_type') == self.whole:
      given = (config[name] for name in self.vision_fields if config.get(name) is not None)
      if not isinstance(vision := next(given, {}), Mapping):
        raise UsageError(f'{source.metadata_path}: vision_config is {vision!r}, not an object')
      beside = {n: config[n] for n in ('id2label', files.CONFIG_KEY) if n in config}
      tensors = {n: t for n, t in source.tensors.items() if not n.startswith(_TEXT)}
      source = source.replace(their_config={**vision, **beside}, tensors=tensors)
    return super().load(source, known, allow)

  def options(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    return {'mlp_dim': self.number(source, 'intermediate_size')}

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    yield from super().modules(config, names)
    positions = (('pos_embedding', 'weight', _ROWS),)
    yield Module(_POSITIONS.rpartition('/')[0], 'embeddings.position_embedding', positions)

  def their_options(self, config: ModelConfig) -> dict[str, Any]:
    return {'intermediate_size': config.backbone.mlp_dim, 'attention_dropout': 0.0}


class HuggingFaceCLIP(_Tower):
  """models/clip: CLIPVisionModelWithProjection, and CLIPVisionModel.

  The projection is a head whose bias is zeros; one with another bias has no place there.
  """

  model_type = 'clip_vision_model'
  whole = 'clip'
  vision_fields = ('vision_config_dict', 'vision_config')  # the former of older files
  title = "the vision tower of Hugging Face's CLIP"
  classes = ('CLIPVisionModelWithProjection', 'CLIPVisionModel')
  marks: ClassVar = {
    'embeddings.patch_embedding.weight': 4,
    'embeddings.class_embedding': 1,
    'pre_layrnorm.bias': 1,
  }
  names: ClassVar = _Tower.names | {
    'Transformer/pre_norm': 'pre_layrnorm',
    'output_projection': _PROJECTION,
  }
  defaults: ClassVar = _Tower.defaults | {
    'patch_size': 32,
    'hidden_act': 'quick_gelu',
    'layer_norm_eps': 1e-5,
  }
  foreign: ClassVar = {r'^classifier\.': 'a head on the mean (CLIPForImageClassification)'}
  places: ClassVar = HuggingFaceRelative.places | {
    'qkv_bias': (True,),
    'patch_bias': (False,),
    'pre_norm': (True,),
  }

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    tensors = super().tidy(tensors, entries, source)
    if (kernel := tensors.get(f'{_PROJECTION}.weight')) is not None and kernel.ndim:
      tensors.setdefault(f'{_PROJECTION}.bias', np.zeros(len(kernel), np.float32))
    return tensors

  def options(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    return {**super().options(tensors, source), 'patch_bias': False, 'pre_norm': True}

  def embeds(self, config: ModelConfig) -> bool:
    is_tower = config.origin == self.model_type and config.model is config.backbone
    return is_tower and config.num_classes > 0  # CLIPVisionModel lacks the projection

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    yield from super().modules(config, names)
    yield Module('', 'embeddings', (('cls', 'class_embedding', _VECTOR),))

  def convert(
    self, variables: Variables, config: ModelConfig, path: object, allow: str | None
  ) -> files.Tensors:
    tensors = super().convert(variables, config, path, allow)
    if np.any(tensors.pop(f'{_PROJECTION}.bias', 0)):
      raise UsageError(f"{path}: a head's bias that is not zeros has no place in {self.title}")
    return tensors

  def their_options(self, config: ModelConfig) -> dict[str, Any]:
    size = {'projection_dim': config.num_classes} if config.num_classes else {}
    return super().their_options(config) | size


class HuggingFaceSigLIP(_Tower):
  """models/siglip: SiglipVisionModel, which pools by attention where it has `vision_use_head`."""

  model_type = 'siglip_vision_model'
  whole = 'siglip'
  title = "the vision tower of Hugging Face's SigLIP"
  classes = ('SiglipForImageClassification', 'SiglipVisionModel')
  marks: ClassVar = {
    'embeddings.patch_embedding.weight': 4,
    'embeddings.patch_embedding.bias': 1,
    'encoder.layers.0.layer_norm1.bias': 1,
  }
  names: ClassVar = _Tower.names | {
    'output_projection': 'classifier',
    'MAPHead_0/probe': f'{_MAP_HEAD}probe',
    f'{_POOL}/out': f'{_MAP_HEAD}attention.out_proj',
    'MAPHead_0/LayerNorm_0': f'{_MAP_HEAD}layernorm',
    'MAPHead_0/MlpBlock_0/Dense_0': f'{_MAP_HEAD}mlp.fc1',
    'MAPHead_0/MlpBlock_0/Dense_1': f'{_MAP_HEAD}mlp.fc2',
  }
  class_token = False
  defaults: ClassVar = _Tower.defaults | {
    'hidden_act': 'gelu_pytorch_tanh',
    'layer_norm_eps': 1e-6,
    'vision_use_head': True,
  }
  places: ClassVar = HuggingFaceRelative.places | {
    'qkv_bias': (True,),
    'classifier': ('map', 'gap'),
  }

  def classifier(self, source: Source) -> str:
    return 'map' if self.flag(source, 'vision_use_head') else 'gap'

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    yield from super().modules(config, names)
    yield Module(
      tuple(f'{_POOL}/{part}' for part in ('query', 'key', 'value')), f'{_MAP_HEAD}attention', _QKV
    )

  def misplaced(self, config: ModelConfig) -> str | None:
    return 'num_classes' if config.num_classes else super().misplaced(config)

  def their_options(self, config: ModelConfig) -> dict[str, Any]:
    pools = config.backbone.classifier == 'map'
    return super().their_options(config) | {'vision_use_head': pools}


class HuggingFaceSigLIPClassifier(HuggingFaceSigLIP):
  """SiglipForImageClassification, whose head reads the mean of the tokens.

  What pools by attention is computed for nothing there. It isn't read, and left out when written.
  """

  model_type = 'siglip'
  title = "Hugging Face's SiglipForImageClassification"
  marks: ClassVar = HuggingFaceSigLIP.marks | {'classifier.weight': 2}
  by_origin = True  # I-JEPA's classifier is the same
  unread = rf'{HuggingFaceSigLIP.unread}|{re.escape(_MAP_HEAD)}.*'
  places: ClassVar = HuggingFaceSigLIP.places | {'classifier': ('gap',)}

  def classifier(self, source: Source) -> str:
    return 'gap'

  def misplaced(self, config: ModelConfig) -> str | None:
    return super(HuggingFaceSigLIP, self).misplaced(config)

  def their_config(self, config: ModelConfig) -> dict[str, Any]:
    theirs = super().their_config(config)
    own = ('architectures', 'model_type', 'torch_dtype', *huggingface.labels(config))
    vision = {name: value for name, value in theirs.items() if name not in own}
    return {name: theirs[name] for name in own} | {'vision_config': vision}


class HuggingFaceSigLIP2(HuggingFaceSigLIP):
  """models/siglip2: Siglip2VisionModel, on the square grid that its positions are of.

  Its processor cuts images into patches and keeps their aspect; here images are squares. (The
  checkpoints of SigLIP 2 for one resolution are of type `siglip`.)
  """

  model_type = 'siglip2_vision_model'
  whole = 'siglip2'
  title = "the vision tower of Hugging Face's SigLIP 2"
  classes = ('Siglip2ForImageClassification', 'Siglip2VisionModel')
  marks: ClassVar = HuggingFaceSigLIP.marks | {'embeddings.patch_embedding.weight': 2}
  by_origin = True
  foreign: ClassVar = {r'^classifier\.': 'a head on the mean (Siglip2ForImageClassification)'}
  names: ClassVar = {n: v for n, v in HuggingFaceSigLIP.names.items() if n != 'embedding'}
  defaults: ClassVar = {
    **{n: v for n, v in HuggingFaceSigLIP.defaults.items() if n != 'image_size'},
    'num_patches': 256,
  }

  def read_config(self, source: Source) -> dict[str, Any]:
    count, patch = (self.number(source, name) for name in ('num_patches', 'patch_size'))
    side = math.isqrt(count)
    if side**2 != count:
      raise UsageError(f'{source.metadata_path}: num_patches {count} is no square grid')
    return super().read_config(source) | {'image_size': (side * patch, side * patch)}

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    yield from super().modules(config, names)
    yield Module('embedding', 'embeddings.patch_embedding', _FLAT_PATCHES)

  def their_options(self, config: ModelConfig) -> dict[str, Any]:
    num_patches = math.prod(config.backbone.grid(config.image_size))
    return super().their_options(config) | {'num_patches': num_patches}


TABLES = (
  HuggingFaceCLIP(),
  HuggingFaceSigLIP(),
  HuggingFaceSigLIPClassifier(),
  HuggingFaceSigLIP2(),
)
