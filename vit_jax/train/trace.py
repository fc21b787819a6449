"""Model and task traced on shapes alone, so that what doesn't fit shows before a run starts."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vit_jax.data import kinds
from vit_jax.errors import FieldError, UsageError, field_prefix
from vit_jax.models import Preprocessing
from vit_jax.models import fields as fields_lib
from vit_jax.tasks import Metric, Task
from vit_jax.train import step


class Traced(NamedTuple):
  """Shapes of an experiment.

  Attributes:
    input: shape of an example of what the model takes, as (height, width, channels) of images.
    variables: the model's, as shapes and dtypes.
    metrics: names of what evaluation gives a number of, those of each class left out.
  """

  input: tuple[int, ...]
  variables: dict[str, Any]
  metrics: list[str]


def trace(
  config: ConfigDict,
  model: nn.Module,
  task: Task,
  record: Mapping[str, np.ndarray],
  views: step.Views | None = None,
) -> Traced:
  """Traces initialisation and evaluation.

  Args:
    config: the experiment; reads `data`.
    model: the model.
    task: its task.
    record: an example of the data, as preprocessed, which has the model's input.
    views: as for `step.make_eval_step`.

  Raises:
    UsageError: inputs don't fit the model or their normalisation, or outputs don't fit the task.
  """
  shape = kinds.example(record, model.INPUT).shape
  _check_pixels(config.data, shape[-1], kinds.kind_of(model.INPUT))
  batch = kinds.stack([record]) | {'weight': np.ones(1, np.float32)}

  def evaluate(variables):
    keys = jax.random.split(jax.random.key(0), 1)
    prepared = step.prepare(config, task, batch, keys, views)
    return step.evaluate(model, task, variables, prepared | task.totals(prepared), keys)[0]

  with _names_the_model():
    variables = jax.eval_shape(lambda: init(model, 0, (1, *shape)))
  with _names_the_model(task):
    sums = jax.eval_shape(evaluate, variables)
  single = [name for name in sums if not task.metrics.get(name, Metric()).per_class]
  return Traced(shape, variables, single)


def check_train_size(
  model: nn.Module,
  variables: Mapping[str, Any],
  shape: tuple[int, ...],
  train_size: tuple[int, int] | tuple[()],
) -> None:
  """Raises UsageError where a model for inputs of another size has variables of other shapes.

  Args:
    model: the model.
    variables: for inputs of that shape, as shapes and dtypes.
    shape: of an input in evaluation, as (height, width, channels).
    train_size: (height, width) in training; () as stored.
  """
  if train_size in ((), shape[-3:-1]):
    return
  with _names_the_model():
    trained = jax.eval_shape(lambda: init(model, 0, (1, *shape[:-3], *train_size, shape[-1])))
  if trained != variables:
    raise UsageError(
      f'config.data.train_size: {train_size}, but the model has other variables for '
      f'{shape[-3:-1]}, which it is evaluated on'
    )


def init(model: nn.Module, seed: int, shape: tuple[int, ...]) -> dict[str, Any]:
  """Returns new variables of a model of float inputs of a `shape`, as [1, H, W, C] of images."""
  key, inputs = jax.random.key(seed), jax.ShapeDtypeStruct(shape, jnp.float32)
  try:
    return model.lazy_init(key, inputs, train=False)  # which computes no outputs
  except flax.errors.LazyInitError:  # there are variables that depend on the inputs
    return model.init(key, jnp.zeros(shape), train=False)


@contextlib.contextmanager
def _names_the_model(task: Task | None = None) -> Iterator[None]:
  """Puts config.model in front of what a model or a task says of outputs.

  But config.loss where that is of a field of the task.
  """
  own = () if task is None else fields_lib.names(type(task))
  options = {f'model.{name}': f'loss.{name}' for name in own}
  try:
    with field_prefix('config.', options), field_prefix('model.'):
      yield
  except FieldError:
    raise
  except UsageError as e:
    raise UsageError(f'config.model: {e}') from e


def _check_pixels(data: ConfigDict, channels: int, kind: kinds.Kind) -> None:
  for field in ('mean', 'std'):
    if not kind.has_pixels and tuple(data[field]) != getattr(Preprocessing(), field):
      raise UsageError(f'config.data.{field}: {data[field]}, but {kind.plural} have no pixels')
    if len(data[field]) not in (1, channels):
      raise UsageError(
        f'config.data.{field}: {len(data[field])} values, but images have {channels} channels; '
        'give one value for each, or one for all'
      )
