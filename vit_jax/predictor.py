"""Predictions for images, videos, points and their files, computed as in a run's evaluation."""

import collections
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.data import Preprocess, augment, decoding, kinds, make_preprocess
from vit_jax.errors import FieldError, UsageError, field_prefix
from vit_jax.models import Backbone, ModelConfig, Preprocessing
from vit_jax.models.backbone import AXES
from vit_jax.models.heads.head import Head
from vit_jax.tasks import task_for

_BATCHES_AHEAD = 2  # decoded while the devices work

# What the model's task predicts (`vit_jax.tasks`) of one input or, with a first axis more, of N. Of
# a classifier probabilities, float32 [num_classes]; of a model that localizes objects, a dict of
# these `probabilities` and of the `box`, [4]: (cx, cy, width, height) in fractions of the image. Of
# one that segments images, a dict of `probabilities` and of the `mask`, [height, width].
Prediction = np.ndarray | dict[str, np.ndarray]


class _Prepared(NamedTuple):
  """What the model takes of an input, and what makes of its prediction one for the whole."""

  taken: np.ndarray
  restore: Callable[[Prediction], Prediction]


class Predictor:
  """Does the task that a model was trained for, with its variables, on all devices.

      variables, config = weights.load('hf:google/vit-base-patch16-224')
      predictor = Predictor(variables, config)
      probabilities = predictor([decode_image('cat.jpg')])  # float32 [1, 1000]

  Inputs are images, uint8 [height, width, 1 or 3], any size, or what else the model takes: videos,
  uint8 [frames, height, width, 1 or 3]; points, float32 [N, 3].

  Attributes:
    input: the kind of data that the model takes, a key of `kinds.KINDS`.
    task: of the model.
    class_names: a name for each class; 'class 17' where the config has none.
  """

  def __init__(
    self,
    variables: Mapping[str, Any],
    config: ModelConfig | Mapping[str, Any],
    *,
    loss: str = 'softmax',
    threshold: float | None = None,
    dtype: Any = jnp.float32,
  ):
    """Puts the variables on the devices.

    Args:
      variables: as from `weights.load`: {'params': ...}, float32, and other collections.
      config: of the model, as from `weights.load`. Without `preprocess`, pixels in [0, 1] have
        0.5 subtracted and are divided by 0.5, and the whole image is resized.
      loss: that the model was trained with, `config.loss.name`, which makes the probabilities.
      threshold: of a model with the sigmoid loss, the probability from which on `task` says that a
        class is there; None is 0.5.
      dtype: of the computation.

    Raises:
      UsageError: the model doesn't give one number per class, or the inputs that it takes aren't
        known or don't fit `mean` and `std`.
    """
    config = ModelConfig.from_dict(config)
    self.input = name = config.model.INPUT
    self._kind = kinds.kind_of(name)
    options = {} if loss == 'softmax' else {'name': loss}  # the default, which not all tasks have
    options |= {} if threshold is None else {'threshold': threshold}
    with field_prefix('', {'name': 'loss'}):
      self.task = task = task_for(config, **options)
    num_classes = config.num_classes
    self.class_names = config.class_names or [f'class {i}' for i in range(num_classes)]
    self._preprocess, mean, std = preparation(config)
    self._input_shape = (*config.input_size, config.channels)
    if (num_views := self._preprocess.num_views) > 1:
      self._preprocess.check_averaged(task.TARGETS)
      name, self._input_shape = kinds.views_of(name), (num_views, *self._input_shape)
    self._entry = name  # of a batch
    model = with_dtype(config.model, jnp.dtype(dtype))

    def apply(variables, inputs, **options):
      return task.name_outputs(model.apply(variables, inputs, train=False, **options))

    def predict(variables, inputs):
      batch = augment.normalize_batch({name: inputs}, mean, std)
      keys = jax.random.split(jax.random.key(0), len(inputs))
      run = functools.partial(apply, variables)
      return task.predict(task.outputs(run, batch, keys, False, run if task.TEACHER else None))

    if num_classes < 1:
      raise UsageError('the model has no classification head, and so no classes to predict')
    shapes = jax.eval_shape(predict, variables, self._batch(1))
    self._none = jax.tree.map(lambda x: np.empty((0, *x.shape[1:]), np.float32), shapes)
    mesh = Mesh(jax.local_devices(), 'batch')
    self._split = NamedSharding(mesh, PartitionSpec('batch'))
    self._variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    self._predict = jax.jit(predict)

  def __call__(self, inputs: Sequence[np.ndarray], batch_size: int = 32) -> Prediction:
    """Returns the predictions of N inputs.

    They go through one compiled function, `batch_size` at a time, or the power of two that fewer
    inputs need; at least one for each device.

    Raises:
      UsageError: the model gives something else than finite numbers, or predictions that are of the
        size of their images, such as masks, are of several.
    """
    size = self._batch_size(len(inputs), batch_size)
    prepared = [self._prepare(value) for value in inputs]
    starts = range(0, len(prepared), size)
    rows = [row for i in starts for row in self._compute(prepared[i : i + size], size)]
    if not rows:
      return self._none
    shapes = {tuple(x.shape for x in jax.tree.leaves(row)) for row in rows}
    if len(shapes) > 1:
      raise UsageError('predictions of images that differ in size have no common shape; use map')
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

  def prepare(self, value: np.ndarray) -> np.ndarray:
    """Returns an input as the model takes it before scaling; of several views, one."""
    return self.prepare_record({self.input: value})[self.input]

  def prepare_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record as `prepare` does its input, and what lies on the input with it."""
    return self._preprocess.one_view(record)

  def picture(self, value: np.ndarray) -> np.ndarray:
    """Returns the one image, uint8 [H, W, C], that shows best what the model takes of an input."""
    return self._kind.picture(self.prepare(value))

  def map(
    self, read: Callable[[Any], np.ndarray], items: Sequence[Any], batch_size: int = 32
  ) -> Iterator[tuple[Any, Prediction | Exception]]:
    """Yields, in order, each item with the prediction of its input, or why `read` failed.

    That is a UsageError, as the decoders here raise, or an OSError; what else is raised ends it.
    Batches are as in a call; threads read ahead of the devices.

    Args:
      read: item to input.
      items: what inputs are read by, such as their paths.
      batch_size: as in a call.

    Raises:
      UsageError: as a call.
    """
    size = self._batch_size(len(items), batch_size)
    yield from map_batches(read, self._prepare, self._compute, items, size)

  def _batch_size(self, num_inputs: int, most: int) -> int:
    wanted = min(most, 2 ** math.ceil(math.log2(max(num_inputs, 1))))
    num_devices = jax.local_device_count()
    return -(-wanted // num_devices) * num_devices

  def _batch(self, size: int) -> np.ndarray:
    return np.zeros((size, *self._input_shape), self._kind.dtype)

  def _prepare(self, value: np.ndarray) -> _Prepared:
    taken = self._preprocess({self.input: value})[self._entry]
    if (size := self._kind.size(value)) is None:
      return _Prepared(taken, functools.partial(self.task.to_points, taken=taken, points=value))
    window = self._preprocess.window(*size)
    return _Prepared(taken, functools.partial(self.task.to_image, window=window, size=size))

  def _compute(self, inputs: Sequence[_Prepared], size: int) -> list[Prediction]:
    """Returns the prediction of each of up to `size` inputs."""
    batch = self._batch(size)
    for row, prepared in zip(batch, inputs, strict=False):
      row[...] = prepared.taken
    values = jax.device_get(self._predict(self._variables, jax.device_put(batch, self._split)))
    check_finite(jax.tree.map(lambda x: x[: len(inputs)], values))
    return [prepared.restore(_row(values, row)) for row, prepared in enumerate(inputs)]


def _row(values: Any, row: int) -> Any:
  return jax.tree.map(operator.itemgetter(row), values)


def map_batches(
  read: Callable[[Any], np.ndarray],
  prepare: Callable[[np.ndarray], Any],
  compute: Callable[[Sequence[Any], int], Iterable[Any]],
  items: Sequence[Any],
  size: int,
) -> Iterator[tuple[Any, Any | Exception]]:
  """Yields, in order, each item with what is computed of its input, or why it can't be read.

  That is a UsageError, as of damaged files, or an OSError; what else is raised ends it.

  Args:
    read: item to input; threads call it, and `prepare`, ahead of the devices.
    prepare: input to what `compute` takes.
    compute: (up to `size` of these, `size`) to a result of each.
    items: what inputs are read by, such as their paths.
    size: inputs computed at once.
  """

  def try_to_read(item):
    try:
      with decoding.turn():
        return item, prepare(read(item))
    except (UsageError, OSError) as e:  # anything else is a fault of this code, or of `read`
      return item, e

  pool = ThreadPoolExecutor()
  try:
    inputs = _map_ahead(pool, try_to_read, items, (1 + _BATCHES_AHEAD) * size)
    while batch := list(itertools.islice(inputs, size)):
      good = [prepared for _, prepared in batch if not isinstance(prepared, Exception)]
      rows = iter(compute(good, size) if good else ())
      for item, prepared in batch:
        yield item, prepared if isinstance(prepared, Exception) else next(rows)
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def _map_ahead(
  pool: ThreadPoolExecutor, function: Callable, items: Iterable, ahead: int
) -> Iterator[Any]:
  """Yields function(item) of each item, in order, with up to `ahead` of them under way."""
  items = iter(items)
  futures = collections.deque(pool.submit(function, i) for i in itertools.islice(items, ahead))
  while futures:
    result = futures.popleft().result()
    futures.extend(pool.submit(function, i) for i in itertools.islice(items, 1))
    yield result


def check_finite(outputs: Any) -> None:
  """Raises UsageError for numbers that aren't finite in a model's outputs, a tree of arrays."""
  if not all(np.isfinite(x).all() for x in jax.tree.leaves(outputs)):
    raise UsageError('the model gives numbers that are not finite; its weights are damaged')


def with_dtype(model: Backbone | Head, dtype: Any) -> Backbone | Head:
  """Returns a model that computes in `dtype`."""
  if isinstance(model, Head):
    model = model.clone(backbone=model.backbone.clone(dtype=dtype))
  return model.clone(dtype=dtype)


def preparation(config: ModelConfig) -> tuple[Preprocess, Sequence[float], Sequence[float]]:
  """Returns what is done to inputs for a model: on the host, then `(pixels / 255 - mean) / std`.

  Args:
    config: of the model.

  Returns:
    (the function of a record, mean, std), the last two per channel or of one number for all.

  Raises:
    FieldError: it isn't known which images, videos or points the model takes.
  """
  axes = AXES[config.model.INPUT]
  if 'height' in axes and config.image_size is None:
    raise FieldError(
      'image_size', 'the weights do not say how large their images are; give HEIGHT,WIDTH'
    )
  for axis, plural in (('frames', 'videos'), ('points', 'clouds')):
    if axis in axes and getattr(config, f'num_{axis}') is None:
      raise FieldError(
        f'num_{axis}',
        f'the weights do not say how many {axis} their {plural} have; give the number',
      )
  if config.channels not in (1, 3):
    raise UsageError(
      f'the model takes images of {config.channels} channels; image files have 1 or 3'
    )
  preprocess = config.preprocess or Preprocessing()
  has_pixels = kinds.kind_of(config.model.INPUT).has_pixels
  function = make_preprocess(
    config.image_size or (),
    config.channels if has_pixels else 0,
    preprocess.crop,
    False,
    preprocess.crop_fraction,
    num_frames=config.num_frames or 0,
    frame_stride=preprocess.frame_stride or 1,
    temporal_views=preprocess.temporal_views or 1,
    spatial_crops=preprocess.spatial_crops or 1,
    num_points=config.num_points or 0,
    interpolation=preprocess.interpolation,
    rounding=preprocess.rounding,
    fill=_ground(preprocess, config.channels) if preprocess.crop == 'border' else (),
  )
  return function, preprocess.mean, preprocess.std


def _ground(preprocess: Preprocessing, channels: int) -> tuple[int, ...]:
  """Returns the mean of each channel as a pixel of uint8."""
  mean = preprocess.mean * (channels if len(preprocess.mean) == 1 else 1)
  return tuple(min(max(round(255 * value), 0), 255) for value in mean)
