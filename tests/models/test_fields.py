"""Values against the types and ranges of a dataclass's fields."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from vit_jax.errors import FieldError
from vit_jax.models import fields
from vit_jax.ranges import Count, Fraction, NonNegative, Positive, Rate, Seed, Size


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: Rate = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
  name: str = 'outer'
  count: Count = 1
  seed: Seed = 0
  free: float = 0.0
  positive: Positive = 1.0
  optional: NonNegative | None = None
  size: Size = ()
  weights: tuple[Fraction, ...] = ()
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  own: Mapping = dataclasses.field(default_factory=dict)
  inner: Inner = Inner()


def test_defaults_are_of_groups_and_of_types_in_a_range():
  config = fields.defaults(Outer)
  assert fields.plain(config) == dataclasses.asdict(Outer())
  assert config.get_type('optional') is float
  assert config.options is not fields.defaults(Outer).options


@pytest.mark.parametrize(
  'given',
  [
    {'count': 2**31 - 1, 'seed': 2**63 - 1, 'positive': 1e-30, 'optional': 0},
    {'count': np.int64(3), 'free': np.float32(2.5)},
    {'size': [8, 8], 'weights': (0, 0.5, 1.0)},
    {'optional': None, 'size': (8,), 'inner': {'rate': 0}},
    {'unknown': 3, 'inner': {'unknown': 4}, 'own': {'bytes': 2**40}},
  ],
)
def test_what_is_allowed(given):
  fields.check_given(Outer, given)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'count': 0}, 'count: 0 is not a whole number from 1 on'),
    ({'count': 2.0}, 'count: 2.0 is not a whole number from 1 on'),
    ({'count': True}, 'count: True is not a whole number from 1 on'),
    ({'count': 10**10}, 'count: 10000000000 is not a whole number of at most 2147483647'),
    ({'seed': 2**63}, f'seed: {2**63} is not a whole number from 0 to {2**63 - 1}'),
    ({'free': math.nan}, 'free: nan is not a finite number of at most 3.4e+38'),
    ({'free': -1e300}, 'free: -1e+300 is not a finite number of at most 3.4e+38'),
    ({'positive': math.inf}, 'positive: inf is not a finite number of at most 3.4e+38'),
    ({'positive': 0.0}, 'positive: 0.0 is not a number above 0'),
    ({'optional': -0.1}, 'optional: -0.1 is not a number from 0 on or None'),
    (
      {'size': (8, 0)},
      'size: (8, 0) is not () or a tuple of 1, of each item a whole number from 1 to 8192 or '
      'a tuple of 2, of each item a whole number from 1 to 8192',
    ),
    ({'weights': (0.5, 2)}, 'weights: (0.5, 2) is not a tuple, of each item a number from 0 to 1'),
    ({'options': {'a': (1, math.nan)}}, 'options.a: nan is not a finite number of at most 3.4e+38'),
    ({'inner': {'rate': 1.0}}, 'inner.rate: 1.0 is not a number from 0 to below 1'),
    ({'inner': 3}, 'inner: 3 is not a dict of rate'),
    ({'name': 3}, 'name: 3 is not a text'),
  ],
)
def test_what_is_not(given, message):
  with pytest.raises(FieldError) as error:
    fields.check_given(Outer, given)
  assert str(error.value) == message


def test_an_instance_is_checked_where_it_has_ranges():
  fields.check_ranges(Outer(name=3, free=math.nan, count=np.int64(4), size=[8]))
  for changes in ({'count': 0}, {'positive': math.nan}, {'weights': (2.0,)}):
    with pytest.raises(FieldError, match=rf'^{next(iter(changes))}: .* is not '):
      fields.check_ranges(Outer(**changes))
