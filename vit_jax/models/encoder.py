"""The encoder of a ViT: positions, layers and the norm after them, with scenic's module names."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import FieldError, check_choice
from vit_jax.models import layers
from vit_jax.models.blocks import BlockOptions, Encoder1DBlock

POSITIONAL_EMBEDDINGS = ('learned_1d', 'sinusoidal_1d', 'sinusoidal_2d', 'none')


class Encoder(nn.Module):
  """Position embeddings, `num_layers` blocks and a final norm: [B, N, D] to [B, N, D].

  A tokenizer makes fewer tokens of them.

  Attributes:
    num_layers: number of blocks.
    mlp_dim: hidden width of the MLPs.
    num_heads: number of attention heads.
    positional_embedding: one of `POSITIONAL_EMBEDDINGS`.
    dropout_rate: dropout after the position embeddings and in the blocks.
    attention_dropout_rate: dropout of the attention weights.
    stochastic_depth: rate of the last block; grows linearly from 0 at the first.
    dtype: dtype of the computation; parameters are float32.
    has_cls_token: whether token 0 is a class token, which stands outside the grid.
    grid: (rows, columns) of the other tokens. None: a square; rotary, relative positions and
      windows need it.
    posemb_init_stddev: standard deviation of learned position embeddings at the start.
    norm_epsilon: epsilon of the LayerNorms.
    activation: name in `layers.ACTIVATIONS`.
    remat: recompute each block's activations in the backward pass instead of keeping them.
    remat_policy: as of `ViT`.
    scan: as of `ViT`.
    final_norm: whether the tokens are normed after the last block.
    tokenizer: as of `ViT`.
    frames: that the grids of tokens of an example are of, one after the other.
    num_prefix: tokens before those of the grid; None means the class token, if there is one.
    num_placed: how many of these, the first ones, have positions; None means all.
    position_table: as of `ViT`.
    pre_norm: norm the tokens before the first block, once they have their positions.
    options: what the blocks are made of; the other norms are of the same kind.

  Raises:
    FieldError: on construction, for a class token where there are no tokens before the grid.
  """

  num_layers: int
  mlp_dim: int
  num_heads: int
  positional_embedding: str = 'learned_1d'
  dropout_rate: float = 0.1
  attention_dropout_rate: float = 0.1
  stochastic_depth: float = 0.0
  dtype: Any = jnp.float32
  has_cls_token: bool = False
  grid: tuple[int, int] | None = None
  posemb_init_stddev: float = 0.02
  norm_epsilon: float = 1e-6
  activation: str = 'gelu'
  remat: bool = False
  remat_policy: str | None = None
  scan: bool = False
  final_norm: bool = True
  tokenizer: Mapping[str, Any] | None = None
  frames: int = 1
  num_prefix: int | None = None
  num_placed: int | None = None
  position_table: Mapping[str, Any] | None = None
  pre_norm: bool = False
  options: BlockOptions = BlockOptions()

  def __post_init__(self) -> None:
    if self.has_cls_token and self.num_prefix == 0:
      raise FieldError('num_prefix', '0, but has_cls_token is True')
    super().__post_init__()

  @nn.compact
  def __call__(
    self,
    inputs: jax.Array,
    *,
    train: bool = False,
    select_tokens: Callable[[jax.Array], jax.Array] | None = None,
    outputs: list[jax.Array] | None = None,
    patches: layers.Patches | None = None,
  ) -> jax.Array:
    """Encodes tokens.

    Args:
      inputs: [B, N, D].
      train: turns on dropout and stochastic depth.
      select_tokens: applied to the tokens once they have their positions, [B, N, D] to [B, M, D]:
        for models that drop or replace some (arXiv 2111.06377).
      outputs: a list that takes the tokens after each block.
      patches: that the tokens are of, where images have several sizes.
    """
    x = self.add_positions(inputs, patches)
    if select_tokens is not None:
      x = select_tokens(x)  # [B, M, D]
    x = nn.Dropout(self.dropout_rate)(x, deterministic=not train)
    if self.pre_norm:
      x = self.norm_layer(name='pre_norm')(x)
    tokenizer, shared = self.make_tokenizer(), self.shared_inputs(x, train, patches)
    if self.scan and tokenizer is None and outputs is None and self.blocks_are_plain():
      return self.norm(self.scan_blocks(x, not train, shared))
    for layer in range(self.num_layers):
      block = self.block(layer)
      if tokenizer is None:
        x = block(x, not train, **shared(layer))
      else:
        x = tokenizer(layer, block, x, not train)
      if outputs is not None:
        outputs.append(x)
    return self.norm(x)

  @nn.nowrap
  def blocks_are_plain(self) -> bool:
    """Whether blocks have parameters, nothing but these, and leave nothing behind."""
    others = [name for name in self.variables if name != 'params']
    names = [f'encoderblock_{layer}' for layer in range(self.num_layers)]
    return (
      all(self.has_variable('params', name) for name in names)  # none of them when initialising
      and not any(self.has_variable(other, name) for other in others for name in names)
      and not self.is_mutable_collection('intermediates')
    )

  @nn.nowrap
  def shared_inputs(
    self, x: jax.Array, train: bool, patches: layers.Patches | None = None
  ) -> Callable[[int | jax.Array], dict[str, Any]]:
    """Returns a function of the layer: what its block's call takes besides tokens [B, N, D]."""
    options, bias, rotation, mask = self.options, None, None, None
    if patches is not None:
      seen = jnp.pad(patches.valid, ((0, 0), (self.prefix, 0)), constant_values=True)
      mask = seen[:, None, None]  # [B, 1, 1, N]
    heads = {'num_heads': self.num_heads, 'head_dim': x.shape[-1] // self.num_heads}
    relative = options.relative_positions
    if relative is not None and relative['shared']:
      module = layers.RelativePositions(relative, **heads, name='relative_positions')
      bias = module(self.grid, self.prefix)
    if options.rotary is not None:
      module = layers.RotaryEmbedding(options.rotary, self.num_layers, **heads, name='rotary')
      rotation = module(self.grid, self.prefix, deterministic=not train)

    def inputs(layer):
      found = {'bias': bias, 'mask': mask}
      if rotation is not None:
        found['rotation'] = rotation.of_layer(layer)
      return {name: value for name, value in found.items() if value is not None}

    return inputs

  @nn.nowrap
  def scan_blocks(
    self,
    x: jax.Array,
    deterministic: bool,
    shared: Callable[[int | jax.Array], dict[str, Any]],
  ) -> jax.Array:
    """Applies all blocks to tokens [B, N, D], in a loop over their stacked parameters.

    `shared` is of `shared_inputs`.
    """
    layer = jnp.arange(self.num_layers)
    rate = jnp.linspace(0, self.stochastic_depth, self.num_layers)
    names = [f'encoderblock_{i}' for i in range(self.num_layers)]
    paths = ['/'.join((*self.path, name)) for name in names]
    params = [self.variables['params'][name] for name in names]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    # Without a name or a place in this module, and without its own `nn.remat`.
    block = self.clone(remat=False, parent=None).block(0).clone(parent=None, name=None)
    drops = max(self.dropout_rate, self.attention_dropout_rate, self.stochastic_depth) > 0
    key = self.make_rng('dropout') if drops and not deterministic else None

    def body(x, inputs):
      params, layer, rate = inputs
      rngs = {} if key is None else {'dropout': jax.random.fold_in(key, layer)}
      own = {'stochastic_depth': rate} if self.stochastic_depth else {}
      if self.options.differential:
        own['layer'] = layer
      params = layers.gather_looped(paths, params)
      x = block.clone(**own).apply({'params': params}, x, deterministic, rngs=rngs, **shared(layer))
      return x, None

    if self.remat:
      # A loop's iterations can't be merged, which prevent_cse is there for.
      policy = layers.remat_policy(self.remat_policy)
      body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    x = x.astype(jnp.promote_types(x.dtype, self.dtype))
    return jax.lax.scan(body, x, (params, layer, rate))[0]

  @nn.nowrap
  def make_tokenizer(self) -> layers.Tokenizer | None:
    """Returns what learns tokens; None where those of the patches stay."""
    return layers.make_tokenizer(
      self.tokenizer,
      self.num_layers,
      num_prefix=self.prefix,
      frames=self.frames,
      grid=self.grid,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
      norm_epsilon=self.norm_epsilon,
    )

  @nn.nowrap
  def norm(self, x: jax.Array) -> jax.Array:
    """Norms the tokens after the last block, where that is asked for."""
    return self.norm_layer(name='encoder_norm')(x) if self.final_norm else x

  @property
  def norm_layer(self) -> Callable[..., nn.Module]:
    """Makes norms, as `layers.norm_layer` does."""
    return layers.norm_layer(self.options.norm, self.norm_epsilon, self.dtype)

  @nn.nowrap
  def block(self, layer: int, kind: type[nn.Module] | None = None, **attributes: Any) -> nn.Module:
    """Returns block `layer`; its call takes (tokens, deterministic).

    Args:
      layer: from 0.
      kind: its class, which has the attributes of `Encoder1DBlock` up to `attention_fn`; None for
        that one.
      **attributes: more of them.
    """
    if kind is None:
      own = {'options': self.options.of_layer(layer), 'layer': layer, 'grid': self.grid}
      kind, attributes = Encoder1DBlock, {**own, **attributes}
    if self.remat:
      kind = nn.remat(kind, policy=layers.remat_policy(self.remat_policy), static_argnums=(2,))
    return kind(
      mlp_dim=self.mlp_dim,
      num_heads=self.num_heads,
      dtype=self.dtype,
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.attention_dropout_rate,
      stochastic_depth=layer / max(self.num_layers - 1, 1) * self.stochastic_depth,
      norm_epsilon=self.norm_epsilon,
      activation=self.activation,
      name=f'encoderblock_{layer}',
      **attributes,
    )

  @property
  def prefix(self) -> int:
    """How many tokens are before those of the grid."""
    return int(self.has_cls_token) if self.num_prefix is None else self.num_prefix

  @nn.nowrap
  def add_positions(self, x: jax.Array, patches: layers.Patches | None = None) -> jax.Array:
    """Adds the chosen position embedding to tokens [B, N, D], those that have positions."""
    prefix, placed = self.prefix, self.prefix if self.num_placed is None else self.num_placed
    if placed == prefix:
      return self.place(x, prefix, patches)
    first, others, grid = x[:, :placed], x[:, placed:prefix], x[:, prefix:]
    x = self.place(jnp.concatenate([first, grid], axis=1), placed, patches)
    return jnp.concatenate([x[:, :placed], others, x[:, placed:]], axis=1)

  @nn.nowrap
  def place(self, x: jax.Array, prefix: int, patches: layers.Patches | None = None) -> jax.Array:
    """Adds it to each of tokens [B, prefix + N, D]."""
    kind = self.positional_embedding
    check_choice('positional_embedding', kind, POSITIONAL_EMBEDDINGS)
    init = nn.initializers.normal(self.posemb_init_stddev)
    if self.position_table is not None:
      table = layers.PositionTable(self.position_table, x.shape[-1], init, name='posembed_input')
      where = (self.grid,) if patches is None else (patches.grids, patches.places)
      return x + table(*where).astype(x.dtype)
    if kind == 'learned_1d':
      grid = self.grid if self.frames == 1 else None
      return layers.AddPositionEmbs(init, grid, name='posembed_input')(x)
    if kind == 'sinusoidal_1d':
      return x + layers.sinusoidal_1d(*x.shape[1:]).astype(x.dtype)
    if kind == 'sinusoidal_2d':
      first, x = x[:, :prefix], x[:, prefix:]
      grid = layers.resolve_grid(x.shape[1] // self.frames, self.grid)
      images = x.reshape(-1, *grid, x.shape[-1])  # [B * frames, h, w, D]
      x = layers.AddFixedSinCosPositionEmbedding()(images).reshape(x.shape)
      return jnp.concatenate([first, x], axis=1)
    return x
