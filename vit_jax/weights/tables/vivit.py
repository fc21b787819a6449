"""ViViT in scenic's checkpoints and, of model 1, in Hugging Face's transformers."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.weights import files
from vit_jax.weights.formats import huggingface
from vit_jax.weights.rules import Layout, Module, tensor
from vit_jax.weights.table import Source, Table, Unsettled, length_of, shape_of, variable_shapes
from vit_jax.weights.tables.vit import HuggingFaceBiased

_KERNEL = 'embedding/kernel'
_POSITIONS = 'posembed_input/pos_embedding'


class _Scenic(Table):
  """What the tables of both of scenic's classes share; their names are those here.

  Attributes:
    encoders: name of each encoder -> what the names of its sizes begin with.
  """

  format = 'scenic'
  separator = '/'
  stated = (
    'temporal_encoding_config',
    'attention_config',
    'classifier',
    'norm_epsilon',
    'activation',
    'tokenizer',
  )
  encoders: ClassVar[Mapping[str, str]]

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    path, encoders = source.path, self._encoders(tensors)
    rank = 4 if tensors.get(_KERNEL) is not None and tensors[_KERNEL].ndim == 4 else 5
    *frames, height, width, channels, hidden_size = shape_of(
      tensors, _KERNEL, rank, path, self.title
    )
    first = next(iter(encoders))
    has_token = self._class_token(first) in tensors
    config = {
      'name': self.models[0],
      'hidden_size': hidden_size,
      'patches': {'size': (height, width, *frames)},
      'temporal_encoding_config': {'method': '3d_conv'},
      'representation_size': length_of(tensors, 'pre_logits/bias', path, self.title),
      'classifier': 'token' if has_token else 'gap',
      'norm_epsilon': 1e-6,
      'activation': 'gelu',
      'num_classes': length_of(tensors, 'output_projection/bias', path, self.title) or 0,
      'channels': channels,
      **entries,
    }
    sizes = {prefix: self._sizes(tensors, encoder, path) for encoder, prefix in encoders.items()}
    for prefix in self.encoders.values():  # the sizes of one that there isn't are of no account
      found = sizes.get(prefix, next(iter(sizes.values())))
      config = {f'{prefix}{name}': n for name, n in found.items()} | config
    if config.get('attention_config') is None:
      config['attention_config'] = self._attention(tensors, has_token, path)
    positions = [
      shape_of(tensors, f'{encoder}/{_POSITIONS}', 3, path, self.title)[1] - has_token
      for encoder in encoders
    ]
    return config | self._images(config, positions, path)

  def _encoders(self, tensors: files.Tensors) -> Mapping[str, str]:
    """Returns those of `encoders` that a file has."""
    return self.encoders

  def _class_token(self, encoder: str) -> str:
    return 'cls'

  def _attention(self, tensors: files.Tensors, has_token: bool, path: object) -> dict[str, Any]:
    """Returns `attention_config` of a file that doesn't state it."""
    raise NotImplementedError

  def _images(
    self, config: Mapping[str, Any], positions: list[int], path: object
  ) -> dict[str, Any]:
    """Returns the size of the clips.

    Args:
      config: as far as it is known.
      positions: how many each encoder has, but for class tokens.
      path: of the file.
    """
    raise NotImplementedError

  def _sizes(self, tensors: files.Tensors, encoder: str, path: object) -> dict[str, int]:
    """Returns the sizes of an encoder by the names of their fields."""
    first = f'{encoder}/encoderblock_0/'
    query = next((n for n in tensors if n.startswith(first) and n.endswith('query/kernel')), first)
    hidden = next((n for n in tensors if n.startswith(first) and 'Dense_0/kernel' in n), first)
    layers = {m[1] for n in tensors if (m := re.match(rf'{encoder}/encoderblock_(\d+)/', n))}
    return {
      'mlp_dim': shape_of(tensors, hidden, 2, path, self.title)[1],
      'num_layers': len(layers),
      'num_heads': shape_of(tensors, query, 3, path, self.title)[1],
    }

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    return [tensor(name, name) for name in variable_shapes(config)]


class ScenicViViT(_Scenic):
  """scenic's ViViT.

  Only a class token tells model 1 from model 4, and nothing the order of model 3's attentions.
  """

  models = ('vivit',)
  title = "scenic's ViViT"
  marks: ClassVar = {'Transformer/encoder_norm/scale': 1}
  encoders: ClassVar = {'Transformer': ''}

  def fits(self, tensors: files.Tensors) -> bool:
    """Tells it from a ViT by its tubelets."""
    return _KERNEL in tensors and tensors[_KERNEL].ndim == 5

  def _attention(self, tensors: files.Tensors, has_token: bool, path: object) -> dict[str, Any]:
    if any('Attention_time/' in name for name in tensors):
      raise Unsettled(
        'attention_config',
        f"{path} does not tell the order; give {{'type': 'factorized_self_attention_block', "
        "'attention_order': 'time_space'}, or 'space_time'",
      )
    if has_token:
      return {'type': 'spacetime'}
    raise Unsettled(
      'attention_config',
      f"{path} does not tell; give {{'type': 'spacetime'}} or "
      "{'type': 'factorized_dot_product_attention'}",
    )

  def _images(
    self, config: Mapping[str, Any], positions: list[int], path: object
  ) -> dict[str, Any]:
    size, frames = config.get('image_size'), config.get('num_frames')
    if size is None:
      raise Unsettled(
        'image_size', f'{path} has {positions[0]} tubelets, and does not say of which clips'
      )
    height, width, *tubelet = config['patches']['size']
    count, rest = divmod(positions[0], size[0] // height * (size[1] // width) or 1)
    if rest:
      raise UsageError(
        f'{path}: {positions[0]} tubelets are not of images of {size[0]}x{size[1]} pixels'
      )
    return {'num_frames': frames or count * (tubelet or [1])[0]}


class ScenicSpaceTimeViViT(_Scenic):
  """scenic's SpaceTimeViViT, without a temporal transformer too."""

  models = ('space_time_vivit',)
  title = "scenic's SpaceTimeViViT"
  stated = (
    *_Scenic.stated,
    'temporal_mlp_dim',
    'temporal_num_layers',
    'temporal_num_heads',
  )
  marks: ClassVar = {'SpatialTransformer/encoder_norm/scale': 1}
  encoders: ClassVar = {'SpatialTransformer': 'spatial_', 'TemporalTransformer': 'temporal_'}

  def _encoders(self, tensors: files.Tensors) -> Mapping[str, str]:
    return {
      encoder: prefix
      for encoder, prefix in self.encoders.items()
      if any(name.startswith(f'{encoder}/') for name in tensors)
    }

  def _class_token(self, encoder: str) -> str:
    return f'cls_{encoder}'

  def _attention(self, tensors: files.Tensors, has_token: bool, path: object) -> dict[str, Any]:
    has_both = len(self._encoders(tensors)) == 2
    return {'type': 'factorized_encoder', 'spatial_only_baseline': not has_both}

  def _images(
    self, config: Mapping[str, Any], positions: list[int], path: object
  ) -> dict[str, Any]:
    height, width, *tubelet = config['patches']['size']
    size, side = config.get('image_size'), math.isqrt(positions[0])
    if size is None and side**2 != positions[0]:
      raise Unsettled('image_size', f'{path} has {positions[0]} patches a frame, no square grid')
    # Without a temporal transformer nothing depends on the number of frames.
    frames = positions[1] * (tubelet or [1])[0] if positions[1:] else (tubelet or [1])[0]
    return {
      'image_size': size or (side * height, side * width),
      'num_frames': config.get('num_frames') or frames,
    }


# PyTorch: [out, in, frames, height, width]; here [frames, height, width, in, out].
CONV_3D = (
  ('kernel', 'weight', Layout((1, 1, 1, 1, 1), (4, 3, 0, 1, 2))),
  ('bias', 'bias', Layout((1,), (0,))),
)


class HuggingFaceViViT(HuggingFaceBiased):
  """models/vivit of transformers: VivitForVideoClassification, model 1 with a class token.

  And VivitModel, whose pooler, if it has one, is `pre_logits` here.
  """

  models = ('vivit',)
  model_type = 'vivit'
  title = 'a Hugging Face ViViT'
  stated = ('num_heads', 'activation', 'norm_epsilon')
  marks: ClassVar = {
    'embeddings.patch_embeddings.projection.weight': 5,
    'encoder.layer.0.layernorm_before.bias': 1,
  }

  def canonical(self, name: str) -> str:
    return super().canonical(name.removeprefix('vivit.'))

  def read_config(self, source: Source) -> dict[str, Any]:
    theirs = {'hidden_act': 'gelu_fast', 'layer_norm_eps': 1e-6, **source.their_config}
    if theirs['hidden_act'] == 'gelu_fast':  # the same approximation
      theirs['hidden_act'] = 'gelu_new'
    entries = dict(super().read_config(source.replace(their_config=theirs)))
    del entries['classifier']
    return entries | {'num_frames': huggingface.whole(source, 'num_frames', 32)}

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    config = super().describe(tensors, entries, source)
    size = source.their_config.get('tubelet_size', [2, 16, 16])
    if not isinstance(size, list) or len(size) != 3:
      raise UsageError(f'{source.metadata_path}: tubelet_size is {size!r}')
    for field in ('class_token', 'fc_norm'):  # of a ViT
      del config[field]
    return config | {
      'name': 'vivit',
      'patches': {'size': (*size[1:], size[0])},
      'temporal_encoding_config': {'method': '3d_conv'},
      'attention_config': {'type': 'spacetime'},
      'classifier': 'token',
    }

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    for module in super().modules(config, names):
      yield module._replace(leaves=CONV_3D) if module.ours == 'embedding' else module

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    named = super().finish(tensors, config)
    return {re.sub(r'^vit\.', 'vivit.', name): array for name, array in named.items()}

  def check_place(self, config: ModelConfig, path: object) -> None:
    model = config.backbone
    for field, value, allowed in (
      ('classifier', model.classifier, 'token'),
      ('attention_config.type', model.attention_type, 'spacetime'),
      ('temporal_encoding_config.method', model.temporal_encoding_config['method'], '3d_conv'),
    ):
      if value != allowed:
        raise UsageError(f'{path}: {field} {value!r} is not {allowed} of {self.title}')
    if model.fc_norm_epsilon is not None:
      raise UsageError(f'{path}: fc_norm_epsilon {model.fc_norm_epsilon} has no place there')
    if model.learns_tokens:
      raise UsageError(f'{path}: tokens that are learned (tokenizer) have no place there')
    for field in ('image_size', 'num_frames'):
      if getattr(config, field) is None:
        raise UsageError(f'{path}: {field} is needed there')

  def classifier_class(self, config: ModelConfig, path: object) -> str:
    super().classifier_class(config, path)
    return 'VivitForVideoClassification'

  def their_config(self, config: ModelConfig) -> dict[str, Any]:
    model = config.backbone
    theirs = super().their_config(config)
    del theirs['patch_size']
    if model.activation == 'gelu':
      theirs['hidden_act'] = 'gelu_fast'
    return theirs | {
      'architectures': ['VivitForVideoClassification' if config.num_classes else 'VivitModel'],
      'model_type': 'vivit',
      'tubelet_size': [model.tubelet_frames, *model.patch_size],
      'num_frames': config.num_frames,
    }


TABLES = (ScenicViViT(), ScenicSpaceTimeViViT(), HuggingFaceViViT())
