"""`ModelConfig`: the model that a set of weights belongs to, and the inputs that it takes."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np

from vit_jax.errors import FieldError, check_choice, field_prefix
from vit_jax.models import fields as fields_lib
from vit_jax.models import registry
from vit_jax.models.backbone import AXES, DESCRIPTION, Backbone, Shape
from vit_jax.models.heads.head import Head
from vit_jax.ranges import Count, Positive, Range, Real

# What a model takes, in words, by its kind of data.
_TAKES = {'image': 'single images', 'video': 'videos', 'points': 'points'}

CROPS = ('resize', 'central', 'squash', 'border', 'cut', 'none')
MARGIN_CROPS = ('central', 'squash', 'border')  # those with a crop_fraction
INTERPOLATIONS = ('bicubic', 'bilinear', 'nearest', 'lanczos', 'box', 'hamming')
ROUNDINGS = ('down', 'nearest')
_SMALLEST = float(np.finfo(np.float32).tiny)  # of float32, in which pixels are computed with


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """What is done to images before they go into a model.

  Attributes:
    mean: of pixels scaled to [0, 1], per channel or one for all.
    std: likewise, above 0.
    crop: 'resize' brings the whole image to size, whatever its shape. Three resize it first to
      `image_size` / `crop_fraction` and keep the middle: 'central' so that it covers that size and
      keeps its shape, 'squash' to just that size, and 'border' so that it lies within and keeps its
      shape, on a ground of `mean`. Two don't resize: 'cut' keeps the middle, on black where the
      image is smaller, and 'none' takes images of the model's size alone.
    crop_fraction: of the sides of the resized image, what is kept, over 0 and up to 2; None is the
      usual margin, 0.875. Above 1 the image lies on black, or with 'border' on its ground.
    interpolation: Pillow's, with antialiasing.
    rounding: of the middle's corner, where it lies between two pixels: 'down', as Hugging Face's
      processors do, or 'nearest', halves to even, as torchvision and timm; these also round the
      sides of an image that is resized to cover one that isn't square.
    frame_stride: of a video, its frames from each frame of a clip to the next; None is 1.
    temporal_views: clips of each video, from its start to its end, over which outputs are averaged;
      None is one from the middle.
    spatial_crops: 3 for crops at both ends and in the middle, over which outputs are averaged; None
      is the middle one.

  Raises:
    FieldError: on construction, naming the field that has another value.
  """

  mean: tuple[Real, ...] = (0.5,)
  std: tuple[Positive, ...] = (0.5,)
  crop: str = 'resize'
  crop_fraction: Annotated[float, Range(0, 2, above=True)] | None = None
  interpolation: str = 'bicubic'
  rounding: str = 'down'
  frame_stride: Count | None = None
  temporal_views: Count | None = None
  spatial_crops: int | None = None

  def __post_init__(self):
    fields_lib.check_ranges(self)
    for name in ('mean', 'std'):
      if not getattr(self, name):
        raise FieldError(name, '() is not a number per channel, or one for all')
      object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
    if min(self.std) < _SMALLEST:
      raise FieldError('std', f'{self.std} has a value that is not positive')
    for name, choices in (
      ('crop', CROPS),
      ('interpolation', INTERPOLATIONS),
      ('rounding', ROUNDINGS),
    ):
      check_choice(name, getattr(self, name), choices)
    if self.crop_fraction is not None and self.crop not in MARGIN_CROPS:
      raise FieldError('crop_fraction', f'crop {self.crop!r} has none')
    if self.spatial_crops not in (None, 1, 3):
      raise FieldError('spatial_crops', f'{self.spatial_crops!r} is not 1 or 3')
    if self.spatial_crops == 3 and self.crop not in ('central', 'squash'):
      raise FieldError('spatial_crops', f'crop {self.crop!r} has one')

  def to_dict(self) -> dict[str, Any]:
    """Returns mean, std and crop by name, and those of the others that aren't their default."""
    fields = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
    always = ('mean', 'std', 'crop')
    return {f.name: v for f, v in fields if f.name in always or v != f.default}

  @classmethod
  def from_dict(cls, entries: Mapping[str, Any]) -> Self:
    """Returns what `to_dict` was called on.

    Raises:
      FieldError: an entry is unknown or has a wrong value.
    """
    if not isinstance(entries, Mapping):
      raise FieldError('preprocess', f'{entries!r} is not a dict')
    with field_prefix('preprocess.'):
      return cls(**fields_lib.check(cls, {n: v for n, v in entries.items() if v is not None}))


def check_image_size(value: Any) -> tuple[int, int]:
  """Returns (height, width) in pixels; FieldError for what is something else."""
  sides = value if isinstance(value, Sequence) else ()
  if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
    raise FieldError('image_size', f'{value!r} is not (height, width)')
  return tuple(sides)


def check_class_names(value: Any) -> tuple[str, ...]:
  """Returns the names of classes; FieldError for what is something else."""
  is_list = isinstance(value, Sequence) and not isinstance(value, str)
  if not is_list or not all(isinstance(name, str) for name in value):
    raise FieldError('class_names', f'{value!r} is not a list of texts')
  return tuple(value)


@dataclasses.dataclass(frozen=True)
class ModelConfig(Mapping[str, Any]):
  """The model that a set of variables belongs to, and the images, videos or points that it takes.

  It is also a mapping, of what `to_dict` returns: `config['num_heads']`.

  Attributes:
    model: the Flax module: a `Backbone`, or a task's `Head` on one.
    channels: of its images; 3 of points, their coordinates.
    image_size: (height, width) of its images in pixels; None where nothing depends on it, and of a
      model of points.
    num_frames: of its videos; None where nothing depends on it, and of a model of something else.
    num_points: of its clouds, likewise.
    class_names: a name for each class; None where they aren't known.
    preprocess: what is done to images; None where it isn't known.
    task: `name` and `options` of what it was trained for, where the head doesn't tell that; else
      None. See `vit_jax.tasks`.
    origin: what the library that weights are from calls such a model, where it has several names
      for one function, as transformers' 'vit_msn'; writing weights keeps it. Else None.

  Raises:
    FieldError: on construction, for fields that don't fit each other.
  """

  model: Backbone | Head
  channels: Count = 3
  image_size: tuple[int, int] | None = None
  num_frames: Count | None = None
  num_points: Count | None = None
  class_names: tuple[str, ...] | None = None
  preprocess: Preprocessing | None = None
  task: Mapping[str, Any] | None = None
  origin: str | None = None

  def __post_init__(self):
    fields_lib.check_ranges(self)
    if self.task is not None and not (
      isinstance(self.task, Mapping)
      and {*self.task} == {'name', 'options'}
      and isinstance(self.task['options'], Mapping)
    ):
      raise FieldError('task', f'{self.task!r} is not a name and options')
    if not isinstance(self.origin, str | None):
      raise FieldError('origin', f'{self.origin!r} is not a name')
    if self.image_size is not None:
      object.__setattr__(self, 'image_size', check_image_size(self.image_size))
    for name, axis in (
      ('image_size', 'height'),
      ('num_frames', 'frames'),
      ('num_points', 'points'),
    ):
      if (value := getattr(self, name)) is None:
        continue
      if axis not in AXES[self.model.INPUT]:
        raise FieldError(name, f'{value!r}, but the model takes {_TAKES[self.model.INPUT]}')
    if self.class_names is not None:
      names = check_class_names(self.class_names)
      if len(names) != self.num_classes:
        raise FieldError('class_names', f'{len(names)} names for {self.num_classes} classes')
      object.__setattr__(self, 'class_names', names)
    if self.preprocess is not None:
      for name in ('frame_stride', 'temporal_views'):
        if getattr(self.preprocess, name) and 'frames' not in AXES[self.model.INPUT]:
          takes = _TAKES[self.model.INPUT]
          raise FieldError(f'preprocess.{name}', f'set, but the model takes {takes}')
      for name in ('mean', 'std'):
        values = getattr(self.preprocess, name)
        if len(values) not in (1, self.channels):
          raise FieldError(
            f'preprocess.{name}',
            f'{len(values)} values, but images have {self.channels} channels; '
            'give one value for each, or one for all',
          )

  @property
  def backbone(self) -> Backbone:
    """The model without a task's head."""
    return self.model.backbone if isinstance(self.model, Head) else self.model

  @property
  def seen_size(self) -> tuple[int, int] | None:
    """(height, width) that the backbone sees at once of the images; None as `image_size`."""
    if self.image_size is None or not isinstance(self.model, Head):
      return self.image_size
    return self.model.seen_size(self.image_size)

  def backbone_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns those of the model's variables that are the backbone's."""
    if not isinstance(self.model, Head):
      return variables
    return {name: tree['backbone'] for name, tree in variables.items() if 'backbone' in tree}

  @property
  def name(self) -> str:
    """The backbone's name in the registry."""
    return registry.name_of(registry.BACKBONES, type(self.backbone))

  @property
  def num_classes(self) -> int:
    """Number of classes; 0 without a head."""
    return max(self.model.num_classes, 0)

  @property
  def input_size(self) -> Shape | None:
    """The sizes of `AXES` of an input; None where one isn't known."""
    height, width = self.image_size or (None, None)
    sizes = {'height': height, 'width': width}
    sizes |= {'frames': self.num_frames, 'points': self.num_points}
    size = tuple(sizes[axis] for axis in AXES[self.model.INPUT])
    return None if None in size else size

  def replace(self, **changes: Any) -> Self:
    """Returns a copy with other values in some fields; those of the backbone count as well."""
    own = {field.name for field in dataclasses.fields(self)}
    inner = {name: value for name, value in changes.items() if name not in own}
    model = self.model
    if inner and isinstance(model, Head):
      model = model.clone(backbone=model.backbone.clone(**inner))
    elif inner:
      model = model.clone(**inner)
    return dataclasses.replace(
      self, **{'model': model} | {n: v for n, v in changes.items() if n in own}
    )

  def variable_shapes(self) -> dict[str, Shape]:
    """Returns path -> shape of the model's variables, by the names of `variables.flatten`."""
    return self.model.variable_shapes(self.input_size, self.channels)

  def to_dict(self) -> dict[str, Any]:
    """Returns plain values that JSON can hold, by name, in one level but for dicts of fields."""
    entries = {'name': self.name, **self.backbone.config()} | {
      'num_classes': self.num_classes,
      'channels': self.channels,
      'image_size': self.image_size,
      **{n: getattr(self, n) for n in ('num_frames', 'num_points') if getattr(self, n) is not None},
      'class_names': None if self.class_names is None else list(self.class_names),
      'preprocess': None if self.preprocess is None else self.preprocess.to_dict(),
    }
    if isinstance(self.model, Head):
      name = registry.name_of(registry.HEADS, type(self.model))
      options = {n: getattr(self.model, n) for n in fields_lib.names(type(self.model))}
      entries['head'] = {'name': name, **options}
    if self.task is not None:
      entries['task'] = fields_lib.plain(self.task)
    if self.origin is not None:
      entries['origin'] = self.origin
    return entries

  @classmethod
  def from_dict(cls, entries: Mapping[str, Any]) -> Self:
    """Returns what `to_dict` was called on.

    Args:
      entries: at least `name` and the fields of its backbone that have no default.

    Raises:
      FieldError: an entry is unknown, is missing or has a wrong value.
    """
    if isinstance(entries, cls):
      return entries
    rest = {name: entries[name] for name in DESCRIPTION[1:] if entries.get(name) is not None}
    if 'preprocess' in rest and not isinstance(rest['preprocess'], Preprocessing):
      rest['preprocess'] = Preprocessing.from_dict(rest['preprocess'])
    num_classes = entries.get('num_classes')
    if num_classes is not None and type(num_classes) is not int:
      raise FieldError('num_classes', f'{num_classes!r} is not a whole number')
    fields = {name: value for name, value in entries.items() if name not in DESCRIPTION}
    model = registry.build(fields, num_classes=num_classes or 0)
    return cls(model=model, **rest)

  def __getitem__(self, name: str) -> Any:
    return self.to_dict()[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self.to_dict())

  def __len__(self) -> int:
    return len(self.to_dict())
