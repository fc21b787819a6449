"""Swin Transformer, versions 1 and 2, in Hugging Face's transformers and timm."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.models.layers import as_pair, relative_coordinates
from vit_jax.models.swin import Swin, padding_to
from vit_jax.models.variables import Variables
from vit_jax.weights import files
from vit_jax.weights.formats import huggingface, timm
from vit_jax.weights.rules import CONV, DENSE, FROM_HEADS, NORM, TO_HEADS, Module, tensor
from vit_jax.weights.table import Source, Table, Unsettled, length_of, shape_of

_KERNEL = DENSE[:1]  # without a bias
_TO_HEADS_KERNEL, _TO_HEADS_BIAS = TO_HEADS[:1], TO_HEADS[1:]
_EPSILON = 1e-5  # of all norms of both
Pair = tuple[int, int]  # of rows and columns
# What files hold besides: positions and masks, which follow from the windows.
_BUFFERS = re.compile(r'.*\.(relative_position_index|relative_coords_table|attn_mask|k_bias)')


class _Swin(Table):
  """What the tables of both formats and versions share."""

  models = ('swin',)
  stated = (
    'window_size',
    'windowing',
    'pretrained_window_sizes',
    'version',
    'activation',
    'norm_epsilon',
  )
  version: ClassVar[int]

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    return {name: array for name, array in tensors.items() if not _BUFFERS.fullmatch(name)}

  def writes(self, config: ModelConfig) -> bool:
    return super().writes(config) and config.backbone.version == self.version

  def check_place(self, config: ModelConfig, path: object) -> None:
    model = config.backbone
    if model.norm_epsilon != _EPSILON:
      raise UsageError(f'{path}: norm_epsilon {model.norm_epsilon} has no place there, 1e-5 has')

  def blocks(self, model: Swin) -> Iterator[tuple[int, int]]:
    """Yields (stage, block) of all blocks."""
    return ((stage, block) for stage, depth in enumerate(model.depths) for block in range(depth))


class HuggingFaceSwin(_Swin, huggingface.HuggingFaceTable):
  """models/swin of transformers: SwinForImageClassification and SwinModel."""

  model_type = 'swin'
  version = 1
  title = 'a Hugging Face Swin Transformer'
  prefix, kind = 'swin.', 'Swin'  # of tensors, of classes
  marks: ClassVar = {
    'embeddings.patch_embeddings.projection.weight': 4,
    'encoder.layers.0.blocks.0.layernorm_before.bias': 1,
    'encoder.layers.0.blocks.0.attention.self.query.weight': 2,
  }

  def canonical(self, name: str) -> str:
    return name.removeprefix(self.prefix)

  def read_config(self, source: Source) -> dict[str, Any]:
    entries = super().read_config(source)
    epsilon = source.their_config.get('layer_norm_eps', _EPSILON)
    if epsilon != _EPSILON:
      raise UsageError(f'{source.metadata_path}: layer_norm_eps {epsilon!r} is not read, 1e-5 is')
    return entries | {
      'window_size': huggingface.whole(source, 'window_size', 7),
      'windowing': 'microsoft',
      'version': self.version,
      'activation': huggingface.choice(source, 'hidden_act', 'gelu', huggingface.ACTIVATIONS),
      'norm_epsilon': _EPSILON,
    }

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    their_config = source.their_config
    num_classes = length_of(tensors, 'classifier.bias', source.path, self.title) or 0
    config = {
      'name': 'swin',
      'embed_dim': huggingface.whole(source, 'embed_dim', 96),
      'depths': _wholes(source, 'depths', (2, 2, 6, 2)),
      'num_heads': _wholes(source, 'num_heads', (3, 6, 12, 24)),
      'patches': {'size': huggingface.pair(source, 'patch_size', 4)},
      'mlp_ratio': their_config.get('mlp_ratio', 4.0),
      'qkv_bias': their_config.get('qkv_bias', True),
      'absolute_positions': their_config.get('use_absolute_embeddings', False),
      'num_classes': num_classes,
      'channels': huggingface.whole(source, 'num_channels', 3),
      'class_names': huggingface.class_names(source, num_classes),
      **entries,
    }
    if sum(config['depths']) > len(tensors):
      raise UsageError(
        f'{source.metadata_path}: depths are {config["depths"]}, but of {len(tensors)} tensors'
      )
    return config

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    model = config.backbone
    yield Module('patch_embed_proj', 'embeddings.patch_embeddings.projection', CONV)
    yield Module('patch_embed_norm', 'embeddings.norm', NORM)
    yield tensor('absolute_pos_embed', 'embeddings.position_embeddings')
    for stage, block in self.blocks(model):
      ours = f'layers_{stage}/blocks_{block}'
      theirs = f'encoder.layers.{stage}.blocks.{block}'
      attention = f'{theirs}.attention.self'
      yield Module(f'{ours}/norm1', f'{theirs}.layernorm_before', NORM)
      for part in ('query', 'key', 'value'):
        biased = model.qkv_bias and not (part == 'key' and model.version == 2)
        leaves = TO_HEADS if biased else _TO_HEADS_KERNEL
        yield Module(f'{ours}/attn/{part}', f'{attention}.{part}', leaves)
      yield Module(f'{ours}/attn/proj', f'{theirs}.attention.output.dense', FROM_HEADS)
      yield from _position_bias(
        f'{ours}/attn', attention, 'continuous_position_bias_mlp', model.version
      )
      yield Module(f'{ours}/norm2', f'{theirs}.layernorm_after', NORM)
      yield Module(f'{ours}/mlp_fc1', f'{theirs}.intermediate.dense', DENSE)
      yield Module(f'{ours}/mlp_fc2', f'{theirs}.output.dense', DENSE)
    for stage in range(len(model.depths) - 1):
      ours, theirs = f'layers_{stage}/downsample', f'encoder.layers.{stage}.downsample'
      yield Module(f'{ours}/reduction', f'{theirs}.reduction', _KERNEL)
      yield Module(f'{ours}/norm', f'{theirs}.norm', NORM)
    yield Module('norm', 'layernorm', NORM)
    yield Module('output_projection', 'classifier', DENSE)

  def check_place(self, config: ModelConfig, path: object) -> None:
    super().check_place(config, path)
    model = config.backbone
    window = as_pair(model.window_size)
    if window[0] != window[1]:
      raise UsageError(f'{path}: window_size {window} has no place there; one side has')
    if config.image_size is None:
      raise UsageError(f'{path}: image_size is needed there')
    sizes = [self.windows(model, config.image_size, stage) for stage in range(len(model.depths))]
    for ours, theirs in sizes:
      if self.version == 1 and ours[0] != window:
        raise UsageError(
          f'{path}: images of {config.image_size} have maps smaller than windows of {window[0]}, '
          f'for which {self.title} has no place'
        )
      if ours != theirs:
        raise UsageError(
          f'{path}: images of {config.image_size} have windows of {ours[0]} shifted by {ours[1]} '
          f'here, and another window, shift or padding in {self.title}'
        )

  def windows(
    self, model: Swin, image_size: tuple[int, int], stage: int
  ) -> tuple[tuple[Pair, Pair], tuple[Pair, Pair] | None]:
    """Returns (window, shift) of a stage here, and there; None where it pads maps otherwise."""
    grid = model.grid(image_size, stage)
    ours = model.window_and_shift(grid)
    if model.windowing != 'microsoft' and any(padding_to(grid, ours[0])):
      return ours, None
    return ours, model.clone(windowing='microsoft').window_and_shift(grid)

  def load(
    self, source: Source, known: Mapping[str, Any], allow: str | None
  ) -> tuple[Variables, ModelConfig]:
    """As of `Table`; refuses images for which transformers' windows are others."""
    variables, config = super().load(source, known, allow)
    self.check_place(config, source.path)
    return variables, config

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    if not config.num_classes:
      return tensors
    head = 'classifier.'
    return {n if n.startswith(head) else f'{self.prefix}{n}': t for n, t in tensors.items()}

  def classifier_class(self, config: ModelConfig, path: object) -> str:
    self.check_place(config, path)
    return f'{self.kind}ForImageClassification'

  def their_config(self, config: ModelConfig) -> dict[str, Any]:
    model = config.backbone
    kind = 'ForImageClassification' if config.num_classes else 'Model'
    return {
      'architectures': [f'{self.kind}{kind}'],
      'model_type': self.model_type,
      'image_size': huggingface.shortest(config.image_size),
      'patch_size': huggingface.shortest(model.patch_size),
      'num_channels': config.channels,
      'embed_dim': model.embed_dim,
      'depths': list(model.depths),
      'num_heads': list(model.num_heads),
      'num_layers': len(model.depths),
      'hidden_size': model.embed_dim * 2 ** (len(model.depths) - 1),
      'window_size': as_pair(model.window_size)[0],
      'mlp_ratio': model.mlp_ratio,
      'qkv_bias': model.qkv_bias,
      'use_absolute_embeddings': model.absolute_positions,
      'hidden_act': huggingface.THEIR_ACTIVATIONS[model.activation],
      'layer_norm_eps': model.norm_epsilon,
      'hidden_dropout_prob': 0.0,
      'attention_probs_dropout_prob': 0.0,
      'drop_path_rate': 0.0,
      'torch_dtype': 'float32',
      **huggingface.labels(config),
    }


class HuggingFaceSwinV2(HuggingFaceSwin):
  """models/swinv2 of transformers: Swinv2ForImageClassification and Swinv2Model.

  Its windows follow the rows of maps whose sides are rounded down; images for which that makes a
  difference are refused.
  """

  model_type = 'swinv2'
  version = 2
  title = 'a Hugging Face Swin Transformer v2'
  prefix, kind = 'swinv2.', 'Swinv2'

  def read_config(self, source: Source) -> dict[str, Any]:
    sizes = _wholes(source, 'pretrained_window_sizes', (0, 0, 0, 0))
    sizes = sizes[: len(_wholes(source, 'depths', (2, 2, 6, 2)))]
    return super().read_config(source) | {
      'pretrained_window_sizes': sizes if any(sizes) else None,
    }

  def windows(
    self, model: Swin, image_size: tuple[int, int], stage: int
  ) -> tuple[tuple[Pair, Pair], tuple[Pair, Pair] | None]:
    ours, theirs = super().windows(model, image_size, stage)
    if theirs is None:
      return ours, None
    rows = -(-image_size[0] // model.patch_size[0]) // 2**stage
    side = min(rows, as_pair(model.window_size)[0])
    shift = 0 if rows <= side else as_pair(model.window_size)[0] // 2
    return ours, ((side, side), (shift, shift))

  def their_config(self, config: ModelConfig) -> dict[str, Any]:
    sizes = config.backbone.pretrained_window_sizes or (0,) * len(config.backbone.depths)
    return super().their_config(config) | {'pretrained_window_sizes': list(sizes)}


def _position_bias(ours: str, theirs: str, network: str, version: int) -> Iterator[Module]:
  """Yields a block's position bias: a table, or version 2's network with its scale."""
  if version == 1:
    yield tensor(f'{ours}/relative_position_bias_table', f'{theirs}.relative_position_bias_table')
    return
  yield tensor(f'{ours}/logit_scale', f'{theirs}.logit_scale')
  yield Module(f'{ours}/cpb_mlp_0', f'{theirs}.{network}.0', DENSE)
  yield Module(f'{ours}/cpb_mlp_2', f'{theirs}.{network}.2', _KERNEL)


def _wholes(source: Source, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
  """Returns a list of numbers from 0 on in config.json; UsageError where it is something else."""
  values = source.their_config.get(name, default)
  if not isinstance(values, list | tuple) or not all(
    type(value) is int and 0 <= value < 2**31 for value in values
  ):
    raise UsageError(f'{source.metadata_path}: {name} is {values!r}')
  return tuple(values)


class TimmSwin(_Swin, timm.TimmTable):
  """timm's SwinTransformer, and Microsoft's own files.

  timm merges patches at the start of a stage, Microsoft at the end of the one before, so that
  `layers.1.downsample` is here what `layers.0.downsample` is there; and timm's head is `head.fc`.
  timm's is written.
  """

  version = 1
  architecture = 'swin_tiny_patch4_window7_224'  # which `creation` changes
  title = "timm's SwinTransformer"
  published = ('swin_*',)
  marks: ClassVar = {
    'patch_embed.proj.weight': 4,
    'layers.0.blocks.0.norm1.weight': 1,
    'layers.0.blocks.0.mlp.fc1.bias': 1,
    'layers.0.blocks.0.attn.relative_position_bias_table': 2,
  }

  def read_config(self, source: Source) -> dict[str, Any]:
    entries = super().read_config(source)
    if source.their_config is None:
      return entries
    made_with = timm.model_args(source)
    read = {'img_size', 'in_chans', 'window_size', 'embed_dim', 'depths', 'num_heads', 'mlp_ratio'}
    read |= {'num_classes', 'patch_size', 'qkv_bias', 'global_pool'}
    timm.refuse_args(source, made_with.keys() - read)
    timm.check_average(source)
    return entries | ({'window_size': w} if (w := self.config_window(source)) else {})

  def config_window(self, source: Source) -> Any:
    """Returns the window that config.json states; version 1 has it in its tensors."""
    del source

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    embed_dim, channels, *patch = tensors['patch_embed.proj.weight'].shape
    depths = _depths(tensors)
    width = tensors['layers.0.blocks.0.norm1.weight'].shape[0]
    hidden = tensors['layers.0.blocks.0.mlp.fc1.bias'].shape[0]
    head = 'head.bias' if _is_microsoft(tensors) else 'head.fc.bias'
    return {
      'name': 'swin',
      'embed_dim': embed_dim,
      'depths': depths,
      'num_heads': self.num_heads(tensors, depths, source),
      'window_size': self.window(tensors, entries, source),
      'patches': {'size': tuple(patch)},
      'mlp_ratio': hidden / width,
      'qkv_bias': self.has_bias(tensors),
      'absolute_positions': 'absolute_pos_embed' in tensors,
      'norm_epsilon': _EPSILON,
      'activation': 'gelu_exact',
      'version': self.version,
      'windowing': 'microsoft' if _is_microsoft(tensors) else 'timm',
      'num_classes': length_of(tensors, head, source.path, self.title) or 0,
      'channels': channels,
      **entries,
    }

  def num_heads(
    self, tensors: files.Tensors, depths: tuple[int, ...], source: Source
  ) -> tuple[int, ...]:
    """Returns the heads of each stage."""
    name = 'layers.{}.blocks.0.attn.relative_position_bias_table'.format
    return tuple(
      shape_of(tensors, name(stage), 2, source.path, self.title)[1] for stage in range(len(depths))
    )

  def window(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> int | tuple[int, int]:
    """Returns the side of the windows of the first stage."""
    if entries.get('window_size') is not None:
      return entries['window_size']
    rows = tensors['layers.0.blocks.0.attn.relative_position_bias_table'].shape[0]
    side = math.isqrt(rows)
    if side**2 != rows or side % 2 == 0:
      raise UsageError(f'{source.path}: {rows} position biases are of no square window')
    return (side + 1) // 2

  def has_bias(self, tensors: files.Tensors) -> bool:
    """Whether queries, keys and values have biases."""
    return 'layers.0.blocks.0.attn.qkv.bias' in tensors

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    model, microsoft = config.backbone, _is_microsoft(names)
    yield Module('patch_embed_proj', 'patch_embed.proj', CONV)
    yield Module('patch_embed_norm', 'patch_embed.norm', NORM)
    yield tensor('absolute_pos_embed', 'absolute_pos_embed')
    for stage, block in self.blocks(model):
      ours, theirs = f'layers_{stage}/blocks_{block}', f'layers.{stage}.blocks.{block}'
      yield Module(f'{ours}/norm1', f'{theirs}.norm1', NORM)
      yield from self.projections(model, f'{ours}/attn', f'{theirs}.attn')
      yield Module(f'{ours}/attn/proj', f'{theirs}.attn.proj', FROM_HEADS)
      yield from _position_bias(f'{ours}/attn', f'{theirs}.attn', 'cpb_mlp', self.version)
      yield Module(f'{ours}/norm2', f'{theirs}.norm2', NORM)
      for i in (1, 2):
        yield Module(f'{ours}/mlp_fc{i}', f'{theirs}.mlp.fc{i}', DENSE)
    for stage in range(len(model.depths) - 1):
      ours = f'layers_{stage}/downsample'
      theirs = f'layers.{stage if microsoft else stage + 1}.downsample'
      yield Module(f'{ours}/reduction', f'{theirs}.reduction', _KERNEL)
      yield Module(f'{ours}/norm', f'{theirs}.norm', NORM)
    yield Module('norm', 'norm', NORM)
    yield Module('output_projection', 'head' if microsoft else 'head.fc', DENSE)

  def projections(self, model: Swin, ours: str, theirs: str) -> Iterator[Module]:
    """Yields queries, keys and values, which are one tensor there."""
    parts = tuple(f'{ours}/{part}' for part in ('query', 'key', 'value'))
    yield Module(parts, f'{theirs}.qkv', TO_HEADS if model.qkv_bias else _TO_HEADS_KERNEL)

  def check_place(self, config: ModelConfig, path: object) -> None:
    super().check_place(config, path)
    model = config.backbone
    if model.activation != 'gelu_exact':
      raise UsageError(
        f"{path}: activation {model.activation!r} has no place there; 'gelu_exact' has"
      )
    if model.windowing == 'timm' or config.image_size is None:
      return
    for stage in range(len(model.depths)):
      grid = model.grid(config.image_size, stage)
      ours = model.window_and_shift(grid)
      theirs = model.clone(windowing='timm').window_and_shift(grid)
      if any(padding_to(grid, ours[0])) or ours != theirs:
        raise UsageError(
          f'{path}: in images of {config.image_size}, timm pads or shifts the maps of {grid} '
          'otherwise'
        )

  def creation(self, config: ModelConfig, path: object) -> tuple[str, dict[str, Any]]:
    self.check_place(config, path)
    model = config.backbone
    if config.image_size is None:
      raise UsageError(f'{path}: image_size is needed there')
    if model.absolute_positions:
      raise UsageError(f'{path}: absolute_positions have no place there')
    return self.architecture, {
      'img_size': config.image_size,
      'patch_size': model.patch_size,
      'in_chans': config.channels,
      'num_classes': config.num_classes,
      'embed_dim': model.embed_dim,
      'depths': model.depths,
      'num_heads': model.num_heads,
      'window_size': as_pair(model.window_size),
      'mlp_ratio': model.mlp_ratio,
      'qkv_bias': model.qkv_bias,
      'drop_path_rate': 0.0,
    }


class TimmSwinV2(TimmSwin):
  """timm's SwinTransformerV2, and Microsoft's own files; config.json names the window."""

  version = 2
  architecture = 'swinv2_tiny_window8_256'
  title = "timm's SwinTransformerV2"
  published = ('swinv2_*',)
  marks: ClassVar = {
    'patch_embed.proj.weight': 4,
    'layers.0.blocks.0.norm1.weight': 1,
    'layers.0.blocks.0.mlp.fc1.bias': 1,
    'layers.0.blocks.0.attn.logit_scale': 3,
    'layers.0.blocks.0.attn.cpb_mlp.0.weight': 2,
  }

  def config_window(self, source: Source) -> Any:
    window = timm.model_args(source).get('window_size')
    name = re.search(r'window(?:\d+to)?(\d+)', str(source.their_config.get('architecture')))
    if isinstance(window, list):
      return tuple(window)
    return window or (int(name[1]) if name else None)

  def read_config(self, source: Source) -> dict[str, Any]:
    entries = super().read_config(source)
    config = source.their_config
    if config is not None:
      tuned = re.search(r'window\d+to', str(config.get('architecture')))
      # Those of all such models.
      entries['pretrained_window_sizes'] = (12, 12, 12, 6) if tuned else None
    return entries

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    for name, array in tensors.items():
      if name.endswith('.k_bias') and array.any():
        raise UsageError(f'{source.path}: {name} is not zero, and keys have no bias in version 2')
    return super().tidy(tensors, entries, source)

  def creation(self, config: ModelConfig, path: object) -> tuple[str, dict[str, Any]]:
    architecture, arguments = super().creation(config, path)
    sizes = config.backbone.pretrained_window_sizes or (0,) * len(config.backbone.depths)
    return architecture, arguments | {'pretrained_window_sizes': sizes}

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    config = super().describe(tensors, entries, source)
    if 'pretrained_window_sizes' not in entries:
      config['pretrained_window_sizes'] = self.pretrained_windows(len(config['depths']), source)
    return config

  def pretrained_windows(self, num_stages: int, source: Source) -> tuple[int, ...] | None:
    """Returns the windows that positions were learned in, from the buffers with their scale."""
    sizes = []
    for stage in range(num_stages):
      name = f'layers.{stage}.blocks.0.attn.relative_coords_table'
      buffer = source.tensors.get(name, np.zeros(()))
      if buffer.ndim != 4:
        raise Unsettled(
          'pretrained_window_sizes',
          f'{source.path} does not tell them; give the folder with config.json',
        )
      window = tuple((side + 1) // 2 for side in buffer.shape[1:3])
      farthest = 2 ** (3 * float(buffer.max())) - 1  # 8 in a window as large as this one
      size = round(8 * (max(window) - 1) / farthest) + 1 if farthest > 0 else 0
      size = 0 if size == max(window) else size
      expected = relative_coordinates(window, size).reshape(buffer.shape)
      if not np.allclose(buffer, expected, atol=1e-4):
        raise UsageError(f'{source.path}: {name} has another scale than that of a window')
      sizes.append(size)
    return tuple(sizes) if any(sizes) else None

  def num_heads(
    self, tensors: files.Tensors, depths: tuple[int, ...], source: Source
  ) -> tuple[int, ...]:
    name = 'layers.{}.blocks.0.attn.logit_scale'.format
    return tuple(
      shape_of(tensors, name(stage), 3, source.path, self.title)[0] for stage in range(len(depths))
    )

  def window(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> int | tuple[int, int]:
    if entries.get('window_size') is not None:
      return entries['window_size']
    buffer = source.tensors.get('layers.0.blocks.0.attn.relative_coords_table', np.zeros(()))
    if buffer.ndim != 4:
      raise Unsettled(
        'window_size', f'{source.path} does not tell it; give the folder with config.json'
      )
    sides = tuple((side + 1) // 2 for side in buffer.shape[1:3])
    return sides[0] if sides[0] == sides[1] else sides

  def has_bias(self, tensors: files.Tensors) -> bool:
    return 'layers.0.blocks.0.attn.q_bias' in tensors

  def projections(self, model: Swin, ours: str, theirs: str) -> Iterator[Module]:
    parts = tuple(f'{ours}/{part}' for part in ('query', 'key', 'value'))
    yield Module(parts, f'{theirs}.qkv', _TO_HEADS_KERNEL)
    for part in ('q', 'v') if model.qkv_bias else ():
      module = f'{ours}/{ {"q": "query", "v": "value"}[part] }'
      yield Module(module, theirs, [('bias', f'{part}_bias', _TO_HEADS_BIAS[0][2])])


def _depths(names: Iterable[str]) -> tuple[int, ...]:
  """Returns the number of blocks of each stage."""
  pattern = re.compile(r'layers\.(\d+)\.blocks\.(\d+)\.')
  found = {(int(m[1]), int(m[2])) for name in names if (m := pattern.match(name))}
  stages = {stage for stage, _ in found}
  return tuple(sum(stage == s for stage, _ in found) for s in range(len(stages)))


def _is_microsoft(names: Collection[str]) -> bool:
  """Whether patches are merged at the end of a stage, as in Microsoft's files."""
  return 'layers.0.downsample.reduction.weight' in names


TABLES = (HuggingFaceSwin(), HuggingFaceSwinV2(), TimmSwin(), TimmSwinV2())
