"""What is done to a record on the host: crop, resize, grey or colour. Pixels stay uint8."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL.Image import Resampling

from vit_jax.data import fast_resizing, kinds
from vit_jax.data.clips import Clips
from vit_jax.data.kinds import WHOLE, Geometry, Window
from vit_jax.data.sources.records import Record
from vit_jax.errors import FieldError, check_choice

CROPS = ('resize', 'central', 'inception', 'scale')
EVALUATION_CROPS = ('squash', 'border', 'cut', 'none')  # for models that were evaluated so
INTERPOLATIONS = tuple(choice.name.lower() for choice in Resampling)
ROUNDINGS = ('down', 'nearest')
DECODING = ('exact', 'reduced')
RESIZING = ('exact', 'fast')

CENTRAL_CROPS = ('central', 'inception')  # that evaluate on the middle of an image
_CROP_FRACTION = 224 / 256  # as big_vision and torchvision evaluate on ImageNet
_AREA = (0.08, 1.0)  # fraction of the image, as torchvision
_ASPECT = (3 / 4, 4 / 3)  # width / height
_LOG_ASPECT = tuple(map(float, np.log(_ASPECT)))
_SCALES = (0.5, 2.0)  # of the sides, as mmsegmentation's RandomResize
_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """Maps a record to one whose pictures are of `image_size`; see `make_preprocess`.

  Masks and boxes move with the image or video that they lie on, by one geometry. Where evaluation
  takes several views of an image or video, they stand in its place, with an axis of their own in
  front, under the name that `kinds.views_of` gives. Random scales are relative to `eval_size`, of
  pictures in evaluation.
  """

  image_size: tuple[int, int] | tuple[()]
  channels: int
  crop: str
  crop_fraction: float
  area: tuple[float, float]
  eval_size: tuple[int, int] | tuple[()]
  random_crop: bool
  clips: Clips = dataclasses.field(default_factory=Clips)
  spatial_crops: int = 1
  num_points: int = 0
  random_points: bool = False
  reduced: bool = False
  fast: bool = False
  interpolation: str = 'bicubic'
  rounding: str = 'down'
  fill: tuple[int, ...] = ()

  @property
  def random(self) -> bool:
    """Whether it draws from `rng`; if not, `rng` may be None."""
    return self.random_crop or self.clips.random or self.random_points

  @property
  def num_views(self) -> int:
    """Views of each record."""
    return self.clips.count * self.spatial_crops

  @property
  def one_view(self) -> 'Preprocess':
    """The same with the middle one of the views alone."""
    clips = dataclasses.replace(self.clips, count=1)
    return dataclasses.replace(self, clips=clips, spatial_crops=1)

  @property
  def resizes(self) -> bool:
    """Whether all pictures come out in one size, whatever is stored."""
    return bool(self.image_size)

  @property
  def takes_clips(self) -> bool:
    """Whether all videos come out with one number of frames, whatever is stored."""
    return bool(self.clips.num_frames)

  @property
  def takes_points(self) -> bool:
    """Whether all clouds come out with one number of points, whatever is stored."""
    return bool(self.num_points)

  def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
    if self.num_points:
      record = self._take_points(record, rng)
    stored = kinds.num_frames(record)
    if self.takes_clips and stored is None:
      raise FieldError('num_frames', f'{self.clips.num_frames}, but the records have no videos')
    if self.num_views > 1:
      return self._views(record, stored)
    if stored is not None:
      record = kinds.take_frames(record, self.clips.indices(stored, rng)[0])
    if not self.image_size and not self.channels:
      return record
    kinds.check(record)
    size = self._picture_size(record)
    geometry = self._draw(record, *size, rng) if self.random_crop else self.geometry(*size)
    return kinds.fit(record, geometry, self.channels)

  def _picture_size(self, record: Record) -> kinds.Size:
    size = kinds.picture_size(record)
    if size is None:
      field = 'image_size' if self.image_size else 'channels'
      raise FieldError(field, f'{getattr(self, field)}, but the records have no pictures')
    return size

  def _take_points(self, record: Record, rng: np.random.Generator | None) -> Record:
    """Returns a record with some of its points, or with some of them several times."""
    stored = kinds.num_points(record)
    if stored is None:
      raise FieldError('num_points', f'{self.num_points}, but the records have no points')
    kinds.check(record)
    order = (rng if self.random_points else np.random.default_rng(0)).permutation(stored)
    return kinds.take_points(record, np.resize(order, self.num_points))

  def _views(self, record: Record, stored: int | None) -> Record:
    """Returns all views of a record: of each clip, each of the crops."""
    pictures = {name: value for name, kind, value in kinds.entries(record) if kind.has_pixels}
    self.check_averaged([name for name, *_ in kinds.entries(record) if name not in pictures])
    clips = self.clips.indices(stored or 1)
    # Taken together, so that a file is decoded once.
    pictures, length = kinds.take_frames(pictures, clips.ravel()), clips.shape[1]
    geometries, views = self.geometries(*self._picture_size(pictures)), []
    for start in range(0, clips.size, length):
      clip = kinds.take_frames(pictures, np.arange(start, start + length))
      kinds.check(clip)
      views += [kinds.fit(clip, geometry, self.channels) for geometry in geometries]
    rest = {name: value for name, value in record.items() if name not in pictures}
    return rest | {kinds.views_of(n): np.stack([view[n] for view in views]) for n in pictures}

  def check_averaged(self, targets: Sequence[str]) -> None:
    """Raises FieldError for targets that several views, whose outputs are averaged, can't share."""
    if fixed := [name for name in targets if kinds.kind_of(name).is_spatial]:
      field = 'spatial_crops' if self.spatial_crops > 1 else 'temporal_views'
      raise FieldError(field, f'outputs of several views are averaged, and a {fixed[0]} has one')

  def geometry(self, height: int, width: int) -> Geometry:
    """Returns what evaluation takes of a picture of this size, of several crops the middle one."""
    return self.geometries(height, width)[self.spatial_crops // 2]

  def geometries(self, height: int, width: int) -> list[Geometry]:
    """Returns the crops that evaluation takes of a picture of this size.

    Three crops lie at the start, in the middle and at the end of the side that has more to spare.

    Raises:
      FieldError: of crop 'none', whose pictures have to be of `image_size`.
    """
    if self.crop not in (*CENTRAL_CROPS, *EVALUATION_CROPS):
      size = self.image_size or (height, width)
      return [Geometry(WHOLE, size, None, self.reduced, self.fast, self.interpolation)]
    new_height, new_width = self.image_size
    resized = self._resized(height, width)
    spare = resized[0] - new_height, resized[1] - new_width
    top, left = map(self._half, spare)
    corners = [(top, left)]
    if self.spatial_crops > 1:
      wide = spare[1] >= spare[0]
      corners = [(top, x) if wide else (x, left) for x in (0, (top, left)[wide], spare[wide])]
    parts = [(left, top, left + new_width, top + new_height) for top, left in corners]
    rest = resized, self.reduced, self.fast, self.interpolation, self.fill
    return [Geometry(_fractions(part, *resized), self.image_size, *rest) for part in parts]

  def _resized(self, height: int, width: int) -> kinds.Size:
    """Returns the size that evaluation brings a picture of this size to, before it crops."""
    if self.crop == 'none' and (height, width) != self.image_size:
      sizes = '{}x{}, not {}x{}'.format(height, width, *self.image_size)
      raise FieldError('crop', f"'none' takes images of the model's size; this one is {sizes}")
    if self.crop in ('cut', 'none'):
      return height, width
    rows, columns = map(self._with_margin, self.image_size)
    if self.crop == 'squash':
      return rows, columns
    if self.crop == 'border' or (self.rounding == 'nearest' and rows != columns):
      # In the order in which timm computes it in floating point, for the same sides.
      ratio = (max if self.crop == 'border' else min)(height / rows, width / columns)
      return max(round(height / ratio), 1), max(round(width / ratio), 1)
    new_height, new_width = self.image_size
    if new_height * width >= new_width * height:
      return rows, _floor(rows * width / height)
    return _floor(columns * height / width), columns

  def _with_margin(self, side: int) -> int:
    if self.rounding == 'nearest':  # of corners; timm takes the whole number below as it computes
      return math.floor(side / self.crop_fraction)
    return _floor(side / self.crop_fraction)

  def _half(self, spare: int) -> int:
    """Returns what lies in front of the middle; below 0 where the picture is the smaller."""
    if self.rounding == 'down':
      return spare // 2
    return round(spare / 2) if spare >= 0 else -(-spare // 2)

  def window(self, height: int, width: int) -> Window:
    """Returns the part of a picture of this size that evaluation takes."""
    return self.geometry(height, width).window

  def _draw(self, record: Record, height: int, width: int, rng: np.random.Generator) -> Geometry:
    """Draws a part that shows enough of objects; it is the whole after ten that don't."""
    for _ in range(_ATTEMPTS):
      if self.crop == 'scale':
        part = scale_box(height, width, rng, self.image_size, self.eval_size)
      else:
        part = inception_box(height, width, rng, self.area)
      window = _fractions(part, height, width)
      if kinds.shows_enough(record, window):
        return Geometry(window, self.image_size, reduced=self.reduced, fast=self.fast)
    return Geometry(WHOLE, self.image_size, reduced=self.reduced, fast=self.fast)


def _fractions(part: tuple[int, int, int, int], height: int, width: int) -> Window:
  left, top, right, bottom = part
  return left / width, top / height, right / width, bottom / height


def _floor(pixels: float) -> int:
  return math.floor(pixels + 1e-6)  # 224 / 0.875 is 256


def make_preprocess(
  image_size: Sequence[int],
  channels: int,
  crop: str,
  train: bool,
  crop_fraction: float | None = None,
  area: tuple[float, float] | None = None,
  *,
  num_frames: int = 0,
  frame_stride: int = 1,
  temporal_views: int = 1,
  spatial_crops: int = 1,
  train_size: Sequence[int] = (),
  num_points: int = 0,
  decoding: str = 'exact',
  resizing: str = 'exact',
  interpolation: str = 'bicubic',
  rounding: str = 'down',
  fill: tuple[int, ...] = (),
) -> Preprocess:
  """Returns `preprocess(record, rng) -> record`, which crops and resizes all of a record alike.

  Images are resized by Pillow, with antialiasing, masks to the nearest pixel.

  Args:
    image_size: (height, width), (side,) of a square, or () to leave images as they are stored.
    channels: 1 (ITU-R BT.601 luma), 3, or 0 to leave them as they are stored.
    crop: 'resize' takes the whole image, whatever its shape. 'central' takes the middle of the
      image resized to cover `image_size` / `crop_fraction`. 'inception' takes, to train,
      a random part (arXiv:1409.4842; of `area` and an aspect from 3/4 to 4/3, as torchvision's
      RandomResizedCrop) and, to evaluate, the same as 'central'. 'scale' takes, to train, a random
      window of `train_size` of the image resized to `image_size` times a factor from 0.5 to 2, as
      mmsegmentation does for masks, filled where the image ends before the window, and, to
      evaluate, the whole image. Where there is a box, the random part has at least half of it.
      Those of `models.Preprocessing` besides are for evaluation alone.
    train: whether it is for training.
    crop_fraction: of a side of the resized image, what is kept, over 0 and up to 1, to evaluate up
      to 2, timm's crop_pct; None is 224 of 256 pixels.
    area: (smallest, largest) fraction of the image that is a random part of 'inception'; None is
      torchvision's, from 0.08 to 1.
    num_frames: of the clip that is taken of a video, to train at a random place, to evaluate in the
      middle; a video that is too short starts again at its end. 0 leaves videos as stored.
    frame_stride: frames of the video from each frame of the clip to the next.
    temporal_views: clips of each video to evaluate, from its start to its end.
    spatial_crops: 1, or 3 to evaluate: along the side that has more to spare. Outputs are averaged
      over the views, as arXiv 2103.15691 does.
    train_size: as `image_size`, of what is trained on; () is `image_size`.
    num_points: taken of each cloud, at random to train, always the same to evaluate; where a cloud
      has fewer, they are taken several times. 0 leaves clouds as stored.
    decoding: 'exact', or 'reduced' to train on JPEGs that are decoded at 1/2, 1/4 or 1/8 of their
      size wherever what is resized then still has at least the size that it gets. That is faster,
      and pixels differ a little; evaluation is exact either way.
    resizing: 'exact', or 'fast' to train on images that cykooz-resizer resizes, which has Pillow's
      filters and other rounding; evaluation is exact either way.
    interpolation: of images, as in `models.Preprocessing`.
    rounding: likewise.
    fill: uint8 values of the channels around an image, for 'border'; () is zeros.

  Raises:
    FieldError: a wrong value, or a crop without an image size.
  """
  image_size = _as_size('image_size', image_size, 'as stored')
  train_size = _as_size('train_size', train_size, 'image_size')
  if channels not in (0, 1, 3):
    raise FieldError('channels', f'{channels} is not 1, 3 or 0, as stored')
  check_choice('crop', crop, CROPS if train else (*CROPS, *EVALUATION_CROPS))
  check_choice('interpolation', interpolation, INTERPOLATIONS)
  check_choice('rounding', rounding, ROUNDINGS)
  if crop != 'resize' and not image_size:
    raise FieldError('image_size', f'crop {crop!r} needs a (height, width)')
  if crop not in (*CENTRAL_CROPS, 'squash', 'border') and crop_fraction is not None:
    raise FieldError('crop_fraction', f'crop {crop!r} has none')
  crop_fraction = _CROP_FRACTION if crop_fraction is None else crop_fraction
  most = 1 if train else 2
  if not 0 < crop_fraction <= most:
    raise FieldError('crop_fraction', f'{crop_fraction} is not over 0 and up to {most}')
  if area is not None and crop != 'inception':
    raise FieldError('area', f'{area}, but crop {crop!r} has none')
  area = _AREA if area is None else tuple(area)
  if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
    raise FieldError('area', f'{area} is not (low, high), 0 < low <= high <= 1')
  for field, value in (('frame_stride', frame_stride), ('temporal_views', temporal_views)):
    if value < 1:
      raise FieldError(field, f'{value} is not a number from 1 on')
    if value > 1 and not num_frames:
      raise FieldError(field, f'{value}, but num_frames is 0, which leaves videos as stored')
  for field, value in (('num_frames', num_frames), ('num_points', num_points)):
    if value < 0:
      raise FieldError(field, f'{value} is negative')
  if spatial_crops not in (1, 3):
    raise FieldError('spatial_crops', f'{spatial_crops} is not 1 or 3')
  if spatial_crops > 1 and crop not in (*CENTRAL_CROPS, 'squash'):
    raise FieldError('spatial_crops', f'crop {crop!r} has one')
  if train_size and not image_size:
    raise FieldError('train_size', f'{train_size}, but image_size is (), as stored')
  check_choice('decoding', decoding, DECODING)
  if decoding == 'reduced' and not image_size:
    raise FieldError('decoding', "'reduced', but image_size is (), as stored: nothing is resized")
  check_choice('resizing', resizing, RESIZING)
  if resizing == 'fast':
    fast_resizing.check(interpolation)
    if not image_size:
      raise FieldError('resizing', "'fast', but image_size is (), as stored: nothing is resized")
  random_clip, views = train and num_frames > 0, 1 if train else temporal_views
  return Preprocess(
    image_size=train_size if train and train_size else image_size,
    channels=channels,
    crop=crop,
    crop_fraction=crop_fraction,
    area=area,
    eval_size=image_size,
    random_crop=train and crop in ('inception', 'scale'),
    clips=Clips(num_frames, frame_stride, random_clip, views),
    spatial_crops=1 if train else spatial_crops,
    num_points=num_points,
    random_points=train and num_points > 0,
    reduced=train and decoding == 'reduced',
    fast=train and resizing == 'fast',
    interpolation=interpolation,
    rounding=rounding,
    fill=fill,
  )


def _as_size(field: str, given: Sequence[int], empty: str) -> tuple[int, int] | tuple[()]:
  """Returns (height, width) of a size that a config has, or ()."""
  size = tuple(given) * 2 if len(given) == 1 else tuple(given)
  whole = all(isinstance(side, int) for side in size)
  if size and (len(size) != 2 or not whole or min(size) < 1):
    raise FieldError(field, f'{size} is not (height, width) in pixels, nor () for {empty}')
  return size


def inception_box(
  height: int, width: int, rng: np.random.Generator, area: tuple[float, float] = _AREA
) -> tuple[int, int, int, int]:
  """Draws a part of an image: (left, top, right, bottom) in pixels.

  After ten parts that don't fit, it is the largest in the middle with an allowed aspect.
  """
  for _ in range(_ATTEMPTS):
    pixels = height * width * rng.uniform(*area)
    aspect = math.exp(rng.uniform(*_LOG_ASPECT))
    w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
    if 0 < w <= width and 0 < h <= height:
      left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
      return int(left), int(top), int(left) + w, int(top) + h
  w = min(width, round(height * _ASPECT[1]))
  h = min(height, round(width / _ASPECT[0]))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def scale_box(
  height: int,
  width: int,
  rng: np.random.Generator,
  window: tuple[int, int],
  eval_size: tuple[int, int],
) -> tuple[int, int, int, int]:
  """Draws a part of an image: (left, top, right, bottom) in its pixels, which may end beyond it.

  It is what a window, (height, width) in pixels, shows of the image resized to `eval_size` times
  a factor that is uniform from 0.5 to 2. Where the window is the larger it begins with the image.
  """
  factor = rng.uniform(*_SCALES)
  part = [
    max(round(side * stored / (factor * whole)), 1)
    for side, stored, whole in zip(window, (height, width), eval_size, strict=True)
  ]
  top, left = (
    int(rng.integers(max(stored - side, 0) + 1))
    for side, stored in zip(part, (height, width), strict=True)
  )
  return left, top, left + part[1], top + part[0]
