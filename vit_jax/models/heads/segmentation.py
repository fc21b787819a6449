"""Heads that score the classes of each pixel: sliding windows, and the simplest head, linear."""

import itertools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import FieldError, UsageError
from vit_jax.models.heads.head import Head
from vit_jax.models.layers.resize import interpolate
from vit_jax.ranges import Side

PIXELS = ('logits', 'scores')  # outputs [B, H, W, num_classes]


def upsample(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Returns maps [..., h, w] in (height, width), bilinear as PyTorch's of align_corners=False."""
  return interpolate(maps, (maps.ndim - 2, maps.ndim - 1), size)


class Segmenter(Head, kw_only=True):
  """Base class of heads that score the classes of each pixel.

  Maps images [B, H, W, C], float, to a dict of float32 arrays: 'logits' [B, H, W, num_classes], or
  'scores', of the same shape and 0 or more, and what else `segment` gives, [B, windows, ...].
  Where there are several windows, scores are averaged over those that a pixel is in, as in
  mmsegmentation's slide inference, and 'rows' int32 [B, windows, h] and 'columns' [B, windows, w]
  tell which pixels each window has.

  Attributes, beside those of `Head`:
    window: (height, width) in pixels of what the backbone sees at once; () is the whole image.
    stride: (vertical, horizontal) pixels from window to window, at most the window's sides; () is
      two thirds of these. The last window ends with the image.

  Raises:
    FieldError: on construction, for a window or a stride out of range; when called, for images that
      are smaller than the window.
  """

  # Whether it has a query for each class, and gives 'class_logits' and 'mask_logits'.
  QUERIES: ClassVar[bool] = False

  window: tuple[()] | tuple[Side, Side] = ()
  stride: tuple[()] | tuple[Side, Side] = ()

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.stride and not self.window:
      raise FieldError('stride', f'{self.stride}, but window is (), the whole image')
    if any(step > side for step, side in zip(self.stride, self.window, strict=False)):
      raise FieldError('stride', f'{self.stride} is more than window={self.window}')

  @nn.nowrap
  def seen_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
    return self.window or image_size

  def segment(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
    """Returns one of `PIXELS` of images [B, H, W, C], [B, H, W, num_classes], and the rest."""
    raise NotImplementedError

  def __call__(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
    corners, (height, width) = self._corners(x.shape[1:3])
    windows = [x[:, top : top + height, left : left + width] for top, left in corners]
    outputs = self.segment(jnp.stack(windows, axis=1).reshape(-1, *windows[0].shape[1:]), train)
    outputs = {n: y.reshape(x.shape[0], len(corners), *y.shape[1:]) for n, y in outputs.items()}
    (name,) = (name for name in outputs if name in PIXELS)
    found = outputs.pop(name)  # [B, windows, h, w, K]
    if len(corners) == 1:
      return {name: found[:, 0]} | outputs
    total, count = jnp.zeros((*x.shape[:3], found.shape[-1])), np.zeros((*x.shape[1:3], 1))
    for i, (top, left) in enumerate(corners):
      part = slice(top, top + height), slice(left, left + width)
      total, count[part] = total.at[:, *part].add(found[:, i]), count[part] + 1
    tops, lefts = np.transpose(np.int32(corners))[..., None]
    return (
      {name: total / count}
      | outputs
      | {
        'rows': jnp.tile(tops + np.arange(height, dtype=np.int32), (x.shape[0], 1, 1)),
        'columns': jnp.tile(lefts + np.arange(width, dtype=np.int32), (x.shape[0], 1, 1)),
      }
    )

  @nn.nowrap
  def _corners(self, size: tuple[int, int]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Returns the (top, left) of each window of an image, and the size of all of them."""
    window = self.seen_size(size)
    if any(side > whole for side, whole in zip(window, size, strict=True)):
      raise FieldError('head.window', f'{window} is larger than images of {size}')
    stride = self.stride or tuple(-(-2 * side // 3) for side in window)
    starts = [
      sorted({min(start, whole - side) for start in range(0, whole - side + step, step)})
      for whole, side, step in zip(size, window, stride, strict=True)
    ]
    return list(itertools.product(*starts)), window


class LinearSegmenter(Segmenter, kw_only=True):
  """A linear layer on each token or position, upsampled to the image: {'logits': ...}.

  Of a pyramid it reads all maps: a linear layer of each, upsampled and added up, which is one layer
  on all of them side by side. Parameters are in `backbone` and `linear_0`, ..., one for each map.
  """

  @nn.compact
  def segment(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
    found, size = self.backbone.features(x, train=train), x.shape[1:3]
    maps = found.maps
    covered = [
      tuple(max(n * step, side) for n, step, side in zip(y.shape[1:3], stride, size, strict=True))
      for y, stride in zip(maps, found.strides, strict=True)
    ]
    if not maps and found.grid is not None:
      tokens = found.tokens[:, found.num_prefix :]
      pixels = self.backbone.layout(size).covered
      maps = [tokens.reshape(x.shape[0], *found.grid, -1)]
      covered = [tuple(min(*sides) for sides in zip(pixels, size, strict=True))]
    if not maps:
      raise UsageError('classes of pixels are read from tokens on a grid, or maps; there are none')
    logits = 0.0
    for i, (y, pixels) in enumerate(zip(maps, covered, strict=True)):
      y = nn.Dense(self.num_classes, use_bias=not i, dtype=jnp.float32, name=f'linear_{i}')(y)
      y = upsample(jnp.moveaxis(y, -1, 1), pixels)  # what is beyond the image is cut off
      y = y[..., : size[0], : size[1]]
      missing = [(0, whole - side) for whole, side in zip(size, y.shape[2:], strict=True)]
      y = jnp.pad(y, [(0, 0), (0, 0), *missing], 'edge')  # where patches end, the last values go on
      logits += jnp.moveaxis(y, 1, -1)  # [B, H, W, num_classes]
    return {'logits': logits}
