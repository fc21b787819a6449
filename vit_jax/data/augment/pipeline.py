"""Augmentation of each example by itself: geometry, colours, normalisation, erasing, points."""

import functools
from collections.abc import Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import ml_collections

from vit_jax.data import kinds
from vit_jax.data.augment.color import color_jitter
from vit_jax.data.augment.erasing import random_erasing
from vit_jax.data.augment.filters import gaussian_blur, random_grayscale, solarize
from vit_jax.data.augment.geometry import random_crop, random_flip, random_shift
from vit_jax.data.augment.own import apply_own
from vit_jax.data.augment.points import (
  random_point_jitter,
  random_point_scale,
  random_point_shift,
  random_rotation,
)
from vit_jax.data.augment.randaugment import rand_augment
from vit_jax.data.augment.resized_crop import random_resized_crop
from vit_jax.data.kinds.pictures import as_fractions

# Each augmentation draws from its own stream, so turning one on leaves what the others draw alone.
_STREAMS = (
  'crop',
  'flip',
  'shift',
  'rand_augment',
  'color_jitter',
  'random_erasing',
  'mix',
  'rotation',
  'point_scale',
  'point_shift',
  'point_jitter',
  'resized_crop',
  'grayscale',
  'gaussian_blur',
  'solarize',
  'own',
)


def stream(keys: chex.PRNGKey, name: str) -> chex.PRNGKey:
  """Returns the keys [B] of one augmentation."""
  return jax.vmap(lambda key: jax.random.fold_in(key, _STREAMS.index(name)))(keys)


def get_field(config: ml_collections.ConfigDict, field: str) -> bool | float | Sequence[float]:
  """Returns the value of a dotted field."""
  return functools.reduce(lambda node, name: node[name], field.split('.'), config)


def augment_records(
  config: ml_collections.ConfigDict,
  keys: chex.PRNGKey,
  batch: Mapping[str, jax.Array],
  mean: Sequence[float],
  std: Sequence[float],
) -> dict[str, jax.Array]:
  """Augments and normalises each example of a batch, as `augment` does before it mixes examples.

  Returns the entries that have a kind, without those that can't follow an augmentation.
  """
  record = {
    name: value
    for name, kind, value in kinds.entries(batch)
    if not any(get_field(config, field) for field in kind.cannot_follow)
  }
  streams = {name: stream(keys, name) for name in _STREAMS}
  return jax.vmap(functools.partial(_augment_record, config, mean, std))(streams, record)


def _augment_record(config, mean, std, keys, record):
  """Augments one example, with a key per stream."""
  if config.resized_crop.area:
    record = random_resized_crop(keys['resized_crop'], record, **config.resized_crop)
  if config.crop_padding:
    record = random_crop(keys['crop'], record, config.crop_padding)
  if config.flip:
    record = random_flip(keys['flip'], record)
  if config.shift:
    record = random_shift(keys['shift'], record, config.shift)
  record = _map_images(functools.partial(_change_colors, config, keys), record)
  if config.own:
    record = apply_own(config.own, keys['own'], record)
  record = kinds.normalize(record, mean, std)
  if config.random_erasing.probability:
    erase = functools.partial(random_erasing, keys['random_erasing'], **config.random_erasing)
    record = _map_images(erase, record)
  if config.rotation != 'none':
    record = random_rotation(keys['rotation'], record, config.rotation)
  if config.point_scale:
    record = random_point_scale(keys['point_scale'], record, config.point_scale)
  if config.point_shift:
    record = random_point_shift(keys['point_shift'], record, config.point_shift)
  if config.point_jitter:
    record = random_point_jitter(keys['point_jitter'], record, config.point_jitter)
  return record


def _change_colors(config, keys, image):
  """Returns image uint8 [H, W, C] as uint8, or as float32 in [0, 1]."""
  chex.assert_type(image, jnp.uint8)
  if config.rand_augment.num_ops:
    image = rand_augment(keys['rand_augment'], image, **config.rand_augment)
  if any(value for name, value in config.color_jitter.items() if name != 'probability'):
    image = color_jitter(keys['color_jitter'], as_fractions(image), **config.color_jitter)
  if config.grayscale:
    image = random_grayscale(keys['grayscale'], as_fractions(image), config.grayscale)
  if config.gaussian_blur.probability:
    image = gaussian_blur(keys['gaussian_blur'], as_fractions(image), **config.gaussian_blur)
  if config.solarize.probability:
    image = solarize(keys['solarize'], as_fractions(image), **config.solarize)
  return image


def _map_images(function, record):
  return {name: kind.map_images(function, value) for name, kind, value in kinds.entries(record)}
