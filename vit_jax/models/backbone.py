"""`Backbone`, the base class of models: what training, weights and explain ask of a model.

The base class has a default answer to each question. A new backbone defines its fields (those of
`config.model`), `__call__` and `features`, and overrides the answers that differ.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import FieldError, UsageError
from vit_jax.models import fields as fields_lib
from vit_jax.models import variables as variables_lib

Shape = tuple[int, ...]

# What describes a model beside its `name`, its `head` and its fields; see `config.ModelConfig`.
DESCRIPTION = (
  'num_classes',
  'channels',
  'image_size',
  'num_frames',
  'num_points',
  'class_names',
  'preprocess',
  'task',
  'origin',
)
# Kinds of data that a model can take (`Backbone.INPUT`) -> the axes of an example before channels.
AXES = {
  'image': ('height', 'width'),
  'video': ('frames', 'height', 'width'),
  'points': ('points',),
}
# Sizes of these axes to trace a model with, where none of its parameters depends on them.
_ANY_SIZES = {'frames': 32, 'height': 224, 'width': 224, 'points': 128}


@flax.struct.dataclass
class Features:
  """What a head reads of a batch of inputs: tokens, or a pyramid of maps.

  Attributes:
    pooled: [B, D], what the backbone's own head reads; None where it pools nothing.
    tokens: [B, num_prefix + N, D] after the last layer; None of a pyramid.
    maps: [B, h, w, C] each, the finest first; empty of tokens.
    normed: [B, h, w, C], the last of the maps as the backbone's own head averages it, where that is
      normed before; else None.
    layers: [B, num_prefix + N, D] after each of the layers that were asked for.
    grid: (rows, columns) of the N tokens; None where they stand for no places.
    num_prefix: tokens before those of the grid, such as the class token.
    num_registers: how many of these, the last ones, stand for nothing (arXiv 2309.16588).
    strides: (vertical, horizontal) pixels from each element of a map to the next, for each map.
  """

  pooled: jax.Array | None = None
  tokens: jax.Array | None = None
  maps: tuple[jax.Array, ...] = ()
  normed: jax.Array | None = None
  layers: tuple[jax.Array, ...] = ()
  grid: tuple[int, int] | None = flax.struct.field(pytree_node=False, default=None)
  num_prefix: int = flax.struct.field(pytree_node=False, default=0)
  num_registers: int = flax.struct.field(pytree_node=False, default=0)
  strides: tuple[tuple[int, int], ...] = flax.struct.field(pytree_node=False, default=())


class Layout(NamedTuple):
  """Where a model's tokens lie in its images.

  Attributes:
    grid: (rows, columns) of patches.
    patch: (height, width) of a patch in pixels.
    stride: (vertical, horizontal) step between patches in pixels.
    num_prefix: tokens before those of the grid.
    head_tokens: indices of the tokens that the head reads, such as the class token alone; None
      where it reads those of the grid.
  """

  grid: tuple[int, int]
  patch: tuple[int, int]
  stride: tuple[int, int]
  num_prefix: int
  head_tokens: tuple[int, ...] | None = None

  @property
  def covered(self) -> tuple[int, int]:
    """(height, width) in pixels from the first patch's corner to the last one's."""
    sides = zip(self.grid, self.patch, self.stride, strict=True)
    height, width = ((count - 1) * step + patch for count, patch, step in sides)
    return height, width

  def check_covers(self, image_size: tuple[int, int]) -> None:
    """Raises FieldError where patches end before an image of (height, width) pixels."""
    if any(side < whole for side, whole in zip(self.covered, image_size, strict=True)):
      (height, width), whole = self.covered, 'x'.join(map(str, image_size))
      problem = f'patches cover {height}x{width} pixels of {whole}, and all are asked for'
      raise FieldError('drop_remainder', problem)


class Attention(NamedTuple):
  """Attention weights of a model whose tokens are those of the patches from first layer to last.

  Attributes:
    layers: [layers, B, heads, queries, keys], from the first layer to the last.
    probe: [B, heads, 1, keys] of the MAP head, to the tokens that it reads; None without one.
  """

  layers: Any
  probe: Any


class AttentionMaps(NamedTuple):
  """What is attended to, as maps over the image.

  Attributes:
    maps: float32 [B, heads, rows, columns].
    patch: (height, width) in pixels of what an element stands for.
    stride: (vertical, horizontal) pixels from element to element.
    source: whose attention it is, in words, as 'class token in layer 3'.
  """

  maps: np.ndarray
  patch: tuple[int, int]
  stride: tuple[int, int]
  source: str


class TokenMaps(NamedTuple):
  """How much each patch contributes to each token that a layer learns.

  Attributes:
    maps: float32 [B, tokens, rows, columns], over the patches of `Layout`.
    source: which layer's they are, in words, as 'TokenLearner before layer 3'.
  """

  maps: np.ndarray
  source: str


class Positions(NamedTuple):
  """Position embeddings: their `kind`, in words, and `embeddings`, float32 [rows, columns, D]."""

  kind: str
  embeddings: np.ndarray


class Fitted(NamedTuple):
  """Weights of one model, fitted to another.

  Attributes:
    arrays: path -> array; what was resized has the target's shape.
    replaced: modules that only one of the two models has, or that differ between them. Those of
      the weights are left out; those of the new model keep their initial values.
    notes: a line for each change.
  """

  arrays: dict[str, np.ndarray]
  replaced: list[str]
  notes: list[str]


class Backbone(nn.Module):
  """Base class of the models that turn inputs into features, and with a head into logits.

  Its dataclass fields are the fields of an experiment's `config.model`, but for those in
  `NOT_CONFIG`. Its own head is `output_projection`, or ends with that (`is_head`).

  A subclass has `__call__(inputs, *, train=False)`, which gives float32 logits [B, num_classes], or
  what the head would read where `num_classes` is 0 or less, and `features`. Inputs are normalised
  examples of one kind of data, `INPUT`: float images [B, H, W, C] unless a subclass says otherwise,
  videos [B, T, H, W, C] or points [B, N, 3].
  """

  # The kind of data that it takes, a key of `AXES`: the entry of records that goes into its call.
  INPUT: ClassVar[str] = 'image'
  # Fields that the code which builds the model sets, and a config can't.
  NOT_CONFIG: ClassVar[tuple[str, ...]] = ('num_classes', 'dtype', 'axis_name', 'name', 'parent')
  # Defaults of `config.model` where they differ from the field's own, or it has none.
  CONFIG_DEFAULTS: ClassVar[Mapping[str, Any]] = {}
  # Regex of the parameters that weight decay leaves alone.
  NO_DECAY: ClassVar[str] = r'(^|/)(bias|scale)$'
  # Fields that a fine-tuned model takes from its weights, unless they are set.
  WEIGHT_FIELDS: ClassVar[tuple[str, ...]] = ()
  # Fields that change what the same parameters compute; weights for another value are refused.
  FUNCTION_FIELDS: ClassVar[tuple[str, ...]] = ()
  # Ways to resize position embeddings other than big_vision's, which `fit` then takes as `resize`.
  RESIZES: ClassVar[tuple[str, ...]] = ()
  # What the maps of its features are of, in a model that has no layers of tokens.
  MAPS_OF: ClassVar[str] = 'stages'
  # Names of its sizes, where those of `registry.BACKBONES` aren't of one size.
  NAMED_SIZES: ClassVar[tuple[str, ...]] = ()
  # Modules between the features and the head; where one of them starts anew, so does the head.
  HEAD_READS: ClassVar[tuple[str, ...]] = ()
  # What `features` takes besides, for heads that hide parts of their inputs: functions, of
  # 'map_patches': embedded patches [B, h, w, D], to which positions aren't added yet, to as many;
  # their (height, width) in pixels is then the property `patch_size`;
  # 'select_tokens': tokens with their positions [B, num_prefix + N, D], to any number [B, M, D].
  PATCH_HOOKS: ClassVar[tuple[str, ...]] = ()

  @classmethod
  def from_config(cls, config: Mapping[str, Any], **attributes: Any) -> Self:
    """Builds the model from fields by their names.

    Args:
      config: an experiment's `config.model`, or what `weights.load` returns; None in a field stands
        for its default.
      **attributes: take precedence over `config`. Those in `NOT_CONFIG` that the model doesn't have
        are ignored.

    Raises:
      FieldError: a field is unknown, has the wrong type, or has no default and isn't given.
    """
    own = {field.name for field in dataclasses.fields(cls)}
    given = {name: value for name, value in config.items() if value is not None}
    attributes = {n: v for n, v in attributes.items() if n in own or n not in cls.NOT_CONFIG}
    if 'num_classes' in given:
      attributes = {'num_classes': given['num_classes'], **attributes}
    beside = {'name', 'head', *DESCRIPTION, *cls.NOT_CONFIG}
    given = {n: v for n, v in given.items() if n not in beside and n not in attributes}
    return cls(**fields_lib.check(cls, given, attributes), **attributes)

  def config(self) -> dict[str, Any]:
    """Returns the fields of `config.model` that build this model: plain values by name."""
    return {name: fields_lib.plain(getattr(self, name)) for name in fields_lib.names(type(self))}

  def summary(self) -> str:
    """Returns the model's kind and size in a few words."""
    return type(self).__name__

  def features(
    self,
    x: jax.Array,
    *,
    train: bool = False,
    layers: Sequence[int] = (),
    **hooks: Callable[[jax.Array], jax.Array],
  ) -> Features:
    """Returns what heads read of a batch of inputs: here what the call does with `features=True`.

    Args:
      x: what the call takes.
      train: turns on what only training does.
      layers: whose outputs are wanted besides, counted from 0.
      **hooks: by the names in `PATCH_HOOKS`.

    Raises:
      UsageError: for `layers`, which a model of maps alone hasn't.
    """
    kind = type(self).__name__
    if 'features' not in inspect.signature(type(self).__call__).parameters:
      raise UsageError(f'{kind}: has no method `features`, which gives heads what they read')
    if layers:
      raise UsageError(f'{kind}: has maps of its {self.MAPS_OF}, and no layers of tokens')
    return self(x, train=train, features=True, **hooks)

  def layer_of(self, path: str) -> int | None:
    """Returns which layer a parameter belongs to, for layer-wise learning rates.

    0 is what comes before the layers; the highest number is that of the head and of all that comes
    after them. None: the model's layers aren't counted.
    """
    del path
    return None

  def is_head(self, path: str) -> bool:
    """Whether a parameter is part of the head, which starts anew for new classes."""
    return path.startswith('output_projection/')

  def works_untrained(self, path: str) -> bool:
    """Whether a frozen parameter does its work as it is initialised."""
    del path
    return False

  def variable_shapes(self, input_size: Shape | None, channels: int) -> dict[str, Shape]:
    """Returns path -> shape of all variables, by the names of `models.variables.flatten`.

    Args:
      input_size: of an input's axes between batch and channels: (height, width) of images, (frames,
        height, width) of videos, (points,). None where nothing depends on it.
      channels: of the input.
    """
    return trace_shapes(self, input_size, channels)

  # Weights of other models.

  @classmethod
  def takes_weights_of(cls, other: type['Backbone']) -> bool:
    """Whether `fit` can fit the weights of the other backbone to this one."""
    return cls is other

  @classmethod
  def complete(cls, fields: dict[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `fields`, of `config.model`, with those that are None taken from weights.

    Args:
      fields: of this backbone.
      theirs: the fields of the model that the weights are of; empty for none.
    """
    return {
      name: _fill(value, theirs.get(name)) if name in cls.WEIGHT_FIELDS else value
      for name, value in fields.items()
    }

  def fit(
    self,
    arrays: dict[str, np.ndarray],
    shapes: Mapping[str, Shape],
    old: 'ModelConfig',  # noqa: F821
    new: 'ModelConfig',  # noqa: F821
    path: object,
  ) -> Fitted:
    """Fits weights of another size to this model: what depends on image, patch or window size.

    Args:
      arrays: path -> array of the weights.
      shapes: path -> shape of this model's variables.
      old: of the model that they are of, which `takes_weights_of` allows.
      new: of this model.
      path: where they are from, for messages.

    Raises:
      UsageError: they can't be fitted.
    """
    del shapes, old, new, path
    return Fitted(arrays, [], [])

  # What there is to see.

  def layout(self, image_size: tuple[int, int]) -> Layout | None:
    """Returns where tokens lie in images of this (height, width); None of a model without them."""
    del image_size
    return None

  @property
  def num_attention_layers(self) -> int:
    """How many layers `attention_maps` can be asked for; 0 where it has no choice, or nothing."""
    return 0

  def attention(self, intermediates: Mapping[str, Any]) -> Attention | None:
    """Returns the attention weights among what `apply(..., mutable=['intermediates'])` captured.

    Args:
      intermediates: that tree, or one of the same structure with other values, such as gradients;
        its leaves are arrays, taken out of the tuples that Flax captures.

    Returns:
      None of a model whose tokens aren't those of the patches throughout.
    """
    del intermediates
    return None

  def attention_maps(
    self, intermediates: Mapping[str, Any], image_size: tuple[int, int], layer: int | None = None
  ) -> AttentionMaps | None:
    """Returns what the model looks at in images; None where it has no attention to show.

    Args:
      intermediates: as for `attention`.
      image_size: (height, width) of the images.
      layer: from 0; None for the last.
    """
    del intermediates, image_size, layer
    return None

  def token_maps(
    self, intermediates: Mapping[str, Any], image_size: tuple[int, int]
  ) -> list[TokenMaps]:
    """Returns how much each patch contributes to each learned token, for each layer with some.

    Args: as for `attention_maps`.
    """
    del intermediates, image_size
    return []

  def patch_kernel(self, params: Mapping[str, Any]) -> np.ndarray | None:
    """Returns the patch embedding's filters, [height, width, C, D]; None where there are none."""
    del params
    return None

  def positions(self, params: Mapping[str, Any], image_size: tuple[int, int]) -> Positions | None:
    """Returns the position embeddings that are added to patches; None where none are."""
    del params, image_size
    return None


def trace_shapes(model: nn.Module, input_size: Shape | None, channels: int) -> dict[str, Shape]:
  """Returns path -> shape of a model's variables, by the names of `variables.flatten`.

  Args:
    model: a backbone, or a head on one.
    input_size: as for `Backbone.variable_shapes`.
    channels: of the input.
  """
  size = input_size or tuple(_ANY_SIZES[axis] for axis in AXES[model.INPUT])
  inputs = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
  init = functools.partial(model.init, train=False)
  flat = variables_lib.flatten(jax.eval_shape(init, jax.random.key(0), inputs))
  return {name: leaf.shape for name, leaf in flat.items()}


def _fill(value: Any, theirs: Any) -> Any:
  """Returns `value`, or `theirs` where it is None; of a dict, entry by entry."""
  if isinstance(value, Mapping):
    return {name: _fill(item, (theirs or {}).get(name)) for name, item in value.items()}
  return theirs if value is None else value
