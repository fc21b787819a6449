"""Augmentations of the user's own: functions `augment(key, record) -> record` of one example."""

from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import numpy as np

from vit_jax import user_code
from vit_jax.data import kinds
from vit_jax.data.augment.geometry import Record
from vit_jax.data.kinds.pictures import as_fractions
from vit_jax.errors import FieldError


def apply_own(references: Sequence[str], key: chex.PRNGKey, record: Record) -> Record:
  """Puts one example through functions of the user's own, in their order.

  Args:
    references: each 'module:function'. It takes a key and the record: pixels as float32 in [0, 1],
      the rest as the source gives it; it returns a record with the same entries. All have the
      shapes and dtypes that they had, but a label may become float32 [num_classes].
    key: of the example; each function has another one made from it.
    record: pixels uint8, or float32 in [0, 1].

  Raises:
    FieldError: of 'own', for something that isn't such a function.
  """
  record = {
    name: kind.map_images(as_fractions, value) for name, kind, value in kinds.entries(record)
  }
  for i, reference in enumerate(references):
    if not user_code.is_reference(reference):
      raise FieldError('own', f"{reference!r} is not written as 'module:function'")
    function = user_code.find_function(reference, 'own')
    changed = function(jax.random.fold_in(key, i), dict(record))
    _check(reference, record, changed)
    record = changed
  return record


def check_own(references: Sequence[str], record: Mapping[str, Any]) -> None:
  """Raises FieldError as `apply_own` does, for a record as it is preprocessed."""
  example = {name: value[0] for name, value in kinds.stack([record]).items()}
  jax.eval_shape(lambda key: apply_own(references, key, example), jax.random.key(0))


def _check(reference: str, before: Record, after: Any) -> None:
  """Raises FieldError unless `after` is a record with the entries of `before`."""
  if not isinstance(after, Mapping) or after.keys() != before.keys():
    found = (
      f'a record of {", ".join(after)}' if isinstance(after, Mapping) else type(after).__name__
    )
    wanted = f'a record of {", ".join(before)}'
    raise FieldError('own', f'{reference!r} returned {found}, not {wanted}')
  for name, kind, value in kinds.entries(before):
    new, is_soft_label = after[name], not (kind.is_spatial or kind.has_points)
    form, changed = (f'{x.dtype} {list(np.shape(x))}' for x in map(jax.numpy.asarray, (value, new)))
    if form != changed and not (is_soft_label and changed.startswith('float32 [') and new.ndim):
      raise FieldError('own', f'{reference!r} made of {name}, {form}, one that is {changed}')
