"""TokenLearner (arXiv 2106.11297) with scenic's module names and parameter tree.

The modules are layers (`layers.token_learner`) that any transformer here takes as its `tokenizer`;
these are scenic's classes around them. What can be captured is in `vit`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from vit_jax.errors import FieldError
from vit_jax.models import vit
from vit_jax.models.layers import TokenFuser, TokenLearnerModule, TokenLearnerModuleV11
from vit_jax.ranges import Entries

__all__ = [
  'EncoderMod',
  'EncoderModFuser',
  'TokenFuser',
  'TokenLearnerModule',
  'TokenLearnerModuleV11',
  'TokenLearnerViT',
]


class EncoderMod(vit.Encoder):
  """`vit.Encoder` with scenic's attributes for what `tokenizer` and `frames` say there.

  Attributes, beside those of `vit.Encoder`:
    tokenizer_type: 'dynamic' and 'video' learn tokens, 'patch' keeps those of the patches.
    temporal_dimensions: frames per example, t; each frame is tokenized by itself.
    num_tokens: number of tokens to learn per frame.
    tokenlearner_loc: index of the layer that they go into, from 0.
    use_v11: TokenLearner version 1.1 instead of 1.
  """

  tokenizer_type: str = 'patch'
  temporal_dimensions: int = 1
  num_tokens: int = 8
  tokenlearner_loc: int = 12
  use_v11: bool = True

  FUSES: ClassVar[bool] = False

  def __post_init__(self) -> None:
    self.frames = self.temporal_dimensions
    self.tokenizer = {
      'type': self.tokenizer_type,
      'num_tokens': self.num_tokens,
      'tokenlearner_loc': self.tokenlearner_loc,
      'use_v11': self.use_v11,
      'use_tokenfuse': self.FUSES,
    }
    super().__post_init__()


class EncoderModFuser(EncoderMod):
  """`EncoderMod` with a TokenFuser after each layer from `tokenlearner_loc` on."""

  FUSES: ClassVar[bool] = True


class TokenLearnerViT(vit.ViT, kw_only=True):
  """ViT with TokenLearner: float images [B, H, W, C] to logits [B, num_classes].

  Attributes, beside those of `vit.ViT`:
    tokenizer: as there, without defaults for type, num_tokens and tokenlearner_loc; and
      patches: {'size': (height, width)} in pixels, where `patches` doesn't give it, as in scenic.
  """

  tokenizer: Entries = dataclasses.field()  # which in `vit.ViT` has a default
  patches: Entries | None = None

  CONFIG_DEFAULTS: ClassVar[Mapping[str, Any]] = {
    **vit.ViT.CONFIG_DEFAULTS,
    'tokenizer': {**vit.TOKENIZER, 'type': 'dynamic'},
  }

  def __post_init__(self) -> None:
    for entry in ('type', 'num_tokens', 'tokenlearner_loc'):
      if entry not in self.tokenizer:
        raise FieldError(f'tokenizer.{entry}', 'not set, and nothing else gives it')
    super().__post_init__()

  @property
  def given_patch_size(self) -> Any:
    return (self.patches or self.tokenizer.get('patches') or {}).get('size')
