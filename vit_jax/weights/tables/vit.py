"""The Vision Transformer in Google's .npz files, scenic and Hugging Face's transformers."""

import dataclasses
import functools
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
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

  And ViTModel, whose pooler, if it has one, is `pre_logits` here. Other types of models that are
  ViTs derive from this, and name what differs.

  Attributes:
    classes: transformers' classes with a head and without.
    base: of all names but the head's, where there is a head.
    names: module or parameter here -> its name there, without the base.
    block: what the names of layer i begin with.
    block_names: module or parameter of a layer here -> its name there, after these beginnings.
    defaults: the fields of config.json that the function depends on, and what transformers takes
      where one is left out.
    renames: (pattern of a newer name, what takes its place)s.
    class_token: whether there is one.
    unread: a regular expression for tensors that the function doesn't depend on.
    free: fields of the backbone that may have any value.
  """

  model_type = 'vit'
  title = 'a Hugging Face ViT'
  classes: ClassVar[tuple[str, str]] = ('ViTForImageClassification', 'ViTModel')
  marks: ClassVar = {
    'embeddings.patch_embeddings.projection.weight': 4,
    'encoder.layer.0.layernorm_before.bias': 1,
  }
  base: ClassVar[str] = 'vit.'
  names: ClassVar[Mapping[str | tuple[str, ...], str]] = {
    'cls': 'embeddings.cls_token',
    _POSITIONS: 'embeddings.position_embeddings',
    'embedding': 'embeddings.patch_embeddings.projection',
    'Transformer/encoder_norm': 'layernorm',
    'pre_logits': 'pooler.dense',
    'output_projection': 'classifier',
  }
  block: ClassVar[str] = 'encoder.layer.{}.'
  block_names: ClassVar[Mapping[str | tuple[str, ...], str]] = {
    'LayerNorm_0': 'layernorm_before',
    f'{_ATTENTION}/query': 'attention.attention.query',
    f'{_ATTENTION}/key': 'attention.attention.key',
    f'{_ATTENTION}/value': 'attention.attention.value',
    f'{_ATTENTION}/out': 'attention.output.dense',
    'LayerNorm_1': 'layernorm_after',
    'MlpBlock_0/Dense_0': 'intermediate.dense',
    'MlpBlock_0/Dense_1': 'output.dense',
  }
  defaults: ClassVar[Mapping[str, Any]] = {
    'hidden_size': 768,
    'num_hidden_layers': 12,
    'num_attention_heads': 12,
    'intermediate_size': 3072,
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-12,
    'image_size': 224,
    'patch_size': 16,
    'num_channels': 3,
    'qkv_bias': True,
    'pooler_act': 'tanh',
  }
  renames: ClassVar[tuple[tuple[str, str], ...]] = _NEW_NAMES
  class_token: ClassVar[bool] = True
  unread: ClassVar[str] = '(?!)'
  places: ClassVar = {
    'classifier': ('token',),
    'positional_embedding': ('learned_1d',),
    'qkv_bias': (True, False),
  }
  free: ClassVar[tuple[str, ...]] = (
    'hidden_size',
    'mlp_dim',
    'num_layers',
    'num_heads',
    'patches',
    'stride',
    'class_token',
    'norm_epsilon',
    'activation',
    'tokenizer',
    'drop_remainder',
  )

  def canonical(self, name: str) -> str:
    name = name.removeprefix(self.base)
    for new, old in self.renames:
      name = re.sub(new, old, name)
    return name

  def read_config(self, source: Source) -> dict[str, Any]:
    entries = super().read_config(source)
    width, heads = (self.number(source, n) for n in ('hidden_size', 'num_attention_heads'))
    if (head_width := source.their_config.get('head_dim', width // heads)) != width // heads:
      raise UsageError(
        f'{source.metadata_path}: head_dim {head_width!r} is not read, hidden_size divided by '
        'num_attention_heads is'
      )
    if 'pooler_act' in self.defaults:
      huggingface.choice(source, 'pooler_act', 'tanh', {'tanh': 'tanh'})
    return entries | {
      'num_heads': heads,
      'classifier': self.classifier(source),
      'norm_epsilon': self.field(source, 'layer_norm_eps'),
      'activation': huggingface.choice(
        source, 'hidden_act', self.defaults['hidden_act'], huggingface.ACTIVATIONS
      ),
    }

  def field(self, source: Source, name: str) -> Any:
    """Returns a field of config.json that the function depends on, of whatever type it is."""
    return source.their_config.get(name, self.defaults[name])

  def number(self, source: Source, name: str) -> int:
    """Returns such a field that is a number from 1 on.

    Raises:
      UsageError: it is something else.
    """
    return huggingface.whole(source, name, self.defaults[name])

  def flag(self, source: Source, name: str) -> bool:
    """Returns such a field that is true or false.

    Raises:
      UsageError: it is something else.
    """
    if not isinstance(value := self.field(source, name), bool):
      raise UsageError(f'{source.metadata_path}: {name} is {value!r}')
    return value

  def classifier(self, source: Source) -> str | None:
    """Returns what the head reads; None where there is none, and any may be put there."""
    return 'token' if self.has_head(source.tensors) else None

  def has_head(self, names: Collection[str]) -> bool:
    """Whether tensors of these names have a head among them."""
    return f'{self.names["output_projection"]}.weight' in names

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    return {n: array for n, array in tensors.items() if not re.fullmatch(self.unread, n)}

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    number = functools.partial(self.number, source)
    num_layers = number('num_hidden_layers')
    if num_layers > len(tensors):
      raise UsageError(
        f'{source.metadata_path}: num_hidden_layers is {num_layers}, but of {len(tensors)} tensors'
      )
    num_classes = 0
    if self.has_head(tensors):
      head = f'{self.names["output_projection"]}.weight'
      num_classes = shape_of(tensors, head, 2, source.path, self.title)[0]
    pooler = length_of(tensors, 'pooler.dense.bias', source.path, self.title)
    patch = huggingface.pair(source, 'patch_size', self.defaults['patch_size'])
    # A convolution leaves out what is after the last patches; models of videos refuse it.
    image = entries['image_size'] if 'vit' in self.models else patch
    remains = any(side % length for side, length in zip(image, patch, strict=True))
    return {
      'name': 'vit',
      **({'drop_remainder': True} if remains else {}),
      'hidden_size': number('hidden_size'),
      'num_layers': num_layers,
      'patches': {'size': patch},
      'representation_size': None if num_classes else pooler,
      'num_classes': num_classes,
      'channels': number('num_channels'),
      'class_names': huggingface.class_names(source, num_classes),
      **self.options(tensors, source),
      **entries,
      **describe_pooling(
        entries,
        probe=f'{self.names.get("MAPHead_0/probe")}' in tensors,
        class_token=self.class_token,
        fc_norm=f'{self.names.get("fc_norm")}.weight' in tensors,
      ),
    }

  def options(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    """Returns the backbone's fields beside those that all types of models have."""
    del tensors
    return {
      'mlp_dim': self.number(source, 'intermediate_size'),
      'qkv_bias': self.flag(source, 'qkv_bias'),
    }

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    # A pooler beside a head would be a layer that the head doesn't read.
    left_out = 'pre_logits' if config.num_classes else 'output_projection'
    for ours, theirs in self.names.items():
      if ours != left_out:
        yield _torch_module(ours, theirs)
    for layer in range(config.backbone.num_layers):
      beginnings = f'{_BLOCK.format(layer)}/', self.block.format(layer)
      for ours, theirs in self.layer_names(config).items():
        yield _torch_module(ours, theirs, *beginnings)

  def layer_names(self, config: ModelConfig) -> Mapping[str | tuple[str, ...], str]:
    """Returns `block_names`, of a model whose layers may have other parts."""
    del config
    return self.block_names

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    if not config.num_classes:
      return tensors
    heads = tuple(v for ours, v in self.names.items() if str(ours).startswith('output_projection'))
    return {n if n.startswith(heads) else f'{self.base}{n}': t for n, t in tensors.items()}

  def misplaced(self, config: ModelConfig) -> str | None:
    """Returns a field of the backbone whose value has no place there; None where all have one."""
    defaults = {field.name: field.default for field in dataclasses.fields(config.backbone)}
    for name in config.backbone.WEIGHT_FIELDS:
      allowed = self.places.get(name, (defaults[name],))
      if name not in self.free and getattr(config.backbone, name) not in allowed:
        return name
    return None

  def check_place(self, config: ModelConfig, path: object) -> None:
    super().check_place(config, path)
    if (name := self.misplaced(config)) is not None:
      value = getattr(config.backbone, name)
      raise UsageError(f'{path}: {name} {value!r} has no place in {self.title}')

  def classifier_class(self, config: ModelConfig, path: object) -> str:
    self.check_place(config, path)
    if config.backbone.representation_size is not None:
      size = config.backbone.representation_size
      raise UsageError(
        f"{path}: representation_size {size} has no place in Hugging Face's classifier"
      )
    return self.their_config(config)['architectures'][0]

  def their_config(self, config: ModelConfig) -> dict[str, Any]:
    model = config.backbone
    return {
      'architectures': [self.classes[0 if config.num_classes else 1]],
      'model_type': self.model_type,
      'hidden_size': model.hidden_size,
      'num_hidden_layers': model.num_layers,
      'num_attention_heads': model.num_heads,
      'patch_size': huggingface.shortest(model.patch_size),
      'image_size': huggingface.shortest(config.image_size),
      'num_channels': config.channels,
      'hidden_act': huggingface.THEIR_ACTIVATIONS[model.activation],
      'layer_norm_eps': model.norm_epsilon,
      'torch_dtype': 'float32',
      **huggingface.labels(config),
      **self.their_options(config),
    }

  def their_options(self, config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json that `options` reads, and those of training."""
    model = config.backbone
    return {
      'intermediate_size': model.mlp_dim,
      'pooler_output_size': model.representation_size or model.hidden_size,
      'pooler_act': 'tanh',
      'qkv_bias': config.get('qkv_bias', True),  # videos' models have no choice
      'hidden_dropout_prob': 0.0,
      'attention_probs_dropout_prob': 0.0,
    }


class HuggingFaceBiased(HuggingFaceViT):
  """A type of models that always have biases here: those of qkv_bias=false get zeros.

  Attributes:
    layers: a regular expression for the names of the lists of layers.
  """

  layers: ClassVar[str] = r'encoder\.layer'

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    tensors = super().tidy(tensors, entries, source)
    if self.flag(source, 'qkv_bias'):
      return tensors
    weight = rf'{self.layers}\.\d+\.attention\.attention\.(query|key|value)\.weight'
    return with_zero_biases(tensors, weight)

  def options(self, tensors: files.Tensors, source: Source) -> dict[str, Any]:
    return {'mlp_dim': self.number(source, 'intermediate_size')}


class HuggingFaceRelative(HuggingFaceViT):
  """A type of models beside `vit` that are ViTs, too. It writes those that it has a place for.

  Attributes:
    by_origin: whether it writes such models alone that were read as of this type, since another
      type computes the same.
    squares: whether images and patches are squares. Those that interpolate positions in each call
      take them to be a square's, so that others end up elsewhere.
  """

  by_origin: ClassVar[bool] = False
  squares: ClassVar[bool] = False

  def read_config(self, source: Source) -> dict[str, Any]:
    for name in ('image_size', 'patch_size') if self.squares else ():
      size = huggingface.pair(source, name, self.defaults.get(name, 1))
      if size[0] != size[1]:
        where = source.metadata_path
        raise UsageError(f'{where}: {name} {list(size)} is not read for {self.title}; a square is')
    return super().read_config(source)

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    return super().describe(tensors, entries, source) | {'origin': self.model_type}

  def misplaced(self, config: ModelConfig) -> str | None:
    sizes = (config.image_size or (0, 1), config.backbone.patch_size) if self.squares else ()
    wide = any(height != width for height, width in sizes)
    return 'image_size' if wide else super().misplaced(config)

  def writes(self, config: ModelConfig) -> bool:
    origins = (self.model_type,) if self.by_origin else (self.model_type, None)
    return super().writes(config) and config.origin in origins and self.misplaced(config) is None


# The modules of a ViT, by the last part of their names, as PyTorch has them; all else are
# parameters.
_TORCH_LEAVES = {
  'embedding': CONV,
  **dict.fromkeys(('query', 'key', 'value'), TO_HEADS),
  'out': FROM_HEADS,
  **dict.fromkeys(('LayerNorm_0', 'LayerNorm_1', 'pre_norm', 'encoder_norm', 'fc_norm'), NORM),
  **dict.fromkeys(
    ('gate', 'Dense_0', 'Dense_1', 'pre_logits', 'output_projection', 'output_projection_dist'),
    DENSE,
  ),
}


def _torch_module(
  ours: str | tuple[str, ...], theirs: str, beginning: str = '', their_beginning: str = ''
) -> Module:
  """Returns a module or parameter of a ViT in PyTorch."""
  theirs, single = f'{their_beginning}{theirs}', isinstance(ours, str)
  names = tuple(f'{beginning}{name}' for name in ([ours] if single else ours))
  leaves = _TORCH_LEAVES.get(names[0].rpartition('/')[2])
  if leaves is None:
    return tensor(names[0], theirs)
  return Module(names[0] if single else names, theirs, leaves)


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
    image: (height, width) in pixels, if known.
  """
  if positions.ndim != 3:  # which is told when their shape is checked
    return positions
  has_own = places_class(positions.shape[1], patch, image)
  return positions if has_own else np.pad(positions, ((0, 0), (1, 0), (0, 0)))


def places_class(count: int, patch: Sequence[int], image: tuple[int, int] | None) -> bool:
  """Returns whether one of so many position embeddings is of the class token.

  Args:
    count: of them, in a model with a class token.
    patch: (height, width) in pixels.
    image: (height, width) in pixels, if known; else the patches are taken to be a square grid.
  """
  if image is not None:
    return count != image[0] // patch[0] * (image[1] // patch[1])
  return count > 1 and not (_is_square(count) and not _is_square(count - 1))


def _is_square(number: int) -> bool:
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
