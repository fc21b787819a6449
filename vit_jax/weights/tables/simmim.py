"""Models pre-trained by SimMIM, encoder and prediction, in transformers and Microsoft's files.

Of github.com/microsoft/SimMIM, Swin Transformers are read. Its ViT has relative positions and
scaled branches, which the ViT here hasn't, and is refused.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.models.heads.simmim import SimMIM
from vit_jax.models.variables import Variables
from vit_jax.weights import files
from vit_jax.weights.formats import timm
from vit_jax.weights.rules import POINTWISE, Module, tensor
from vit_jax.weights.table import Source, Table, Unsettled, variable_shapes
from vit_jax.weights.tables.swin import HuggingFaceSwin, HuggingFaceSwinV2, TimmSwin, TimmSwinV2
from vit_jax.weights.tables.vit import HuggingFaceViT

_PREDICTION: Mapping[str, int] = {'decoder.0.weight': 4, 'decoder.0.bias': 1}


class _SimMIM(Table):
  """What the tables of both formats share; it stands before the table of the encoder.

  Attributes:
    mask_token: its name there.
  """

  mask_token: ClassVar[str]

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    return super().describe(tensors, entries, source) | {'head': {'name': 'simmim'}}

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    for module in super().modules(config, names):
      ours = (module.ours,) if isinstance(module.ours, str) else module.ours
      yield module._replace(ours=tuple(f'backbone/{name}'.removesuffix('/') for name in ours))
    yield tensor('mask_token', self.mask_token)
    yield Module('decoder', 'decoder.0', POINTWISE)

  def writes(self, config: ModelConfig) -> bool:
    is_simmim = isinstance(config.model, SimMIM)
    return is_simmim and super().writes(config.replace(model=config.backbone))


class _HuggingFaceSimMIM(_SimMIM):
  """transformers' ...ForMaskedImageModeling, which reconstruct squares alone.

  Attributes:
    prefix: of the encoder's tensors.
    kind: what the name of the class begins with.
  """

  mask_token = 'embeddings.mask_token'
  prefix: ClassVar[str]
  kind: ClassVar[str]

  def check_place(self, config: ModelConfig, path: object) -> None:
    super().check_place(config, path)
    for name, size in (('image_size', config.image_size), ('patches', config.backbone.patch_size)):
      if len(set(size)) > 1:
        raise UsageError(f'{path}: {name} {size} has no place in {self.title}; squares have')

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    return {n if n in _PREDICTION else f'{self.prefix}{n}': t for n, t in tensors.items()}

  def classifier_class(self, config: ModelConfig, path: object) -> str:
    raise UsageError(f'{path}: the model predicts no classes')

  def their_config(self, config: ModelConfig) -> dict[str, Any]:
    outputs = variable_shapes(config)['decoder/bias'][0]
    return super().their_config(config) | {
      'architectures': [f'{self.kind}ForMaskedImageModeling'],
      'encoder_stride': math.isqrt(outputs // config.channels),
    }


class HuggingFaceViTSimMIM(_HuggingFaceSimMIM, HuggingFaceViT):
  """ViTForMaskedImageModeling."""

  title = "Hugging Face's ViTForMaskedImageModeling"
  prefix, kind = 'vit.', 'ViT'
  marks: ClassVar = HuggingFaceViT.marks | {'embeddings.mask_token': 3, **_PREDICTION}

  def load(
    self, source: Source, known: Mapping[str, Any], allow: str | None
  ) -> tuple[Variables, ModelConfig]:
    """As of `Table`; refuses what transformers doesn't compute, as the tables of Swin do."""
    variables, config = super().load(source, known, allow)
    self.check_place(config, source.path)
    return variables, config


class HuggingFaceSwinSimMIM(_HuggingFaceSimMIM, HuggingFaceSwin):
  """SwinForMaskedImageModeling."""

  title = "Hugging Face's SwinForMaskedImageModeling"
  marks: ClassVar = HuggingFaceSwin.marks | {'embeddings.mask_token': 3, **_PREDICTION}


class HuggingFaceSwinV2SimMIM(_HuggingFaceSimMIM, HuggingFaceSwinV2):
  """Swinv2ForMaskedImageModeling."""

  title = "Hugging Face's Swinv2ForMaskedImageModeling"
  marks: ClassVar = HuggingFaceSwinV2.marks | {'embeddings.mask_token': 3, **_PREDICTION}


class _Microsoft(_SimMIM):
  """Microsoft's files of pre-trained models, which are read alone: `encoder.` and `decoder.0`."""

  mask_token = 'mask_token'

  def canonical(self, name: str) -> str:
    return name.removeprefix('encoder.')

  def writes(self, config: ModelConfig) -> bool:
    return False

  def load(
    self, source: Source, known: Mapping[str, Any], allow: str | None
  ) -> tuple[Variables, ModelConfig]:
    """As of `Table`, of tensors under the names of an encoder alone."""
    tensors = self.canonical_tensors(source)
    return super().load(source.replace(tensors=tensors), known, allow)

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    if entries.get('image_size') is None:
      raise Unsettled('image_size', f'{source.path} does not tell it; give HEIGHT,WIDTH')
    return super().describe(tensors, entries, source)


class MicrosoftSwin(_Microsoft, TimmSwin):
  """Swin Transformers, github.com/microsoft/SimMIM."""

  title = "Microsoft's SimMIM of a Swin Transformer"
  marks: ClassVar = TimmSwin.marks | {'mask_token': 3, **_PREDICTION}


class MicrosoftSwinV2(_Microsoft, TimmSwinV2):
  """Swin Transformers of version 2, github.com/microsoft/Swin-Transformer."""

  title = "Microsoft's SimMIM of a Swin Transformer v2"
  marks: ClassVar = TimmSwinV2.marks | {'mask_token': 3, **_PREDICTION}


class MicrosoftViT(_Microsoft, timm.TimmTable):
  """The ViT of github.com/microsoft/SimMIM, which is BEiT's: it is named, and not read."""

  models = ('vit',)
  title = "Microsoft's SimMIM of a ViT"
  marks: ClassVar = {
    'patch_embed.proj.weight': 4,
    'blocks.0.norm1.weight': 1,
    'mask_token': 3,
    **_PREDICTION,
  }

  def load(
    self, source: Source, known: Mapping[str, Any], allow: str | None
  ) -> tuple[Variables, ModelConfig]:
    """Raises UsageError."""
    raise UsageError(
      f"{source.path}: {self.title} has BEiT's relative positions and scaled branches, which are "
      'not read; a Swin Transformer of SimMIM is'
    )


TABLES = (
  HuggingFaceViTSimMIM(),
  HuggingFaceSwinSimMIM(),
  HuggingFaceSwinV2SimMIM(),
  MicrosoftSwin(),
  MicrosoftSwinV2(),
  MicrosoftViT(),
)
