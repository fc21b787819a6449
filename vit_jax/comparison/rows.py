"""What a benchmark times in turns, and the figures that follow from the speeds: `Row`."""

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vit_jax.comparison import measure


@dataclasses.dataclass(frozen=True)
class Row:
  """A task of a side, which is timed in turns with others.

  A side has `prepare(task)`, which compiles and returns figures, and `images_per_second(task,
  seconds)`.

  Attributes:
    call: a method of the side by its name, and its arguments -> what it returns.
    task: of the side.
    side: what it is: `batch_size`, `dtype`, and `threads` of the host.
    flops: floating-point operations an image; None of input.
    num_devices: that it runs on.
    is_ours: whether it is compared with the others, and not they with it.
  """

  call: Callable[..., Any]
  task: str
  side: Mapping[str, Any]
  flops: float | None
  num_devices: int
  is_ours: bool


def time_in_turns(rows: Mapping[str, Row], seconds: float, turns: int) -> dict[str, Any]:
  """Prepares rows, and times each `turns` times for about `seconds`.

  Returns:
    `rows`, name -> figures, with units in their names; and `ratios` in images a second, `of` each
    row of ours `to` each other one, with what their operations allow, `by_flops`. Speeds and ratios
    have a `median`, `low` and `high`, and all `turns`.
  """
  prepared = {name: row.call('prepare', row.task) for name, row in rows.items()}
  calls = {
    name: functools.partial(row.call, 'images_per_second', row.task, seconds)
    for name, row in rows.items()
  }
  speeds = measure.in_turns(calls, turns)
  pairs = itertools.product(rows, rows)
  return {
    'rows': {name: _figures(rows[name], speeds[name]) | prepared[name] for name in rows},
    'ratios': [
      {
        'of': ours,
        'to': theirs,
        'by_flops': rows[theirs].flops / rows[ours].flops if rows[ours].flops else None,
        **summary(measure.ratios(speeds[ours], speeds[theirs])),
      }
      for ours, theirs in pairs
      if rows[ours].is_ours and not rows[theirs].is_ours
    ],
  }


def _figures(row: Row, speeds: Sequence[float]) -> dict[str, Any]:
  """Returns what follows from the speeds of a row, in images a second."""
  if row.flops is None:
    cores = row.side['threads']
    each = {'images_per_second_per_core': summary([speed / cores for speed in speeds])}
    return {'images_per_second': summary(speeds), 'cores': cores, **each}
  batch_size = row.side['batch_size']
  return {
    'images_per_second': summary(speeds),
    'steps_per_second': summary([speed / batch_size for speed in speeds]),
    'batch_size': batch_size,
    'dtype': row.side['dtype'],
    'flops_per_image': row.flops,
    'flops_per_second': row.flops * statistics.median(speeds),
    'share_of_peak': None,
    'share_of_matrix_product': None,
  }


def summary(values: Sequence[float]) -> dict[str, Any]:
  """Returns what `measure.summary` does, and the values, `turns`."""
  return {**measure.summary(values), 'turns': [*values]}


def add_shares(
  rows: Mapping[str, Row], figures: Mapping[str, Any], peaks: Mapping[str, Mapping[str, Any]]
) -> None:
  """Writes into the figures of rows what share they reach of what their devices can.

  Args:
    rows: as of `time_in_turns`.
    figures: `rows` of what it returned.
    peaks: dtype -> `flops_per_second` of a device at most, and `matrix_product_flops_per_second`.
  """
  for name, row in rows.items():
    if row.flops is not None:
      peak, reached = peaks[row.side['dtype']], figures[name]['flops_per_second'] / row.num_devices
      figures[name] |= {
        'share_of_peak': reached / peak['flops_per_second'],
        'share_of_matrix_product': reached / peak['matrix_product_flops_per_second'],
      }
