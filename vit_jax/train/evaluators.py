"""Evaluators: what judges a model's features in a run, on data and at a period of their own.

`config.evaluators` has the options of each. An evaluator reads the features that the backbone gives
of labelled examples, prepared as in evaluation, and never the targets of the task: so the task may
be any, with classes or without. Nothing in a run follows from them but through `config.monitor`.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax.data import Preprocess, Source, augment, load_source, resolve_resident
from vit_jax.data.sources import depends_on_dir
from vit_jax.errors import FieldError, check_choice, field_prefix
from vit_jax.models import ModelConfig
from vit_jax.models import fields as fields_lib
from vit_jax.models.features import POOLING, read_features
from vit_jax.tasks import Metric
from vit_jax.train import feeds, step
from vit_jax.train.knn import KNN
from vit_jax.train.linear_probe import LinearProbe

# What config.evaluators has.
EVALUATORS = {'knn': KNN, 'linear': LinearProbe}

_SPLITS = ('train', 'test')


def metrics(config: ConfigDict) -> dict[str, Metric]:
  """Returns the metrics of the evaluators that `config` turns on, by name: 'knn/accuracy'."""
  accuracy = Metric(unit='%', higher_is_better=True, label='accuracy')
  return {f'{name}/accuracy': accuracy for name in EVALUATORS if config.evaluators[name].enabled}


@dataclasses.dataclass(frozen=True)
class _Reading:
  """Which features of which data an evaluator reads; those that read the same share them.

  Attributes:
    name: of the data set, as `dir` and `options` (as pairs) in `config.data`.
    splits: to learn from, and to be judged on; '' for those of the run.
    pooling: as `layer`, for `read_features`.
  """

  name: str
  dir: str
  options: tuple[tuple[str, Any], ...]
  splits: tuple[str, str]
  pooling: str
  layer: int | None

  @classmethod
  def of(cls, data: ConfigDict, options: ConfigDict) -> '_Reading':
    """Returns what an evaluator with `options` reads in a run on `data`."""
    own = options.data
    name = own.name or data.name
    # A folder of images isn't one of TFDS's data sets.
    dir = own.dir or (data.dir if depends_on_dir(name) == depends_on_dir(data.name) else '')
    is_other = (name, dir) != (data.name, data.dir)
    return cls(
      name=name,
      dir=dir,
      options=() if is_other else tuple(fields_lib.plain(data.options).items()),
      splits=tuple(own[f'{s}_split'] or (s if is_other else '') for s in _SPLITS),
      pooling=options.pooling,
      layer=options.layer,
    )


class _Reader:
  """Reads features of both splits of a data set, on all devices."""

  def __init__(self, reading: _Reading, evaluators: 'Evaluators'):
    """Opens the data and checks them.

    Raises:
      FieldError: of a field of the evaluator's options.
      UsageError: a file of the data can't be used.
    """
    self._reading, self._run = reading, evaluators
    self.sources = [self._open(*names) for names in zip(_SPLITS, reading.splits, strict=True)]
    sets = [(source, evaluators.preprocess) for source in self.sources]
    resident = evaluators.config.data.resident
    self._resident, _ = resolve_resident(resident, [*evaluators.beside, *sets], jax.local_devices())
    for source in self.sources:  # nothing is read yet, but every option is checked
      evaluators.make_loader(source, evaluators.preprocess, False)
    example = evaluators.preprocess(self.sources[0][0])[evaluators.input]
    inputs = jax.ShapeDtypeStruct((1, *example.shape), example.dtype)
    jax.eval_shape(self._features, evaluators.shapes, inputs)

  def _open(self, name: str, split: str) -> Source:
    reading, input = self._reading, self._run.input
    source = self._run.sources[name]
    if split:
      with field_prefix('data.', {'split': f'{name}_split'}):
        source = load_source(reading.name, split, reading.dir, dict(reading.options))
    record = source[0]
    for entry in (input, 'label'):
      if entry not in record:
        raise FieldError('data', f'needs a {entry} of each example; {reading.name!r} has none')
    if np.ndim(record['label']):
      raise FieldError('data', f'needs one label of each example; {reading.name!r} has several')
    return source

  def _features(self, variables: Any, inputs: jax.Array) -> jax.Array:
    data, model = self._run.config.data, self._run.model_config
    inputs = augment.normalize_batch({self._run.input: inputs}, data.mean, data.std)
    return read_features(
      model.backbone,
      model.backbone_variables(variables),
      inputs[self._run.input],
      self._reading.pooling,
      self._reading.layer,
    )

  def _step(self, variables: Any, batch: Mapping[str, jax.Array]) -> Any:
    """Returns features and labels of the global batch, as `step.gather_rows` does."""
    features = self._features(variables, batch[self._run.input])
    return step.gather_rows((features, batch['label']), batch)

  @functools.cached_property
  def _feeds(self) -> list[feeds.ResidentEvalFeed | feeds.StreamedEvalFeed]:
    feed = feeds.ResidentEvalFeed if self._resident else feeds.StreamedEvalFeed
    run, resident = self._run, self._resident
    loaders = [run.make_loader(source, run.preprocess, resident) for source in self.sources]
    mapped_step = feed.mapped(self._step, run.layout)
    return [feed(mapped_step, loader, layout=run.layout) for loader in loaders]

  def __call__(self, variables: Any) -> list[np.ndarray]:
    """Returns what `KNN.accuracy` takes: features and labels to learn from, and those to test."""
    arrays = []
    for feed in self._feeds:
      arrays += feeds.join_rows(feed.batches(variables))
    return arrays


class Evaluators:
  """The evaluators of a run that are turned on.

  Attributes:
    config: the resolved configuration.
    model_config: of the model.
    shapes: of its variables.
    preprocess: brings examples to what it takes.
    make_loader: (source, preprocess, resident) -> the loader of an evaluation.
    sources: of the run, to learn from and to be judged on.
    beside: (source, preprocess) of the data that stay on the devices anyway.
    layout: where the run's state lies.
    periods: name -> steps from one evaluation to the next.
    splits: name -> the split that it is judged on; '' for that of the run.
  """

  def __init__(
    self,
    config: ConfigDict,
    model_config: ModelConfig,
    shapes: Any,
    preprocess: Preprocess,
    make_loader: Callable,
    sources: Mapping[str, Source],
    beside: Collection[tuple[Source, Preprocess]],
    layout: step.Whole = step.WHOLE,
  ):
    """Checks all options; of data, a first example is read.

    Raises:
      UsageError: an option has a wrong value, or data can't be used.
    """
    self.config, self.model_config, self.shapes = config, model_config, shapes
    self.preprocess, self.make_loader = preprocess, make_loader
    self.sources, self.beside, self.layout = sources, beside, layout
    self.periods, self.splits, self._judges, self._readers = {}, {}, {}, {}
    for name in EVALUATORS:
      if config.evaluators[name].enabled:
        with field_prefix(f'config.evaluators.{name}.'):
          self._add(name, config.evaluators[name])

  @property
  def input(self) -> str:
    """The kind of data that the model takes."""
    return self.model_config.model.INPUT

  def _add(self, name: str, options: ConfigDict) -> None:
    judge = EVALUATORS[name](options)
    check_choice('pooling', options.pooling, POOLING)
    reading = _Reading.of(self.config.data, options)
    if reading not in self._readers:
      self._readers[reading] = _Reader(reading, self)
    judge.check(len(self._readers[reading].sources[0]))
    self.periods[name], self._judges[name] = options.every, (judge, reading)
    self.splits[name] = reading.splits[1]

  def __call__(self, names: Collection[str], variables: Any) -> dict[str, float]:
    """Returns the metrics of some evaluators, by the names that they have in metrics.jsonl.

    They are NaN where features aren't finite.

    Args:
      names: keys of `periods`.
      variables: of the model, on devices.
    """
    found, read = {}, {}
    for name in names:
      judge, reading = self._judges[name]
      if reading not in read:
        read[reading] = self._readers[reading](variables)
      features, _, test_features, _ = read[reading]
      is_finite = np.isfinite(features).all() and np.isfinite(test_features).all()
      num_classes = self._readers[reading].sources[0].num_classes
      accuracy = judge.accuracy(*read[reading], num_classes) if is_finite else np.nan
      found[f'{name}/accuracy'] = accuracy
    return found
