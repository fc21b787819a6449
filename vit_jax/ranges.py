"""Numbers in a range, as types: `Positive`, `Count` and others, for the fields of dataclasses.

`vit_jax.models.fields` checks values against them. To type checkers they are plain int and float.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

# What arrays hold: no number in a range is beyond, but where the range says so.
MAX_INT = 2**31 - 1
MAX_FLOAT = 3.4028234663852886e38


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers from `low` to `high`, to annotate int, float or a dict of such with.

  Attributes:
    low: the least.
    high: the largest; infinity stands for `MAX_INT` or `MAX_FLOAT`.
    above: whether `low` itself is left out.
    below: whether `high` itself is left out.
  """

  low: float
  high: float = math.inf
  above: bool = False
  below: bool = False

  def __contains__(self, value: float) -> bool:
    least = value > self.low if self.above else value >= self.low
    most = value < self.high if self.below else value <= self.high
    return least and most and value <= MAX_FLOAT

  def __str__(self) -> str:
    if self.low == -math.inf:
      return ''
    if self.high == math.inf:
      return f'above {self.low}' if self.above else f'from {self.low} on'
    if self.above:
      return f'above {self.low} and {"below" if self.below else "up to"} {self.high}'
    return f'from {self.low} to {"below " if self.below else ""}{self.high}'


_ANY = Range(-math.inf)  # that arrays hold

Real = Annotated[float, _ANY]
Entries = Annotated[Mapping[str, Any], _ANY]
Count = Annotated[int, Range(1)]
Number = Annotated[int, Range(0)]  # which for 0 means nothing, or something else
Seed = Annotated[int, Range(0, 2**63 - 1)]
# Of features and channels. Beyond, the entries of a product of some can't be counted in 64 bits.
Width = Annotated[int, Range(1, 2**24)]
# Layers are traced one by one, and no known model has as many.
Layers = Annotated[int, Range(1, 1000)]
Side = Annotated[int, Range(1, 2**16)]  # of an image, in pixels; larger than any that is trained on
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Factor = Annotated[float, Range(0, 1000, above=True)]  # of a width
Fraction = Annotated[float, Range(0, 1)]
PositiveFraction = Annotated[float, Range(0, 1, above=True)]
Rate = Annotated[float, Range(0, 1, below=True)]  # of what must not be all
Share = Annotated[float, Range(0, 1, above=True, below=True)]

# (height, width), or the side of a square; () stands for another size, such as that of files.
Size = tuple[()] | tuple[Side] | tuple[Side, Side]
