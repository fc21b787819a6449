"""Splits of data sets and slices of them, in TFDS syntax: 'train', 'train[:90%]+test', 'all'."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from vit_jax.errors import FieldError, check_choice

_VALIDATION = ('val', 'valid', 'validation')
EVALUATION_SPLITS = ('test', *_VALIDATION)
_PART = re.compile(r'\s*([\w-]+)\s*(\[[^\]]*\])?\s*')
_GOLDEN = (5**0.5 - 1) / 2  # whose multiples modulo 1 are spread evenly, however many they are


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


def split_ranges(
  split: str, sizes: Mapping[str, int], labels: Callable[[str], Sequence[int]] | None = None
) -> list[tuple[str, Sequence[int]]]:
  """Returns which examples of which splits `split` stands for, in order; raises FieldError.

  Args:
    split: in TFDS syntax.
    sizes: of the splits, by name.
    labels: gives the class of each example of a split that is sliced. A slice then has each class
      in proportion, as of `stratified`; without, it is contiguous.
  """
  ranges = [(split, range(sizes[split]))] if split in sizes else _read_slices(split, sizes)
  if not any(len(r) for _, r in ranges):
    raise FieldError('split', f'{split!r} holds no examples')
  if labels is None:
    return ranges
  return [
    (name, r if len(r) == sizes[name] else _slice_classes(labels(name), r)) for name, r in ranges
  ]


def _read_slices(split: str, sizes: Mapping[str, int]) -> list[tuple[str, range]]:
  """Has TFDS read what isn't the name of a split."""
  import tensorflow_datasets as tfds  # takes a fifth of a second

  infos = {
    name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
    for name, size in sizes.items()
  }
  try:
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
  except (AssertionError, NotImplementedError, ValueError) as error:
    reason = str(error).splitlines()[-1]
    raise FieldError('split', f'{split!r} cannot be read: {reason}') from None
  return [(p.splitname, range(sizes[p.splitname])[p.from_ : p.to]) for p in parts]


def _slice_classes(labels: Sequence[int], r: range) -> list[int]:
  order = stratified(np.asarray(labels), np.arange(len(labels)))
  return np.sort(order[r.start : r.stop]).tolist()


def stratified(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
  """Returns `order` rearranged so that each of its parts has all classes in proportion.

  Of the first n of N examples, a class of m has m * n / N, rounded up in some classes and down in
  others. Examples of a class stay in order.

  Args:
    labels: int [N], the class of each example.
    order: int [N], the examples.
  """
  labels = labels[order]
  counts = np.bincount(labels)
  by_class = np.argsort(labels, kind='stable')
  ranks = np.empty(len(labels))  # of each example in its class
  ranks[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
  # The phases make classes of a size round in turns: else all of them would at the same n.
  phases = np.arange(len(counts)) * _GOLDEN % 1
  return order[np.argsort((ranks + phases[labels]) / counts[labels], kind='stable')]


def overlap(first: str, second: str) -> bool:
  """Whether two splits have examples in common, as far as their names alone tell.

  So it is if both are alike, or if a whole split is in one of them and a part of it in the other.
  """
  # Splits of the user's own data may be any text, of which nothing is known but whether it's alike.
  splits = [[*filter(None, map(_PART.fullmatch, s.split('+')))] for s in (first, second)]

  def shares(parts, others):
    whole = {part[1] for part in parts if not part[2]}
    return 'all' in whole or not whole.isdisjoint(part[1] for part in others)

  return first.strip() == second.strip() or shares(*splits) or shares(*reversed(splits))


def resolve_aliases(split: str, available: Collection[str]) -> str:
  """Replaces the names of evaluation splits that don't exist by the most similar that do."""

  def resolve(name):
    if name in available or name not in EVALUATION_SPLITS:
      return name
    similar = EVALUATION_SPLITS if name == 'test' else (*_VALIDATION, 'test')
    return next((other for other in similar if other in available), name)

  return re.sub(r'(^|\+)\s*([\w-]+)', lambda m: m[1] + resolve(m[2]), split)
