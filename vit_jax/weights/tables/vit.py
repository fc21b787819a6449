"""The Vision Transformer in Google's .npz files, scenic and Hugging Face's transformers."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.models.backbone import Shape
from vit_jax.weights import files
from vit_jax.weights.formats import huggingface
from vit_jax.weights.rules import (
  CONV,
  DENSE,
  FLAX_DENSE,
  FLAX_NORM,
  FROM_HEADS,
  NORM,
  TO_HEADS,
  Module,
  tensor,
)
from vit_jax.weights.table import Source, Table, Unsettled, length_of, shape_of, variable_shapes

_BLOCK = 'Transformer/encoderblock_{}'
_BLOCK_NUMBER = r'Transformer/encoderblock_(\d+)/'
_ATTENTION = 'MultiHeadDotProductAttention_0'
_POSITIONS = 'Transformer/posembed_input/pos_embedding'
_QKV = ('query', 'key', 'value')


class AnyViT(Table):
  """What the tables of all formats share."""

  models = ('vit',)
  stated = ('num_heads', 'activation', 'norm_epsilon', 'classifier', 'positional_embedding')
  # Values of fields that alone have a place; other fields may have any.
  places: ClassVar[Mapping[str, Collection[Any]]] = {}

  def check_place(self, config: ModelConfig, path: object) -> None:
    model = config.backbone
    if model.patch_stride != model.patch_size:
      raise UsageError(f'{path}: overlapping patches (stride {model.stride}) have no place there')
    if model.learns_tokens:
      raise UsageError(f'{path}: tokens that are learned (tokenizer) have no place there')
    for field, allowed in self.places.items():
      if (value := getattr(model, field)) not in allowed:
        names = ', '.join(map(str, allowed))
        raise UsageError(f'{path}: {field} {value!r} is not one of {names} of {self.title}')


class _FlaxViT(AnyViT):
  """A ViT by the names of Flax modules; its tensors are laid out as here."""

  separator = '/'
  marks: ClassVar = {'embedding/kernel': 4}
  title = 'a ViT'

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    attention, mlp, head = self.names(tensors)
    first = _BLOCK.format(0)
    *patch, channels, hidden_size = self._shape(tensors, 'embedding/kernel', 4, source)
    heads = self._shape(tensors, f'{first}/{attention}/query/kernel', 3, source)[1]
    mlp_dim = self._shape(tensors, f'{first}/{mlp}/Dense_0/kernel', 2, source)[1]
    config = {
      'name': 'vit',
      'hidden_size': hidden_size,
      'mlp_dim': mlp_dim,
      'num_layers': count_blocks(tensors, _BLOCK_NUMBER),
      'num_heads': heads,
      'patches': {'size': tuple(patch)},
      'representation_size': length_of(tensors, 'pre_logits/bias', source.path, self.title),
      'norm_epsilon': 1e-6,
      'activation': 'gelu',
      'num_classes': length_of(tensors, f'{head}/bias', source.path, self.title) or 0,
      'channels': channels,
      **entries,
      **describe_pooling(
        entries,
        probe='MAPHead_0/probe' in tensors,
        class_token='cls' in tensors,
        fc_norm='fc_norm/scale' in tensors,
      ),
    }
    if config.get('image_size') is None and _POSITIONS in tensors:
      count = self._shape(tensors, _POSITIONS, 3, source)[1] - ('cls' in tensors)
      config['image_size'] = square_image(count, patch, source.path)
    return config

  def check_place(self, config: ModelConfig, path: object) -> None:
    super().check_place(config, path)
    config.backbone.check_plain(path)

  def names(self, names: Collection[str]) -> tuple[str, str, str]:
    """Returns what the attention and the MLP of a block, and the head, are called in a file."""
    del names
    return _ATTENTION, 'MlpBlock_0', 'output_projection'

  def _shape(self, tensors: files.Tensors, name: str, rank: int, source: Source) -> Shape:
    return shape_of(tensors, name, rank, source.path, self.title)


class ScenicViT(_FlaxViT):
  """scenic's ViT, whose names are those here."""

  format = 'scenic'
  marks: ClassVar = {'embedding/kernel': 4, f'{_BLOCK.format(0)}/LayerNorm_0/scale': 1}

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    return [tensor(name, name) for name in variable_shapes(config)]


class AugregViT(_FlaxViT):
  """The published files of vision_transformer, and big_vision's.

  Published files count all the modules of a block together, Flax's linen those of each kind.
  Position embeddings that leave the class token out, big_vision's, get a row of zeros for it, and
  its scanned blocks, stacked along a leading axis, are taken apart.
  """

  format = 'augreg'

  def names(self, names: Collection[str]) -> tuple[str, str, str]:
    if f'{_BLOCK.format(0)}/LayerNorm_1/scale' in names:
      return _ATTENTION, 'MlpBlock_0', 'head'
    return 'MultiHeadDotProductAttention_1', 'MlpBlock_3', 'head'

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    _unstack_blocks(tensors, source.path)
    for name in ('pos_embedding', 'Transformer/pos_embedding'):
      if name in tensors:
        tensors[_POSITIONS] = tensors.pop(name)
    patch, image = tensors['embedding/kernel'].shape[:2], entries.get('image_size')
    if 'cls' in tensors and _POSITIONS in tensors:
      tensors[_POSITIONS] = _with_class_position(tensors[_POSITIONS], patch, image)
    return tensors

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    attention, mlp, head = self.names(names)
    second_norm = 'LayerNorm_1' if mlp == 'MlpBlock_0' else 'LayerNorm_2'
    parts = (*_QKV, 'out')
    yield Module('embedding', 'embedding', FLAX_DENSE)
    yield tensor('cls', 'cls')
    yield tensor(_POSITIONS, _POSITIONS)
    for layer in range(config.backbone.num_layers):
      block = _BLOCK.format(layer)
      yield Module(f'{block}/LayerNorm_0', f'{block}/LayerNorm_0', FLAX_NORM)
      for part in parts:
        yield Module(f'{block}/{_ATTENTION}/{part}', f'{block}/{attention}/{part}', FLAX_DENSE)
      yield Module(f'{block}/LayerNorm_1', f'{block}/{second_norm}', FLAX_NORM)
      for i in (0, 1):
        yield Module(f'{block}/MlpBlock_0/Dense_{i}', f'{block}/{mlp}/Dense_{i}', FLAX_DENSE)
    yield Module('Transformer/encoder_norm', 'Transformer/encoder_norm', FLAX_NORM)
    yield tensor('MAPHead_0/probe', 'MAPHead_0/probe')
    yield Module('MAPHead_0/LayerNorm_0', 'MAPHead_0/LayerNorm_0', FLAX_NORM)
    dense = [f'{_ATTENTION}/{part}' for part in parts] + [
      'MlpBlock_0/Dense_0',
      'MlpBlock_0/Dense_1',
    ]
    for module in dense:
      yield Module(f'MAPHead_0/{module}', f'MAPHead_0/{module}', FLAX_DENSE)
    yield Module('pre_logits', 'pre_logits', FLAX_DENSE)
    yield Module('output_projection', head, FLAX_DENSE)

  def check_place(self, config: ModelConfig, path: object) -> None:
    super().check_place(config, path)
    model = config.backbone
    unpooled = model.has_class_token and model.classifier != 'token'
    for field, is_set in (('class_token', unpooled), ('fc_norm', model.fc_norm)):
      if is_set:
        raise UsageError(f'{path}: {field}=True has no place there; timm and scenic files have one')


# The names inside transformers 5, which its files don't have unless saved as they are.
_NEW_NAMES = (
  (r'^layers\.', 'encoder.layer.'),
  (r'attention\.q_proj', 'attention.attention.query'),
  (r'attention\.k_proj', 'attention.attention.key'),
  (r'attention\.v_proj', 'attention.attention.value'),
  (r'attention\.o_proj', 'attention.output.dense'),
  (r'mlp\.fc1', 'intermediate.dense'),
  (r'mlp\.fc2', 'output.dense'),
)


class HuggingFaceViT(AnyViT, huggingface.HuggingFaceTable):
  """models/vit of transformers: ViTForImageClassification, whose head reads the class token.

  And ViTModel, whose pooler, if it has one, is `pre_logits` here.
  """

  model_type = 'vit'
  title = 'a Hugging Face ViT'
  marks: ClassVar = {
    'embeddings.patch_embeddings.projection.weight': 4,
    'encoder.layer.0.layernorm_before.bias': 1,
  }
  places: ClassVar = {'classifier': ('token',), 'positional_embedding': ('learned_1d',)}

  def canonical(self, name: str) -> str:
    name = name.removeprefix('vit.')
    for new, old in _NEW_NAMES:
      name = re.sub(new, old, name)
    return name

  def read_config(self, source: Source) -> dict[str, Any]:
    entries = super().read_config(source)
    huggingface.choice(source, 'pooler_act', 'tanh', {'tanh': 'tanh'})
    return entries | {
      'num_heads': huggingface.whole(source, 'num_attention_heads', 12),
      'classifier': 'token' if 'classifier.bias' in source.tensors else None,
      'norm_epsilon': source.their_config.get('layer_norm_eps', 1e-12),
      'activation': huggingface.choice(source, 'hidden_act', 'gelu', huggingface.ACTIVATIONS),
    }

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    """Gives models with qkv_bias=false the biases that every model here has."""
    if not source.their_config.get('qkv_bias', True):
      weight = r'encoder\.layer\.\d+\.attention\.attention\.(query|key|value)\.weight'
      return with_zero_biases(tensors, weight)
    return tensors

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    num_layers = huggingface.whole(source, 'num_hidden_layers', 12)
    if num_layers > len(tensors):
      raise UsageError(
        f'{source.metadata_path}: num_hidden_layers is {num_layers}, but of {len(tensors)} tensors'
      )
    num_classes = length_of(tensors, 'classifier.bias', source.path, self.title) or 0
    pooler = length_of(tensors, 'pooler.dense.bias', source.path, self.title)
    return {
      'name': 'vit',
      'hidden_size': huggingface.whole(source, 'hidden_size', 768),
      'mlp_dim': huggingface.whole(source, 'intermediate_size', 3072),
      'num_layers': num_layers,
      'patches': {'size': huggingface.pair(source, 'patch_size', 16)},
      'representation_size': None if num_classes else pooler,
      'num_classes': num_classes,
      'channels': huggingface.whole(source, 'num_channels', 3),
      'class_names': huggingface.class_names(source, num_classes),
      **entries,
      **describe_pooling(entries, probe=False, class_token=True, fc_norm=False),
    }

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    yield tensor('cls', 'embeddings.cls_token')
    yield tensor(_POSITIONS, 'embeddings.position_embeddings')
    yield Module('embedding', 'embeddings.patch_embeddings.projection', CONV)
    for layer in range(config.backbone.num_layers):
      ours, theirs = _BLOCK.format(layer), f'encoder.layer.{layer}'
      yield Module(f'{ours}/LayerNorm_0', f'{theirs}.layernorm_before', NORM)
      for part in _QKV:
        attention = f'{theirs}.attention.attention.{part}'
        yield Module(f'{ours}/{_ATTENTION}/{part}', attention, TO_HEADS)
      yield Module(f'{ours}/{_ATTENTION}/out', f'{theirs}.attention.output.dense', FROM_HEADS)
      yield Module(f'{ours}/LayerNorm_1', f'{theirs}.layernorm_after', NORM)
      yield Module(f'{ours}/MlpBlock_0/Dense_0', f'{theirs}.intermediate.dense', DENSE)
      yield Module(f'{ours}/MlpBlock_0/Dense_1', f'{theirs}.output.dense', DENSE)
    yield Module('Transformer/encoder_norm', 'layernorm', NORM)
    if config.num_classes:
      yield Module('output_projection', 'classifier', DENSE)
    else:
      yield Module('pre_logits', 'pooler.dense', DENSE)

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    if not config.num_classes:
      return tensors
    return {n if n.startswith('classifier.') else f'vit.{n}': t for n, t in tensors.items()}

  def classifier_class(self, config: ModelConfig, path: object) -> str:
    self.check_place(config, path)
    if config.backbone.representation_size is not None:
      size = config.backbone.representation_size
      raise UsageError(
        f"{path}: representation_size {size} has no place in Hugging Face's classifier"
      )
    return 'ViTForImageClassification'

  def their_config(self, config: ModelConfig) -> dict[str, Any]:
    model = config.backbone
    return {
      'architectures': ['ViTForImageClassification' if config.num_classes else 'ViTModel'],
      'model_type': 'vit',
      'hidden_size': model.hidden_size,
      'intermediate_size': model.mlp_dim,
      'num_hidden_layers': model.num_layers,
      'num_attention_heads': model.num_heads,
      'patch_size': huggingface.shortest(model.patch_size),
      'image_size': huggingface.shortest(config.image_size),
      'num_channels': config.channels,
      'hidden_act': huggingface.THEIR_ACTIVATIONS[model.activation],
      'layer_norm_eps': model.norm_epsilon,
      'pooler_output_size': model.representation_size or model.hidden_size,
      'pooler_act': 'tanh',
      'qkv_bias': True,
      'hidden_dropout_prob': 0.0,
      'attention_probs_dropout_prob': 0.0,
      'torch_dtype': 'float32',
      **huggingface.labels(config),
    }


def with_zero_biases(tensors: files.Tensors, weight: str) -> files.Tensors:
  """Returns tensors with biases, which models here always have: zeros do nothing.

  Args:
    tensors: some weights of which lack one.
    weight: a regular expression for the names of these.
  """
  found = [n for n in tensors if re.fullmatch(weight, n) and tensors[n].ndim]
  zeros = {f'{n.removesuffix("weight")}bias': np.zeros(len(tensors[n]), np.float32) for n in found}
  return zeros | tensors


def _unstack_blocks(tensors: files.Tensors, path: object) -> None:
  """Makes one tensor a layer of those that big_vision's scan stacks."""
  stack = 'Transformer/encoderblock/'
  # An empty array can claim any number of layers.
  for name in [name for name in tensors if name.startswith(stack) and tensors[name].size]:
    if not tensors[name].ndim:
      raise UsageError(f'{path}: {name} is a 0-d array, and not of a stack of layers')
    for layer, array in enumerate(tensors.pop(name)):
      tensors[f'{_BLOCK.format(layer)}/{name.removeprefix(stack)}'] = array


def count_blocks(names: Iterable[str], pattern: str) -> int:
  """Returns how many numbers the pattern's group takes among the names."""
  return len({match[1] for name in names if (match := re.match(pattern, name))})


def square_image(num_patches: int, patch: Shape, path: object) -> tuple[int, int]:
  """Returns the (height, width) of an image of as many rows as columns of patches."""
  side = math.isqrt(max(num_patches, 0))
  if side**2 != num_patches or not side:
    raise Unsettled(
      'image_size',
      f'{path} has {num_patches} patches, no square grid, and does not say which; '
      'give HEIGHT,WIDTH',
    )
  return side * patch[0], side * patch[1]


def _with_class_position(
  positions: np.ndarray, patch: Shape, image: tuple[int, int] | None
) -> np.ndarray:
  """Returns position embeddings, [1, N, D], with a first row of zeros if the class token has none.

  Args:
    positions: of a model with a class token.
    patch: (height, width) in pixels.
    image: (height, width) in pixels, if known; else the patches are taken to be a square grid.
  """
  if positions.ndim != 3:  # which is told when their shape is checked
    return positions
  count = positions.shape[1]
  if image is not None:
    has_own = count != image[0] // patch[0] * (image[1] // patch[1])
  else:
    has_own = count > 1 and not (is_square(count) and not is_square(count - 1))
  return positions if has_own else np.pad(positions, ((0, 0), (1, 0), (0, 0)))


def is_square(number: int) -> bool:
  return math.isqrt(number) ** 2 == number


def describe_pooling(
  entries: Mapping[str, Any], *, probe: bool, class_token: bool, fc_norm: bool
) -> dict[str, Any]:
  """Returns `classifier`, `class_token` and `fc_norm` of a model that has these parameters or not.

  What they leave open, the classifier beside a class token, is in `entries` or is 'token'.
  """
  default = 'map' if probe else 'token' if class_token else 'gap'
  classifier = entries.get('classifier') or default
  beside = class_token and classifier != 'token'
  return {
    'classifier': classifier,
    'class_token': True if beside else None,
    'fc_norm': fc_norm,
  }


TABLES = (AugregViT(), ScenicViT(), HuggingFaceViT())
