"""Fits loaded weights to another model: what the backbone resizes, and which heads stay."""

import functools
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from vit_jax import models
from vit_jax.errors import FieldError, check_choice
from vit_jax.models import ModelConfig
from vit_jax.models import fields as fields_lib
from vit_jax.models.backbone import Shape
from vit_jax.models.heads.head import Head
from vit_jax.models.variables import Variables
from vit_jax.weights import rules

HEADS = ('auto', 'new', 'keep')
RESIZE = 'big_vision'  # how positions are interpolated, by any backbone

_IN_BACKBONE = re.compile(r'^(batch_stats/)?backbone/')
_STATISTICS = 'batch_stats/'
_OWN_HEAD = 'output_projection'  # of a backbone without a task's head


def adapt(
  variables: Variables,
  config: ModelConfig,
  target: ModelConfig,
  path: object,
  *,
  head: str = 'auto',
  allow: str | None = None,
  resize: str = RESIZE,
) -> tuple[Variables, list[str]]:
  """Fits the weights of a model, as `weights.load` returns them, to another.

  The target's backbone resizes what depends on sizes, and tells which of its modules may differ
  (`Backbone.fit`); a task's head is put on the backbone of either, whatever the other's head is.

  Args:
    variables: of the source.
    config: of the source.
    target: of the model that they are for.
    path: where they are from, for messages.
    head: of the modules that read the features, 'keep' takes them over, which they have to fit;
      'new' starts them anew; 'auto' takes over those that compute the same of the same classes,
      unless what they read starts anew or is left out. Classes are the same where their names are,
      or, where either side has none, their number.
    allow: a regular expression; variables whose whole path, without `backbone/`, it matches may be
      missing, left over or of another shape: they are left out.
    resize: how position embeddings are interpolated, as big_vision does or as one of the backbone's
      `RESIZES`.

  Returns:
    (variables, notes): the target's that come from the source, float32 and in its shapes; and a
    line for everything that was changed, left out or starts anew.

  Raises:
    FieldError: for `head`, `allow` or `resize`, or a field of the target that contradicts the
      source's.
    UsageError: the models have other parameters.
  """
  check_choice('head', head, HEADS)
  check_choice('resize', resize, (RESIZE, *target.backbone.RESIZES))
  _check_function(config, target, path)
  ours = _Parts(config, rules.flatten(variables))
  theirs = _Parts(target, target.variable_shapes())
  seen = (c.replace(image_size=c.seen_size) for c in (config, target))
  options = {} if resize == RESIZE else {'resize': resize}
  fitted = target.backbone.fit(ours.backbone, theirs.backbone, *seen, path, **options)
  notes = list(fitted.notes)

  replaced = list(fitted.replaced)
  for module in dict.fromkeys([*theirs.heads(), *ours.heads()]):
    if not _keeps(module, head, ours, theirs, replaced, path):
      replaced.append(module)
  for module in replaced:
    label = 'head' if module == _OWN_HEAD else module
    classes = f', {target.num_classes} classes' if module in theirs.of_classes else ''
    is_new = _parts(theirs.all, module)
    notes.append(f'{label}: new{classes}' if is_new else f'{label}: left out')

  flat = _without(fitted.arrays | ours.head, replaced)
  expected = _without(theirs.all, replaced)
  fitting = rules.check(flat, expected, path, allow)
  for names, fate in (
    (sorted(expected.keys() - fitting.keys()), 'new'),
    (sorted(flat.keys() - expected.keys()), 'left out'),
  ):
    if names:
      more = f' and {len(names) - 3} more' if len(names) > 3 else ''
      notes.append(f'{", ".join(names[:3])}{more}: {fate}, as allowed')
  return models.unflatten({theirs.full[name]: a for name, a in fitting.items()}), notes


def _check_function(config: ModelConfig, target: ModelConfig, path: object) -> None:
  """Raises FieldError where the target would compute something else with the same parameters."""
  if not target.backbone.takes_weights_of(type(config.backbone)):
    raise FieldError('name', f'{target.name!r}, but {path} has weights of a {config.name!r}')
  for field in target.backbone.FUNCTION_FIELDS:
    ours = getattr(target.backbone, field)
    theirs = getattr(config.backbone, field, ours)
    if fields_lib.plain(theirs) == fields_lib.plain(ours):
      continue
    numbers = all(isinstance(value, float) for value in (theirs, ours))
    if not (numbers and math.isclose(theirs, ours, rel_tol=1e-6)):
      raise FieldError(field, f'{ours!r}, but {path} has weights for {theirs!r}')


class _Parts:
  """A model's variables, or their shapes, by paths without `backbone/`.

  Attributes:
    config: of the model.
    full: path -> path in the model.
    backbone: path -> leaf of the backbone's.
    head: path -> leaf of the head's.
    all: both.
  """

  def __init__(self, config: ModelConfig, flat: Mapping[str, Any]):
    self.config = config
    self.full = {_IN_BACKBONE.sub(r'\1', name): name for name in flat}
    self.all = {name: flat[full] for name, full in self.full.items()}
    self.head = {n: leaf for n, leaf in self.all.items() if self._is_head(n)}
    self.backbone = {n: leaf for n, leaf in self.all.items() if n not in self.head}

  def _is_head(self, name: str) -> bool:
    return self.config.model.is_head(self.full[name].removeprefix(_STATISTICS))

  @functools.cached_property
  def of_classes(self) -> set[str]:
    """The head's modules whose outputs are classes: with more of them, their shapes differ.

    Of a backbone's own head all count, so that it starts anew as a whole.
    """
    tops = {_top(name) for name in self.head}
    if not isinstance(self.config.model, Head):
      return tops
    more = self.config.model.clone(num_classes=self.config.num_classes + 1)
    shapes = more.variable_shapes(self.config.input_size, self.config.channels)
    return {top for top in tops if _shapes(_parts(self.head, top)) != _parts(shapes, top)}

  def heads(self) -> list[str]:
    """Returns the head's modules, those of classes first."""
    return sorted({_top(name) for name in self.head}, key=lambda m: (m not in self.of_classes, m))


def _keeps(
  module: str, head: str, ours: _Parts, theirs: _Parts, replaced: Collection[str], path: object
) -> bool:
  """Whether the target takes a module of the head over from the source; see `adapt`."""
  old, new = _shapes(_parts(ours.head, module)), _parts(theirs.head, module)
  if head == 'keep' and old != new:
    kernels = [
      ', '.join(_text(shape) for name, shape in parts.items() if name.endswith('kernel')) or 'none'
      for parts in (old, new)
    ]
    raise FieldError(
      'head', f"'keep', but the head in {path} is {kernels[0]}, that of this model {kernels[1]}"
    )
  if head == 'keep':
    return True
  if head == 'new' or not (old and new):
    return False
  if set(theirs.config.backbone.HEAD_READS) & set(replaced):
    return False
  if not _is_alike(ours.config.model, theirs.config.model, module, theirs.heads()):
    return False
  if module not in theirs.of_classes:
    return True
  names = [parts.config.class_names for parts in (ours, theirs)]
  if None in names:
    return ours.config.num_classes == theirs.config.num_classes
  return names[0] == names[1]


def _is_alike(old: nn.Module, new: nn.Module, module: str, modules: Collection[str]) -> bool:
  """Whether a module of a task's head computes the same with the same parameters.

  An option that begins as one of the modules does, as `box_sigmoid` for `box_head`, is of that
  module alone. Dropout is of training alone.
  """
  if not isinstance(new, Head):
    return True
  if type(old) is not type(new):
    return False
  owners = {top.partition('_')[0] for top in modules} - {module.partition('_')[0]}
  return all(
    getattr(old, name) == getattr(new, name)
    for name in fields_lib.names(type(new))
    if name.partition('_')[0] not in owners and not name.endswith('dropout_rate')
  )


def _top(name: str) -> str:
  """Returns the module that a path begins with."""
  return name.removeprefix(_STATISTICS).partition('/')[0]


def _is_in(name: str, module: str) -> bool:
  return f'{name.removeprefix(_STATISTICS)}/'.startswith(f'{module}/')


def _parts(flat: Mapping[str, Any], module: str) -> dict[str, Any]:
  """Returns those entries that are `module` or in it."""
  return {name: leaf for name, leaf in flat.items() if _is_in(name, module)}


def _shapes(flat: Mapping[str, np.ndarray | Shape]) -> dict[str, Shape]:
  return {name: getattr(leaf, 'shape', leaf) for name, leaf in flat.items()}


def _without(flat: Mapping[str, Any], modules: Collection[str]) -> dict[str, Any]:
  """Returns those entries that are in none of the modules."""
  return {n: leaf for n, leaf in flat.items() if not any(_is_in(n, m) for m in modules)}


def _text(shape: Shape) -> str:
  return 'x'.join(map(str, shape))
