"""`Table`: one backbone in one format; `Source`: what a format has read of a file or folder.

A format knows bytes and metadata, of any backbone, and gives a `Source`. A table knows the names of
one backbone's tensors, and derives the model's config from them and from the metadata. The tables
are in the folder `tables`.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from vit_jax import models
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig, Preprocessing
from vit_jax.models import fields as fields_lib
from vit_jax.models.backbone import Shape
from vit_jax.models.config import check_class_names, check_image_size
from vit_jax.models.variables import Variables
from vit_jax.regular_files import parse_json, reading
from vit_jax.weights import files, rules
from vit_jax.weights.rules import Module

# Entries of a model config that no parameter depends on, whatever the backbone.
IMAGES = ('image_size', 'num_frames', 'num_points', 'class_names', 'preprocess')
# Fields of `Preprocessing` that no other library's files have words for.
_OWN_WORDS = ('rounding', 'frame_stride', 'temporal_views', 'spatial_crops')


# Fields that count layers, each of which has tensors.
_DEPTHS = ('num_layers', 'depths')
_MOST_SIZE = 2**16  # that any field may have, of however few tensors
_MOST_PIXELS = 2**27  # of an input
_MOST_VALUES = 2**31  # of a table with a row for each of its positions


@dataclasses.dataclass(frozen=True)
class Source:
  """What a format has read.

  Attributes:
    path: of the tensors, for messages.
    tensors: name -> array.
    entries: of the model config, stated beside the tensors and not checked yet; with `name`, that
      of the backbone, where this project wrote them.
    their_config: config.json; None where the format has none.
    entries_path: of `entries` and `their_config`, for messages; None where it is `path`.
    table: whose tensors they are, where that need not be told from them.
  """

  path: object
  tensors: files.Tensors
  entries: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  their_config: Mapping[str, Any] | None = None
  entries_path: object = None
  table: 'Table | None' = None

  def replace(self, **changes: Any) -> Self:
    """Returns a copy with other values in some fields."""
    return dataclasses.replace(self, **changes)

  @property
  def metadata_path(self) -> object:
    """The path of what is stated beside the tensors."""
    return self.path if self.entries_path is None else self.entries_path


class Known(NamedTuple):
  """Weights that are known by a name.

  Attributes:
    name: as their library has it; as in `Table.published`.
    source: the format, or 'vit_jax'.
    refused: why they don't open; None where they do.
  """

  name: str
  source: str
  refused: str | None = None


class Table:
  """Base class: the tensors of one backbone in one format.

  A subclass has the attributes, `describe` and `modules`; the rest is for what differs.

  Attributes:
    format: a key of `formats.FORMATS`.
    models: names in `models.BACKBONES`.
    title: what the format calls the model, as "timm's VisionTransformer".
    marks: the tensors that identify the model: name, as `canonical` returns it -> number of axes.
    stated: the backbone's fields that can't be read off its tensors. This project writes them into
      the metadata of a file, and callers of `weights.load` may give them.
    separator: between the modules in a tensor's name.
    yields: whether a file that has the marks of another table, too, is the other's.
    foreign: what models of the format may have, and this one hasn't, for messages: a regular
      expression, searched for in tensors' names -> the feature in words.
    published: what the format calls published weights of the backbone; * stands for any letters.
    entry: of a pickled file, the one that holds the tensors, in formats where files have one.
  """

  format: ClassVar[str]
  models: ClassVar[tuple[str, ...]]
  title: ClassVar[str]
  marks: ClassVar[Mapping[str, int]]
  stated: ClassVar[tuple[str, ...]] = ()
  separator: ClassVar[str] = '.'
  yields: ClassVar[bool] = False
  foreign: ClassVar[Mapping[str, str]] = {}
  published: ClassVar[Collection[str]] = ()
  entry: ClassVar[str] = 'state_dict'

  # Which files are this table's.

  def owns_config(self, config: Mapping[str, Any]) -> bool:
    """Whether a config.json may be of this model."""
    del config
    return False

  def claims(self, config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of this model for certain, whatever tensors there are."""
    del config
    return False

  def canonical(self, name: str) -> str:
    """Returns the one name that is used here for a tensor that several have been used for."""
    return name

  def missing_mark(self, names: Iterable[str]) -> str | None:
    """Returns a tensor that the model has and that isn't among the names; None where all are."""
    names = {self.canonical(name) for name in names}
    return next((mark for mark in self.marks if mark not in names), None)

  def fits(self, tensors: files.Tensors) -> bool:
    """Whether tensors that have its marks' names, as another model's may, are this model's."""
    tensors = {self.canonical(name): array for name, array in tensors.items()}
    return all(tensors[mark].ndim == rank for mark, rank in self.marks.items())

  def known(self) -> Iterable[Known]:
    """Returns the weights that the format has names for, of this backbone."""
    return [Known(name, self.format) for name in self.published]

  # Reading.

  def canonical_tensors(self, source: Source) -> files.Tensors:
    """Returns the tensors of a source by their canonical names.

    Raises:
      UsageError: two of them have one canonical name.
    """
    names: dict[str, str] = {}
    for name in source.tensors:
      if (other := names.setdefault(self.canonical(name), name)) != name:
        raise UsageError(f'{source.path}: {other!r} and {name!r} are one tensor of {self.title}')
    return {canonical: source.tensors[name] for canonical, name in names.items()}

  def tidy(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> files.Tensors:
    """Returns the tensors without what isn't read, and with what the models here always have.

    Args:
      tensors: by their canonical names; may be changed.
      entries: of the model config, as the file states them and the caller knows them.
      source: that they are of.
    """
    del entries, source
    return tensors

  def read_config(self, source: Source) -> Mapping[str, Any]:
    """Returns entries of the model config that config.json states and the format can't read."""
    del source
    return {}

  def describe(
    self, tensors: files.Tensors, entries: Mapping[str, Any], source: Source
  ) -> dict[str, Any]:
    """Returns the model config, as `ModelConfig.from_dict` takes it.

    Args: those of `tidy`, which has returned the tensors. Entries stand before what is told here.

    Raises:
      FieldError: for what the caller has to settle.
      UsageError: these aren't the tensors of such a model.
    """
    raise NotImplementedError

  def modules(self, config: ModelConfig, names: Collection[str] = ()) -> Iterable[Module]:
    """Returns modules and their names in this format; may include ones that the model lacks.

    Args:
      config: of the model.
      names: of the tensors in a file that is read, where there are several ways to name them.
    """
    raise NotImplementedError

  def embeds(self, config: ModelConfig) -> bool:
    """Whether it read a model whose outputs are embeddings of images, and no scores of classes."""
    del config
    return False

  # Writing.

  def writes(self, config: ModelConfig) -> bool:
    """Whether it is this table that a model is written by; not where a task's head is on it."""
    return config.model is config.backbone and config.name in self.models

  def check_place(self, config: ModelConfig, path: object) -> None:
    """Raises UsageError for a model with a field's value that the format has no place for."""
    del config, path

  def finish(self, tensors: files.Tensors, config: ModelConfig) -> files.Tensors:
    """Returns the tensors as they are written: with names and tensors that only others read."""
    del config
    return tensors

  def their_config(self, config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of config.json, in formats that have it."""
    raise NotImplementedError

  # What all tables do with these.

  def load(
    self, source: Source, known: Mapping[str, Any], allow: str | None
  ) -> tuple[Variables, ModelConfig]:
    """Returns what `weights.load` does.

    Args:
      source: of this model.
      known: entries of the model config that the caller gives.
      allow: as for `rules.check`.

    Raises:
      UsageError: the tensors aren't such a model's, don't say enough, or don't fit.
    """
    tensors = self.canonical_tensors(source)
    for mark in self.marks:
      shape_of(tensors, mark, self.marks[mark], source.path, self.title)
    self.check_overrides(known, source)
    entries = self.metadata_entries(source)
    open_fields = {n: v for n, v in known.items() if n in (*entries, *self.stated, *IMAGES)}
    open_fields = check_entries(open_fields, entries.get('name') or self.models[0])
    entries = combine(entries, open_fields, source.metadata_path)
    tensors = self.tidy(tensors, entries, source)
    with errors_of_file(source.metadata_path, known):
      described = self.describe(tensors, entries, source)
      told = {n: v for n, v in described.items() if n not in entries}
      others = {n: v for n, v in known.items() if n not in entries}
      check_sizes(described, tensors)
      config = ModelConfig.from_dict(described | combine(told, others, source.path))
      check_positions(config)
      shapes = variable_shapes(config)
    found = rules.expand(self.modules(config, tensors.keys()), self.separator)
    return rules.to_ours(tensors, found, shapes, source.path, allow, self.foreign), config

  def convert(
    self, variables: Variables, config: ModelConfig, path: object, allow: str | None
  ) -> files.Tensors:
    """Returns a model's tensors for a file at `path`.

    Raises:
      UsageError: the format has no place for the model, or variables don't fit.
    """
    self.check_place(config, path)
    found = rules.expand(self.modules(config), self.separator)
    tensors = rules.to_theirs(variables, found, variable_shapes(config), path, allow)
    return self.finish(tensors, config)

  def own_config(self, config: ModelConfig) -> dict[str, Any]:
    """Returns the entries of a model config that a file states about itself."""
    entries = config.to_dict()
    return {n: entries[n] for n in ('name', *self.stated, *IMAGES) if n in entries}

  def metadata_entries(self, source: Source) -> dict[str, Any]:
    """Returns the entries that a source states, of the right types.

    Raises:
      UsageError: they aren't, or are of another model.
    """
    entries = dict(source.entries)
    if 'name' in entries and entries['name'] not in self.models:
      names = ' or '.join(self.models)
      raise UsageError(f'{source.metadata_path}: its model config is not one of a model {names}')
    entries = {n: v for n, v in entries.items() if n in (*self.stated, *IMAGES)}
    with errors_of_file(source.metadata_path):
      return check_entries({**entries, **self.read_config(source)}, self.models[0])

  def check_overrides(self, known: Mapping[str, Any], source: Source) -> None:
    """Raises FieldError for what the caller gives and the model hasn't."""
    fields = {*fields_lib.names(models.backbone(self.models[0])), *IMAGES}
    for name in sorted(known.keys() - fields):
      raise FieldError(name, f'{known[name]!r}, but {source.path} is {self.title}, without that')


def variable_shapes(config: ModelConfig) -> Mapping[str, Shape]:
  """Returns path -> shape of a model's variables."""
  shaping = config.replace(class_names=None, preprocess=None, origin=None)
  return _trace(json.dumps(shaping.to_dict(), sort_keys=True))


@functools.lru_cache(maxsize=16)  # reading and writing a file ask several times
def _trace(config: str) -> Mapping[str, Shape]:
  return types.MappingProxyType(ModelConfig.from_dict(json.loads(config)).variable_shapes())


def check_entries(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
  """Returns entries of a model config, some of them, in the types that it has.

  Args:
    entries: as read from a file.
    name: of the backbone.

  Raises:
    FieldError: an entry has another type.
  """
  cls = models.backbone(name)
  fields = {n: v for n, v in entries.items() if n not in IMAGES and v is not None}
  checked = {**entries, **fields_lib.check(cls, fields, fields_lib.names(cls))}
  for entry, check in (('image_size', check_image_size), ('class_names', check_class_names)):
    if entries.get(entry) is not None:
      checked[entry] = check(entries[entry])
  preprocess = entries.get('preprocess')
  if preprocess is not None and not isinstance(preprocess, Preprocessing):
    checked['preprocess'] = Preprocessing.from_dict(preprocess)
  return checked


def check_sizes(entries: Mapping[str, Any], tensors: files.Tensors) -> None:
  """Raises FieldError for a number that no model of such tensors has, before one is made.

  Args:
    entries: of its model config, images and the number of classes aside.
    tensors: of it.
  """
  most = max(_MOST_SIZE, sum(array.size for array in tensors.values()))
  for field, value in entries.items():
    allowed = len(tensors) if field in _DEPTHS else most
    numbers = () if field in IMAGES else _numbers(value)
    if (wrong := next((n for n in numbers if not 0 <= n <= allowed), None)) is not None:
      problem = 'is negative' if wrong < 0 else 'is more than a file of this size can hold'
      raise FieldError(field, f'{wrong} {problem}')


def _numbers(value: Any) -> Iterator[int]:
  """Returns the whole numbers in a value, however deep."""
  if isinstance(value, Mapping):
    value = tuple(value.values())
  if isinstance(value, list | tuple):
    yield from itertools.chain.from_iterable(map(_numbers, value))
  elif type(value) is int:
    yield value


def check_positions(config: ModelConfig) -> None:
  """Raises FieldError for inputs of a size whose tables of positions would fill the memory."""
  size = config.input_size or config.image_size or ()
  layout, widest = None, max(_numbers(config.backbone.config()), default=1)
  if math.prod(size) <= _MOST_PIXELS and config.seen_size:  # a layout may list the tokens
    layout = config.backbone.layout(config.seen_size)
  values = widest * math.prod(layout.grid) if layout else 0
  if math.prod(size) > _MOST_PIXELS or values > _MOST_VALUES:
    raise FieldError('image_size', f'{"x".join(map(str, size))} is larger than is read')


def with_own_words(preprocess: Preprocessing, own: Any, path: object) -> Preprocessing:
  """Returns what another library's file states, with what this project wrote beside it.

  Args:
    preprocess: what the file states.
    own: `Preprocessing.to_dict` of what it was written from; None for nothing.
    path: of what this project wrote, for messages.

  Raises:
    UsageError: it is something else.
  """
  if own is None:
    return preprocess
  with errors_of_file(path):
    own = Preprocessing.from_dict(own)
    return dataclasses.replace(preprocess, **{name: getattr(own, name) for name in _OWN_WORDS})


def combine(stated: Mapping[str, Any], known: Mapping[str, Any], path: object) -> dict[str, Any]:
  """Returns the entries of a model config in a file's metadata, with those that the caller gives.

  In class names and preprocessing, on which no parameter depends, the caller's take precedence.

  Raises:
    FieldError: the two contradict each other in something else.
  """
  known = {name: fields_lib.plain(value) for name, value in known.items()}
  for name in (stated.keys() & known.keys()) - {'class_names', 'preprocess'}:
    theirs, ours = stated[name], known[name]
    if theirs is not None and not _is_same(theirs, ours):
      raise FieldError(name, f'{ours!r}, but {path} says {theirs!r}')
  return {**stated, **known}


def _is_same(first: Any, second: Any) -> bool:
  numbers = all(type(value) in (int, float) for value in (first, second))
  return first == second or (numbers and math.isclose(first, second, rel_tol=1e-6))


@contextlib.contextmanager
def errors_of_file(path: object, known: Collection[str] = ()) -> Iterator[None]:
  """Makes errors about fields those of the file at `path`, but for fields that the caller gave.

  Args:
    path: of the file.
    known: names of the caller's fields, whose errors stay FieldErrors. So do those of `Unsettled`.
  """
  try:
    yield
  except Unsettled:
    raise
  except FieldError as e:
    if e.field.partition('.')[0] in known:
      raise
    raise UsageError(f'{path}: {e}') from e


class Unsettled(FieldError):
  """The file leaves a field open, which the caller has to give."""


def choice(source: Source, name: str, value: Any, allowed: Mapping[str, Any]) -> Any:
  """Returns a value of config.json as it is called here.

  Args:
    source: with a config.json.
    name: of the value, for messages.
    value: in it.
    allowed: value there -> value here.

  Raises:
    UsageError: it is another value.
  """
  if not isinstance(value, str) or value not in allowed:
    raise UsageError(
      f'{source.metadata_path}: {name}: {value!r} is not one of {", ".join(allowed)}'
    )
  return allowed[value]


def shape_of(
  tensors: Mapping[str, np.ndarray], name: str, rank: int, path: object, title: str
) -> Shape:
  """Returns the shape of a tensor that a model needs.

  Raises:
    UsageError: it isn't there, has another number of axes, or no elements.
  """
  if name not in tensors:
    raise UsageError(f'{path}: {not_such(title, name)}; {some_names(tensors)}')
  shape = tensors[name].shape
  if len(shape) != rank or not all(shape):
    raise UsageError(f'{path}: not {title}: {name} has the shape {shape}, not one of {rank} axes')
  return shape


def length_of(tensors: Mapping[str, np.ndarray], name: str, path: object, title: str) -> int | None:
  """Returns the length of a vector that a model may have; None where it isn't there.

  Raises:
    UsageError: it has another number of axes, or no elements.
  """
  return shape_of(tensors, name, 1, path, title)[0] if name in tensors else None


def not_such(title: str, missing: str) -> str:
  """Returns, in words, that tensors aren't those of a model."""
  return f'not {title}: no {missing!r}'


def some_names(names: Iterable[str]) -> str:
  """Returns some of the names of tensors, in words."""
  return f'its tensors are {", ".join(sorted(names)[:4]) or "none at all"}, ...'


def read_own_config(text: object, path: object) -> dict[str, Any]:
  """Returns the entries of a model config that a file states about itself.

  Args:
    text: JSON, as `Table.own_config` gives it; None where a file states nothing.
    path: of the file, for messages.

  Raises:
    UsageError: it is something else.
  """
  if text is None:
    return {}
  with reading(path, 'a file with a model config'):
    entries = parse_json(text)
  if not isinstance(entries, dict):
    raise UsageError(f'{path}: its model config is not an object')
  return {'name': None, **entries}
