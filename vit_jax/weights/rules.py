"""Variable path here <-> tensor name there, with the reshape: `Module`s become `Rule`s.

A table (see `table`) gives the modules of a model. Where one tensor there is several parameters
here (PyTorch's fused query, key and value), they are its parts along axis 0.
"""

import itertools
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.errors import MAX_NAME, FieldError, UsageError, UsageWarning, printable
from vit_jax.models.backbone import Shape
from vit_jax.models.variables import Variables


class Layout(NamedTuple):
  """How an array here becomes one there: runs of axes merge into one, then axes are permuted.

  A table may bring its own layout: any object with these three methods.

  Attributes:
    merge: how many axes here each axis of the merged array takes.
    order: the merged axes in their order there.
  """

  merge: tuple[int, ...]
  order: tuple[int, ...]

  def their_shape(self, ours: Shape) -> Shape:
    """Returns the shape there of an array of shape `ours` here."""
    axes = iter(ours)
    merged = [math.prod(itertools.islice(axes, count)) for count in self.merge]
    return tuple(merged[axis] for axis in self.order)

  def to_theirs(self, array: np.ndarray) -> np.ndarray:
    """Returns the array as it is laid out there."""
    inverse = np.argsort(self.order)
    theirs = self.their_shape(array.shape)
    return array.reshape([theirs[axis] for axis in inverse]).transpose(self.order)

  def to_ours(self, array: np.ndarray, shape: Shape) -> np.ndarray:
    """Returns an array from there, of shape `shape` here."""
    return array.transpose(np.argsort(self.order)).reshape(shape)


class Pointwise(Layout):
  """A dense layer's kernel here, [in, out], where a 1x1 convolution has [out, in, 1, 1]."""

  def their_shape(self, ours: Shape) -> Shape:
    """As of `Layout`."""
    return (*super().their_shape(ours), 1, 1)

  def to_theirs(self, array: np.ndarray) -> np.ndarray:
    """As of `Layout`."""
    return super().to_theirs(array)[:, :, None, None]

  def to_ours(self, array: np.ndarray, shape: Shape) -> np.ndarray:
    """As of `Layout`."""
    return super().to_ours(array[:, :, 0, 0], shape)


class Rule(NamedTuple):
  """One tensor there and the parameters here that it holds; no layout means the same one."""

  ours: tuple[str, ...]
  theirs: str
  layout: Layout | None = None

  def their_shape(self, shapes: Mapping[str, Shape]) -> Shape:
    """Returns the tensor's shape, given those of all parameters here."""
    parts = [self._layout(shapes[name]).their_shape(shapes[name]) for name in self.ours]
    return sum(part[0] for part in parts), *parts[0][1:]

  def to_theirs(self, params: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the tensor, given all parameters here."""
    arrays = [params[name] for name in self.ours]
    return np.concatenate([self._layout(a.shape).to_theirs(a) for a in arrays])

  def to_ours(
    self, tensor: np.ndarray, shapes: Mapping[str, Shape]
  ) -> Iterable[tuple[str, np.ndarray]]:
    """Returns the parameters by name, given the tensor and the shapes here."""
    sizes = [self._layout(shapes[name]).their_shape(shapes[name])[0] for name in self.ours]
    parts = np.split(tensor, np.cumsum(sizes)[:-1])
    for name, part in zip(self.ours, parts, strict=True):
      yield name, self._layout(shapes[name]).to_ours(part, shapes[name])

  def _layout(self, shape: Shape) -> Layout:
    return self.layout or Layout((1,) * len(shape), tuple(range(len(shape))))


class Module(NamedTuple):
  """A module here (or several), its name there, and (leaf here, leaf there, layout)s."""

  ours: str | tuple[str, ...]
  theirs: str
  leaves: Sequence[tuple[str, str, Layout | None]]


def tensor(ours: str, theirs: str) -> Module:
  """Returns the module of a single parameter, which is laid out alike on both sides."""
  our_module, _, our_leaf = ours.rpartition('/')
  their_module, _, their_leaf = theirs.rpartition('.')
  return Module(our_module, their_module, [(our_leaf, their_leaf, None)])


_VECTOR = Layout((1,), (0,))
FLAX_NORM = (('scale', 'scale', None), ('bias', 'bias', None))
FLAX_DENSE = (('kernel', 'kernel', None), ('bias', 'bias', None))
# PyTorch: [out, in], where here it is [in, out], either of them as [heads, width of a head].
NORM = (('scale', 'weight', _VECTOR), ('bias', 'bias', _VECTOR))
DENSE = (('kernel', 'weight', Layout((1, 1), (1, 0))), ('bias', 'bias', _VECTOR))
TO_HEADS = (('kernel', 'weight', Layout((1, 2), (1, 0))), ('bias', 'bias', Layout((2,), (0,))))
FROM_HEADS = (('kernel', 'weight', Layout((2, 1), (1, 0))), ('bias', 'bias', _VECTOR))
# PyTorch's running statistics of batch normalisation.
STATISTICS = (('mean', 'running_mean', _VECTOR), ('var', 'running_var', _VECTOR))
# PyTorch: [out, in, height, width]; here [height, width, in, out].
POINTWISE = (('kernel', 'weight', Pointwise((1, 1), (1, 0))), ('bias', 'bias', _VECTOR))
CONV = (('kernel', 'weight', Layout((1, 1, 1, 1), (3, 2, 0, 1))), ('bias', 'bias', _VECTOR))


def batch_norm(ours: str, theirs: str) -> tuple[Module, Module]:
  """Returns PyTorch's batch normalisation: its parameters and its running statistics."""
  return Module(ours, theirs, NORM), Module(f'batch_stats/{ours}', theirs, STATISTICS)


# Counts of steps beside the statistics, which PyTorch reads where momentum is None alone.
_COUNTER = '.num_batches_tracked'
_MOST_PROBLEMS = 500  # tensors that a message lists


def without_counters(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns tensors without what PyTorch's batch normalisation counts."""
  return {name: array for name, array in tensors.items() if not name.endswith(_COUNTER)}


def with_counters(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns tensors with a count of 0 for each batch normalisation."""
  mean = '.running_mean'
  norms = [name.removesuffix(mean) for name in tensors if name.endswith(mean)]
  return {**tensors, **{f'{norm}{_COUNTER}': np.array(0) for norm in norms}}


def expand(modules: Iterable[Module], separator: str = '.') -> list[Rule]:
  """Returns a rule for each tensor of the modules.

  Args:
    modules: of a model.
    separator: of modules and leaves in the names there.
  """
  rules = []
  for ours, theirs, leaves in modules:
    for our_leaf, their_leaf, layout in leaves:
      names = tuple(
        '/'.join(filter(None, (module, our_leaf)))
        for module in ([ours] if isinstance(ours, str) else ours)
      )
      rules.append(Rule(names, separator.join(filter(None, (theirs, their_leaf))), layout))
  return rules


def to_ours(
  tensors: Mapping[str, np.ndarray],
  rules: Sequence[Rule],
  shapes: Mapping[str, Shape],
  path: object,
  allow: str | None,
  features: Mapping[str, str] = MappingProxyType({}),
) -> Variables:
  """Returns the float32 variables of a model from the tensors of a file.

  Args:
    tensors: name there -> array.
    rules: which tensor holds which variables; rules for variables that the model doesn't have are
      ignored.
    shapes: path -> shape of the model's variables.
    path: the file, for messages.
    allow: as for `check`.
    features: as for `check`.

  Raises:
    UsageError, FieldError: as `check`.
  """
  rules = [rule for rule in rules if shapes.keys() >= set(rule.ours)]
  expected = {rule.theirs: rule.their_shape(shapes) for rule in rules}
  placed = {name for rule in rules for name in rule.ours}
  # What no rule has a tensor for is missing, under its name here.
  expected |= {n: s for n, s in shapes.items() if n not in placed and n not in tensors}
  fitting = check(tensors, expected, path, allow, features)
  flat = {}
  for rule in rules:
    if rule.theirs in fitting:
      flat.update(rule.to_ours(_float32(tensors[rule.theirs]), shapes))
  return models.unflatten(flat)


def to_theirs(
  variables: Variables,
  rules: Sequence[Rule],
  shapes: Mapping[str, Shape],
  path: object,
  allow: str | None,
) -> dict[str, np.ndarray]:
  """Returns name there -> float32 array; the inverse of `to_ours`.

  Raises:
    UsageError, FieldError: as `check`, of variables that the model lacks, or that no rule has a
      place for.
  """
  placed = {name for rule in rules for name in rule.ours}
  expected = {name: shape for name, shape in shapes.items() if name in placed}
  fitting = check(flatten(variables), expected, path, allow)
  return {
    rule.theirs: rule.to_theirs(fitting) for rule in rules if fitting.keys() >= set(rule.ours)
  }


def flatten(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns path -> array on the host, float32 if floating, as `models.flatten` names them."""
  return {name: _float32(np.asarray(a)) for name, a in models.flatten(variables).items()}


def _float32(array: np.ndarray) -> np.ndarray:
  floats = jnp.issubdtype(array.dtype, jnp.floating)
  return np.ascontiguousarray(array, np.float32) if floats else array


def check(
  arrays: Mapping[str, np.ndarray],
  expected: Mapping[str, Shape],
  path: object,
  allow: str | None,
  features: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
  """Returns the arrays that are floats and as expected.

  Args:
    arrays: name -> array.
    expected: name -> shape.
    path: the file, for messages.
    allow: a regular expression; names that it matches whole may be missing, left over, misshapen
      or of another type. A `UsageWarning` says which are left out for that.
    features: regular expression, searched for in names -> in words, what a model with such arrays
      has; of those that aren't expected the error says it.

  Raises:
    FieldError: `allow` isn't a regular expression.
    UsageError: for all other names that are so; the message lists them, and their features.
  """
  try:
    allowed = re.compile(allow or '(?!)')
  except re.error as e:
    raise FieldError('allow', f'{allow!r} is not a regular expression ({e})') from e
  problems, fitting = [], {}
  for name in sorted({*arrays, *expected}):
    if name not in arrays:
      problems.append(('missing', name, '', _text(expected[name])))
    elif name not in expected:
      problems.append(('unexpected', name, _text(arrays[name].shape), ''))
    elif arrays[name].shape != expected[name]:
      problems.append(('misshapen', name, _text(arrays[name].shape), _text(expected[name])))
    elif not jnp.issubdtype(arrays[name].dtype, jnp.floating):
      problems.append(('not floats', name, str(arrays[name].dtype), 'float32'))
    else:
      fitting[name] = arrays[name]
  left_out = [name for _, name, *_ in problems if allowed.fullmatch(name)]
  problems = [row for row in problems if not allowed.fullmatch(row[1])]
  if problems:
    found = features_in([name for what, name, *_ in problems if what == 'unexpected'], features)
    cause = f'{" and ".join(found)} not expected; ' if found else ''
    rows = [('', 'tensor', 'found', 'expected'), *problems[:_MOST_PROBLEMS]]
    rows = [[printable(cell, MAX_NAME) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ['  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if len(problems) > _MOST_PROBLEMS:
      lines.append(f'and {len(problems) - _MOST_PROBLEMS:,} more')
    raise UsageError(f'{path}: {cause}tensors that do not fit: {len(problems)}', *lines)
  if left_out:
    names = ', '.join([*left_out[:3], *['...'][: len(left_out) - 3]])
    warnings.warn(
      f'{path}: tensors left out, as allowed: {len(left_out)} ({names}); outputs differ from those '
      'of the original',
      UsageWarning,
      stacklevel=2,
    )
  return fitting


def features_in(names: Iterable[str], features: Mapping[str, str]) -> list[str]:
  """Returns, in words, what a model with arrays of these names has; `features` as for `check`."""
  lines = '\n'.join(names)
  return [words for pattern, words in features.items() if re.search(pattern, lines, re.M)]


def _text(shape: Shape) -> str:
  return 'x'.join(map(str, shape)) or 'scalar'
