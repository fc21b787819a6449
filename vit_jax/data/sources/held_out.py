"""A part of the training split that is held out, to choose by: `config.data.val_split` as '10%'."""

import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from vit_jax.data.sources.records import Record, Source
from vit_jax.data.sources.splits import stratified
from vit_jax.errors import FieldError

_PERCENT = re.compile(r'\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*')
_MOST_LABELS = 300_000  # records whose labels are read; a data set may have to read them whole


class Subset(Source):
  """Some records of another source, in its order."""

  def __init__(self, source: Source, indices: np.ndarray):
    self.class_names, self.image_shape = source.class_names, source.image_shape
    self.num_frames, self.num_points = source.num_frames, source.num_points
    self.files = tuple(source.files[i] for i in indices) if source.files else ()
    self._source, self._indices = source, indices

  def __len__(self) -> int:
    return len(self._indices)

  def labels(self) -> np.ndarray | None:
    labels = self._source.labels()
    return None if labels is None else labels[self._indices]

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    return self._source.read(self._indices[np.asarray(indices)].tolist())


def percentage(split: str) -> float | None:
  """Returns 10.0 of '10%'; None of a split. Raises FieldError for other numbers."""
  match = _PERCENT.fullmatch(split)
  if not match:
    return None
  if not match[2]:
    raise FieldError('split', f"{split!r} is a number; give a share as in '10%', or a split")
  if not 0 < float(match[1]) < 100:
    raise FieldError('split', f'{split!r} is not between 0% and 100%')
  return float(match[1])


def hold_out(source: Source, percent: float, seed: int) -> tuple[Source, Source, str]:
  """Divides a source; a function of its labels, the share and the seed alone.

  Where records have one class each, every class is divided in proportion, as scikit-learn's
  StratifiedShuffleSplit does, and no class loses its last record. Else records are drawn at random.

  Args:
    source: the records.
    percent: of the records to hold out, above 0 and below 100; at least one is.
    seed: of the draw.

  Returns:
    The records that are left, those held out, and how these were drawn, in words.

  Raises:
    FieldError: there are too few records (`split`), or the seed is negative.
  """
  if seed < 0:
    raise FieldError('seed', f'{seed} is less than 0')
  count = max(round(len(source) * percent / 100), 1)
  if count >= len(source):
    raise FieldError('split', f'{percent:g}% of {len(source)} examples leaves none to train on')
  order = np.random.default_rng([seed, zlib.crc32(b'held out')]).permutation(len(source))
  labels, how = None, f'at random, since there are more than {_MOST_LABELS:,} labels to read'
  if len(source) <= _MOST_LABELS:
    labels, how = source.labels(), 'at random'
  if labels is not None and labels.ndim == 1:
    order, how = _last_of_classes_last(labels, stratified(labels, order)), 'stratified by class'
  held_out = np.sort(order[:count])
  return Subset(source, np.sort(order[count:])), Subset(source, held_out), how


def _last_of_classes_last(labels: np.ndarray, order: np.ndarray) -> np.ndarray:
  _, from_end = np.unique(labels[order][::-1], return_index=True)
  last = len(order) - 1 - from_end
  return np.concatenate([np.delete(order, last), order[last]])
