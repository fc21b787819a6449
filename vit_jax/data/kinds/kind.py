"""What a kind of data does, and the geometries that move every kind of a record alike."""

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from vit_jax.errors import UsageError

# (left, top, right, bottom) in fractions of a picture; may reach beyond it.
Window = tuple[Any, Any, Any, Any]
Size = tuple[int, int]  # (height, width) in pixels

WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


class Geometry(NamedTuple):
  """What is taken of a picture on the host, and at which size.

  Attributes:
    window: the part that is taken. What lies outside the picture is filled: images with `fill`,
      masks with void.
    size: of the result.
    resized: to which the whole picture is resized before the window, then of `size` pixels, is cut
      out; None cuts the window out first, at whole pixels, and resizes that.
    reduced: whether a file may be decoded at 1/2, 1/4 or 1/8 of its size where what is resized then
      still has at least the size that it gets.
    fast: whether images are resized by `fast_resizing` in place of Pillow.
    interpolation: of the pixels of images, a name in Pillow's `Resampling` in small letters.
    fill: uint8 values of an image's channels outside the picture; () is zeros.
  """

  window: Window
  size: Size
  resized: Size | None = None
  reduced: bool = False
  fast: bool = False
  interpolation: str = 'bicubic'
  fill: tuple[int, ...] = ()

  def part(self, size: Size) -> tuple[int, int, int, int]:
    """Returns the window in pixels of a picture of a size."""
    left, top, right, bottom = self.window
    height, width = size
    return round(left * width), round(top * height), round(right * width), round(bottom * height)

  def changes(self, size: Size) -> bool:
    """Returns whether anything happens to a picture of a size."""
    return self.window != WHOLE or tuple(size) != self.size


class Move(NamedTuple):
  """What is taken of a picture on the device: a window of its own size, with a border round it.

  Attributes:
    padding: width of the border in pixels.
    offset: (row, column) of the window's corner in the picture with its border, int32 [2], each
      from 0 to 2 * `padding`.
  """

  padding: int
  offset: jax.Array


class Kind(abc.ABC):
  """One kind of data, such as an image or a box: how it is checked, moved, batched, normalised.

  Values are of one example unless a method says otherwise. What isn't overridden leaves values as
  they are: a label stays the same wherever its image is cropped.

  Attributes:
    form: dtype and shape of a value, for messages.
    plural: what several of them are called, for messages.
    is_spatial: whether it lies in a picture and moves with it.
    has_pixels: whether it consists of images, whose colours change.
    has_points: whether it consists of points in space, which can be turned.
    dtype: of its values in batches, for kinds that a model takes.
    cannot_follow: fields of config.augment after which a value doesn't fit its image any more.
  """

  form: str
  plural: str
  is_spatial = False
  has_pixels = False
  has_points = False
  dtype: type = np.uint8
  cannot_follow: tuple[str, ...] = ()

  @abc.abstractmethod
  def is_valid(self, value: np.ndarray) -> bool:
    """Returns whether an array has the dtype and shape of this kind."""

  def check(self, name: str, value: Any) -> None:
    """Raises UsageError unless `value`, a record's entry `name`, is of this kind."""
    array = np.asarray(value)
    if not self.is_valid(array):
      shape = ', '.join(map(str, array.shape))
      raise UsageError(f"a record's {name} is {array.dtype} [{shape}], not {self.form}")

  # In files, for the kinds that are read from single ones.

  def find_files(self, path: str | Path) -> list[Path]:
    """Returns what there is at `path` that `decode` may read, sorted.

    Raises:
      UsageError: there is nothing.
    """
    raise UsageError(f'{path}: {self.plural} are not read from single files')

  def decode(self, file: Path | BinaryIO, channels: int = 0) -> Any:
    """Returns the value in a file; raises where it is damaged.

    Pixels are in 1 or 3 `channels`, or in as many as the file has: 0.
    """
    raise NotImplementedError

  # On the host, in NumPy.

  def load(self, value: Any) -> Any:
    """Returns the array of one picture that a file may stand for; others as they are."""
    return value

  def keep_whole(self, value: Any) -> None:
    """Has a file that stands for a value decoded once, for several views of it."""
    del value

  def num_frames(self, value: np.ndarray) -> int | None:
    """Returns how many frames a value has, None where it has no time."""
    del value
    return None

  def take_frames(self, value: Any, indices: np.ndarray) -> Any:
    """Returns a value that has some of its frames, in the order of `indices`, int [T]."""
    del indices
    return value

  def num_points(self, value: np.ndarray) -> int | None:
    """Returns how many points in space a value is of, None where it is of none."""
    del value
    return None

  def take_points(self, value: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Returns a value for some of its points, in the order of `indices`, int [N]."""
    del indices
    return value

  def picture(self, value: np.ndarray) -> np.ndarray:
    """Returns the one image, uint8 [H, W, C], that shows a value best."""
    raise NotImplementedError

  def size(self, value: np.ndarray) -> Size | None:
    """Returns the (height, width) of a value that has pixels or cells, else None."""
    del value
    return None

  def fit(self, value: Any, geometry: Geometry, channels: int = 0) -> Any:
    """Returns what `geometry` takes; pixels in 1 or 3 `channels`, or in as many as there are: 0."""
    del geometry, channels
    return value

  def shows_enough(self, value: Any, window: Window) -> bool:
    """Returns whether enough of a value lies in a random window to learn from."""
    del value, window
    return True

  def restore(self, value: np.ndarray, window: Window, size: Size) -> np.ndarray:
    """Returns a prediction for a window of a picture as one for the whole picture of `size`."""
    del window, size
    return value

  def stack(self, values: Sequence[Any]) -> np.ndarray:
    """Returns values of n examples as an array with a leading axis n, of the dtype in batches."""
    return np.stack(values)

  # On the device, in JAX.

  def limit(self, value: jax.Array, move: Move, size: Size) -> Move:
    """Returns the nearest move of a picture of `size` that keeps a value in sight."""
    del value, size
    return move

  def move(self, value: jax.Array, move: Move, size: Size) -> jax.Array:
    """Returns a value in the window that `move` takes of a picture of `size`."""
    del move, size
    return value

  def flip(self, value: jax.Array, flip: jax.Array) -> jax.Array:
    """Returns a value mirrored left to right where `flip`, bool [], is True."""
    del flip
    return value

  def map_images(self, function: Callable[[jax.Array], jax.Array], value: jax.Array) -> jax.Array:
    """Returns a value whose images [H, W, C], if it has any, went through `function`."""
    del function
    return value

  def map_points(self, function: Callable[[jax.Array], jax.Array], value: jax.Array) -> jax.Array:
    """Returns a value whose points [N, 3], if it has any, went through `function`."""
    del function
    return value

  def normalize(self, value: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns values, with any leading axes, as models and losses take them.

    `mean` and `std` are per channel, of images in [0, 1].
    """
    del mean, std
    return value
