"""What is timed in turns, and the figures that follow from speeds."""

import math

import pytest

from vit_jax.comparison import measure, rows
from vit_jax.comparison.rows import Row
from vit_jax.errors import UsageError

SIDE = {'batch_size': 8, 'dtype': 'float32', 'threads': 2}


class Side:
  """Gives planted speeds, in images a second, and keeps what it was asked for."""

  def __init__(self, name, speeds, log):
    self.name, self.speeds, self.log = name, list(speeds), log

  def __call__(self, method, task, *seconds):
    self.log.append((self.name, method, task, *seconds))
    return {'compile_seconds': 1.5} if method == 'prepare' else self.speeds.pop(0)


def timed(flops=(6e9, 3e9)):
  log = []
  speeds = {'ours': [10.0, 40.0, 30.0], 'theirs': [5.0, 80.0, 10.0]}
  found = {
    name: Row(Side(name, values, log), 'train', SIDE, n, 2, is_ours=name == 'ours')
    for (name, values), n in zip(speeds.items(), flops, strict=True)
  }
  return found, rows.time_in_turns(found, 0.5, 3), log


def test_rows_are_timed_in_turns_and_compared_turn_by_turn():
  _, report, log = timed()
  assert log[:2] == [(name, 'prepare', 'train') for name in ('ours', 'theirs')]
  assert log[2:] == [(n, 'images_per_second', 'train', 0.5) for n in ('ours', 'theirs')] * 3
  (ratio,) = report['ratios']
  assert ratio == {
    **{'of': 'ours', 'to': 'theirs', 'by_flops': 0.5},
    **{'median': 2, 'low': 0.5, 'high': 3, 'turns': [2, 0.5, 3]},
  }
  ours = report['rows']['ours']
  assert ours['images_per_second']['turns'] == [10, 40, 30]
  assert ours['steps_per_second'] == {
    **{'median': 30 / 8, 'low': 10 / 8, 'high': 5},
    'turns': [10 / 8, 5, 30 / 8],
  }
  assert ours['flops_per_second'] == 30 * 6e9
  assert ours['compile_seconds'] == 1.5


def test_shares_are_of_all_devices():
  found, report, _ = timed()
  peak = {'flops_per_second': 900e9, 'matrix_product_flops_per_second': 450e9}
  rows.add_shares(found, report['rows'], {'float32': peak})
  assert report['rows']['ours']['share_of_peak'] == pytest.approx(30 * 6e9 / (2 * 900e9))
  assert report['rows']['ours']['share_of_matrix_product'] == pytest.approx(30 * 6e9 / (2 * 450e9))


def test_input_has_no_operations_and_is_divided_among_cores():
  found, report, _ = timed(flops=(None, None))
  rows.add_shares(found, report['rows'], {})
  assert report['rows']['ours']['images_per_second_per_core']['turns'] == [5, 20, 15]
  assert report['rows']['ours']['cores'] == 2
  assert report['ratios'][0]['by_flops'] is None


@pytest.mark.parametrize('seconds', [0.0, -1.0, 1e300, math.nan, math.inf])
def test_turns_that_never_end_are_refused(seconds):
  with pytest.raises(UsageError, match=r'^--seconds: .* is not over 0 and up to 3,600$'):
    measure.check_seconds(seconds)
