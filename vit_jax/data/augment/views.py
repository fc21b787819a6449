"""Several views of each example, augmented on the device, each by draws of its own."""

from collections.abc import Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import ml_collections

from vit_jax.data import kinds
from vit_jax.data.augment.pipeline import augment_records
from vit_jax.errors import FieldError


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
  configs = [(group, i, config) for group in views for i, config in enumerate(views[group])]
  whole = {n: v for n, kind, v in kinds.entries(batch) if kind.is_spatial and '/' not in n}
  made = {group: [] for group in views}
  for number, (group, i, config) in enumerate(configs):
    for field in ('mixup_alpha', 'cutmix_alpha'):
      if config[field]:
        raise FieldError(field, f'{config[field]!r}, but views are not mixed; 0 is off')
    ending = f'/{group}'
    view = {n.removesuffix(ending): batch[n][:, i] for n in batch if n.endswith(ending)}
    view_keys = jax.vmap(lambda key, number=number: jax.random.fold_in(key, number))(keys)
    made[group].append(augment_records(config, view_keys, view or whole, mean, std))
  rest = {name: value for name, value in batch.items() if '/' not in name and name not in whole}
  result = kinds.normalize(rest, mean, std)
  for group, records in made.items():
    kept = [name for name in records[0] if all(name in record for record in records)]
    result |= {f'{n}/{group}': jnp.stack([r[n] for r in records], axis=1) for n in kept}
  return result
