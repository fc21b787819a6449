"""Image processors of Hugging Face's transformers: preprocessor_config.json.

Pixels are those of the processors that resize with Pillow, `backend='pil'`. Those that resize with
torchvision round elsewhere; DINOv3's, which there is with torchvision alone, resizes floats.
"""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax.errors import UsageError, UsageWarning
from vit_jax.models import Preprocessing
from vit_jax.weights import hub
from vit_jax.weights.table import errors_of_file

Size = tuple[int, int]  # (height, width)

_DEFAULTS = {
  'do_resize': True,
  'size': {'height': 224, 'width': 224},
  'default_to_square': True,
  'resample': 2,
  'do_center_crop': False,
  'do_rescale': True,
  'rescale_factor': 1 / 255,
  'offset': False,
  'do_normalize': True,
  'image_mean': 0.5,
  'image_std': 0.5,
  'do_flip_channel_order': False,
  'do_pad': False,
  'use_square_size': False,
}
_IMAGENET = {'image_mean': [0.485, 0.456, 0.406], 'image_std': [0.229, 0.224, 0.225]}
_CROPPED = {
  'size': {'shortest_edge': 224},
  'default_to_square': False,
  'do_center_crop': True,
  'crop_size': 224,
}
_CLIP = _CROPPED | {
  'resample': 3,
  'image_mean': [0.48145466, 0.4578275, 0.40821073],
  'image_std': [0.26862954, 0.26130258, 0.27577711],
}
# The processors that are read, without 'ImageProcessor', and what their defaults are of their own.
_PROCESSORS = {
  'ViT': {},
  'Beit': {'resample': 3, 'crop_size': 224},
  'Bit': _CLIP,
  'CLIP': _CLIP,
  'ConvNext': {
    'size': {'shortest_edge': 384},
    'default_to_square': False,
    'resample': 3,
    'crop_pct': 224 / 256,
  },
  'DINOv3ViT': _IMAGENET,
  'DeiT': {'size': 256, 'resample': 3, 'do_center_crop': True, 'crop_size': 224},
  'MobileViT': _CROPPED | {'resample': 3, 'crop_size': 256, 'do_flip_channel_order': True},
  'Segformer': _IMAGENET | {'size': 512},
  'Siglip': {'default_to_square': False, 'resample': 3},
  'Siglip2': {},
  'VideoMAE': _CROPPED,
  'Vivit': _CROPPED | {'size': 256, 'rescale_factor': 1 / 127.5, 'offset': True},
}
# Those whose images keep their shape, which only the models made for them take. Here they become
# squares of the model's size.
_OWN_SHAPES = ('Siglip2',)
# Options that a processor has no use for, whatever its file says.
_IGNORED = {'MobileViT': {'do_normalize': False}, 'Segformer': {'do_center_crop': False}}
# The processor of a type of model whose file names none, where it isn't ViT's.
_PROCESSOR_OF = {
  'beit': 'Beit',
  'bit': 'Bit',
  'clip': 'CLIP',
  'clip_vision_model': 'CLIP',
  'data2vec-vision': 'Beit',
  'deit': 'DeiT',
  'dinov2': 'Bit',
  'dinov2_with_registers': 'Bit',
  'dinov3_vit': 'DINOv3ViT',
  'hiera': 'Bit',
  'mobilevit': 'MobileViT',
  'mobilevitv2': 'MobileViT',
  'resnet': 'ConvNext',
  'segformer': 'Segformer',
  'siglip': 'Siglip',
  'siglip2': 'Siglip2',
  'siglip2_vision_model': 'Siglip2',
  'siglip_vision_model': 'Siglip',
  'timesformer': 'VideoMAE',
  'videomae': 'VideoMAE',
  'vivit': 'Vivit',
}
_RESAMPLE = ('nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming')  # Pillow's numbers
_MOST_CROPPED = 384  # pixels a side, from which on ConvNext's processor stretches whole images
_CROP_FRACTION = 224 / 256  # of a central crop that isn't said to have another


def path_of(config_path: object) -> Path:
  """Returns the path of the file that is beside a config.json."""
  return Path(config_path).with_name(hub.PREPROCESSOR)


def read(config_path: object, model_type: str | None) -> dict[str, Any] | None:
  """Returns what preprocessor_config.json says, with the defaults of what it leaves out.

  Args:
    config_path: of the config.json that it is beside.
    model_type: in that; tells the processor where the file doesn't.

  Returns:
    its options by name; None where there is no file.

  Raises:
    UsageError: it can't be read, or is of a processor that isn't known.
  """
  path = path_of(config_path)
  if not path.is_file():
    return None
  theirs = hub.read_json(path, "an image processor's config")
  named = theirs.get('image_processor_type') or theirs.get('feature_extractor_type')
  usual = _PROCESSOR_OF.get(model_type, 'ViT')
  kind = usual if named is None else _kind(str(named))
  allowed = [name for name in _PROCESSORS if name == usual or name not in _OWN_SHAPES]
  if kind not in allowed:
    names = ', '.join(allowed)
    raise UsageError(f'{path}: image_processor_type: {named!r} is not read; those of {names} are')
  given = {name: value for name, value in theirs.items() if value is not None}
  options = _DEFAULTS | _PROCESSORS[kind] | given | _IGNORED.get(kind, {})
  return options | {'image_processor_type': kind}


def _kind(name: str) -> str:
  """Returns the part of the name of a processor, of any version, that tells which it is."""
  for suffix in ('Fast', 'Pil', 'ImageProcessor', 'FeatureExtractor'):
    name = name.removesuffix(suffix)
  return name


def preprocessing(theirs: Mapping[str, Any], path: Path) -> tuple[Preprocessing, Size | None]:
  """Returns what a processor does, in this project's terms, and the size of the images it makes.

  Args:
    theirs: its options, as `read` returns them.
    path: of its file, for messages.

  Returns:
    (preprocessing, (height, width)); no size where it leaves images as they are.

  Raises:
    UsageError: it does something else than what is done here, or makes no sense. A `UsageWarning`
      tells of a processor whose images aren't squares.
  """
  if (kind := theirs['image_processor_type']) in _OWN_SHAPES:
    warnings.warn(
      f'{path}: {kind}ImageProcessor keeps the shape of images; here they become squares, and '
      'their pixels differ',
      UsageWarning,
      stacklevel=2,
    )
  for name in ('do_pad', 'use_square_size'):
    if theirs[name]:
      raise UsageError(f'{path}: {name} is not read')
  crop, size = _crop(theirs, path)
  resample = theirs['resample']
  if type(resample) is not int or not 0 <= resample < len(_RESAMPLE):
    raise _unreadable('resample', theirs, path)
  # They normalise pixels times the factor, here it is pixels / 255.
  scale = 255.0
  if theirs['do_rescale']:
    scale *= _number(theirs, 'rescale_factor', path)
  if not scale:
    raise _unreadable('rescale_factor', theirs, path)
  mean, std = ([0.0], [1.0])
  if theirs['do_normalize']:
    mean, std = _numbers(theirs, 'image_mean', path), _numbers(theirs, 'image_std', path)
  # Processors of videos may subtract 1 before they normalise.
  offset = 1.0 if theirs['offset'] and theirs['do_rescale'] else 0.0
  with errors_of_file(path):
    made = Preprocessing(
      mean=tuple((value + offset) / scale for value in mean),
      std=tuple(value / scale for value in std),
      interpolation=_RESAMPLE[resample] if theirs['do_resize'] else 'bicubic',
      **crop,
    )
  return made, size


def _crop(theirs: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], Size | None]:
  """Returns the fields of `Preprocessing` for sizes and crops, and the (height, width) made."""
  size = _size(theirs, 'size', path) if theirs['do_resize'] else None
  cropped = _size(theirs, 'crop_size', path) if theirs['do_center_crop'] else None
  if cropped and 'height' not in cropped:
    raise UsageError(f'{path}: crop_size: {theirs["crop_size"]!r} is not height and width')
  made = cropped and (cropped['height'], cropped['width'])
  if not size:
    return {'crop': 'cut' if made else 'none'}, made
  side = size.get('shortest_edge')
  if theirs['image_processor_type'] == 'ConvNext':
    if not side or made:
      name = 'do_center_crop' if side else 'size'
      raise UsageError(f'{path}: {name}: {theirs[name]!r} is not read for ConvNextImageProcessor')
    made = side, side
    if side >= _MOST_CROPPED:
      return {'crop': 'resize'}, made
    fraction = _number(theirs, 'crop_pct', path)
    if not 0 < fraction <= 2:
      raise UsageError(f'{path}: crop_pct: {fraction!r} is not over 0 and up to 2')
    sides = (int(side / fraction),) * 2
    return _margin('central', made, sides, fraction, 'crop_pct', path), made
  if not side:
    sides = size['height'], size['width']
    if made in (None, sides):
      return {'crop': 'resize'}, sides
    return _margin('squash', made, sides, made[0] / sides[0], 'crop_size', path), made
  if not made:
    raise UsageError(f'{path}: size: shortest_edge without do_center_crop, which is not read')
  if made[0] != made[1]:
    raise UsageError(f'{path}: crop_size: {made}, no square, beside shortest_edge is not read')
  return _margin('central', made, (side, side), made[0] / side, 'crop_size', path), made


def _margin(
  crop: str, made: Size, sides: Size, fraction: float, name: str, path: Path
) -> dict[str, Any]:
  """Returns the fields of a crop, to `made`, of an image that is resized to `sides`.

  Args:
    crop: of `Preprocessing`.
    made: (height, width) after the crop.
    sides: before it.
    fraction: of `sides`, what is kept; if it gives other sides when rounded, `made / sides` is.
    name: of the option that decides it, for messages.
    path: of the file, likewise.
  """
  for kept in (fraction, min(kept / side for kept, side in zip(made, sides, strict=True))):
    if tuple(whole_side(side, kept) for side in made) == sides:
      return {'crop': crop, 'crop_fraction': kept}
  raise UsageError(
    f'{path}: {name}: {made} is not of the shape of size, {sides}, which is not read'
  )


def whole_side(side: int, fraction: float) -> int:
  """Returns the side to which an image is resized before `side` of it is kept, as `data` does."""
  return math.floor(side / fraction + 1e-6)


def _size(theirs: Mapping[str, Any], name: str, path: Path) -> dict[str, int]:
  """Returns a size with `height` and `width`, or `shortest_edge`."""
  value = theirs.get(name)
  if isinstance(value, int):
    is_square = name == 'crop_size' or theirs['default_to_square']
    value = {'height': value, 'width': value} if is_square else {'shortest_edge': value}
  elif isinstance(value, list) and len(value) == 2:
    value = {'height': value[0], 'width': value[1]}
  if not isinstance(value, dict):
    raise _unreadable(name, theirs, path)
  value = {side: pixels for side, pixels in value.items() if pixels is not None}
  if value.keys() not in ({'height', 'width'}, {'shortest_edge'}):
    raise UsageError(f'{path}: {name}: {", ".join(map(str, value)) or "nothing"} is not read')
  if not all(type(pixels) is int and 1 <= pixels < 2**31 for pixels in value.values()):
    raise _unreadable(name, theirs, path)
  return value


def _numbers(theirs: Mapping[str, Any], name: str, path: Path) -> list[float]:
  value = theirs[name]
  if not isinstance(value, list):
    return [_number(theirs, name, path)]
  if not value or not all(map(_is_number, value)):
    raise _unreadable(name, theirs, path)
  return value


def _number(theirs: Mapping[str, Any], name: str, path: Path) -> float:
  if not _is_number(theirs[name]):
    raise _unreadable(name, theirs, path)
  return theirs[name]


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def _unreadable(name: str, theirs: Mapping[str, Any], path: Path) -> UsageError:
  what = "an image processor's config"
  return UsageError(f'{path}: cannot be read as {what} ({name} is {theirs.get(name)!r})')


def written(preprocess: Preprocessing, image_size: Size, channels: int) -> dict[str, Any] | None:
  """Returns preprocessor_config.json.

  transformers' processors then give the same pixels, but that they round the corner of a crop
  down: of a `rounding` 'nearest', it may be the pixel beside.

  Args:
    preprocess: of the model.
    image_size: (height, width) of its images.
    channels: of its images.

  Returns:
    the options by name; None for a crop that they have no words for: a border, or one that keeps
    the shape of the image and isn't square.
  """
  height, width = image_size
  size = {'height': height, 'width': width}
  fraction = preprocess.crop_fraction or _CROP_FRACTION
  floor = whole_side if preprocess.rounding == 'down' else lambda side, f: math.floor(side / f)
  sides = {name: floor(side, fraction) for name, side in size.items()}
  # ViT's own processor, in older versions, doesn't crop.
  cropped = {'image_processor_type': 'BitImageProcessor', 'do_center_crop': True, 'crop_size': size}
  options = {
    'resize': {'image_processor_type': 'ViTImageProcessor', 'do_resize': True, 'size': size},
    'central': cropped | {'do_resize': True, 'size': {'shortest_edge': sides['height']}},
    'squash': cropped | {'do_resize': True, 'size': sides},
    'cut': cropped | {'do_resize': False},
    'none': {'image_processor_type': 'ViTImageProcessor', 'do_resize': False},
  }
  if preprocess.crop not in options or (preprocess.crop == 'central' and height != width):
    return None
  mean, std = (
    list(values) * (channels if len(values) == 1 else 1)
    for values in (preprocess.mean, preprocess.std)
  )
  return {
    **options[preprocess.crop],
    'resample': _RESAMPLE.index(preprocess.interpolation),
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': mean,
    'image_std': std,
    'do_convert_rgb': channels == 3,
  }
