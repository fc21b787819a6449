"""`Task`: what is learnt, from the targets to how a prediction is shown; and `Metric`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from vit_jax.data import Source, kinds
from vit_jax.data.augment import ViewGroup
from vit_jax.data.kinds import Size, Window
from vit_jax.errors import UsageError
from vit_jax.models import fields

Batch = Mapping[str, jax.Array]
Outputs = dict[str, jax.Array]
# Metric's name -> the sums over examples that it is computed from.
Sums = dict[str, tuple[jax.Array, ...]]
# apply(inputs, **keywords of the model) -> outputs of the model by name.
Apply = Callable[..., Outputs]


def mean(total: Any, count: Any) -> Any:
  """Returns the mean of `count` values, which has the sum `total`."""
  return total / count


@dataclasses.dataclass(frozen=True)
class Metric:
  """A number that tells how well a task is learnt.

  Attributes:
    unit: '%' of a share of 1, which is shown as per cent; '' of other numbers.
    higher_is_better: whether a higher value is the better one.
    label: of its panel among a run's curves; '' for a metric that isn't drawn.
    value: function of the sums, added up over batches and devices, that returns the number.
    per_class: whether `value` returns a number for each class, NaN for one that doesn't occur. They
      are part of evaluations alone, as 'test/NAME/CLASS'.
  """

  unit: str = ''
  higher_is_better: bool = False
  label: str = ''
  value: Callable[..., Any] = mean
  per_class: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
  """Base class of tasks.

  Dataclass fields, but for those in `NOT_CONFIG`, are the fields of an experiment's `config.loss`,
  with their defaults; construction raises FieldError for a value that one can't have.

  Attributes:
    num_classes: of the data; 0 of a task that learns none.
    input: the kind of data that the model takes, as `Backbone.INPUT`: the entry of batches that it
      is run on.
  """

  num_classes: int
  input: str = dataclasses.field(default='image', kw_only=True)

  NOT_CONFIG: ClassVar[tuple[str, ...]] = ('num_classes', 'input')
  # Whether it learns the classes of the data; a model of a task that doesn't has none.
  LEARNS_CLASSES: ClassVar[bool] = True
  # Kinds of data in a record that it learns, beside the input.
  TARGETS: ClassVar[tuple[str, ...]] = ()
  # What it puts on a model's features: keys of `models.HEADS`, of which `config.model.head.name`
  # chooses one, else the first; empty for the model's own head.
  HEADS: ClassVar[tuple[str, ...]] = ()
  # Whether `outputs` is given a teacher: the moving average of the parameters that train.
  TEACHER: ClassVar[bool] = False

  def __post_init__(self) -> None:
    fields.check_ranges(self)

  def for_data(self, source: Source) -> 'Task':
    """Returns the task as it learns from some data.

    Options that stand for a property of the data, such as how often classes occur, have its value.

    Args:
      source: the training split, whose records have `TARGETS`.

    Raises:
      FieldError: naming a field of this task, for data that it can't learn from.
    """
    del source
    return self

  def check_model(self, model: nn.Module) -> None:
    """Raises FieldError, naming a field of this task, for a model that it can't train."""
    del model

  @classmethod
  def name_outputs(cls, outputs: Any) -> Outputs:
    """Returns what a model's call gave, by name: a head's dict, or a backbone's own 'logits'."""
    return outputs if cls.HEADS else {'logits': outputs}

  def outputs(
    self, apply: Apply, batch: Batch, rng: jax.Array, train: bool, teacher: Apply | None = None
  ) -> Outputs:
    """Runs the model on a batch; where it has several views of the input, averages the outputs.

    Args:
      apply: the model with the parameters that train, or those that are evaluated. It may be called
        several times, each with draws of its own for dropout.
      batch: `input`, as `image` float32 [B, H, W, C], normalised, in training augmented, or in
        evaluation V views of it, [B, V, H, W, C] (`kinds.views_of`); `weight` float32 [B], 0 on
        padding; and `TARGETS`.
      rng: [B], a key for each example, the same however many devices share the batch.
      train: whether this is training; `apply` knows it.
      teacher: as `apply`, of the moving average, without dropout and gradients; in evaluation it is
        `apply`. None unless `TEACHER`.
    """
    del rng, train, teacher
    if self.input in batch:
      return apply(batch[self.input])
    views = batch[kinds.views_of(self.input)]
    outputs = apply(views.reshape(-1, *views.shape[2:]))  # [B * V, ...]
    return jax.tree.map(lambda x: x.reshape(*views.shape[:2], *x.shape[1:]).mean(axis=1), outputs)

  def views(self, size: Size) -> Mapping[str, ViewGroup]:
    """Returns the views of the input that `outputs` is given in its place, by groups.

    Those of a group 'local' are `image/local` [B, V, h, w, C]. Training draws them by (seed, step,
    slot), evaluation by (seed, slot).

    Args:
      size: (height, width) of the images that the model is evaluated on.
    """
    del size
    return {}

  def scheduled(self, step: jax.Array | None) -> dict[str, jax.Array]:
    """Returns numbers that change as training goes on, which `loss` finds in its batch.

    Args:
      step: how many steps are done, int32; None in evaluation, which has those of the end.
    """
    del step
    return {}

  def totals(self, batch: Batch) -> dict[str, jax.Array]:
    """Returns sums over a batch's targets that `loss` divides by, which it finds in its batch.

    There they are sums over all devices and micro-batches, so that a term may be a mean over
    something else than examples, such as objects.
    """
    del batch
    return {}

  def loss(self, outputs: Outputs, batch: Batch, rng: jax.Array, train: bool) -> Sums:
    """Returns sums by the names of `metrics`; 'loss' is (sum, count), whose quotient is minimised.

    Args are those of `outputs`, and what it returned.

    Raises:
      FieldError: on tracing, naming the field of the model that makes outputs which don't fit.
    """
    raise NotImplementedError

  @property
  def metrics(self) -> dict[str, Metric]:
    """The metrics by name, 'loss' first; progress shows the first two."""
    raise NotImplementedError

  def further_metrics(self, record: Mapping[str, Any]) -> Mapping[str, Metric]:
    """Returns the metrics that `config.metrics` may ask for, by name; none without `rows`.

    Their `value` is a function of `probabilities` and `label` of `rows`, of a whole split, as NumPy
    arrays.

    Args:
      record: an example of the data.
    """
    del record
    return {}

  def rows(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """Returns what an evaluation keeps of each example; {} where there are only sums.

    These are `probabilities`, float32 [B, K], `label`, int [B] or float [B, K], `predicted`, int
    [B] or bool [B, K], and, as columns of a table of predictions, other numbers [B] by name.

    Args:
      outputs: what `outputs` returned in evaluation.
      batch: that it was given.
    """
    del outputs, batch
    return {}

  def predict(self, outputs: Outputs) -> Any:
    """Returns predictions of N images, an array [N, ...] or a dict of such; can be traced."""
    raise self._lacks('predict')

  def probabilities(self, prediction: Any) -> Any:
    """Returns the probabilities of classes, [..., K], that a prediction has."""
    raise self._lacks('probabilities')

  def predicted_classes(self, probabilities: np.ndarray) -> list[int]:
    """Returns the classes that an example is said to have, by their probabilities [K].

    The most probable is the first; there may be none.
    """
    return [int(probabilities.argmax())]

  def to_image(self, prediction: Any, window: Window, size: Size) -> Any:
    """Returns the prediction of a part of an image, `window`, as one of the whole, of `size`."""
    del window, size
    return prediction

  def to_points(self, prediction: Any, taken: np.ndarray, points: np.ndarray) -> Any:
    """Returns the prediction of some points [n, 3] of a cloud as one of all [N, 3]."""
    del taken, points
    return prediction

  def lines(self, prediction: Any, class_names: Sequence[str], top: int) -> list[str]:
    """Returns the prediction of one image in lines of text, with up to `top` classes."""
    raise self._lacks('lines')

  def entry(self, prediction: Any, class_names: Sequence[str], top: int) -> dict[str, Any]:
    """Returns what `lines` does as values by name, for JSON."""
    raise self._lacks('entry')

  def cells(self, prediction: Any, class_names: Sequence[str], top: int) -> dict[str, Any]:
    """Returns what `entry` does as texts and numbers by name, for a row of a table.

    Where `entry` lists dicts, their values are numbered: class_1, probability_1, class_2, ...; what
    else it lists is joined by semicolons.
    """
    cells = {}
    for name, value in self.entry(prediction, class_names, top).items():
      if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        cells |= {f'{k}_{i}': v for i, item in enumerate(value, 1) for k, v in item.items()}
      else:
        cells[name] = ';'.join(map(str, value)) if isinstance(value, list) else value
    return cells

  def _lacks(self, method: str) -> UsageError:
    return UsageError(f'the task {type(self).__name__} predicts nothing: it has no {method}()')
