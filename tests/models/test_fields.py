"""Values against the types and ranges of a dataclass's fields."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
import pytest

from vit_jax.errors import FieldError
from vit_jax.models import fields
from vit_jax.ranges import Count, Entries, Fraction, NonNegative, Positive, Rate, Real, Seed, Size


@dataclasses.dataclass(frozen=True)
class Inner(fields.Section):
  rate: Rate = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
  name: str = 'outer'
  count: Count = 1
  seed: Seed = 0
  real: Real = 0.0
  free: float = 1e300
  large: int = 2**40
  positive: Positive = 1.0
  optional: NonNegative | None = None
  size: Size = ()
  weights: tuple[Fraction, ...] = ()
  options: Entries = dataclasses.field(default_factory=dict)
  free_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  own: Mapping = dataclasses.field(default_factory=dict)
  inner: Inner = Inner()


class Stage(nn.Module):
  width: int


_STAGE = Stage(3)


@dataclasses.dataclass(frozen=True)
class Own:
  """Whose fields aren't to be changed one by one: it is no section."""

  norm: Any = nn.LayerNorm
  stage: Any = _STAGE
  outer: Outer = Outer()
  sides: tuple[int, ...] = dataclasses.field(default_factory=tuple)


def test_defaults_are_of_groups_and_of_types_in_a_range():
  config = fields.defaults(Outer)
  assert fields.plain(config) == dataclasses.asdict(Outer())
  assert config.get_type('optional') is float
  assert config.options is not fields.defaults(Outer).options


def test_defaults_of_no_section_stay_as_they_are_and_are_valid():
  config = fields.defaults(Own)
  assert (config.norm, config.stage, config.outer) == (nn.LayerNorm, _STAGE, Outer())
  assert fields.check(Own, config)['outer'] == Outer()
  assert not fields.check(Own, {})  # each has a default, or a function that makes it


@pytest.mark.parametrize(
  'given',
  [
    {'count': 2**31 - 1, 'seed': 2**63 - 1, 'positive': 1e-30, 'optional': 0},
    {'count': np.int64(3), 'real': np.float32(2.5), 'free': -1e300, 'large': 2**50},
    {'size': [8, 8], 'weights': (0, 0.5, 1.0)},
    {'optional': None, 'size': (8,), 'inner': {'rate': 0}},
    {'unknown': 3, 'inner': {'unknown': 4}, 'own': {'bytes': 2**40}},
    {'free_options': {'bytes': 2**40}},
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
    ({'count': 10**10}, 'count: 10000000000 is larger than arrays hold, which is 2147483647'),
    ({'seed': 2**63}, f'seed: {2**63} is not a whole number from 0 to {2**63 - 1}'),
    ({'free': math.nan}, 'free: nan is not a finite number'),
    ({'real': -1e300}, 'real: -1e+300 is larger than arrays hold, which is 3.402823466e+38'),
    ({'positive': math.inf}, 'positive: inf is not a finite number'),
    ({'positive': 0.0}, 'positive: 0.0 is not a number above 0'),
    ({'optional': -0.1}, 'optional: -0.1 is not a number from 0 on or None'),
    (
      {'size': (8, 0)},
      'size: (8, 0) is not () or 1 or 2 whole numbers from 1 to 65536',
    ),
    ({'weights': (0.5, 2)}, 'weights: (0.5, 2) is not a tuple of numbers from 0 to 1'),
    ({'options': {'a': (1, math.nan)}}, 'options.a: nan is not a finite number'),
    (
      {'options': {'a': {'b': 2**40}}},
      f'options.a.b: {2**40} is larger than arrays hold, which is 2147483647',
    ),
    ({'options': 3}, 'options: 3 is not a dict'),
    ({'free_options': {'a': math.inf}}, 'free_options.a: inf is not a finite number'),
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
  fields.check_ranges(Outer(name=3, free=math.nan, large=2**50, count=np.int64(4), size=[8]))
  for changes in ({'count': 0}, {'positive': math.nan}, {'weights': (2.0,)}):
    with pytest.raises(FieldError, match=rf'^{next(iter(changes))}: .* is not '):
      fields.check_ranges(Outer(**changes))
