"""timm's vision transformers: VisionTransformer and its relatives, all of them `ViT` here.

`weights.architectures` knows what they are made of by their names. Here are the names of their
tensors.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from vit_jax import models
from vit_jax.errors import FieldError, UsageError, check_choice
from vit_jax.models import ModelConfig
from vit_jax.models import fields as fields_lib
from vit_jax.models.backbone import Shape
from vit_jax.models.sizes import SIZES
from vit_jax.models.variables import Variables
from vit_jax.models.vit import ViT
from vit_jax.weights import architectures, files, rules
from vit_jax.weights.architectures import vit as arguments
from vit_jax.weights.architectures.creation import Creation, creation_of
from vit_jax.weights.formats import timm
from vit_jax.weights.rules import (
  CONV,
  DENSE,
  FROM_HEADS,
  NORM,
  TO_HEADS,
  Layout,
  Module,
  tensor,
)
from vit_jax.weights.table import (
  IMAGES,
  Known,
  Source,
  Unsettled,
  check_entries,
  errors_of_file,
  length_of,
)
from vit_jax.weights.tables.vit import (
  AnyViT,
  count_blocks,
  describe_pooling,
  places_class,
  square_image,
)

_BLOCK = 'Transformer/encoderblock_{}'
_ATTENTION = 'MultiHeadDotProductAttention_0'
_POSITIONS = 'Transformer/posembed_input'
_QKV = ('query', 'key', 'value')
_FIRST, _BLOCK_NAME = 'blocks.0.', r'blocks\.(\d+)\.'
_GAMMA, _EVA_GAMMA = ('ls1.gamma', 'ls2.gamma'), ('gamma_1', 'gamma_2')
_RELPOS, _RELPOS_NAME = ('attn.rel_pos', 'shared_rel_pos'), re.compile(r'.*\b(shared_)?rel_pos\.')
_HEAD_BIAS = Layout((2,), (0,))
# What no tensor tells, in a file without config.json.
_OPEN = ('activation', 'classifier')


class Naming(NamedTuple):
  """The names in which timm's classes differ.

  Attributes:
    separate_qkv: whether query, key and value are three layers; else they are one, `qkv`.
    separate_gate: whether the gate of an MLP is a layer; else it is half of `fc1`.
    gamma: names of the layer scales of attention and of the MLP.
    own_bias: whether the biases of query and value are the attention's own parameters; else they
      are the layer's.
    relative: the module of relative positions in a block, and that in the model if blocks share it.
    head: name of the last layer.
  """

  separate_qkv: bool = False
  separate_gate: bool = False
  gamma: tuple[str, str] = _GAMMA
  own_bias: bool = False
  relative: tuple[str, str] = ('attn', 'rel_pos_bias')
  head: str = 'head'

  @classmethod
  def of_creation(cls, made: Creation) -> 'Naming':
    """Returns how the tensors of a model that timm makes are called."""
    a, eva = made.arguments, made.cls in ('Eva', 'Beit')
    gated = a.get('swiglu_mlp') and (made.cls == 'Beit' or a['scale_mlp'] or a['swiglu_align_to'])
    fused = a.get('qkv_fused', True)
    return cls(
      separate_qkv=not fused,
      separate_gate=bool(gated) or (a.get('mlp_layer') or {}).get('name') == 'SwiGLU',
      gamma=_EVA_GAMMA if eva else _GAMMA,
      own_bias=eva and fused and a['qkv_bias'] and a.get('attn_type', 'eva') == 'eva',
      relative=_RELPOS if made.cls == 'VisionTransformerRelPos' else ('attn', 'rel_pos_bias'),
      head='head.fc' if made.cls == 'VisionTransformerSAM' else 'head',
    )

  @classmethod
  def of_tensors(cls, names: Collection[str]) -> 'Naming':
    """Returns how the tensors of a file are called."""
    return cls(
      separate_qkv=f'{_FIRST}attn.q_proj.weight' in names,
      separate_gate=f'{_FIRST}mlp.fc1_g.weight' in names,
      gamma=_EVA_GAMMA if f'{_FIRST}gamma_1' in names else _GAMMA,
      own_bias=f'{_FIRST}attn.q_bias' in names,
      relative=_RELPOS if any(_RELPOS_NAME.match(n) for n in names) else ('attn', 'rel_pos_bias'),
      head='head.fc' if 'neck.0.weight' in names or 'head.fc.weight' in names else 'head',
    )


class GridLayout(NamedTuple):
  """A layout (`rules.Layout`) of positions [1, h * w, D] that are [1, h, w, D] there."""

  rows: int
  columns: int

  def their_shape(self, ours: Shape) -> Shape:
    """As of `Layout`."""
    return (1, self.rows, self.columns, ours[-1])

  def to_theirs(self, array: np.ndarray) -> np.ndarray:
    """As of `Layout`."""
    return array.reshape(self.their_shape(array.shape))

  def to_ours(self, array: np.ndarray, shape: Shape) -> np.ndarray:
    """As of `Layout`."""
    return array.reshape(shape)


class TimmViT(AnyViT, timm.TimmTable):
  """timm's VisionTransformer, Eva, Beit and so on.

  config.json names the architecture, which settles what tensors don't tell. A file alone is read
  where this project wrote it, or where the caller settles that.

  Attributes:
    assumed: entries of the model config that files of a kind always have.
  """

  title = "timm's VisionTransformer"
  places: ClassVar = {
    'classifier': tuple(arguments.POOLINGS.values()),
    'positional_embedding': ('learned_1d', 'none'),
  }
  marks: ClassVar = {'patch_embed.proj.weight': 4}
  foreign: ClassVar = {
    **timm.TimmTable.foreign,
    r'^patch_embed\.backbone\.': 'a convolutional network before the patches',
  }
  assumed: ClassVar[Mapping[str, Any]] = {}

  def missing_mark(self, names: Iterable[str]) -> str | None:
    names = list(names)
    blocks = any(self.canonical(name).startswith(_FIRST) for name in names)
    return super().missing_mark(names) or (None if blocks else f'{_FIRST}...')

  def known(self) -> Iterable[Known]:
    for name in architectures.names():
      config, made, refused = {'architecture': name}, architectures.find(name), None
      if not (self.owns_config(config) and self.claims(config)):
        continue
      try:
        check_choice('class', made.cls, arguments.CLASSES)
        fields = arguments.fields_of(made.cls, made.arguments)
        ModelConfig.from_dict({'num_classes': 1, **fields})
      except UsageError as e:
        refused = str(e)
      yield Known(name, self.format, refused)

  def claims(self, config: Mapping[str, Any]) -> bool:
    architecture = architectures.find(str(config.get('architecture')))
    return architecture is not None and self.has(architecture)

  def has(self, architecture: architectures.Architecture) -> bool:
    """Whether an architecture of timm is of this kind."""
    return architecture.cls != 'NaFlexVit' and not is_hybrid(architecture)

  def load(
    self, source: Source, known: Mapping[str, Any], allow: str | None
  ) -> tuple[Variables, ModelConfig]:
    """As of `Table`; what isn't read of an architecture is named before its tensors are missed."""
    name = str((source.their_config or {}).get('architecture'))
    if (architecture := architectures.find(name)) is not None:
      with errors_of_file(source.metadata_path):
        arguments.fields_of(architecture.cls, architecture.arguments)
    return super().load(source, known, allow)

  # Reading: of an architecture.

  def metadata_entries(self, source: Source) -> dict[str, Any]:
    entries = super().metadata_entries(source)
    if source.their_config is not None or 'hidden_size' not in source.entries:
      return {**self.assumed, **entries}
    names = {*fields_lib.names(models.backbone(self.models[0])), *IMAGES}
    own = {n: v for n, v in source.entries.items() if n in names}
    with errors_of_file(source.metadata_path):
      return check_entries(own, self.models[0])

  def read_config(self, source: Source) -> dict[str, Any]:
    entries = super().read_config(source)
    if source.their_config is None:
      return entries
    name = str(source.their_config.get('architecture'))
    architecture = architectures.find(name)
    if architecture is None or architecture.cls not in arguments.CLASSES:
      problem = architectures.NOT_KNOWN
      raise UsageError(f'{source.metadata_path}: architecture {name!r} {problem}')
    made_with = timm.model_args(source)
    timm.refuse_args(source, [n for n, value in made_with.items() if isinstance(value, dict)])
    given = dict(architecture.arguments)
    if given['img_size'] == architectures.defaults(architecture.cls)['img_size']:
      given['img_size'] = entries.get('image_size', given['img_size'])
    given |= self.sizes(source.tensors) | made_with
    pool = source.their_config.get('global_pool', given['global_pool'])
    if pool != given['global_pool']:
      made = given['global_pool']
      raise FieldError('global_pool', f'{pool!r}, but {name} is made with {made!r}')
    fields = arguments.fields_of(architecture.cls, given)
    if fields.pop('name') != self.models[0]:
      raise FieldError('architecture', f'{name!r}, but the tensors are of {self.title}')
    if 'mlp_ratio' not in made_with:
      fields['mlp_dim'] = _mlp_dim(source.tensors, fields['mlp_dim'])
    as_made = given['embed_dim'] == architecture.arguments['embed_dim']
    if not as_made and not made_with.keys() & {'embed_dim', 'num_heads'}:
      del fields['num_heads']  # which are another model's
    return entries | fields

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    if 'hidden_size' in entries:
      config = dict(entries)
      if (depth := config.get('num_layers')) != count_blocks(tensors, _BLOCK_NAME):
        raise FieldError('num_layers', f'{depth}, but {source.path} has others')
      if config.get('num_heads') is None:
        config['num_heads'] = _num_heads(config, tensors, source.path)
    else:
      config = self.read_shapes(tensors, entries, source)
    told = {
      'name': self.models[0],
      'num_classes': _num_classes(tensors, source.path, self.title),
      'channels': self.channels(tensors, config),
    }
    return {**told, **config}

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    """Makes two projections of those that attention and MLP of a layer share."""
    for name in [name for name in tensors if name.endswith('.out_proj.weight')]:
      block, array = name.removesuffix('out_proj.weight'), tensors.pop(name)
      width = min(len(array), array.shape[-1])
      tensors[f'{block}attn_out_proj.weight'] = array[:, :width]
      tensors[f'{block}mlp_out_proj.weight'] = array[:, width:]
      if (bias := tensors.pop(f'{block}out_proj.bias', None)) is not None:
        tensors[f'{block}attn_out_proj.bias'] = bias
        tensors[f'{block}mlp_out_proj.bias'] = np.zeros_like(bias)
    return tensors

  def sizes(self, tensors: files.Tensors) -> dict[str, Any]:
    """Returns the arguments that the shapes of a model's tensors tell."""
    width, _, *patch = tensors['patch_embed.proj.weight'].shape
    return {'embed_dim': width, 'patch_size': patch, 'depth': count_blocks(tensors, _BLOCK_NAME)}

  def channels(self, tensors: files.Tensors, entries: Mapping[str, Any]) -> int:
    """Returns how many channels images have."""
    del entries
    return tensors['patch_embed.proj.weight'].shape[1]

  # Reading: of tensors alone.

  def read_shapes(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    """Returns what `describe` does, of a plain VisionTransformer without config.json.

    Raises:
      FieldError: for what the caller has to settle.
    """
    hidden_size, _, *patch = tensors['patch_embed.proj.weight'].shape
    num_layers = count_blocks(tensors, _BLOCK_NAME)
    mlp_dim = length_of(tensors, f'{_FIRST}mlp.fc1.bias', source.path, self.title)
    self._check_settled(tensors, entries, source)
    class_token, positions = 'cls_token' in tensors, tensors.get('pos_embed')
    config = {
      'hidden_size': hidden_size,
      'mlp_dim': mlp_dim,
      'num_layers': num_layers,
      'patches': {'size': tuple(patch)},
      'norm_epsilon': 1e-6,
      'qkv_bias': f'{_FIRST}attn.qkv.bias' in tensors,
      **entries,
      **describe_pooling(
        entries,
        probe='attn_pool.latent' in tensors,
        class_token=class_token,
        fc_norm='fc_norm.weight' in tensors,
      ),
    }
    if config.get('num_heads') is None:
      config['num_heads'] = _num_heads(config, tensors, source.path)
    if positions is None or positions.ndim != 3:
      return config
    placed = class_token and places_class(positions.shape[1], patch, config.get('image_size'))
    if class_token and not placed:
      config['position_tokens'] = 'patches'
    if config.get('image_size') is None:
      config['image_size'] = square_image(positions.shape[1] - placed, patch, source.path)
    return config

  def _check_settled(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> None:
    """Raises FieldError for what no tensor tells, unless it is among the entries."""
    if features := rules.features_in(tensors, self.foreign):
      raise Unsettled(
        'architecture', f'{source.path} has {", ".join(features)}; give what timm calls it'
      )
    biased = f'{_FIRST}attn.qkv.bias' in tensors
    if not (source.entries or biased or 'cls_token' in tensors) and 'fc_norm.weight' in tensors:
      raise Unsettled(
        'architecture',
        f'{source.path} does not tell whether its norms are before the branches, or after them as '
        'in vit_base_patch16_rpn_224; give what timm calls it',
      )
    needed = _OPEN[:1] if 'attn_pool.latent' in tensors else _OPEN
    missing = [name for name in needed if entries.get(name) is None]
    if missing:
      raise Unsettled(
        missing[0],
        f'{source.path} does not tell it; give architecture=NAME, or {" and ".join(missing)}; '
        "timm's global_pool 'avg' is gap, 'max' is gmp, 'token' is token; its GELU is gelu_exact",
      )

  # Names.

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    model = config.backbone
    naming = Naming.of_tensors(names) if names else self.naming(config)
    pool = f'MAPHead_0/{_ATTENTION}'
    yield from self.embedding(config, naming)
    yield tensor('Transformer/rotary/freqs', 'rope.freqs')
    yield Module('Transformer/pre_norm', 'norm_pre', NORM)
    for layer in range(model.num_layers):
      yield from _block(_BLOCK.format(layer), f'blocks.{layer}', model, naming)
    shared = ('Transformer/relative_positions', naming.relative[1])
    yield from _relative(*shared)
    if naming.head == 'head':
      yield Module('Transformer/encoder_norm', 'norm', NORM)
    else:
      yield from _neck(model)
    yield Module('fc_norm', 'fc_norm', NORM)
    yield tensor('MAPHead_0/probe', 'attn_pool.latent')
    yield Module(f'{pool}/query', 'attn_pool.q', TO_HEADS)
    yield Module((f'{pool}/key', f'{pool}/value'), 'attn_pool.kv', TO_HEADS)
    yield Module(f'{pool}/out', 'attn_pool.proj', FROM_HEADS)
    yield Module('MAPHead_0/LayerNorm_0', 'attn_pool.norm', NORM)
    yield Module('MAPHead_0/MlpBlock_0/Dense_0', 'attn_pool.mlp.fc1', DENSE)
    yield Module('MAPHead_0/MlpBlock_0/Dense_1', 'attn_pool.mlp.fc2', DENSE)
    yield Module('output_projection', naming.head, DENSE)
    yield Module('output_projection_dist', 'head_dist', DENSE)

  def embedding(self, config: ModelConfig, naming: Naming) -> Iterator[Module]:
    """Yields the modules before the layers that have tokens: patches, others, positions."""
    grid = None
    if naming.head != 'head' and config.image_size is not None:
      grid = GridLayout(*config.backbone.grid(config.image_size))
    yield tensor('cls', 'cls_token')
    yield tensor('dist', 'dist_token')
    yield tensor('registers', 'reg_token')
    yield Module(_POSITIONS, '', (('pos_embedding', 'pos_embed', grid),))
    yield Module('embedding', 'patch_embed.proj', CONV)
    yield Module('embedding_norm', 'patch_embed.norm', NORM)

  # Writing.

  def check_place(self, config: ModelConfig, path: object) -> None:
    super().check_place(config, path)
    if config.image_size is None:
      raise UsageError(f'{path}: image_size is needed there')
    with errors_of_file(path):
      self.naming(config)

  def naming(self, config: ModelConfig) -> Naming:
    """Returns how the tensors of a model are called that is written.

    Raises:
      FieldError: for a field with a value that timm has no place for.
    """
    return Naming.of_creation(creation_of(config))

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    if not (config.backbone.block == 'parallel_scaling' and config.backbone.differential):
      return tensors
    for name in [name for name in tensors if name.endswith('.attn_out_proj.weight')]:
      block = name.removesuffix('attn_out_proj.weight')
      weights = [tensors.pop(f'{block}{part}_out_proj.weight') for part in ('attn', 'mlp')]
      tensors[f'{block}out_proj.weight'] = np.concatenate(weights, axis=1)
      if config.backbone.use_bias:
        biases = [tensors.pop(f'{block}{part}_out_proj.bias') for part in ('attn', 'mlp')]
        tensors[f'{block}out_proj.bias'] = sum(biases)
    return tensors

  def own_config(self, config: ModelConfig) -> dict[str, Any]:
    fields = {n: v for n, v in config.to_dict().items() if n in type(config.backbone).WEIGHT_FIELDS}
    return {**super().own_config(config), **fields}

  def creation(self, config: ModelConfig, path: object) -> tuple[str, dict[str, Any]]:
    self.check_place(config, path)
    made = creation_of(config)
    if made.needs_code:
      shown = ', '.join(f'{name}={made.changes[name]["name"]!r}' for name in made.needs_code)
      raise UsageError(f"{path}: none of timm's architectures is made with {shown}")
    return made.architecture, dict(made.changes)


def _block(ours: str, theirs: str, model: ViT, naming: Naming) -> Iterator[Module]:
  if model.block == 'parallel_scaling':
    yield from _wide_block(ours, theirs, model)
  elif model.block == 'parallel':
    for i in range(2):
      for j, kind in ((i, 'attns'), (2 + i, 'ffns')):
        yield Module(f'{ours}/LayerNorm_{j}', f'{theirs}.{kind}.{i}.norm', NORM)
        yield tensor(f'{ours}/LayerScale_{j}/gamma', f'{theirs}.{kind}.{i}.ls.gamma')
      yield from _attention(f'{ours}/{_ATTENTION[:-1]}{i}', f'{theirs}.attns.{i}.attn', naming)
      yield from _mlp(f'{ours}/MlpBlock_{i}', f'{theirs}.ffns.{i}.mlp', model.mlp == 'glu', naming)
  else:
    for i, gamma in enumerate(naming.gamma):
      yield Module(f'{ours}/LayerNorm_{i}', f'{theirs}.norm{i + 1}', NORM)
      yield tensor(f'{ours}/LayerScale_{i}/gamma', f'{theirs}.{gamma}')
    yield from _attention(f'{ours}/{_attention_name(model)}', f'{theirs}.attn', naming)
    yield from _relative(f'{ours}/relative_positions', f'{theirs}.{naming.relative[0]}')
    yield from _mlp(f'{ours}/MlpBlock_0', f'{theirs}.mlp', model.mlp == 'glu', naming)


def _wide_block(ours: str, theirs: str, model: ViT) -> Iterator[Module]:
  """A layer whose attention and MLP are side by side, with one projection into both."""
  attention, mlp = f'{ours}/{_attention_name(model)}', f'{ours}/MlpBlock_0'
  inputs = (f'{mlp}/Dense_0', *(f'{attention}/{part}' for part in _QKV))
  yield Module(f'{ours}/LayerNorm_0', f'{theirs}.in_norm', NORM)
  yield Module(inputs, f'{theirs}.in_proj', TO_HEADS)
  if not model.qkv_bias:
    yield tensor(f'{inputs[0]}/bias', f'{theirs}.mlp_bias')
  yield from _inner(attention, theirs)
  yield Module(f'{attention}/out', f'{theirs}.attn_out_proj', FROM_HEADS)
  yield Module(f'{mlp}/Dense_1', f'{theirs}.mlp_out_proj', DENSE)
  yield tensor(f'{ours}/LayerScale_0/gamma', f'{theirs}.ls.gamma')


def _attention_name(model: ViT) -> str:
  return 'DifferentialAttention_0' if model.differential else _ATTENTION


def _inner(ours: str, theirs: str) -> Iterator[Module]:
  """What attention has between its projections."""
  yield Module(f'{ours}/query_norm', f'{theirs}.q_norm', NORM)
  yield Module(f'{ours}/key_norm', f'{theirs}.k_norm', NORM)
  yield Module(f'{ours}/norm', f'{theirs}.norm', NORM)
  yield Module(f'{ours}/sub_norm', f'{theirs}.sub_norm', NORM)
  for name in ('lambda_q1', 'lambda_k1', 'lambda_q2', 'lambda_k2'):
    yield tensor(f'{ours}/{name}', f'{theirs}.{name}')


def _relative(ours: str, theirs: str) -> Iterator[Module]:
  """Relative positions, of one layer or of all."""
  for name in ('relative_position_bias_table', 'rel_pos_h', 'rel_pos_w'):
    yield tensor(f'{ours}/{name}', f'{theirs}.{name}')
  for i in (0, 1):
    yield Module(f'{ours}/Dense_{i}', f'{theirs}.mlp.fc{i + 1}', DENSE)


def _neck(model: ViT) -> Iterator[Module]:
  if model.neck is None:
    yield Module('Transformer/encoder_norm', 'neck', NORM)
  for i in (0, 1):
    yield Module(f'neck/Conv_{i}', f'neck.{2 * i}', CONV[:1])
    yield Module(f'neck/LayerNorm_{i}', f'neck.{2 * i + 1}', NORM)


def _attention(ours: str, theirs: str, naming: Naming) -> Iterator[Module]:
  parts = tuple(f'{ours}/{part}' for part in _QKV)
  if naming.separate_qkv:
    for part, name in zip(parts, ('q_proj', 'k_proj', 'v_proj'), strict=True):
      yield Module(part, f'{theirs}.{name}', TO_HEADS)
  elif naming.own_bias:
    yield Module(parts, f'{theirs}.qkv', TO_HEADS[:1])
    yield Module(parts[0], theirs, (('bias', 'q_bias', _HEAD_BIAS),))
    yield Module(parts[2], theirs, (('bias', 'v_bias', _HEAD_BIAS),))
  else:
    yield Module(parts, f'{theirs}.qkv', TO_HEADS)
  yield from _inner(ours, theirs)
  yield Module(f'{ours}/out', f'{theirs}.proj', FROM_HEADS)


def _mlp(ours: str, theirs: str, gated: bool, naming: Naming) -> Iterator[Module]:
  if naming.separate_gate:
    yield Module(f'{ours}/gate', f'{theirs}.fc1_g', DENSE)
    yield Module(f'{ours}/Dense_0', f'{theirs}.fc1_x', DENSE)
  else:
    parts = ('gate', 'Dense_0') if gated else ('Dense_0',)
    yield Module(tuple(f'{ours}/{part}' for part in parts), f'{theirs}.fc1', DENSE)
  yield Module(f'{ours}/norm', f'{theirs}.norm', NORM)
  yield Module(f'{ours}/Dense_1', f'{theirs}.fc2', DENSE)


def _num_classes(tensors: files.Tensors, path: object, title: str) -> int:
  found = (length_of(tensors, name, path, title) for name in ('head.bias', 'head.fc.bias'))
  return next(filter(None, found), 0)


def _mlp_dim(tensors: files.Tensors, default: int) -> int:
  """Returns the hidden width of the blocks' MLPs, by the shape of the last layer."""
  last = tensors.get(f'{_FIRST}mlp.fc2.weight')
  return last.shape[1] if last is not None and last.ndim == 2 else default


def is_hybrid(architecture: architectures.Architecture) -> bool:
  """Whether patches are embedded by a ResNetV2."""
  embedding = architecture.arguments.get('embed_layer') or {}
  return embedding.get('backbone', {}).get('name') == 'ResNetV2'


def _num_heads(config: Mapping[str, Any], tensors: files.Tensors, path: object) -> int:
  """Returns the number of heads that models of such a size have, which no tensor tells.

  Raises:
    Unsettled: there is no such model, or they have several.
  """
  size = tuple(config[name] for name in ('hidden_size', 'num_layers', 'mlp_dim'))
  told = (*size, 'cls_token' in tensors, 'attn_pool.latent' in tensors)
  found = {heads for *named, heads in SIZES.values() if tuple(named) == size}
  for made in architectures.of_class('VisionTransformer'):
    a = made.arguments
    mlp_dim = int(a['embed_dim'] * a['mlp_ratio'])
    if told == (a['embed_dim'], a['depth'], mlp_dim, a['class_token'], a['global_pool'] == 'map'):
      found.add(a['num_heads'])
  if len(found) == 1:
    return found.pop()
  known = ' or '.join(map(str, sorted(found)))
  which = f'models have with {known} heads' if found else 'is no named size'
  raise Unsettled(
    'num_heads',
    f'{path} does not tell how many, and width {{}}, depth {{}}, MLP {{}} {which}; '
    'give the number'.format(*size),
  )


# A dense layer on the pixels of a patch, row after row: [out, height * width * channels].
_PIXELS = (('kernel', 'weight', Layout((3, 1), (1, 0))), ('bias', 'bias', Layout((1,), (0,))))


class TimmNaFlexViT(TimmViT):
  """timm's NaFlexVit, with images of one size; its positions are interpolated to their grid."""

  title = "timm's NaFlexVit"
  first_conv = 'embeds.proj'
  marks: ClassVar = {'embeds.proj.weight': 2}

  def has(self, architecture: architectures.Architecture) -> bool:
    return architecture.cls == 'NaFlexVit'

  def sizes(self, tensors: files.Tensors) -> dict[str, Any]:
    width = len(tensors['embeds.proj.weight'])
    return {'embed_dim': width, 'depth': count_blocks(tensors, _BLOCK_NAME)}

  def channels(self, tensors: files.Tensors, entries: Mapping[str, Any]) -> int:
    pixels = math.prod(entries['patches']['size'])
    return tensors['embeds.proj.weight'].shape[1] // pixels

  def read_shapes(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    raise Unsettled('architecture', f'{source.path} does not tell it, whose tensors are NaFlexVit')

  def embedding(self, config: ModelConfig, naming: Naming) -> Iterator[Module]:
    table = config.backbone.position_table
    yield tensor('cls', 'embeds.cls_token')
    yield tensor('registers', 'embeds.reg_token')
    yield Module('embedding', 'embeds.proj', _PIXELS)
    yield Module('embedding_norm', 'embeds.norm', NORM)
    if table is not None:
      leaf = ('pos_embedding', 'pos_embed', GridLayout(*table['grid']))
      yield Module(_POSITIONS, 'embeds', (leaf,))
    yield tensor(f'{_POSITIONS}/pos_embedding_rows', 'embeds.pos_embed_y')
    yield tensor(f'{_POSITIONS}/pos_embedding_columns', 'embeds.pos_embed_x')

  def writes(self, config: ModelConfig) -> bool:
    return super().writes(config) and config.backbone.position_table is not None


TABLES = (TimmNaFlexViT(), TimmViT())
