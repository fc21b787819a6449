"""Masked autoencoders: facebookresearch/mae's files, whose names are timm's, and transformers'.

Positions are tensors there, though fixed: where they are `layers.sinusoidal_2d` to the bit, the
model here has those, else it has them as learned ones.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig, layers
from vit_jax.models.heads.mae import MAE, POSITIONAL_EMBEDDINGS
from vit_jax.weights import files
from vit_jax.weights.formats import huggingface
from vit_jax.weights.rules import DENSE, Module, tensor
from vit_jax.weights.table import Source, Table, length_of, shape_of
from vit_jax.weights.tables.timm_vit import Naming, TimmViT
from vit_jax.weights.tables.vit import HuggingFaceBiased

_ENCODER, _DECODER = 'Transformer/', 'decoder/encoder/'
_POSITIONS = 'posembed_input/pos_embedding'
_PUBLISHED = (512, 8)  # width and layers of the published decoders


class _MAE(Table):
  """What the tables of both formats add to a ViT's, which they also derive from.

  Attributes:
    positions: names of the position embeddings of encoder and decoder.
    root: of the decoder's names.
  """

  positions: ClassVar[tuple[str, str]]
  root: ClassVar[str]
  places: ClassVar = {
    'classifier': ('token',),
    'positional_embedding': POSITIONAL_EMBEDDINGS,
    'representation_size': (None,),
  }

  def decoder_name(self, name: str) -> str:
    """Returns what a module of the encoder is called in the decoder."""
    raise NotImplementedError

  def describe_decoder(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    """Returns the head's fields, but for its positions."""
    raise NotImplementedError

  def has_decoder(self, tensors: Collection[str]) -> bool:
    """Whether tensors are those of encoder and decoder."""
    return f'{self.root}mask_token' in tensors

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    tensors = super().tidy(tensors, entries, source)
    kinds = entries.get('positional_embedding'), _head(source).get('positional_embedding')
    names = self.positions[: 1 + self.has_decoder(tensors)]
    for name, kind in zip(names, kinds, strict=False):
      shape_of(tensors, name, 3, source.path, self.title)
      if kind != 'learned_1d' and _is_fixed(tensors[name]):
        del tensors[name]
    return tensors

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    theirs = {self.canonical(name): array for name, array in source.tensors.items()}
    config = super().describe({**theirs, **tensors}, entries, source)
    encoder, decoder = ('learned_1d' if n in tensors else 'sinusoidal_2d' for n in self.positions)
    config = {'positional_embedding': encoder} | config
    if self.has_decoder(tensors):
      fields = {'name': 'mae', **self.describe_decoder(tensors, source)}
      if fields['mlp_dim'] == 4 * fields['hidden_size']:
        fields['mlp_dim'] = None
      config['head'] = fields | {'positional_embedding': decoder} | _head(source)
    return config

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    encoder = super().modules(config, names)
    if not isinstance(config.model, MAE):
      yield from encoder
      return
    for module in encoder:
      yield module._replace(ours=_renamed(module, '', 'backbone/'))
    for module in super().modules(config.replace(num_layers=config.model.num_layers), names):
      if all(name.startswith(f'{_ENCODER}encoder') for name in _names(module)):
        theirs = self.decoder_name(module.theirs)
        yield Module(_renamed(module, _ENCODER, _DECODER), theirs, module.leaves)
    yield tensor(f'{_DECODER}{_POSITIONS}', self.positions[1])
    yield tensor('decoder/mask_token', f'{self.root}mask_token')
    yield Module('decoder/embed', f'{self.root}decoder_embed', DENSE)
    yield Module('decoder/predictor', f'{self.root}decoder_pred', DENSE)

  def check_place(self, config: ModelConfig, path: object) -> None:
    super().check_place(config, path)
    for field, size in (('image_size', config.image_size), ('patches', config.backbone.patch_size)):
      if size is None or size[0] != size[1]:
        raise UsageError(f'{path}: {field} {size} has no place there; a square has')

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    model, (side, _) = config.model, config.backbone.grid(config.image_size)
    widths = [config.backbone.hidden_size]
    widths += [model.hidden_size] if isinstance(model, MAE) else []
    for name, width in zip(self.positions, widths, strict=False):
      tensors.setdefault(name, _fixed_positions(side, width))
    return super().finish(tensors, config)


def _names(module: Module) -> tuple[str, ...]:
  return (module.ours,) if isinstance(module.ours, str) else module.ours


def _renamed(module: Module, old: str, new: str) -> tuple[str, ...]:
  """Returns a module's names here, with the beginning `new` in place of `old`."""
  return tuple(f'{new}{name.removeprefix(old)}'.removesuffix('/') for name in _names(module))


def _head(source: Source) -> Mapping[str, Any]:
  """Returns the head's fields that a file of this project states."""
  head = source.entries.get('head') or {}
  if not isinstance(head, Mapping):
    raise UsageError(f'{source.metadata_path}: head: {head!r} is not a dict')
  return head


def _fixed_positions(side: int, width: int) -> np.ndarray:
  """Returns positions [1, 1 + side^2, width] of a square; those of the class token are zeros."""
  positions = layers.sinusoidal_2d(side, side, width).reshape(1, -1, width)
  return np.pad(positions, ((0, 0), (1, 0), (0, 0)))


def _is_fixed(positions: np.ndarray) -> bool:
  """Whether these are the fixed positions of a square."""
  if positions.shape[2] % 4:
    return False
  side = math.isqrt(max(positions.shape[1] - 1, 0))
  return np.array_equal(positions, _fixed_positions(side, positions.shape[2]))


class FacebookMAE(_MAE, TimmViT):
  """github.com/facebookresearch/mae, models_mae.py: files of encoder and decoder.

  It computes with exact GELU and an epsilon of 1e-6. Nothing in a file tells how many heads the
  decoder has, which is 16 of the published width and depth, nor whether it predicts normalised
  pixels: like that code's constructor, this takes it that it doesn't.
  """

  title = "facebookresearch's masked autoencoder"
  marks: ClassVar = {**TimmViT.marks, 'mask_token': 3, 'decoder_embed.weight': 2}
  entry = 'model'
  positions = ('pos_embed', 'decoder_pos_embed')
  root = ''
  assumed: ClassVar = {'activation': 'gelu_exact', 'classifier': 'token'}

  def naming(self, config: ModelConfig) -> Naming:
    backbone = config.backbone.clone(positional_embedding='learned_1d')
    return super().naming(ModelConfig(backbone, config.channels, config.image_size))

  def owns_config(self, config: Mapping[str, Any]) -> bool:
    return False  # it has none

  def own_config(self, config: ModelConfig) -> dict[str, Any]:
    return super().own_config(config) | {'head': config['head']}

  def decoder_name(self, name: str) -> str:
    return f'decoder_{name}'

  def describe_decoder(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    width = shape_of(tensors, 'decoder_embed.weight', 2, source.path, self.title)[0]
    num_layers = len({n.split('.')[1] for n in tensors if n.startswith('decoder_blocks.')})
    mlp_dim = length_of(tensors, 'decoder_blocks.0.mlp.fc1.bias', source.path, self.title)
    if (width, num_layers) != _PUBLISHED and 'num_heads' not in _head(source):
      raise UsageError(
        f'{source.path}: does not tell how many heads its decoder has, which is known of those of '
        '{} and {} layers alone, and this one has {} and {}'.format(*_PUBLISHED, width, num_layers)
      )
    return {
      'hidden_size': width,
      'num_layers': num_layers,
      'num_heads': 16,
      'mlp_dim': mlp_dim,
      'activation': 'gelu_exact',
      'norm_pixels': False,
    }

  def writes(self, config: ModelConfig) -> bool:
    return isinstance(config.model, MAE) and config.name in self.models


class HuggingFaceMAE(_MAE, HuggingFaceBiased):
  """models/vit_mae of transformers: ViTMAEForPreTraining, and ViTMAEModel, which is its encoder.

  Its `mask_ratio` is an option of the task here, and no part of the model: which patches are seen
  is told in each call. An encoder is written with 0, so that it sees all of them there, too.
  """

  model_type = 'vit_mae'
  title = 'a Hugging Face ViTMAE'
  yields = True  # without config.json, its encoder is a ViT's
  positions = ('embeddings.position_embeddings', 'decoder.decoder_pos_embed')
  root = 'decoder.'
  layers = r'(encoder\.layer|decoder\.decoder_layers)'

  def canonical(self, name: str) -> str:
    name = super().canonical(name)
    return name.replace('decoder.decoder_encoder.layer.', 'decoder.decoder_layers.')

  def decoder_name(self, name: str) -> str:
    if name == 'layernorm':
      return 'decoder.decoder_norm'
    return name.replace('encoder.layer.', 'decoder.decoder_layers.')

  def describe_decoder(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    norm_pixels = source.their_config.get('norm_pix_loss', False)
    return {
      'hidden_size': huggingface.whole(source, 'decoder_hidden_size', 512),
      'num_layers': huggingface.whole(source, 'decoder_num_hidden_layers', 8),
      'num_heads': huggingface.whole(source, 'decoder_num_attention_heads', 16),
      'mlp_dim': huggingface.whole(source, 'decoder_intermediate_size', 2048),
      'norm_epsilon': source.their_config.get('layer_norm_eps', 1e-12),
      'activation': huggingface.choice(source, 'hidden_act', 'gelu', huggingface.ACTIVATIONS),
      'norm_pixels': norm_pixels,
    }

  def writes(self, config: ModelConfig) -> bool:
    """MAEs, and encoders with fixed positions, for which ViTModel has no place."""
    model = config.model
    is_encoder = model is config.backbone and not config.num_classes
    if config.name not in self.models or not (is_encoder or isinstance(model, MAE)):
      return False
    return isinstance(model, MAE) or model.positional_embedding == 'sinusoidal_2d'

  def check_place(self, config: ModelConfig, path: object) -> None:
    super().check_place(config, path)
    for field in ('activation', 'norm_epsilon') if isinstance(config.model, MAE) else ():
      ours, theirs = getattr(config.model, field), getattr(config.backbone, field)
      if ours != theirs:
        raise UsageError(
          f'{path}: head.{field} {ours} has no place there beside the {field} {theirs} of the rest'
        )

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    tensors = super().finish(tensors, config)
    if not isinstance(config.model, MAE):
      return tensors
    return {n if n.startswith(self.root) else f'vit.{n}': t for n, t in tensors.items()}

  def their_config(self, config: ModelConfig) -> dict[str, Any]:
    encoder, model = super().their_config(config), config.model
    named = ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads')
    named += ('patch_size', 'image_size', 'num_channels', 'hidden_act', 'layer_norm_eps')
    named += ('qkv_bias', 'hidden_dropout_prob', 'attention_probs_dropout_prob', 'torch_dtype')
    fields = {'model_type': self.model_type, **{name: encoder[name] for name in named}}
    if not isinstance(model, MAE):
      return fields | {'architectures': ['ViTMAEModel'], 'mask_ratio': 0.0}
    return fields | {
      'architectures': ['ViTMAEForPreTraining'],
      'decoder_hidden_size': model.hidden_size,
      'decoder_num_hidden_layers': model.num_layers,
      'decoder_num_attention_heads': model.num_heads,
      'decoder_intermediate_size': model.mlp_dim or 4 * model.hidden_size,
      'norm_pix_loss': model.norm_pixels,
    }


TABLES = (FacebookMAE(), HuggingFaceMAE())
