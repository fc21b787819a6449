"""Splits of data sets and slices of them, in TFDS syntax: 'train', 'train[:90%]+test', 'all'."""

import re
from collections.abc import Collection, Mapping

from vit_jax.errors import FieldError, check_choice

_VALIDATION = ('val', 'valid', 'validation')
EVALUATION_SPLITS = ('test', *_VALIDATION)
_PART = re.compile(r'\s*([\w-]+)\s*(\[[^\]]*\])?\s*')


def split_names(split: str, available: Collection[str]) -> list[str]:
  """Returns the names of the splits in `split`; raises FieldError for one that isn't available."""
  parts = [_PART.fullmatch(part) for part in str(split).split('+')]
  if None in parts:
    raise FieldError(
      'split',
      f"{split!r} is not a split in TFDS syntax, such as 'train', 'train[:90%]' or "
      "'train[:1000]+test'",
    )
  for part in parts:
    check_choice('split', part[1], [*available, 'all'])
  names = [part[1] for part in parts]
  return list(available) if 'all' in names else names


def split_ranges(split: str, sizes: Mapping[str, int]) -> list[tuple[str, range]]:
  """Returns which examples of which splits `split` stands for, in order; raises FieldError."""
  import tensorflow_datasets as tfds

  infos = {
    name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
    for name, size in sizes.items()
  }
  try:
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
  except (AssertionError, NotImplementedError, ValueError) as error:
    reason = str(error).splitlines()[-1]
    raise FieldError('split', f'{split!r} cannot be read: {reason}') from None
  ranges = [(p.splitname, range(sizes[p.splitname])[p.from_ : p.to]) for p in parts]
  if not any(len(r) for _, r in ranges):
    raise FieldError('split', f'{split!r} holds no examples')
  return ranges


def resolve_aliases(split: str, available: Collection[str]) -> str:
  """Replaces the names of evaluation splits that don't exist by the most similar that do."""

  def resolve(name):
    if name in available or name not in EVALUATION_SPLITS:
      return name
    similar = EVALUATION_SPLITS if name == 'test' else (*_VALIDATION, 'test')
    return next((other for other in similar if other in available), name)

  return re.sub(r'(^|\+)\s*([\w-]+)', lambda m: m[1] + resolve(m[2]), split)
