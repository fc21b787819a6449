"""Which activations of a layer are kept for its gradients, where not all of them are."""

from collections.abc import Callable
from typing import Any

import jax

from vit_jax.errors import FieldError, check_choice

# Those in `jax.checkpoint_policies` that take no arguments, from the least memory to the most.
REMAT_POLICIES = ('nothing_saveable', 'dots_with_no_batch_dims_saveable', 'dots_saveable')


def remat_policy(name: str | None) -> Callable[..., Any] | None:
  """Returns the policy of that name, for `jax.checkpoint`; None keeps nothing."""
  return name and getattr(jax.checkpoint_policies, name)


def check_remat(remat: bool, policy: str | None) -> None:
  """Raises FieldError for fields `remat` and `remat_policy` of a model that don't fit."""
  if policy is None:
    return
  check_choice('remat_policy', policy, REMAT_POLICIES)
  if not remat:
    raise FieldError('remat_policy', f'{policy!r}, but remat is False')
