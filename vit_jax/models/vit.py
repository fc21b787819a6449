"""Vision Transformer (arXiv 2010.11929), with scenic's module names and parameter tree.

Capture: `model.apply(variables, x, mutable=['intermediates'])` also returns the attention weights
of layer i, a tuple of one float32 [batch, heads, queries, keys], at
`Transformer/encoderblock_{i}/MultiHeadDotProductAttention_0/attention_weights`, and those of the
MAP head, [batch, heads, 1, keys], at `MAPHead_0/MultiHeadDotProductAttention_0/attention_weights`.
Of a second attention side by side the name ends with 1, a differential one is
`DifferentialAttention_0` and has two maps for each head, and within windows the batch is of those.
With a tokenizer there are the maps that weigh the tokens, float32 [batch, num_tokens, h * w], at
`Transformer/TokenLearnerModuleV11_{i}/token_maps` (`TokenLearnerModule_{i}` for version 1), and
those by which the fuser returns them, at `Transformer/TokenFuser_{i}/token_maps`; i counts the
layers that learn tokens from 0.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections.config_dict import placeholder

from vit_jax.errors import FieldError, UsageError, check_choice
from vit_jax.models import fields as fields_lib
from vit_jax.models import layers
from vit_jax.models.backbone import (
  Attention,
  AttentionMaps,
  Backbone,
  Features,
  Fitted,
  Layout,
  Positions,
  Shape,
  TokenMaps,
  trace_shapes,
)
from vit_jax.models.blocks import BlockOptions, Encoder1DBlock
from vit_jax.models.encoder import POSITIONAL_EMBEDDINGS, Encoder
from vit_jax.models.sizes import SIZES
from vit_jax.ranges import Count, Entries, Layers, NonNegative, Number, Rate, Real, Width

__all__ = [
  'CLASSIFIERS',
  'PATCH_EMBEDDINGS',
  'POSITIONAL_EMBEDDINGS',
  'POSITION_TOKENS',
  'TOKENIZER',
  'Encoder',
  'Encoder1DBlock',
  'MAPHead',
  'ViT',
  'classify',
  'learned_maps',
  'pool',
]

CLASSIFIERS = ('token', 'token_gap', 'gap', 'gmp', 'gsp', 'map', 'none')
_OF_TOKEN = ('token', 'token_gap')  # which read the class token
PATCH_EMBEDDINGS = ('conv', 'linear')
POSITION_TOKENS = ('all', 'class', 'patches')

_POOLING = {'gap': jnp.mean, 'gmp': jnp.max, 'gsp': jnp.sum}
_KERNEL = 'embedding/kernel'
_POSITIONS = 'Transformer/posembed_input/pos_embedding'
_BEFORE_BLOCKS = re.compile(
  r'(embedding|embedding_norm|cls|dist|registers|Transformer/(posembed_input|pre_norm))(/.*)?'
)
_BLOCK = re.compile(r'Transformer/encoderblock_(\d+)/.*')
_DISTANCES = re.compile(r'Transformer/(?:\w+/)?relative_positions/(\w+_table|rel_pos_[hw])')
_BLOCK_NAME = 'Transformer/encoderblock_{}/'
_LEARNER = re.compile(r'TokenLearnerModule(?:V11)?_(\d+)')

# Fields of _PARTS whose entries `ViT.fit` compares one by one.
_MAPPINGS = ('rotary', 'relative_positions', 'position_table')

# A config's tokenizer; the types of tokens that are learned are its model's.
TOKENIZER = {
  'type': 'patch',
  'num_tokens': 8,
  'tokenlearner_loc': placeholder(int),
  'use_tokenfuse': False,
  'use_v11': True,
}


class MAPHead(nn.Module):
  """Multihead attention pooling: a learned probe attends to [B, N, D], giving [B, D].

  Follows arXiv 2106.04560.

  Attributes:
    mlp_dim: hidden width of the MLP; None means four times D.
    num_heads: number of attention heads.
    dtype: dtype of the computation; parameters are float32.
    norm_epsilon: epsilon of the norm.
    activation: name in `layers.ACTIVATIONS`.
    norm: its kind, a name in `layers.NORMS`.
  """

  mlp_dim: int | None = None
  num_heads: int = 12
  dtype: Any = jnp.float32
  norm_epsilon: float = 1e-6
  activation: str = 'gelu'
  norm: str = 'layernorm'

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """`mask`, bool [B, N], is False of tokens that aren't attended to."""
    batch, _, width = x.shape
    mask = None if mask is None else mask[:, None, None]
    probe = self.param('probe', nn.initializers.xavier_uniform(), (1, 1, width))
    probe = jnp.tile(probe.astype(self.dtype), [batch, 1, 1])  # [B, 1, D]
    attention = layers.MultiHeadDotProductAttention(num_heads=self.num_heads, dtype=self.dtype)
    x = attention(probe, x, mask=mask)
    norm = layers.norm_layer(self.norm, self.norm_epsilon, self.dtype)
    y = norm(name='LayerNorm_0')(x)
    y = layers.MlpBlock(
      mlp_dim=self.mlp_dim,
      dropout_rate=0.0,
      activation_fn=layers.ACTIVATIONS[self.activation],
      dtype=self.dtype,
    )(y, deterministic=True)
    return (x + y)[:, 0]  # [B, D]


class ViT(Backbone, kw_only=True):
  """Vision Transformer (arXiv 2010.11929): float images [B, H, W, C] to logits [B, num_classes].

  Attributes:
    num_classes: number of logits; 0 or less leaves the head out and returns features in `dtype`.
    mlp_dim: hidden width of the MLPs.
    num_layers: number of Transformer layers.
    num_heads: number of attention heads; divides `hidden_size`.
    hidden_size: width of a token, D.
    patches: {'size': (height, width)} in pixels.
    positional_embedding: one of `POSITIONAL_EMBEDDINGS`.
    representation_size: width of a dense layer with tanh before the head; None leaves it out.
    dropout_rate: dropout of position embeddings and of both branches of each layer.
    attention_dropout_rate: dropout of the attention weights.
    stochastic_depth: drop rate of the last layer; grows linearly from 0 at the first.
    classifier: what the head reads: the class 'token', the mean ('gap'), maximum ('gmp') or sum
      ('gsp') of the tokens, the class token and the mean one after the other ('token_gap', of width
      2 D), attention pooling ('map'), or 'none', every token: [B, N, num_classes], or the features
      [B, N, D] without a head.
    dtype: dtype of the computation. Parameters, normalisation statistics, attention logits and
      softmax, and the logits are float32 in any case.
    stride: pixels from patch to patch, one number or (vertical, horizontal), at most the patch's;
      None means the patch size.
    patch_embedding: 'conv' or 'linear', the same function computed in two ways.
    posemb_init_stddev: standard deviation of learned position embeddings at the start.
    norm_epsilon: epsilon of every norm.
    activation: of the MLPs of the layers and the MAP head: a name in `layers.ACTIVATIONS`.
    remat: recompute the layers' activations in the backward pass, saving memory for time.
    remat_policy: which of them are kept with `remat`: those of a policy of
      `jax.checkpoint_policies`, a name in `layers.REMAT_POLICIES`. None: each layer's input alone.
    scan: trace and compile one layer for all, in a loop over the same parameters, of which the
      program makes a copy. It is meant for accelerators (not measured there); on a CPU, XLA takes
      longer to compile the gradients. Numbers are the same to rounding, but draws of dropout and
      stochastic depth are others. Layers that learn tokens, whose attention is captured or
      perturbed, or whose outputs are asked for (`features` with `layers`), run one after the other.
    class_token: whether there is a class token; None means where the classifier is 'token'. Every
      other classifier leaves it out of what it reads, as in models fine-tuned from MAE (arXiv
      2111.06377): it takes part in attention alone.
    fc_norm: norm the pooled vector (a LayerNorm `fc_norm`) instead of the tokens before
      (`Transformer/encoder_norm`), as timm's ViTs with an average do.
    tokenizer: a dict, None for one whose type is 'patch', of
      type: 'dynamic' learns tokens with TokenLearner (arXiv 2106.11297) on the way through the
        layers, 'patch' keeps those of the patches;
      num_tokens: how many are learned;
      tokenlearner_loc: index of the layer that they go into, from 0 (None: the middle);
      use_v11: TokenLearner version 1.1 instead of 1 (True if absent);
      use_tokenfuse: that layer and all after it learn tokens, and a TokenFuser returns them to the
        positions, so that their number stays (False if absent).
    norm: 'layernorm', or 'rmsnorm' (arXiv 1910.07467); TokenLearner's norms stay LayerNorms.
    block: 'pre', the norm is before each branch, x + f(norm(x)); 'post', it is after, x +
      norm(f(x)) (arXiv 2111.09883); 'parallel', as 'pre' with two attentions side by side and then
      two MLPs (arXiv 2203.09795); 'parallel_scaling', attention and MLP side by side after one norm
      (arXiv 2302.05442).
    layer_scale: the branches are scaled by a parameter for each channel that begins with this value
      (arXiv 2103.17239); None leaves it out.
    layer_scale_mlp: whether the MLP's branch is, too.
    qkv_bias: whether queries, keys and values have a bias; 'qv': all but keys (arXiv 2106.08254).
    use_bias: whether the output of attention and the dense layers of the MLP have one.
    qk_norm: norm the queries and the keys of each head (arXiv 2302.05442).
    attention_norm: norm what attention gives, of all heads together, before its output layer.
    mlp: 'mlp', or 'glu': the activation gates a second hidden layer (arXiv 2002.05202).
    mlp_norm: norm the hidden layer of the MLP (arXiv 2110.09456).
    differential: whether attention is the difference of two softmaxes (arXiv 2410.05258).
    num_kv_heads: heads of keys and values, a number, alone or in a tuple, or one for each layer,
      which divides num_heads (arXiv 2305.13245); None: num_heads.
    rotary: queries and keys are turned by their places: options of `layers.resolve_rotary`; None
      leaves it out.
    relative_positions: what attention adds to its logits for how far apart two tokens are: options
      of `layers.resolve_relative_positions`; None leaves it out.
    window_size: side in patches of the windows that layers attend within; None: they attend to all.
    global_layers: the layers, from 0, that attend to all nevertheless.
    neck: convolutions to so many channels stand for the final norm (arXiv 2304.02643); None leaves
      them out.
    drop_remainder: whether rows and columns of images after the last patches are left out; they are
      refused otherwise.
    position_table: learned positions are interpolated to each image's grid in the model's call:
      options of `layers.resolve_position_table`; None: there is one for each patch.
    patch_bias: whether the patch embedding has a bias.
    patch_norm: norm the embedded patches, before there are other tokens and positions.
    pre_norm: norm all tokens before the first layer, once they have positions (arXiv 2103.00020).
    num_registers: learned tokens between the class token and the patches (arXiv 2309.16588), which
      no head reads.
    distillation: whether there is a second token after the class token, with a head of its own
      (arXiv 2012.12877). Logits are the mean of both heads', pooled features that of both tokens.
    position_tokens: what `positional_embedding` gives positions to: 'all' tokens, the 'class'
      token, that of distillation and the patches, or the 'patches' alone.
    pool_prefix: whether the pooling of another classifier than 'token' takes in the tokens before
      the patches, too.
    final_norm: whether there is a norm after the last layer.
    map_num_heads: attention heads of the classifier 'map'; None: as many as in the layers.
    map_mlp_dim: hidden width of its MLP; None: that of the layers.

  Raises:
    FieldError: on construction, for options that don't fit each other; when called, for images
      that the patches don't tile.
  """

  num_classes: int
  mlp_dim: Width
  num_layers: Layers
  num_heads: Count
  hidden_size: Width
  patches: Entries
  positional_embedding: str = 'learned_1d'
  representation_size: Width | None = None
  dropout_rate: Rate = 0.1
  attention_dropout_rate: Rate = 0.1
  stochastic_depth: Rate = 0.0
  classifier: str = 'gap'
  dtype: Any = jnp.float32
  stride: Count | tuple[Count, ...] | None = None
  patch_embedding: str = 'conv'
  posemb_init_stddev: NonNegative = 0.02
  norm_epsilon: NonNegative = 1e-6
  activation: str = 'gelu'
  remat: bool = False
  remat_policy: str | None = None
  scan: bool = False
  class_token: bool | None = None
  fc_norm: bool = False
  tokenizer: Entries | None = None
  norm: str = 'layernorm'
  block: str = 'pre'
  layer_scale: Real | None = None
  layer_scale_mlp: bool = True
  qkv_bias: bool | str = True
  use_bias: bool = True
  qk_norm: bool = False
  attention_norm: bool = False
  mlp: str = 'mlp'
  mlp_norm: bool = False
  differential: bool = False
  num_kv_heads: Count | tuple[Count, ...] | None = None
  rotary: Entries | None = None
  relative_positions: Entries | None = None
  window_size: Count | None = None
  global_layers: tuple[Number, ...] = ()
  neck: Width | None = None
  drop_remainder: bool = False
  position_table: Entries | None = None
  patch_bias: bool = True
  patch_norm: bool = False
  pre_norm: bool = False
  num_registers: Number = 0
  distillation: bool = False
  position_tokens: str = 'all'
  pool_prefix: bool = False
  final_norm: bool = True
  map_num_heads: Count | None = None
  map_mlp_dim: Width | None = None

  # Fields that say what the layers, and what comes before them, are made of.
  _PARTS: ClassVar[tuple[str, ...]] = (
    *(field.name for field in dataclasses.fields(BlockOptions) if field.name != 'layer_scale'),
    'neck',
    'position_table',
    'patch_bias',
    'patch_norm',
    'pre_norm',
    'num_registers',
  )
  # ViT-Ti/16 without dropout; scenic's attributes have its defaults.
  CONFIG_DEFAULTS: ClassVar[Mapping[str, Any]] = {
    'hidden_size': 192,
    'mlp_dim': 768,
    'num_layers': 12,
    'num_heads': 3,
    'patches': {'size': (16, 16)},
    'classifier': 'token',
    'dropout_rate': 0.0,
    'attention_dropout_rate': 0.0,
    'tokenizer': TOKENIZER,
    'rotary': layers.ROTARY,
    'relative_positions': layers.RELATIVE_POSITIONS,
    'position_table': layers.POSITION_TABLE,
  }
  NO_DECAY: ClassVar[str] = (
    r'(^|/)(bias|scale|gamma|pos_embedding\w*|cls|dist|registers|probe|freqs|lambda_\w+'
    r'|relative_position_bias_table|rel_pos_[hw])$'
  )
  NAMED_SIZES: ClassVar[tuple[str, ...]] = tuple(SIZES)
  WEIGHT_FIELDS: ClassVar[tuple[str, ...]] = (
    'hidden_size',
    'mlp_dim',
    'num_layers',
    'num_heads',
    'patches',
    'stride',
    'classifier',
    'class_token',
    'fc_norm',
    'positional_embedding',
    'norm_epsilon',
    'activation',
    'tokenizer',
    'layer_scale',
    'position_tokens',
    'pool_prefix',
    'final_norm',
    'map_num_heads',
    'map_mlp_dim',
    'distillation',
    'drop_remainder',
    *_PARTS,
  )
  RESIZES: ClassVar[tuple[str, ...]] = ('timm',)
  FUNCTION_FIELDS: ClassVar[tuple[str, ...]] = (
    'activation',
    'norm_epsilon',
    'num_heads',
    'positional_embedding',
    *(name for name in _PARTS if name not in _MAPPINGS),
  )
  HEAD_READS: ClassVar[tuple[str, ...]] = ('pre_logits', 'MAPHead_0', 'fc_norm')
  PATCH_HOOKS: ClassVar[tuple[str, ...]] = ('map_patches', 'select_tokens')

  def __post_init__(self) -> None:
    fields_lib.check_ranges(self)
    options = self.block_options
    for field in ('num_kv_heads', 'rotary', 'relative_positions'):
      setattr(self, field, getattr(options, field))
    self.position_table = layers.resolve_position_table(self.position_table)
    _check_options(self)
    super().__post_init__()

  @property
  def patch_size(self) -> tuple[int, int]:
    """(height, width) of a patch in pixels."""
    return layers.as_pair(self.given_patch_size)

  @property
  def given_patch_size(self) -> Any:
    """What the fields have for the size of a patch; None where they have nothing."""
    return self.patches.get('size')

  @property
  def patch_stride(self) -> tuple[int, int]:
    """(vertical, horizontal) step between patches in pixels."""
    return self.patch_size if self.stride is None else layers.as_pair(self.stride)

  @property
  def has_class_token(self) -> bool:
    """Whether token 0 is a class token."""
    return self.classifier in _OF_TOKEN if self.class_token is None else self.class_token

  @property
  def num_prefix(self) -> int:
    """How many tokens are before the patches': class token, that of distillation, registers."""
    return self.has_class_token + self.distillation + self.num_registers

  @property
  def num_placed(self) -> int:
    """How many of these, the first ones, have positions."""
    counts = {'all': self.num_prefix, 'class': self.num_prefix - self.num_registers, 'patches': 0}
    return counts[self.position_tokens]

  @property
  def placed_tokens(self) -> tuple[str, ...]:
    """What these are, in words."""
    registers = (f'register {i}' for i in range(self.num_registers))
    first = ('class token',) * self.has_class_token + ('distillation token',) * self.distillation
    return (*first, *registers)[: self.num_placed]

  @property
  def block_options(self) -> BlockOptions:
    """What the layers are made of."""
    names = (field.name for field in dataclasses.fields(BlockOptions))
    return BlockOptions(**{name: getattr(self, name) for name in names})

  @property
  def norm_layer(self) -> Callable[..., nn.Module]:
    """Makes norms, as `layers.norm_layer` does."""
    return layers.norm_layer(self.norm, self.norm_epsilon, self.dtype)

  @nn.compact
  def __call__(
    self,
    x: jax.Array | layers.Patches,
    *,
    train: bool = False,
    features: bool = False,
    map_patches: Callable[[jax.Array], jax.Array] | None = None,
    select_tokens: Callable[[jax.Array], jax.Array] | None = None,
    outputs: list[jax.Array] | None = None,
  ) -> jax.Array | Features:
    """Classifies images.

    Args:
      x: float [B, H, W, C], or patches of images of several sizes, which are in no grid.
      train: turns on dropout and stochastic depth.
      features: return `Features` in place of logits.
      map_patches: as in `Backbone.PATCH_HOOKS`.
      select_tokens: as for `Encoder`; with another number of tokens they have no grid.
      outputs: as for `Encoder`.
    """
    of_places = self.block_options.of_places or ('neck' if self.neck is not None else None)
    if select_tokens is not None and of_places:
      raise FieldError(of_places, 'set, but tokens are left out, and their places with them')
    if select_tokens is not None and self.learns_tokens and self.tokenizer.get('use_v11') is False:
      raise FieldError('tokenizer.use_v11', 'False, but version 1 takes all tokens of a grid')
    patches = x if isinstance(x, layers.Patches) else None
    if patches is None:
      x = self.embed(x)  # [B, h, w, D]
    else:
      batch, count, *pixels = patches.pixels.shape
      self.check_native(pixels, select_tokens)
      x = self.embed(patches.pixels.reshape(batch * count, *pixels))  # [B * N, 1, 1, D]
      x = x.reshape(batch, 1, count, -1)  # [B, 1, N, D]
    if self.patch_norm:
      x = self.norm_layer(name='embedding_norm')(x)
    if map_patches is not None:
      x = map_patches(x)
    batch, *grid, width = x.shape
    x = self.add_prefix(x.reshape(batch, -1, width))  # [B, P + N, D]
    tokens = Encoder(
      num_layers=self.num_layers,
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      positional_embedding=self.positional_embedding,
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      stochastic_depth=self.stochastic_depth,
      dtype=self.dtype,
      grid=tuple(grid),
      posemb_init_stddev=self.posemb_init_stddev,
      norm_epsilon=self.norm_epsilon,
      activation=self.activation,
      remat=self.remat,
      remat_policy=self.remat_policy,
      scan=self.scan,
      final_norm=self.final_norm and not self.fc_norm and self.neck is None,
      tokenizer=self.tokenizer,
      num_prefix=self.num_prefix,
      num_placed=self.num_placed,
      position_table=self.position_table,
      pre_norm=self.pre_norm,
      options=self.block_options,
      name='Transformer',
    )(
      x, train=train, select_tokens=select_tokens, outputs=outputs, patches=patches
    )  # [B, P + N, D]
    if self.neck is not None:
      maps = layers.Neck(self.neck, self.dtype, name='neck')(tokens.reshape(batch, *grid, width))
      tokens = maps.reshape(batch, -1, self.neck)
    x = pool(self, tokens, patches)  # [B, D]
    if features:
      keeps_grid = (
        select_tokens is None
        and patches is None
        and (not self.learns_tokens or self.tokenizer.get('use_tokenfuse'))
      )
      return Features(
        pooled=None if self.classifier == 'none' else x,
        tokens=tokens,
        grid=tuple(grid) if keeps_grid else None,
        num_prefix=self.num_prefix,
        num_registers=self.num_registers,
      )
    if self.distillation and self.num_classes > 0:
      heads = ('output_projection', 'output_projection_dist')
      return sum(classify(self, tokens[:, i], name) for i, name in enumerate(heads)) / 2
    return classify(self, x)  # [B, num_classes]

  @nn.nowrap
  def check_native(
    self, pixels: Sequence[int], select_tokens: Callable[[jax.Array], jax.Array] | None
  ) -> None:
    """Raises FieldError where patches of images of several sizes don't go through.

    Args:
      pixels: their (height, width, channels).
      select_tokens: as of the call.
    """
    several = 'but patches of images of several sizes are given'
    if type(self).embed is not ViT.embed:
      raise UsageError(f'{type(self).__name__} takes whole images, {several}')
    if self.position_table is None and self.positional_embedding != 'none':
      raise FieldError('position_table', f'not set, {several}')
    fields = (self.block_options.of_places, 'neck', 'tokenizer' if self.learns_tokens else None)
    for field in fields:
      if field is not None and getattr(self, field) is not None:
        raise FieldError(field, f'set, {several}')
    if self.patch_stride != self.patch_size:
      raise FieldError('stride', f'{self.stride}, {several}')
    if tuple(pixels[:2]) != self.patch_size:
      given = _text(pixels[:2])
      raise FieldError(
        'patches.size', f'{_text(self.patch_size)}, but patches of {given} are given'
      )
    if select_tokens is not None:
      raise UsageError(f'tokens are left out, {several}')

  @nn.nowrap
  def add_prefix(self, x: jax.Array) -> jax.Array:
    """Puts class token, that of distillation and registers before patches: [B, P + N, D]."""
    # Tokens alike would stay so, where they have no positions.
    apart = nn.initializers.normal(0.02)
    tokens = (
      ('cls', nn.initializers.zeros, self.has_class_token),
      ('dist', apart, self.distillation),
      ('registers', apart, self.num_registers),
    )
    batch, _, width = x.shape
    prefix = [self.param(n, init, (1, int(count), width)) for n, init, count in tokens if count]
    if not prefix:
      return x
    return jnp.concatenate(
      [*(jnp.tile(p.astype(x.dtype), [batch, 1, 1]) for p in prefix), x], axis=1
    )

  @nn.nowrap
  def embed(self, x: jax.Array) -> jax.Array:
    """Turns images [B, H, W, C] into the tokens of a grid: [B, h, w, D]."""
    return layers.PatchEmbedding(
      features=self.hidden_size,
      patch_size=self.patch_size,
      stride=self.patch_stride,
      method=self.patch_embedding,
      dtype=self.dtype,
      use_bias=self.patch_bias,
      drop_remainder=self.drop_remainder,
      name='embedding',
    )(x)

  def features(
    self,
    x: jax.Array,
    *,
    train: bool = False,
    layers: Sequence[int] = (),
    **hooks: Callable[[jax.Array], jax.Array],
  ) -> Features:
    outputs = [] if layers else None
    found = self(x, train=train, features=True, outputs=outputs, **hooks)
    return found.replace(layers=tuple(outputs[layer] for layer in layers))

  def summary(self) -> str:
    patch = 'x'.join(map(str, self.patch_size))
    return (
      f'{type(self).__name__}, {self.num_layers} layers of width {self.hidden_size}, '
      f'{self.num_heads} heads, {patch} patches'
    )

  def layer_of(self, path: str) -> int | None:
    """As BEiT (arXiv 2106.08254), MAE (arXiv 2111.06377) and timm count.

    What comes before the layers is layer 0, `encoderblock_i` is layer i + 1, all else
    (TokenLearner's modules, too) comes after the last.
    """
    if block := _BLOCK.fullmatch(path):
      return int(block[1]) + 1
    return 0 if _BEFORE_BLOCKS.fullmatch(path) else self.num_layers + 1

  def is_head(self, path: str) -> bool:
    return path.startswith(('output_projection/', 'output_projection_dist/'))

  def works_untrained(self, path: str) -> bool:
    return path.startswith('fc_norm/')

  def variable_shapes(self, input_size: Shape | None, channels: int) -> dict[str, Shape]:
    options = self.block_options
    if self.learns_tokens or (options.rotary and options.rotary['type'] == 'mixed'):
      return trace_shapes(self, input_size or self.patch_size, channels)
    # Tracing dozens of layers takes seconds: of those that are alike, it is one.
    of_layers = [options.of_layer(layer) for layer in range(self.num_layers)]
    kinds = [(own.num_kv_heads, own.window_size) for own in of_layers]
    heads, windows = zip(*(distinct := list(dict.fromkeys(kinds))), strict=True)
    is_window = self.window_size is not None
    one_of_each = self.clone(
      num_layers=len(distinct),
      num_kv_heads=heads if isinstance(self.num_kv_heads, tuple) else self.num_kv_heads,
      global_layers=tuple(i for i, size in enumerate(windows) if is_window and size is None),
    )
    shapes = super(ViT, one_of_each).variable_shapes(input_size or self.patch_size, channels)
    blocks = [_BLOCK_NAME.format(kind) for kind in range(len(distinct))]
    parts = [
      {n.removeprefix(name): s for n, s in shapes.items() if n.startswith(name)} for name in blocks
    ]
    copies = {
      _BLOCK_NAME.format(layer) + name: shape
      for layer, kind in enumerate(kinds)
      for name, shape in parts[distinct.index(kind)].items()
    }
    return {n: s for n, s in shapes.items() if not n.startswith(tuple(blocks))} | copies

  # Weights of other ViTs, with TokenLearner or without.

  @classmethod
  def takes_weights_of(cls, other: type[Backbone]) -> bool:
    return issubclass(other, ViT) and other.embed is cls.embed

  @classmethod
  def complete(cls, fields: dict[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    completed = super().complete(fields, theirs)
    defaults = fields_lib.defaults(cls)
    for field in ('tokenizer', 'rotary', 'relative_positions', 'position_table'):
      if completed.get(field) is not None:  # weights of models without them have no entries
        completed[field] = {
          name: defaults[field].get(name) if value is None else value
          for name, value in completed[field].items()
        }
    sizes = (completed['patches']['size'], (theirs.get('patches') or {}).get('size'))
    if None not in sizes and layers.as_pair(sizes[0]) != layers.as_pair(sizes[1]):
      completed['stride'] = fields['stride']  # theirs would mean another overlap of these patches
    is_map, is_token = (completed['classifier'] == kind for kind in ('map', 'token'))
    for field, means_something in (
      ('map_num_heads', is_map),
      ('map_mlp_dim', is_map),
      ('pool_prefix', not is_token),
      ('distillation', is_token),
    ):
      if completed[field] and not means_something:
        completed[field] = fields[field]
    return completed

  def fit(self, arrays, shapes, old, new, path, resize='big_vision') -> Fitted:
    """As big_vision (models/vit.py, models/proj/flexi/vit.py), for grids that need not be square.

    Position embeddings are interpolated, and relative ones, as in BEiT's fine-tuning; the patch
    kernel is resampled to another patch and to grey or colour images. With `resize` 'timm',
    position embeddings are interpolated as timm does. The class token, its position, MAPHead_0,
    pre_logits, fc_norm with encoder_norm, and TokenLearner's modules are kept where both models
    have them alike. The position of a class token that the source lacks is zeros, since its
    parameter holds the others' too; so is that of other tokens before the patches.
    """
    arrays, notes = dict(arrays), []
    _check_mappings(old.backbone, new.backbone, path)
    if old.backbone.pool_prefix != self.pool_prefix:
      read = 'all tokens' if self.pool_prefix else 'the tokens of patches alone'
      notes.append(f'pool_prefix: the head reads {read}, unlike that of the weights')
    if _KERNEL in arrays.keys() & shapes.keys():
      arrays[_KERNEL] = self._fit_kernel(arrays[_KERNEL], shapes[_KERNEL][2], notes)
    if _POSITIONS in arrays.keys() & shapes.keys() and self.position_table is None:
      arrays[_POSITIONS] = self._fit_positions(arrays[_POSITIONS], old, new, path, notes, resize)
    resized = set()
    for name in arrays.keys() & shapes.keys():
      if match := _DISTANCES.fullmatch(name):
        fitted = self._fit_distances(arrays[name], shapes[name], name, old, new, path)
        resized |= {match[1]} if fitted is not arrays[name] else set()
        arrays[name] = fitted
    notes += [f'{leaf} of each layer: resized' for leaf in sorted(resized)]
    theirs = {name: array.shape for name, array in arrays.items()}
    return Fitted(arrays, self.differing_modules(theirs, shapes, old.backbone), notes)

  def _fit_kernel(self, kernel: np.ndarray, channels: int, notes: list[str]) -> np.ndarray:
    adapted = layers.adapt_channels(kernel, channels)
    if adapted.shape != kernel.shape:
      notes.append(f'patch kernel: from {kernel.shape[2]} to {channels} channels')
    if adapted.shape[:2] != self.patch_size:
      sizes = _text(adapted.shape[:2]), _text(self.patch_size)
      notes.append('patch kernel: resampled from {} to {}'.format(*sizes))
    return layers.resample_patch_kernel(adapted, self.patch_size)

  def _fit_positions(self, positions, old, new, path, notes, resize: str) -> np.ndarray:
    """Returns position embeddings on this model's grid, after those of the tokens before it."""
    had, has = old.backbone.placed_tokens, self.placed_tokens
    count, new_grid = positions.shape[1] - len(had), self.grid(new.image_size)
    if old.image_size is not None:
      old_grid = old.backbone.grid(old.image_size)
    elif count == math.prod(new_grid):
      old_grid = new_grid
    elif math.isqrt(count) ** 2 == count:
      old_grid = (math.isqrt(count),) * 2
    else:
      raise FieldError(
        'image_size',
        f'{path} has {count} patches, no square grid, and does not say which; give HEIGHT,WIDTH',
      )
    if count != math.prod(old_grid):
      raise UsageError(
        f'{path}: {count} position embeddings, but {_text(old_grid)} patches in its images of '
        f'{_text(old.image_size)}'
      )
    if old_grid != new_grid:
      notes.append(f'position embeddings: resized from {_text(old_grid)} to {_text(new_grid)}')
    positions = layers.resize_position_embeddings(positions, old_grid, new_grid, len(had), resize)
    if had == has:
      return positions
    notes += [f'position of the {name}: left out' for name in had if name not in has]
    notes += [f'position of the {name}: zeros' for name in has if name not in had]
    rows = dict(zip(had, positions[0], strict=False))
    prefix = [rows.get(name, np.zeros_like(positions[0, 0])) for name in has]
    return np.stack([*prefix, *positions[0, len(had) :]])[None]

  @nn.nowrap
  def attended_grid(self, name: str, image_size: tuple[int, int]) -> tuple[int, int]:
    """Returns (rows, columns) of what the layer of a parameter attends within."""
    block = _BLOCK.fullmatch(name)
    side = self.block_options.of_layer(int(block[1])).window_size if block else None
    return self.grid(image_size) if side is None else (side, side)

  def _fit_distances(self, array, shape: Shape, name: str, old, new, path) -> np.ndarray:
    """Returns a parameter of relative positions for this model's grid, or windows."""
    if not name.endswith('relative_position_bias_table'):
      return layers.resize_distances(array, (shape[0] + 1) // 2)
    if old.image_size is None and array.shape != shape:
      raise FieldError('image_size', f'{path} does not say which its relative positions are of')
    grid = self.attended_grid(name, new.image_size)
    old_grid = grid
    if old.image_size is not None:
      old_grid = old.backbone.attended_grid(name, old.image_size)
    table = layers.resize_bias_table(array, old_grid, grid)
    if table.shape == shape:
      return table
    cells, others = np.split(table, [math.prod(2 * side - 1 for side in grid)])
    others = others[: shape[0] - len(cells)]
    missing = np.zeros((shape[0] - len(cells) - len(others), shape[1]), array.dtype)
    return np.concatenate([cells, others, missing])

  @nn.nowrap
  def check_plain(self, path: object, head: bool = True) -> None:
    """Raises UsageError for options of a kind that scenic's ViT doesn't have.

    Args:
      path: of the weights, for the message.
      head: whether it matters what is read of the tokens, and how.
    """
    fields = ['layer_scale', 'position_tokens', 'final_norm', 'distillation', *self._PARTS]
    if head:
      fields += ['pool_prefix', 'map_num_heads', 'map_mlp_dim', 'drop_remainder']
    defaults = {field.name: field.default for field in dataclasses.fields(self)}
    for field in fields:
      if (value := getattr(self, field)) != defaults[field]:
        raise UsageError(f'{path}: {field} {value!r} has no place in a plain ViT')

  @nn.nowrap
  def differing_modules(
    self, theirs: Mapping[str, Shape], ours: Mapping[str, Shape], old: 'ViT'
  ) -> list[str]:
    """Returns the modules that may differ between two ViTs, and do.

    Args:
      theirs: path -> shape of the source's variables.
      ours: of this model's.
      old: the source.
    """

    def parts(shapes, module):
      return {n: s for n, s in shapes.items() if f'{n}/'.startswith(f'{module}/')}

    def on_one_side(*modules):
      return [m for m in modules if bool(parts(theirs, m)) != bool(parts(ours, m))]

    differing = []
    if old.classifier != self.classifier or old.class_token != self.class_token:
      differing += on_one_side('cls', 'MAPHead_0')
    differing += on_one_side('dist')
    if on_one_side('fc_norm'):
      differing += on_one_side('fc_norm', 'Transformer/encoder_norm')
    if parts(theirs, 'pre_logits') != parts(ours, 'pre_logits'):
      differing.append('pre_logits')
    tokenizer = re.compile(r'Transformer/Token(Learner|Fuser)\w*')
    modules = sorted({m[0] for name in {*theirs, *ours} if (m := tokenizer.match(name))})
    alike = old.tokenizer_layer == self.tokenizer_layer and all(
      parts(theirs, module) == parts(ours, module) for module in modules
    )
    return differing if alike else differing + modules

  @property
  def learns_tokens(self) -> bool:
    """Whether there are other tokens than those of the patches, in some layers."""
    return layers.learns_tokens(self.tokenizer)

  @property
  def tokenizer_layer(self) -> int | None:
    """The layer that learned tokens go into, which no parameter tells; None without them."""
    return layers.tokenizer_layer(self.tokenizer, self.num_layers) if self.learns_tokens else None

  # What there is to see.

  @nn.nowrap
  def grid(self, image_size: Sequence[int]) -> tuple[int, int]:
    """Returns (rows, columns) of the patches of an image of (height, width) pixels."""
    return layers.patch_grid(image_size, self.patch_size, self.patch_stride)

  def layout(self, image_size: tuple[int, int]) -> Layout:
    grid, read = self.grid(image_size), None
    if self.classifier == 'token':
      read = (0, 1) if self.distillation else (0,)
    elif self.pool_prefix:
      read = tuple(range(self.num_prefix + math.prod(grid)))
    return Layout(
      grid=grid,
      patch=self.patch_size,
      stride=self.patch_stride,
      num_prefix=self.num_prefix,
      head_tokens=read,
    )

  @property
  def num_attention_layers(self) -> int:
    return self.num_layers if self.classifier == 'token' and self.attends_plainly else 0

  @property
  def attends_plainly(self) -> bool:
    """Whether each layer's weights say what the tokens of all patches, and they alone, draw."""
    return not self.learns_tokens and self.window_size is None and not self.differential

  def attention(self, intermediates: Mapping[str, Any]) -> Attention | None:
    if not self.attends_plainly:
      return None
    blocks = intermediates['Transformer']
    found = [_weights(blocks[f'encoderblock_{i}']) for i in range(self.num_layers)]
    probe = _weights(intermediates['MAPHead_0']) if self.classifier == 'map' else None
    return Attention(jnp.stack(found), probe)

  def attention_maps(
    self, intermediates: Mapping[str, Any], image_size: tuple[int, int], layer: int | None = None
  ) -> AttentionMaps | None:
    """What the class token pays to each patch in a layer, or the MAP head's probe."""
    if self.learns_tokens or not (self.classifier == 'map' or self.num_attention_layers):
      return None
    last = self.num_layers - 1
    layer = last if layer is None else layer
    if self.classifier == 'map':
      read = self.num_prefix if self.pool_prefix else 0  # tokens before the patches
      weights = _weights(intermediates['MAPHead_0'])[:, :, 0, read:]
      source = "MAP head's probe"
    else:
      weights = _weights(intermediates['Transformer'][f'encoderblock_{layer}'])
      weights = weights[:, :, 0, self.num_prefix :]
      source = f'class token in layer {layer} (0 to {last})'
    layout = self.layout(image_size)
    maps = np.asarray(weights).reshape(*weights.shape[:2], *layout.grid)
    return AttentionMaps(maps, layout.patch, layout.stride, source)

  def token_maps(
    self, intermediates: Mapping[str, Any], image_size: tuple[int, int]
  ) -> list[TokenMaps]:
    """Which pixels each learned token is made of, layer by layer.

    Weights of version 1.1 are a softmax, and add up to 1 over the grid; those of version 1 are
    sigmoids, each in [0, 1].
    """
    if not self.learns_tokens:
      return []
    maps = learned_maps(intermediates['Transformer'])
    grid, first = self.grid(image_size), self.tokenizer_layer
    return [
      TokenMaps(m.reshape(*m.shape[:2], *grid), f'TokenLearner before layer {first + i}')
      for i, m in enumerate(maps)
    ]

  def patch_kernel(self, params: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(params['embedding']['kernel'])

  def positions(self, params: Mapping[str, Any], image_size: tuple[int, int]) -> Positions | None:
    kind, grid = self.positional_embedding, self.grid(image_size)
    count, prefix = math.prod(grid), self.num_placed
    if kind == 'none':
      return None
    if kind == 'sinusoidal_2d':
      return Positions(kind, layers.sinusoidal_2d(*grid, self.hidden_size))
    if kind == 'sinusoidal_1d':
      embeddings = layers.sinusoidal_1d(prefix + count, self.hidden_size)
    elif self.position_table is not None:
      table = layers.PositionTable(self.position_table, self.hidden_size, parent=None)
      params = {'params': params['Transformer']['posembed_input']}
      embeddings = np.asarray(table.apply(params, grid))
    else:
      embeddings = np.asarray(params['Transformer']['posembed_input']['pos_embedding'])[0]
    if len(embeddings) != prefix + count:
      raise UsageError(
        f'pos_embedding: {len(embeddings)} positions for {_text(grid)} patches '
        f'and {prefix} tokens before them'
      )
    return Positions(kind, embeddings[prefix:].reshape(*grid, -1))


def _weights(module: Mapping[str, Any]) -> Any:
  """Returns the attention weights that a block or the MAP head captured, of all its heads."""
  names = sorted(name for name in module if re.fullmatch(r'\w+Attention_\d', name))
  found = [module[name]['attention_weights'] for name in names]
  return found[0] if len(found) == 1 else jnp.concatenate(found, axis=1)


def learned_maps(encoder: Mapping[str, Any]) -> list[np.ndarray]:
  """Returns the maps that an encoder's TokenLearners captured, in the order of the layers."""
  found = {int(match[1]): name for name in encoder if (match := _LEARNER.fullmatch(name))}
  return [np.asarray(encoder[found[i]]['token_maps']) for i in sorted(found)]


def pool(model: ViT, tokens: jax.Array, patches: layers.Patches | None = None) -> jax.Array:
  """Reduces tokens to what the model's head reads.

  Args:
    model: whose tokens they are.
    tokens: [B, N, D].
    patches: that they are of, where images have several sizes.

  Returns:
    [B, D], or all tokens for the classifier 'none'.
  """
  mask = None
  if patches is not None:
    count = model.num_prefix if model.pool_prefix else 0
    mask = jnp.pad(patches.valid, ((0, 0), (count, 0)), constant_values=True)
  if model.classifier == 'token':
    x = tokens[:, :2].mean(axis=1) if model.distillation else tokens[:, 0]
  else:
    x = tokens if model.pool_prefix else tokens[:, model.num_prefix :]
  if model.classifier == 'map':
    x = MAPHead(
      mlp_dim=model.map_mlp_dim or model.mlp_dim,
      num_heads=model.map_num_heads or model.num_heads,
      dtype=model.dtype,
      norm_epsilon=model.norm_epsilon,
      activation=model.activation,
      norm=model.norm,
    )(x, mask)
  elif model.classifier in _POOLING:
    valid = {} if mask is None else {'where': mask[..., None]}
    if valid and model.classifier == 'gmp':
      valid['initial'] = -jnp.inf
    x = _POOLING[model.classifier](x, axis=1, **valid)
  elif model.classifier == 'token_gap':
    mean = x.mean(axis=1, where=None if mask is None else mask[..., None])
    x = jnp.concatenate([tokens[:, 0], mean], axis=-1)  # [B, 2 D]
  if model.fc_norm:
    x = model.norm_layer(name='fc_norm')(x)
  if model.representation_size is not None:
    x = nn.tanh(nn.Dense(model.representation_size, dtype=model.dtype, name='pre_logits')(x))
  return x


def classify(model: ViT, x: jax.Array, name: str = 'output_projection') -> jax.Array:
  """Returns float32 logits [..., num_classes] of pooled tokens [..., D]; those without a head.

  Args:
    model: whose head it is.
    x: the pooled tokens.
    name: of the head.
  """
  if model.num_classes <= 0:
    return x
  zeros = nn.initializers.zeros
  return nn.Dense(model.num_classes, dtype=jnp.float32, kernel_init=zeros, name=name)(x)


def _check_mappings(old: ViT, new: ViT, path: object) -> None:
  """Raises FieldError where entries that don't matter to training alone differ."""
  for field in _MAPPINGS:
    theirs, ours = getattr(old, field), getattr(new, field)
    if theirs is None or ours is None:
      theirs, ours, prefix = {field: theirs}, {field: ours}, ''
    else:
      prefix = f'{field}.'
    for name, value in ours.items():
      if value != theirs[name] and name not in layers.TRAINING_OPTIONS:
        raise FieldError(prefix + name, f'{value!r}, but {path} has weights for {theirs[name]!r}')


def _text(size: Sequence[int]) -> str:
  return 'x'.join(map(str, size))


def _check_options(model: ViT) -> None:
  """Raises FieldError for options that are unknown or don't fit each other."""
  for field, allowed in (
    ('classifier', CLASSIFIERS),
    ('positional_embedding', POSITIONAL_EMBEDDINGS),
    ('patch_embedding', PATCH_EMBEDDINGS),
    ('activation', layers.ACTIVATIONS),
    ('position_tokens', POSITION_TOKENS),
  ):
    check_choice(field, getattr(model, field), allowed)
  options = model.block_options
  if model.classifier in _OF_TOKEN and not model.has_class_token:
    raise FieldError('class_token', f'False, but classifier is {model.classifier!r}')
  if model.fc_norm and model.classifier == 'none':
    raise FieldError(
      'fc_norm',
      "classifier 'none' pools nothing, so that the norm of the tokens is the same; leave it False",
    )
  if model.fc_norm and not model.final_norm:
    raise FieldError('final_norm', 'False, but fc_norm is one')
  if model.pool_prefix and model.classifier == 'token':
    raise FieldError('pool_prefix', "True, but classifier 'token' reads one token")
  for field in ('map_num_heads', 'map_mlp_dim'):
    if (value := getattr(model, field)) is None:
      continue
    if model.classifier != 'map':
      raise FieldError(field, f"{value}, but classifier is {model.classifier!r}, not 'map'")
  if model.classifier == 'map':
    field, heads = 'map_num_heads', model.map_num_heads or model.num_heads
    width = 'hidden_size' if model.neck is None else 'neck'
    if getattr(model, width) % heads:
      raise FieldError(field, f'{heads} does not divide {width}={getattr(model, width)}')
  if model.distillation:
    for field, is_set in (
      ('classifier', model.classifier != 'token'),
      ('fc_norm', model.fc_norm),
      ('representation_size', model.representation_size is not None),
    ):
      if is_set:
        raise FieldError(
          'distillation', f'True, but {field} is {getattr(model, field)!r}: both heads read a token'
        )
  layers.check_remat(model.remat, model.remat_policy)
  layers.check_tokenizer(model.tokenizer, model.num_layers)
  if model.hidden_size % model.num_heads:
    raise FieldError(
      'num_heads', f'{model.num_heads} heads do not divide hidden_size={model.hidden_size}'
    )
  _check_layers(model, options)
  if model.position_table is not None:
    if model.positional_embedding != 'learned_1d':
      raise FieldError(
        'position_table', f'set, but positional_embedding is {model.positional_embedding!r}'
      )
    if model.num_placed:
      raise FieldError('position_table', "set, but position_tokens is not 'patches'")
  multiple = {'sinusoidal_1d': 2, 'sinusoidal_2d': 4}.get(model.positional_embedding, 1)
  if model.hidden_size % multiple:
    raise FieldError(
      'positional_embedding',
      f'{model.positional_embedding!r} needs hidden_size to be a multiple of {multiple}, '
      f'not {model.hidden_size}',
    )
  size = model.given_patch_size
  sides = layers.as_pair(size) if isinstance(size, int | list | tuple) else ()
  if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
    raise FieldError('patches.size', f'{size!r} is not (height, width)')
  patch, stride = model.patch_size, model.patch_stride
  if len(stride) != 2 or not all(1 <= s <= p for s, p in zip(stride, patch, strict=True)):
    raise FieldError('stride', f'{model.stride} is not between 1 and the patch, {patch}')


def _check_layers(model: ViT, options: BlockOptions) -> None:
  """Raises FieldError for options of layers that don't fit the other fields."""
  if model.scan and options.differing:
    raise FieldError('scan', f'True, but layers differ by {options.differing}')
  heads = options.num_kv_heads
  counts = heads if isinstance(heads, tuple) else (model.num_heads if heads is None else heads,)
  if isinstance(heads, tuple) and len(heads) != model.num_layers:
    raise FieldError('num_kv_heads', f'{len(heads)} numbers for {model.num_layers} layers')
  if bad := [n for n in counts if model.num_heads % n]:
    raise FieldError('num_kv_heads', f'{bad[0]} does not divide num_heads={model.num_heads}')
  if bad := [i for i in options.global_layers if i >= model.num_layers]:
    allows = f'num_layers={model.num_layers} allows 0 to {model.num_layers - 1}'
    raise FieldError('global_layers', f'{bad[0]} is not a layer; {allows}')
  width = model.hidden_size // model.num_heads
  if model.differential and width % 2:
    raise FieldError('differential', 'True, but heads have an odd width, which has no halves')
  if options.rotary is not None and width % 4:
    raise FieldError('rotary', f'set, but heads have {width} channels, no multiple of 4')
  if options.relative_positions is not None:
    layers.check_prefix(options.relative_positions['type'], model.num_prefix)
  if options.of_places and model.learns_tokens:
    raise FieldError(options.of_places, 'set, but learned tokens (tokenizer) have no places')
  for field, value in (('window_size', model.window_size), ('neck', model.neck)):
    if value is not None and model.num_prefix:
      raise FieldError(field, f'{value}, but {model.num_prefix} tokens stand before the patches')
  if model.neck is not None:
    if model.learns_tokens:
      raise FieldError('neck', f'{model.neck}, but learned tokens (tokenizer) have no places')
    if not model.final_norm:
      raise FieldError('final_norm', 'False, but neck has one')
