"""Hybrid of a ResNet and a ViT (arXiv 2010.11929), with the names of vision_transformer and scenic.

github.com/google-research/vision_transformer, models_resnet.py. The tokens are those of the maps of
a ResNet with group norm and weight standardization; all that follows is the ViT's.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.errors import FieldError, check_choice, field_prefix
from vit_jax.models import bit, layers, sizes
from vit_jax.models import fields as fields_lib
from vit_jax.models.backbone import Fitted, Layout, Shape
from vit_jax.models.layers.standardized import StdConv
from vit_jax.models.vit import ViT
from vit_jax.ranges import Entries, Factor, Layers

# name -> `resnet.num_layers` of the models that are published, the ViT's size, and its patches.
SIZES = {
  'R+Ti/16': ((), 'Ti/8'),
  'R26+S/32': ((2, 2, 2, 2), 'S/1'),
  'R26+B/32': ((2, 2, 2, 2), 'B/1'),
  'R50+B/16': ((3, 4, 9), 'B/1'),
  'R50+L/32': ((3, 4, 6, 3), 'L/1'),
}
_ROOT = 'conv_root/kernel'


class Numerics(NamedTuple):
  """The small numbers of an implementation.

  Attributes:
    epsilon, of_deviation: as for `StdConv`.
    norm_epsilon: of the norms in the stages.
    root_epsilon: of the norm before them.
  """

  epsilon: float
  of_deviation: bool
  norm_epsilon: float
  root_epsilon: float


NUMERICS = {
  'vision_transformer': Numerics(1e-5, True, norm_epsilon=1e-6, root_epsilon=1e-6),
  'timm': Numerics(1e-8, False, norm_epsilon=1e-5, root_epsilon=1e-5),
  'scenic': Numerics(1e-10, False, norm_epsilon=1e-4, root_epsilon=1e-6),
}


def parse(variant: str) -> dict[str, Any]:
  """Returns the fields of `config.model` that a name in `SIZES` stands for.

  Raises:
    UsageError: it isn't one.
  """
  check_choice('--config: hybrid', variant, SIZES)
  num_layers, size = SIZES[variant]
  return {'resnet': {'num_layers': num_layers, 'width_factor': 1.0}, **sizes.parse(size)}


@dataclasses.dataclass(frozen=True)
class ResNetOptions:
  """The entries of `resnet`."""

  num_layers: tuple[Layers, ...]
  width_factor: Factor


class ResidualUnit(nn.Module):
  """Convolutions 1x1, 3x3, 1x1 and norms beside a shortcut: [B, H, W, C] to [B, h, w, 4 filters].

  h = H / stride, rounded up; w likewise. The shortcut is a convolution and a norm where the shape
  changes.

  Attributes:
    filters: channels of the convolution 3x3.
    stride: of that convolution.
    numerics: of the convolutions and norms.
    dtype: dtype of the computation; parameters and statistics are float32.
  """

  filters: int
  stride: int
  numerics: Numerics
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    conv, norm = _layers(self.numerics, self.dtype)
    shortcut = inputs
    if self.stride > 1 or inputs.shape[-1] != 4 * self.filters:
      shortcut = conv(4 * self.filters, 1, self.stride, name='conv_proj')(inputs)
      shortcut = norm(name='gn_proj')(shortcut)
    x = conv(self.filters, 1, name='conv1')(inputs)
    x = nn.relu(norm(name='gn1')(x))
    x = conv(self.filters, 3, self.stride, name='conv2')(x)
    x = nn.relu(norm(name='gn2')(x))
    x = conv(4 * self.filters, 1, name='conv3')(x)
    x = norm(scale_init=nn.initializers.zeros, name='gn3')(x)
    return nn.relu(x + shortcut)


class ResNetStage(nn.Module):
  """Residual units, of which the first has the stride and the others have none.

  Attributes:
    depth: number of units.
    filters, stride, numerics, dtype: as for `ResidualUnit`.
  """

  depth: int
  filters: int
  stride: int
  numerics: Numerics
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(self.depth):
      stride = 1 if i else self.stride
      unit = ResidualUnit(self.filters, stride, self.numerics, self.dtype, name=f'unit{i + 1}')
      x = unit(x)
    return x


def _layers(numerics: Numerics, dtype: Any) -> tuple[Any, Any]:
  """Returns the convolution and the norm, which take what differs from one to the next."""
  conv = functools.partial(
    StdConv, epsilon=numerics.epsilon, of_deviation=numerics.of_deviation, dtype=dtype
  )
  norm = functools.partial(nn.GroupNorm, bit.NUM_GROUPS, epsilon=numerics.norm_epsilon, dtype=dtype)
  return conv, norm


class HybridViT(ViT, kw_only=True):
  """A ViT on the maps of a ResNet: float images [B, H, W, C] to logits [B, num_classes].

  Attributes, beside those of `vit.ViT`:
    resnet: a dict of
      num_layers: number of residual units of each stage, none or more stages; the first convolution
        and the maximum after it quarter the sides, each stage from the second on halves them, all
        rounded up;
      width_factor: of the channels: the first convolution has 64 times as many.
    patches: {'size': (height, width)} in positions of the ResNet's last map; `stride` likewise.
    numerics: whose small numbers stand beside variances, a key of `NUMERICS`.
  """

  resnet: Entries
  numerics: str = 'vision_transformer'

  CONFIG_DEFAULTS: ClassVar[Mapping[str, Any]] = {
    **ViT.CONFIG_DEFAULTS,
    'patches': {'size': (1, 1)},
    'resnet': {'num_layers': (3, 4, 9), 'width_factor': 1.0},
  }
  NAMED_SIZES: ClassVar[tuple[str, ...]] = tuple(SIZES)
  WEIGHT_FIELDS: ClassVar[tuple[str, ...]] = (*ViT.WEIGHT_FIELDS, 'resnet', 'numerics')
  FUNCTION_FIELDS: ClassVar[tuple[str, ...]] = (*ViT.FUNCTION_FIELDS, 'resnet', 'numerics')

  def __post_init__(self) -> None:
    check_choice('numerics', self.numerics, NUMERICS)
    _check_resnet(self.resnet)
    super().__post_init__()

  @property
  def reduction(self) -> int:
    """Pixels from each position of the ResNet's last map to the next."""
    return self.reduction_of(self.resnet['num_layers'])

  @staticmethod
  def reduction_of(num_layers: Sequence[int]) -> int:
    """Returns the `reduction` of a ResNet of so many units in each stage."""
    return 2 ** (1 + max(1, len(num_layers)))

  @nn.nowrap
  def embed(self, x: jax.Array) -> jax.Array:
    """Turns images [B, H, W, C] into the tokens of a grid: [B, h, w, D]."""
    numerics = NUMERICS[self.numerics]
    conv, norm = _layers(numerics, self.dtype)
    filters = bit.check_width(self.resnet['width_factor'], 'resnet.width_factor')
    x = conv(filters, 7, 2, name='conv_root')(x)
    x = nn.relu(norm(epsilon=numerics.root_epsilon, name='gn_root')(x))
    x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding='SAME')  # [B, H / 4, W / 4, F]
    for i, depth in enumerate(self.resnet['num_layers']):
      name, stride = f'block{i + 1}', 2 if i else 1
      stage = ResNetStage(depth, filters * 2**i, stride, numerics, self.dtype, name=name)
      x = stage(x)  # [B, H / (4 * 2**i), W / (4 * 2**i), 4 F * 2**i]
    if not self.drop_remainder:
      _check_tiling(x.shape[1:3], self.patch_size, self.patch_stride)
    return super().embed(x)

  def summary(self) -> str:
    units = '-'.join(map(str, self.resnet['num_layers'])) or 'no'
    return f'{super().summary()} of a ResNet of {units} units'

  def layer_of(self, path: str) -> int:
    """As `ViT` counts; the ResNet is layer 0, which comes before the ViT's."""
    is_resnet = path.startswith(('conv_root/', 'gn_root/', 'block'))
    return 0 if is_resnet else super().layer_of(path)

  def variable_shapes(self, image_size: tuple[int, int] | None, channels: int) -> dict[str, Shape]:
    return super().variable_shapes(image_size or self._in_pixels(self.patch_size), channels)

  def fit(self, arrays, shapes, old, new, path, resize='big_vision') -> Fitted:
    """As `ViT`'s; the first convolution is adapted to grey or colour images."""
    adapted = bit.fit_channels(arrays, _ROOT, new.channels)
    fitted = super().fit(adapted.arrays, shapes, old, new, path, resize)
    return fitted._replace(notes=adapted.notes + fitted.notes)

  @nn.nowrap
  def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
    """Returns (rows, columns) of the patches of the map of an image of (height, width) pixels."""
    maps = [-(-side // self.reduction) for side in image_size]
    return layers.patch_grid(maps, self.patch_size, self.patch_stride)

  def layout(self, image_size: tuple[int, int]) -> Layout:
    """Where the patches would lie if each position of the map saw its own pixels alone."""
    patch, stride = (self._in_pixels(sides) for sides in (self.patch_size, self.patch_stride))
    return super().layout(image_size)._replace(patch=patch, stride=stride)

  def patch_kernel(self, params: Mapping[str, Any]) -> None:
    """None: patches are of maps, whose channels are no colours."""
    del params

  @nn.nowrap
  def _in_pixels(self, sides: tuple[int, int]) -> tuple[int, int]:
    return sides[0] * self.reduction, sides[1] * self.reduction


def _check_tiling(maps: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int]) -> None:
  """Raises FieldError for patches that don't divide the ResNet's maps."""
  if patch == stride and any(side % p for side, p in zip(maps, patch, strict=True)):
    patch, maps = ('x'.join(map(str, sides)) for sides in (patch, maps))
    raise FieldError('patches.size', f'{patch} positions do not divide the {maps} of the ResNet')


def _check_resnet(resnet: Mapping[str, Any]) -> None:
  """Raises FieldError for an entry of `resnet` that is missing, unknown or has a wrong value."""
  with field_prefix('resnet.'):
    fields_lib.check(ResNetOptions, resnet)
    bit.check_width(resnet['width_factor'], 'width_factor')
