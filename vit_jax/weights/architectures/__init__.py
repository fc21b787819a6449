"""What timm's architectures are made of, by their names: timm.json, which `generate_timm` writes.

Functions and classes among the arguments are mappings, {'name': 'LayerNorm', 'eps': 1e-6}.
"""

import fnmatch
import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

from vit_jax.errors import FieldError, nearest

NOT_KNOWN = "is not one of timm's vision transformers, which `convert --list` prints"


class Architecture(NamedTuple):
  """An entry point of timm.

  Attributes:
    name: of it.
    cls: the name of the class that it makes.
    arguments: of the class's constructor, those that are left at their default included.
  """

  name: str
  cls: str
  arguments: Mapping[str, Any]


@functools.cache
def _facts() -> Mapping[str, Any]:
  return json.loads(resources.files(__name__).joinpath('timm.json').read_text())


def names(pattern: str = '*') -> list[str]:
  """Returns the names of timm's architectures, with the tags of their published weights.

  Args:
    pattern: as of a shell. A name fits it with a tag or without.

  Returns:
    'NAME.TAG' of all published weights, and 'NAME' of architectures without any.
  """
  tags = _facts()['tags']
  found = []
  for name in _facts()['architectures']:
    full = [f'{name}.{tag}' for tag in tags.get(name, ())] or [name]
    found += [n for n in full if fnmatch.fnmatch(n, pattern) or fnmatch.fnmatch(name, pattern)]
  return found


@functools.cache
def find(name: str) -> Architecture | None:
  """Returns the architecture of a name, which a tag may follow; None where it isn't known."""
  name = name.partition('.')[0]
  given = dict(_facts()['architectures'].get(name, {}))
  if not given:
    return None
  cls = given.pop('class')
  return Architecture(name, cls, {**defaults(cls), **given})


@functools.cache
def of_class(cls: str) -> tuple[Architecture, ...]:
  """Returns the architectures that make a class."""
  found = _facts()['architectures'].items()
  return tuple(find(name) for name, given in found if given['class'] == cls)


def defaults(cls: str) -> Mapping[str, Any]:
  """Returns the arguments of a class's constructor, with their defaults."""
  return _facts()['classes'][cls]


def config_of(name: str) -> dict[str, Any]:
  """Returns config.json, as the hub has it, of an architecture and the tag of published weights.

  Args:
    name: 'NAME.TAG', or 'NAME', whose images are those of timm's first weights.

  Raises:
    FieldError: for `architecture`, where it isn't known.
  """
  name, _, tag = name.partition('.')
  if find(name) is None:
    close = nearest(name, _facts()['architectures'])
    raise FieldError('architecture', f'{name!r} {NOT_KNOWN}{close}')
  tags = _facts()['tags'].get(name, {})
  if tag and tag not in tags:
    known = ', '.join(tags) or 'without any'
    raise FieldError('architecture', f'{tag!r} is not a tag of {name}, which is {known}')
  stated = tags.get(tag) if tag else next(iter(tags.values()), {})
  return {'architecture': name, 'pretrained_cfg': {**_facts()['metadata'], **stated}}
