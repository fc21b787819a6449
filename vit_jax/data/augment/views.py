"""Several views of each example, augmented on the device, each by draws of its own."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_collections

from vit_jax.data import kinds
from vit_jax.data.augment.pipeline import augment_records, get_field
from vit_jax.errors import FieldError


@dataclass(frozen=True)
class ViewGroup:
  """Views that a task asks for: random parts of the image, resized, and then augmented.

  Attributes:
    size: (height, width) of each in pixels.
    area: (smallest, largest) fraction of the image that a part is.
    changes: for each view, dotted field of `config.augment` -> its value there, in place of the
      one that all views have.
  """

  size: tuple[int, int]
  area: tuple[float, float]
  changes: Sequence[Mapping[str, Any]]

  def configs(
    self, common: ml_collections.ConfigDict, crop: bool
  ) -> list[ml_collections.ConfigDict]:
    """Returns the `config.augment` of each view.

    Args:
      common: that of the experiment.
      crop: whether the parts are cut out on the device.

    Raises:
      FieldError: `common` sets what views have values of their own for, or mixes examples.
    """
    cropping = {'resized_crop.area': self.area, 'resized_crop.size': self.size}
    for name in {**cropping, **{name: None for changes in self.changes for name in changes}}:
      if value := get_field(common, name):
        raise FieldError(name, f'{value!r}, but each view has a value of its own; 0 or () is off')
    _check_unmixed(common)
    configs = [common.copy_and_resolve_references() for _ in self.changes]
    for config, changes in zip(configs, self.changes, strict=True):
      config.update_from_flattened_dict(dict(changes) | (cropping if crop else {}))
    return configs


def augment_views(
  views: Mapping[str, Sequence[ml_collections.ConfigDict]],
  keys: chex.PRNGKey,
  batch: Mapping[str, jax.Array],
  mean: Sequence[float],
  std: Sequence[float],
) -> dict[str, jax.Array]:
  """Augments and normalises the views of a batch; each is to `augment` as another example.

  Args:
    views: name of a group -> a `config.augment` for each of its views, in which mixup and cutmix
      are off.
    keys: [B], one key per example; a view's is folded from it and the view's number, counted over
      all groups.
    batch: for a group 'global' with V views, 'image/global' uint8 [B, V, H, W, C] as `data.Views`
      makes them, or else 'image' uint8 [B, H, W, C], which all of the group start from. Videos,
      masks and boxes likewise.
    mean: as for `augment`.
    std: as for `augment`.

  Returns:
    The batch with 'image/global' float32 [B, V, H, W, C] and so on for each group, in place of
    'image'; what doesn't lie in pictures, such as labels, is as in `batch`, but normalised.

  Raises:
    FieldError: mixup or cutmix is on.
  """
  whole = {n: v for n, kind, v in kinds.entries(batch) if kind.is_spatial and '/' not in n}
  rest = {name: value for name, value in batch.items() if '/' not in name and name not in whole}
  result, first = kinds.normalize(rest, mean, std), 0
  for group, configs in views.items():
    ending = f'/{group}'
    given = {n.removesuffix(ending): batch[n] for n in batch if n.endswith(ending)}
    made, i = [], 0
    # Views that are augmented alike are to the compiler one batch, which it compiles once.
    for config, alike in itertools.groupby(configs):
      count = len(list(alike))
      part = {n: v[:, i : i + count] for n, v in given.items()} or _repeat(whole, count)
      made.append(_augment(config, keys, first + i, part, mean, std))
      i += count
    kept = [name for name in made[0] if all(name in record for record in made)]
    result |= {f'{n}/{group}': jnp.concatenate([r[n] for r in made], axis=1) for n in kept}
    first += len(configs)
  return result


def _check_unmixed(config: ml_collections.ConfigDict) -> None:
  for name in ('mixup_alpha', 'cutmix_alpha'):
    if config[name]:
      raise FieldError(name, f'{config[name]!r}, but views are not mixed; 0 is off')


def _repeat(batch: Mapping[str, jax.Array], count: int) -> dict[str, jax.Array]:
  """Returns arrays [B, ...] as [B, count, ...]."""
  return {
    name: jnp.broadcast_to(value[:, None], (len(value), count, *value.shape[1:]))
    for name, value in batch.items()
  }


def _augment(config, keys, first, views, mean, std):
  """Augments views [B, V, ...] alike; they are numbers `first` to `first` + V - 1."""
  _check_unmixed(config)
  batch, count = next(iter(views.values())).shape[:2]
  numbers = jnp.arange(first, first + count)
  fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
  keys = fold(keys, numbers).reshape(-1)  # [B * V]
  records = {name: value.reshape(-1, *value.shape[2:]) for name, value in views.items()}
  made = augment_records(config, keys, records, mean, std)
  return {name: value.reshape(batch, count, *value.shape[1:]) for name, value in made.items()}
