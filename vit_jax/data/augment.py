"""Augmentation of a batch on the device, in JAX, inside the compiled training step.

Every function is pure and takes a key. The caller gives one key per example, made from the seed,
the step and the example's slot in the global batch, so that an example comes out the same however
many devices share the batch. Functions of one image are mapped over the batch by `augment`.
"""

import functools
import math
from collections.abc import Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import ml_collections

from vit_jax.data import boxes
from vit_jax.data.randaugment import MAX_MAGNITUDE, rand_augment
from vit_jax.errors import UsageError

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow and torchvision
_ERASING_ATTEMPTS = 10

# Each augmentation draws from its own stream, so turning one on leaves what the others draw alone.
_STREAMS = ('crop', 'flip', 'shift', 'rand_augment', 'color_jitter', 'random_erasing', 'mix')

_BOUNDS = {
  'crop_padding': (0, math.inf),
  'shift': (0, math.inf),
  'rand_augment.num_ops': (0, math.inf),
  'rand_augment.magnitude': (0, MAX_MAGNITUDE),
  'color_jitter.brightness': (0, math.inf),
  'color_jitter.contrast': (0, math.inf),
  'color_jitter.saturation': (0, math.inf),
  'color_jitter.hue': (0, 0.5),
  'random_erasing.probability': (0, 1),
  'mixup_alpha': (0, math.inf),
  'cutmix_alpha': (0, math.inf),
}
# What changes where objects are in ways that leave no box round them.
_WITHOUT_BOXES = ('rand_augment.num_ops', 'mixup_alpha', 'cutmix_alpha')
_RANGE_LIMITS = {'random_erasing.area': 1, 'random_erasing.aspect': math.inf}


def augment(
  config: ml_collections.ConfigDict,
  keys: chex.PRNGKey,
  batch: Mapping[str, jax.Array],
  num_classes: int,
  mean: Sequence[float],
  std: Sequence[float],
) -> dict[str, jax.Array]:
  """Augments and normalises one training batch, on the device that holds it.

  What is on is decided while tracing: what is off costs nothing. The order is crop, flip, shift,
  RandAugment, colour jitter, normalisation, random erasing, mixup or cutmix.

  Args:
    config: the experiment's `config.augment`, valid by `validate`. Zeros and False turn off:
      `crop_padding` (pixels), `flip`, `shift` (pixels), `rand_augment.{num_ops, magnitude}`,
      `color_jitter.{brightness, contrast, saturation, hue}`,
      `random_erasing.{probability, area, aspect}`, `mixup_alpha`, `cutmix_alpha`.
    keys: [B], one key per example.
    batch: 'image' uint8 [B, H, W, C], 'label' int32 [B] or float32 [B, K], perhaps 'box' float32
      [B, 4] as (cx, cy, w, h) in fractions of the image; others pass through.
    num_classes: K.
    mean: per channel, of images in [0, 1].
    std: per channel, of images in [0, 1].

  Returns:
    The batch with 'image' float32 [B, H, W, C] and, if mixup or cutmix is on, 'label'
    float32 [B, K]. A 'box' is moved with its object and ends at the image's border, where crops and
    shifts leave its centre inside; with RandAugment, mixup or cutmix there is none.

  Raises:
    UsageError: an odd number of images with mixup or cutmix on.
  """
  chex.assert_type(batch['image'], jnp.uint8)
  streams = {name: _stream(keys, name) for name in _STREAMS}
  one = functools.partial(_augment_image, config, mean, std)
  batch = dict(batch)
  if any(_get(config, field) for field in _WITHOUT_BOXES):
    batch.pop('box', None)
  batch['image'], box = jax.vmap(one)(streams, batch['image'], batch.get('box'))
  if box is not None:
    batch['box'] = box
  if config.mixup_alpha or config.cutmix_alpha:
    labels = batch['label']
    if labels.ndim == 1:
      labels = jax.nn.one_hot(labels, num_classes)
    batch['image'], batch['label'] = _mix(config, streams['mix'], batch['image'], labels)
  return batch


def validate(config: ml_collections.ConfigDict, boxes: bool = False) -> None:
  """Raises UsageError, naming config.augment.FIELD, for the first field that is out of range.

  `boxes` says whether boxes are needed, which not every augmentation leaves.
  """
  for field, (low, high) in _BOUNDS.items():
    value = _get(config, field)
    if not (low <= value <= high and math.isfinite(value)):
      allowed = f'at least {low}' if high == math.inf else f'from {low} to {high}'
      raise UsageError(f'config.augment.{field}: {value!r} is not {allowed}')
  for field, limit in _RANGE_LIMITS.items():
    value = tuple(_get(config, field))
    if len(value) != 2 or not 0 < value[0] <= value[1] <= limit or value[1] == math.inf:
      top = '' if limit == math.inf else f' <= {limit}'
      raise UsageError(
        f'config.augment.{field}: {value!r} is not (low, high), 0 < low <= high{top}'
      )
  for field in _WITHOUT_BOXES if boxes else ():
    if _get(config, field):
      raise UsageError(
        f'config.augment.{field}: {_get(config, field)!r}, but the task has boxes, which would not '
        'fit any more; 0 is off'
      )


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
  """Returns (images - mean) / std, float32, of images [..., C], uint8 or float in [0, 1].

  `mean` and `std` are per channel, in the units of images in [0, 1].
  """
  return (_to_float(images) - jnp.float32(mean)) / jnp.float32(std)


def random_crop(
  key: chex.PRNGKey, image: jax.Array, padding: int, box: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
  """Pads image [H, W, C] with `padding` zeros on each side and cuts a random [H, W, C] window.

  As torchvision's RandomCrop(size, padding); any dtype. Returns (image, box). The centre of a box
  stays in the image: a window without it gives way to the nearest that has it.
  """
  padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
  offset = jax.random.randint(key, (2,), 0, 2 * padding + 1)
  if box is not None:
    sides = jnp.array(image.shape[:2])
    centre = box[1::-1] * sides + padding
    offset = jnp.clip(offset, jnp.ceil(centre) - sides, jnp.floor(centre)).astype(offset.dtype)
    top, left = (offset - padding) / sides
    box = boxes.into_window(box, (left, top, left + 1, top + 1), xp=jnp)
  return jax.lax.dynamic_slice(padded, (*offset, 0), image.shape), box


def random_shift(
  key: chex.PRNGKey, image: jax.Array, pixels: int, box: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
  """Moves image [H, W, C] by up to `pixels` along each axis, either way, filling with zeros.

  Any dtype. Returns (image, box). A move by (dy, dx) is the window of the padded image at `pixels`
  - (dy, dx), hence the same distribution as `random_crop`: recipes for photographs name the one,
  for digits the other.
  """
  return random_crop(key, image, pixels, box)


def random_flip(
  key: chex.PRNGKey, image: jax.Array, box: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
  """Mirrors image [H, W, C], any dtype, left to right with probability 0.5.

  Returns (image, box).
  """
  flip = jax.random.bernoulli(key)
  if box is not None:
    box = jnp.where(flip, box.at[0].set(1 - box[0]), box)
  return jnp.where(flip, image[:, ::-1], image), box


def color_jitter(
  key: chex.PRNGKey,
  image: jax.Array,
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
) -> jax.Array:
  """Changes the colours of image float32 [H, W, C] in [0, 1], C 1 or 3, to the same.

  Ranges are torchvision's ColorJitter: factors from [max(0, 1 - x), 1 + x] and a hue rotation from
  [-hue, hue] turns, hue at most 0.5. The order is always brightness, contrast, saturation, hue,
  where torchvision draws it. Grey images have neither saturation nor hue: those leave them alone.
  """
  keys = jax.random.split(key, 4)
  if brightness:
    image = _blend(image, jnp.zeros_like(image), _factor(keys[0], brightness))
  if contrast:
    image = _blend(image, _grey(image).mean(), _factor(keys[1], contrast))
  if saturation:
    image = _blend(image, _grey(image), _factor(keys[2], saturation))
  if hue and image.shape[-1] == 3:
    image = rotate_hue(image, jax.random.uniform(keys[3], (), minval=-hue, maxval=hue))
  return image


def rotate_hue(image: jax.Array, turns: jax.typing.ArrayLike) -> jax.Array:
  """Rotates the HSV hue of RGB image float32 [..., 3] in [0, 1] by `turns` of the colour circle."""
  red, green, blue = jnp.moveaxis(image, -1, 0)
  value = image.max(-1)
  chroma = value - image.min(-1)
  divisor = jnp.where(chroma == 0, 1, chroma)
  sextant = jnp.where(
    value == red,
    (green - blue) / divisor,
    jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
  )
  # Each channel is the same trapezoid of the hue: full, then none, a third of a turn apart.
  k = jnp.mod(sextant[..., None] + 6 * turns + jnp.float32((5, 3, 1)), 6)
  return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def random_erasing(
  key: chex.PRNGKey,
  image: jax.Array,
  probability: float,
  area: Sequence[float] = (0.02, 1 / 3),
  aspect: Sequence[float] = (0.3, 10 / 3),
) -> jax.Array:
  """Zeroes a random rectangle of image float [H, W, C] with `probability` (arXiv:1708.04896).

  `augment` calls it on normalised images, where zero is the channel mean. As in torchvision, the
  rectangle's fraction of the image is uniform in `area`, its height / width log-uniform in
  `aspect`, and it must fit: the first of ten draws that does is used, if any.
  """
  height, width, _ = image.shape
  shape_key, place_key, coin_key = jax.random.split(key, 3)
  areas, aspects = jax.random.uniform(shape_key, (2, _ERASING_ATTEMPTS))
  pixels = height * width * (area[0] + (area[1] - area[0]) * areas)
  low, high = map(math.log, aspect)
  ratio = jnp.exp(low + (high - low) * aspects)
  heights = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
  widths = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)
  fits = (heights < height) & (widths < width)
  first = jnp.argmax(fits)
  box_height, box_width = heights[first], widths[first]
  room = jnp.stack([height - box_height, width - box_width])
  top, left = jax.random.randint(place_key, (2,), 0, room + 1)
  inside = _box_mask(image.shape, top, top + box_height, left, left + box_width)
  erase = jax.random.bernoulli(coin_key, probability) & fits.any()
  return jnp.where(inside & erase, 0, image)


def mixup(
  keys: chex.PRNGKey, images: jax.Array, labels: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
  """Blends each image and label with its neighbour's by lambda ~ Beta(alpha, alpha).

  arXiv:1710.09412. The partner of slot i is slot i ^ 1: in a shuffled batch a random pairing, and
  one that doesn't depend on how many devices share the batch. The two share one lambda, from the
  key of the even slot.

  Args:
    keys: [B].
    images: float32 [B, H, W, C].
    labels: float32 [B, K], one-hot or multi-label.
    alpha: above 0.

  Returns:
    Images and labels of the same shapes.

  Raises:
    UsageError: B is odd.
  """
  even, partner = _pairs(len(images))
  weight = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys[even])
  return (
    _weigh(weight, images, images[partner]),
    _weigh(weight, labels, labels[partner]),
  )


def cutmix(
  keys: chex.PRNGKey, images: jax.Array, labels: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
  """Pastes a rectangle of its neighbour into each image; labels blend by area (arXiv:1905.04899).

  The rectangle has the image's aspect and a fraction 1 - lambda of its area, lambda ~ Beta(alpha,
  alpha), round a uniform centre; what lies outside the image is cut off, and labels are weighted by
  the area that is left. Pairs, arguments, returns and errors are those of `mixup`.
  """
  even, partner = _pairs(len(images))
  mask = jax.vmap(lambda key: _cutmix_mask(key, images.shape[1:], alpha))(keys[even])
  return (
    jnp.where(mask, images[partner], images),
    _weigh(1 - mask.mean((1, 2, 3)), labels, labels[partner]),
  )


def mixup_or_cutmix(
  keys: chex.PRNGKey,
  images: jax.Array,
  labels: jax.Array,
  mixup_alpha: float,
  cutmix_alpha: float,
) -> tuple[jax.Array, jax.Array]:
  """Applies to each pair mixup or cutmix, with probability 0.5 each, as timm's switch_prob."""
  even, _ = _pairs(len(images))
  choices, keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  cut = jax.vmap(jax.random.bernoulli)(choices[even])
  blended = mixup(keys, images, labels, mixup_alpha)
  pasted = cutmix(keys, images, labels, cutmix_alpha)
  return tuple(jnp.where(_like(cut, a), b, a) for a, b in zip(blended, pasted, strict=True))


def _augment_image(config, mean, std, keys, image, box):
  """Applies to image uint8 [H, W, C] and its box, or None, what concerns one image.

  There is a key per stream.
  """
  if config.crop_padding:
    image, box = random_crop(keys['crop'], image, config.crop_padding, box)
  if config.flip:
    image, box = random_flip(keys['flip'], image, box)
  if config.shift:
    image, box = random_shift(keys['shift'], image, config.shift, box)
  if config.rand_augment.num_ops:
    image = rand_augment(keys['rand_augment'], image, **config.rand_augment)
  if any(config.color_jitter.values()):
    image = color_jitter(keys['color_jitter'], _to_float(image), **config.color_jitter)
  image = normalize(image, mean, std)
  if config.random_erasing.probability:
    image = random_erasing(keys['random_erasing'], image, **config.random_erasing)
  return image, box


def _mix(config, keys, images, labels):
  """Applies mixup, cutmix or one of the two, as config says."""
  if config.mixup_alpha and config.cutmix_alpha:
    return mixup_or_cutmix(keys, images, labels, config.mixup_alpha, config.cutmix_alpha)
  if config.mixup_alpha:
    return mixup(keys, images, labels, config.mixup_alpha)
  return cutmix(keys, images, labels, config.cutmix_alpha)


def _stream(keys, name):
  """Returns the keys [B] of one augmentation."""
  return jax.vmap(lambda key: jax.random.fold_in(key, _STREAMS.index(name)))(keys)


def _get(config, field):
  """Returns the value of a dotted field."""
  return functools.reduce(lambda node, name: node[name], field.split('.'), config)


def _to_float(images):
  """Returns images as float32 in [0, 1]."""
  if images.dtype == jnp.uint8:
    return images.astype(jnp.float32) / 255
  return images.astype(jnp.float32)


def _factor(key, strength):
  """Draws a blending factor with torchvision's range."""
  return jax.random.uniform(key, (), minval=max(0.0, 1 - strength), maxval=1 + strength)


def _blend(image, other, factor):
  """Returns the image for factor 1, `other` for 0, and beyond the image above 1."""
  return jnp.clip(other + factor * (image - other), 0, 1)


def _grey(image):
  """Returns the brightness of each pixel, [H, W, 1]."""
  if image.shape[-1] == 1:
    return image
  # A sum, not a matrix product: those are rounded to TF32 on GPUs.
  return (image * jnp.float32(_LUMA)).sum(-1, keepdims=True)


def _box_mask(shape, top, bottom, left, right):
  """Returns bool [H, W, 1], True inside the box."""
  rows = jnp.arange(shape[0])[:, None, None]
  columns = jnp.arange(shape[1])[None, :, None]
  return (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)


def _cutmix_mask(key, shape, alpha):
  """Draws the box that cutmix pastes, bool [H, W, 1]."""
  height, width = shape[:2]
  beta_key, row_key, column_key = jax.random.split(key, 3)
  half = 0.5 * jnp.sqrt(1 - jax.random.beta(beta_key, alpha, alpha))
  row = jax.random.randint(row_key, (), 0, height)
  column = jax.random.randint(column_key, (), 0, width)
  tall, wide = (half * height).astype(jnp.int32), (half * width).astype(jnp.int32)
  return _box_mask(shape, row - tall, row + tall, column - wide, column + wide)


def _pairs(size):
  """Returns for each slot the even slot of its pair and its partner, or raises UsageError."""
  if size % 2:
    raise UsageError(
      f'config.batch_size: {size} images per device is odd; mixup and cutmix mix pairs, so the '
      'batch must be a multiple of twice the number of devices'
    )
  slots = jnp.arange(size)
  return slots & ~1, slots ^ 1


def _like(values, array):
  """Returns values [B] with singleton axes to the rank of array [B, ...]."""
  return values.reshape(-1, *(1,) * (array.ndim - 1))


def _weigh(weight, first, second):
  """Returns weight * first + (1 - weight) * second, weight being per example."""
  weight = _like(weight, first)
  return weight * first + (1 - weight) * second
