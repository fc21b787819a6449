"""Augmentation of a batch on the device, in JAX, inside the compiled training step.

Every function is pure and takes a key. The caller gives one key per example, made from the seed,
the step and the example's slot in the global batch, so that an example comes out the same however
many devices share the batch. Functions of one example are mapped over the batch by `augment`.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence

import chex
import jax
import ml_collections

from vit_jax.data import kinds
from vit_jax.data.augment.color import color_jitter, rotate_hue
from vit_jax.data.augment.erasing import random_erasing
from vit_jax.data.augment.filters import gaussian_blur, random_grayscale, solarize
from vit_jax.data.augment.geometry import random_crop, random_flip, random_shift
from vit_jax.data.augment.mixing import cutmix, mixup, mixup_or_cutmix
from vit_jax.data.augment.own import check_own
from vit_jax.data.augment.pipeline import augment_records, get_field, stream
from vit_jax.data.augment.points import FIELDS as POINT_FIELDS
from vit_jax.data.augment.points import check_points, check_rotation, rotate
from vit_jax.data.augment.randaugment import rand_augment
from vit_jax.data.augment.resized_crop import random_resized_crop
from vit_jax.data.augment.views import ViewGroup, augment_views
from vit_jax.errors import FieldError, UsageError

__all__ = [
  'ViewGroup',
  'augment',
  'augment_views',
  'check_moves',
  'check_own',
  'check_rotation',
  'color_jitter',
  'cutmix',
  'gaussian_blur',
  'mixup',
  'mixup_or_cutmix',
  'normalize',
  'normalize_batch',
  'rand_augment',
  'random_crop',
  'random_erasing',
  'random_flip',
  'random_grayscale',
  'random_resized_crop',
  'random_shift',
  'rotate',
  'rotate_hue',
  'solarize',
  'validate',
]

_INTERVALS = (
  'resized_crop.area',
  'gaussian_blur.sigma',
  'random_erasing.area',
  'random_erasing.aspect',
)


def augment(
  config: ml_collections.ConfigDict,
  keys: chex.PRNGKey,
  batch: Mapping[str, jax.Array],
  num_classes: int,
  mean: Sequence[float],
  std: Sequence[float],
) -> dict[str, jax.Array]:
  """Augments and normalises one training batch, on the device that holds it.

  What is on is decided while tracing: what is off costs nothing. The order is resized crop, crop,
  flip, shift, RandAugment, colour jitter, greyscale, blur, solarisation, the user's own,
  normalisation, random erasing, rotation, scale, shift and jitter of points, mixup or cutmix.

  Args:
    config: the experiment's `config.augment`, valid by `validate`. Zeros, False and () turn off:
      `resized_crop.{area, size}`, `crop_padding` (pixels), `flip`, `shift` (pixels),
      `rand_augment.{num_ops, magnitude}`,
      `color_jitter.{brightness, contrast, saturation, hue, probability}`, `grayscale`
      (probability), `gaussian_blur.{probability, sigma}`, `solarize.{probability, threshold}`,
      `own` (see `own.apply_own`), `random_erasing.{probability, area, aspect}`, `point_scale`,
      `point_shift`, `point_jitter`, `mixup_alpha`, `cutmix_alpha`; 'none' turns off `rotation`.
    keys: [B], one key per example.
    batch: entries of the kinds in `vit_jax.data.kinds`, as `kinds.stack` gives them: 'image' uint8
      [B, H, W, C], 'label' int32 [B] or float32 [B, K] and so on; others pass through.
    num_classes: K.
    mean: per channel, of images in [0, 1].
    std: per channel, of images in [0, 1].

  Returns:
    The batch with 'image' float32 [B, H, W, C] and, if mixup or cutmix is on, 'label' float32
    [B, K]. A mask or box is moved with its image, and a box ends at the image's border, where crops
    and shifts leave its centre inside. Entries that can't follow an augmentation are left out, such
    as a mask or box with a resized crop, RandAugment, mixup or cutmix.

  Raises:
    FieldError: an odd number of images, or images without labels, with mixup or cutmix on.
    UsageError: the batch holds views, which are for `augment_views`.
  """
  if views := [name for name, _, _ in kinds.entries(batch) if '/' in name]:
    raise UsageError(f'{views[0]} holds views of examples, which augment_views augments')
  others = {name: value for name, value in batch.items() if name not in kinds.KINDS}
  batch = augment_records(config, keys, batch, mean, std)
  if config.mixup_alpha or config.cutmix_alpha:
    batch |= _mix(config, stream(keys, 'mix'), batch, num_classes)
  return others | batch


def validate(config: ml_collections.ConfigDict, used: Collection[str] = ()) -> None:
  """Checks that fields of `config.augment` fit each other and the data.

  Args:
    config: as for `augment`.
    used: the entries of a record that model and task need, which not every augmentation leaves.

  Raises:
    FieldError: the first field that doesn't fit others, or that an entry can't follow.
  """
  for field in _INTERVALS:
    value = tuple(get_field(config, field))
    if value and value[0] > value[1]:
      raise FieldError(field, f'{value!r} is not (low, high), low <= high')
  if config.resized_crop.size and not config.resized_crop.area:
    raise FieldError(
      'resized_crop.size',
      f'{config.resized_crop.size} is not (height, width) of a crop with an area; () is off',
    )
  check_rotation(config.rotation, used)
  for field in POINT_FIELDS[1:]:
    if value := config[field]:
      check_points(field, value, used)
  for kind in map(kinds.kind_of, used):
    for field in kind.cannot_follow:
      if value := get_field(config, field):
        raise FieldError(
          field,
          f'{value!r}, but the task has {kind.plural}, which would not fit any more; 0 is off',
        )


def check_moves(config: ml_collections.ConfigDict, sizes: Collection[kinds.Size | None]) -> None:
  """Raises FieldError for a crop or shift that may leave nothing of an image.

  Args:
    config: as for `augment`.
    sizes: (height, width) of what is moved; None of what has no pixels.
  """
  for field, size in itertools.product(('crop_padding', 'shift'), filter(None, sizes)):
    if config[field] >= min(size):
      whole = 'x'.join(map(str, size))
      raise FieldError(field, f'{config[field]} pixels move images of {whole} out of sight')


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
  """Returns (images - mean) / std, float32, of images [..., C], uint8 or float in [0, 1].

  `mean` and `std` are per channel, in the units of images in [0, 1].
  """
  return kinds.KINDS['image'].normalize(images, mean, std)


def normalize_batch(
  batch: Mapping[str, jax.Array], mean: Sequence[float], std: Sequence[float]
) -> dict[str, jax.Array]:
  """Returns a batch, or views of it, as `augment` does with everything off: for evaluation."""
  return kinds.normalize(batch, mean, std)


def _mix(config, keys, batch, num_classes):
  """Returns the entries of a batch that mixup, cutmix or one of the two changes."""
  if 'label' not in batch:
    field = 'mixup_alpha' if config.mixup_alpha else 'cutmix_alpha'
    raise FieldError(field, f'{config[field]!r}, but the images have no labels to mix; 0 is off')
  labels = batch['label']
  if labels.ndim == 1:
    labels = jax.nn.one_hot(labels, num_classes)
  mixed = {}
  for name, kind, images in kinds.entries(batch):
    if kind.has_pixels:
      if config.mixup_alpha and config.cutmix_alpha:
        mixed[name], mixed['label'] = mixup_or_cutmix(
          keys, images, labels, config.mixup_alpha, config.cutmix_alpha
        )
      elif config.mixup_alpha:
        mixed[name], mixed['label'] = mixup(keys, images, labels, config.mixup_alpha)
      else:
        mixed[name], mixed['label'] = cutmix(keys, images, labels, config.cutmix_alpha)
  return mixed
