"""Parameters of layers that run in a loop, where a device has but parts of them."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Gather = Callable[[Sequence[str], Any], Any]

_gather: contextvars.ContextVar[Gather] = contextvars.ContextVar(
  'gather', default=lambda paths, params: params
)


@contextlib.contextmanager
def gather_looped_by(gather: Gather) -> Iterator[None]:
  """Within, layers in loops compute with `gather(paths, params)` in place of their parameters.

  So each layer's are gathered in its own round of the loop (`vit_jax.train.shard`).

  Args:
    gather: gets the paths of all layers of a loop, such as 'Transformer/encoderblock_0', and the
      parameters that the layer of the present round has been given.
  """
  token = _gather.set(gather)
  try:
    yield
  finally:
    _gather.reset(token)


def gather_looped(paths: Sequence[str], params: Any) -> Any:
  """Returns what a layer computes with in a round of the loop over the layers at `paths`."""
  return _gather.get()(paths, params)
