"""MobileViT, version 1, in Hugging Face's transformers and timm."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.models.mobilevit import NUM_RESIDUALS, SIZES, STRIDES, MobileViT
from vit_jax.weights import files, rules
from vit_jax.weights.formats import huggingface, timm
from vit_jax.weights.rules import CONV, DENSE, FROM_HEADS, NORM, POINTWISE, TO_HEADS, Module
from vit_jax.weights.table import Source, Table, length_of, shape_of

_NUM_HEADS, _PATCH_SIZE, _EPSILON = 4, 2, 1e-5  # of all published models
_ARCHITECTURES = [f'mobilevit_{size.lower()}' for size in SIZES]


class _MobileViT(Table):
  """What the tables of both formats share.

  A subclass names the modules there.

  Attributes:
    conv, norm: in a module of a convolution and its norm.
    residual: of the three such modules in an inverted residual.
    stem, last, head: of the first convolution, the last one, and the classifier.
    block: in a MobileViT block, of what is here `local_rep_conv_3x3`, `local_rep_conv_1x1`,
      `global_rep_norm`, `conv_proj` and `fusion`.
    layer: in a transformer layer, of what is here `norm1`, `norm2`, `Dense_0`, `Dense_1` of `mlp`,
      and `out` of `attn`.
    fixed: the values of fields that the format has one place for.
  """

  models = ('mobilevit',)
  stated = ('num_heads', 'patch_size', 'strides', 'norm_epsilon', 'expand_ratio')
  conv: ClassVar[str]
  norm: ClassVar[str]
  residual: ClassVar[tuple[str, str, str]]
  stem: ClassVar[str]
  last: ClassVar[str]
  head: ClassVar[str]
  block: ClassVar[tuple[str, str, str, str, str]]
  layer: ClassVar[tuple[str, str, str, str, str]]
  fixed: ClassVar[Mapping[str, Any]]

  def residual_name(self, layer: int, number: int) -> str:
    """Returns the name of an inverted residual: layers count from 1, their residuals from 0."""
    raise NotImplementedError

  def block_name(self, layer: int) -> str:
    """Returns the name of the MobileViT block of a layer, 3 to 5."""
    raise NotImplementedError

  def transformer_name(self, layer: int, number: int) -> str:
    """Returns the name of a transformer layer, counted from 0, in that block."""
    raise NotImplementedError

  def projections(self, ours: str, theirs: str) -> Iterator[Module]:
    """Yields queries, keys and values of a transformer layer."""
    raise NotImplementedError

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    return rules.without_counters(tensors)

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    def width(module: str) -> int:
      name = f'{module}.{self.norm}.weight'
      return shape_of(tensors, name, 1, source.path, self.title)[0]

    blocks = [self.block_name(layer) for layer in (3, 4, 5)]
    hidden_sizes = tuple(
      shape_of(tensors, f'{block}.{self.block[2]}.weight', 1, source.path, self.title)[0]
      for block in blocks
    )
    residuals = [self.residual_name(layer, 0) for layer in range(1, 6)]
    mlp = f'{self.transformer_name(3, 0)}.{self.layer[2]}.bias'
    hidden = shape_of(tensors, mlp, 1, source.path, self.title)[0]
    stem = tensors[f'{self.stem}.{self.conv}.weight']
    neck = (self.stem, *(f'{name}.{self.residual[2]}' for name in residuals), self.last)
    kernel = f'{blocks[0]}.{self.block[0]}.{self.conv}.weight'
    return {
      'name': 'mobilevit',
      'neck_hidden_sizes': tuple(map(width, neck)),
      'hidden_sizes': hidden_sizes,
      'depths': tuple(self.count_layers(tensors, layer) for layer in (3, 4, 5)),
      'num_heads': _NUM_HEADS,
      'mlp_ratio': hidden / hidden_sizes[0],
      'expand_ratio': width(f'{residuals[1]}.{self.residual[0]}') / width(neck[1]),
      'conv_kernel_size': shape_of(tensors, kernel, 4, source.path, self.title)[-1],
      'patch_size': _PATCH_SIZE,
      'strides': STRIDES,
      'norm_epsilon': _EPSILON,
      'num_classes': length_of(tensors, f'{self.head}.bias', source.path, self.title) or 0,
      'channels': stem.shape[1],
      **entries,
    }

  def count_layers(self, names: Collection[str], layer: int) -> int:
    """Returns the number of transformer layers in a block."""
    count = 0
    while f'{self.transformer_name(layer, count)}.{self.layer[0]}.weight' in names:
      count += 1
    return count

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    model = config.backbone
    yield from self.conv_norm('conv_1', self.stem)
    for layer, residuals in enumerate(NUM_RESIDUALS, start=1):
      for i in range(residuals):
        theirs = self.residual_name(layer, i)
        for part, name in zip(('exp_1x1', 'conv_3x3', 'red_1x1'), self.residual, strict=True):
          yield from self.conv_norm(f'layer_{layer}_{i}/{part}', f'{theirs}.{name}')
    for layer, depth in enumerate(model.depths, start=3):
      ours, theirs = f'layer_{layer}_1', self.block_name(layer)
      local, pointwise, norm, projection, fusion = (f'{theirs}.{name}' for name in self.block)
      yield from self.conv_norm(f'{ours}/local_rep_conv_3x3', local)
      yield Module(f'{ours}/local_rep_conv_1x1', pointwise, POINTWISE)
      for i in range(depth):
        theirs = self.transformer_name(layer, i)
        yield from self.transformer_layer(f'{ours}/global_rep_{i}', theirs)
      yield Module(f'{ours}/global_rep_norm', norm, NORM)
      yield from self.conv_norm(f'{ours}/conv_proj', projection)
      yield from self.conv_norm(f'{ours}/fusion', fusion)
    yield from self.conv_norm('conv_1x1_exp', self.last)
    yield Module('output_projection', self.head, DENSE)

  def conv_norm(self, ours: str, theirs: str) -> Iterator[Module]:
    """Yields a convolution and its norm."""
    yield Module(f'{ours}/conv', f'{theirs}.{self.conv}', CONV)
    yield from rules.batch_norm(f'{ours}/norm', f'{theirs}.{self.norm}')

  def transformer_layer(self, ours: str, theirs: str) -> Iterator[Module]:
    """Yields the modules of a transformer layer."""
    norm1, norm2, first, second, out = (f'{theirs}.{name}' for name in self.layer)
    yield Module(f'{ours}/norm1', norm1, NORM)
    yield from self.projections(f'{ours}/attn', theirs)
    yield Module(f'{ours}/attn/out', out, FROM_HEADS)
    yield Module(f'{ours}/norm2', norm2, NORM)
    yield Module(f'{ours}/mlp/Dense_0', first, DENSE)
    yield Module(f'{ours}/mlp/Dense_1', second, DENSE)

  def check_place(self, config: ModelConfig, path: object) -> None:
    model = config.backbone
    for field, value in self.fixed.items():
      if getattr(model, field) != value:
        raise UsageError(f'{path}: {field} {getattr(model, field)} has no place there, {value} has')

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    return rules.with_counters(tensors)


class HuggingFaceMobileViT(_MobileViT, huggingface.HuggingFaceTable):
  """models/mobilevit of transformers: MobileViTForImageClassification and MobileViTModel.

  Published models take images of BGR; their image processor makes them of RGB. Here they take RGB:
  reading turns the channels of the first kernel round.
  """

  model_type = 'mobilevit'
  reads_bgr = True
  title = 'a Hugging Face MobileViT'
  marks: ClassVar = {
    'conv_stem.convolution.weight': 4,
    'encoder.layer.2.conv_kxk.convolution.weight': 4,
    'encoder.layer.2.transformer.layer.0.attention.attention.query.weight': 2,
  }
  conv, norm = 'convolution', 'normalization'
  residual = ('expand_1x1', 'conv_3x3', 'reduce_1x1')
  stem, last, head = 'conv_stem', 'conv_1x1_exp', 'classifier'
  block = ('conv_kxk', 'conv_1x1.convolution', 'layernorm', 'conv_projection', 'fusion')
  layer = (
    'layernorm_before',
    'layernorm_after',
    'intermediate.dense',
    'output.dense',
    'attention.output.dense',
  )
  fixed: ClassVar = {'strides': STRIDES, 'depths': (2, 4, 3)}

  def canonical(self, name: str) -> str:
    return name.removeprefix('mobilevit.')

  def residual_name(self, layer: int, number: int) -> str:
    prefix = f'encoder.layer.{layer - 1}'
    return f'{prefix}.layer.{number}' if layer < 3 else f'{prefix}.downsampling_layer'

  def block_name(self, layer: int) -> str:
    return f'encoder.layer.{layer - 1}'

  def transformer_name(self, layer: int, number: int) -> str:
    return f'encoder.layer.{layer - 1}.transformer.layer.{number}'

  def projections(self, ours: str, theirs: str) -> Iterator[Module]:
    for part in ('query', 'key', 'value'):
      yield Module(f'{ours}/{part}', f'{theirs}.attention.attention.{part}', TO_HEADS)

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    name = f'{self.stem}.{self.conv}.weight'
    if huggingface.takes_bgr(source.metadata_path):
      tensors |= {name: tensors[name][:, ::-1]}
    return super().tidy(tensors, entries, source)

  def read_config(self, source: Source) -> dict[str, Any]:
    entries = super().read_config(source)
    config = source.their_config
    fixed = {'hidden_act': ('silu', 'swish'), 'output_stride': (32,), 'qkv_bias': (True,)}
    for name, allowed in fixed.items():
      if (value := config.get(name, allowed[0])) not in allowed:
        raise UsageError(f'{source.metadata_path}: {name} {value!r} is not read, {allowed[0]!r} is')
    return entries | {
      'image_size': huggingface.pair(source, 'image_size', 256),
      'num_heads': huggingface.whole(source, 'num_attention_heads', _NUM_HEADS),
      'patch_size': huggingface.whole(source, 'patch_size', _PATCH_SIZE),
      'norm_epsilon': config.get('layer_norm_eps', _EPSILON),
      'expand_ratio': config.get('expand_ratio', 4.0),
      'strides': STRIDES,
    }

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    config = super().describe(tensors, entries, source)
    defaults = _their_sizes(MobileViT(num_classes=0)) | {'num_channels': 3}
    sizes = _their_sizes(MobileViT.from_config(config)) | {'num_channels': config['channels']}
    for name, size in sizes.items():
      if (theirs := source.their_config.get(name, defaults[name])) != size:
        raise UsageError(f'{source.metadata_path}: {name} is {theirs!r}, but tensors have {size!r}')
    return {'class_names': huggingface.class_names(source, config['num_classes']), **config}

  def check_place(self, config: ModelConfig, path: object) -> None:
    super().check_place(config, path)
    if config.image_size is None:
      raise UsageError(f'{path}: image_size is needed there')

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    tensors = super().finish(tensors, config)
    if not config.num_classes:
      return tensors
    head = f'{self.head}.'
    return {n if n.startswith(head) else f'mobilevit.{n}': t for n, t in tensors.items()}

  def classifier_class(self, config: ModelConfig, path: object) -> str:
    self.check_place(config, path)
    return 'MobileViTForImageClassification'

  def their_config(self, config: ModelConfig) -> dict[str, Any]:
    model = config.backbone
    kind = 'ForImageClassification' if config.num_classes else 'Model'
    return {
      'architectures': [f'MobileViT{kind}'],
      'model_type': self.model_type,
      'image_size': huggingface.shortest(config.image_size),
      'num_channels': config.channels,
      'patch_size': model.patch_size,
      'num_attention_heads': model.num_heads,
      **_their_sizes(model),
      'expand_ratio': model.expand_ratio,
      'hidden_act': 'silu',
      'output_stride': 32,
      'qkv_bias': True,
      'layer_norm_eps': model.norm_epsilon,
      'hidden_dropout_prob': 0.0,
      'attention_probs_dropout_prob': 0.0,
      'classifier_dropout_prob': 0.0,
      'torch_dtype': 'float32',
      **huggingface.labels(config),
    }


def _their_sizes(model: MobileViT) -> dict[str, Any]:
  """Returns the fields of config.json that the shapes of tensors tell as well."""
  return {
    'neck_hidden_sizes': list(model.neck_hidden_sizes),
    'hidden_sizes': list(model.hidden_sizes),
    'mlp_ratio': model.mlp_ratio,
    'conv_kernel_size': model.conv_kernel_size,
  }


class TimmMobileViT(_MobileViT, timm.TimmTable):
  """timm's MobileViT, a ByobNet."""

  title = "timm's MobileViT"
  published = _ARCHITECTURES
  marks: ClassVar = {
    'stem.conv.weight': 4,
    'stages.2.1.conv_kxk.conv.weight': 4,
    'stages.2.1.transformer.0.attn.qkv.weight': 2,
  }
  conv, norm = 'conv', 'bn'
  residual = ('conv1_1x1', 'conv2_kxk', 'conv3_1x1')
  stem, last, head = 'stem', 'final_conv', 'head.fc'
  block = ('conv_kxk', 'conv_1x1', 'norm', 'conv_proj', 'conv_fusion')
  layer = ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2', 'attn.proj')
  fixed: ClassVar = {
    'strides': STRIDES,
    'num_heads': _NUM_HEADS,
    'patch_size': _PATCH_SIZE,
    'norm_epsilon': _EPSILON,
  }

  def residual_name(self, layer: int, number: int) -> str:
    return f'stages.{layer - 1}.{number}'

  def block_name(self, layer: int) -> str:
    return f'stages.{layer - 1}.1'

  def transformer_name(self, layer: int, number: int) -> str:
    return f'stages.{layer - 1}.1.transformer.{number}'

  def projections(self, ours: str, theirs: str) -> Iterator[Module]:
    parts = tuple(f'{ours}/{part}' for part in ('query', 'key', 'value'))
    yield Module(parts, f'{theirs}.attn.qkv', TO_HEADS)

  def read_config(self, source: Source) -> dict[str, Any]:
    timm.check_architecture(source, _ARCHITECTURES)
    return super().read_config(source)


TABLES = (HuggingFaceMobileViT(), TimmMobileViT())
