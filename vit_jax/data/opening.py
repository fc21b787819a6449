"""The splits that an experiment names: which records each of them has."""

from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.data.sources import load_source
from vit_jax.data.sources.held_out import hold_out, percentage
from vit_jax.data.sources.records import Source
from vit_jax.data.sources.splits import overlap
from vit_jax.errors import FieldError, field_prefix


def _load(data: Mapping[str, Any], split: str) -> Source:
  with field_prefix('data.', {'split': f'{split}_split'}):
    return load_source(data['name'], data[f'{split}_split'], data['dir'], data.get('options'))


def open_splits(
  data: Mapping[str, Any], seed: int, wanted: Sequence[str] = ('train', 'val', 'test')
) -> dict[str, tuple[Source, str]]:
  """Returns split -> its records, and which they are, in words.

  Args:
    data: the fields of `config.data`; earlier versions had neither `val_split` nor `options`.
    seed: `config.seed`, which decides what is held out.
    wanted: of 'train', less what is held out, 'val', which is left out where there is none, and
      'test'. No others are read than these need.

  Raises:
    FieldError: of `data` or `seed`: there is no such split, or 'val' shares examples with another.
  """
  share, found = data.get('val_split', ''), {}
  with field_prefix('', {'split': 'data.val_split'}):
    percent = percentage(share)
    if percent and {'train', 'val'} & {*wanted}:
      train, val, how = hold_out(_load(data, 'train'), percent, seed)
      found['train'] = train, data['train_split']
      found['val'] = val, f'{share} of {data["train_split"]}, {how}'
  for split in wanted:
    if split not in found and (share or split != 'val'):
      found[split] = _load(data, split), data[f'{split}_split']
  if 'val' in found and not percent:
    _check_apart(found)
  return {split: found[split] for split in wanted if split in found}


def _check_apart(found: Mapping[str, tuple[Source, str]]) -> None:
  """Raises FieldError for examples of 'val' that are of another split, too."""
  val, name = found['val']
  for split, (other, other_name) in found.items():
    if split == 'val':
      continue
    if overlap(name, other_name) or not {*val.files}.isdisjoint(other.files):
      raise FieldError(
        'data.val_split',
        f'{name!r} has examples of config.data.{split}_split={other_name!r}, too; give a share of '
        "what is trained on, such as '10%', or slices, as 'train[90%:]' beside "
        "--config.data.train_split='train[:90%]'",
      )
