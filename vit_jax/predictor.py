"""What a model says of images and image files, computed as a run's evaluation computes it."""

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

from vit_jax.data import Preprocess, augment, make_preprocess
from vit_jax.data.boxes import Window, out_of_window
from vit_jax.errors import UsageError, check_choice
from vit_jax.models import from_description, variables
from vit_jax.weights.model_config import PREPROCESS

_PROBABILITIES = {
  'softmax': jax.nn.softmax,
  'softmax_twice': jax.nn.softmax,  # the second is part of the loss
  'sigmoid': jax.nn.sigmoid,
}
_BATCHES_AHEAD = 2  # decoded while the devices work

# Float32 [num_classes], or [N, num_classes] of N images; of a model that localizes objects, a dict
# of these `probabilities` and of the `box`, [4] or [N, 4]: (cx, cy, width, height) in fractions of
# the image's sides.
Prediction = np.ndarray | dict[str, np.ndarray]


class _Prepared(NamedTuple):
  """Pixels uint8 [H, W, C] as the model takes them, and which part of the image they are."""

  pixels: np.ndarray
  window: Window


class Predictor:
  """Classifies images, or localizes what is in them, with a model's parameters, on all devices.

      params, config = weights.load('hf:google/vit-base-patch16-224')
      predictor = Predictor(params, config)
      probabilities = predictor([decode_image('cat.jpg')])  # float32 [1, 1000]

  Attributes:
    class_names: a name for each class; 'class 17' where the config has none.
  """

  def __init__(
    self,
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    loss: str = 'softmax',
    dtype: Any = jnp.float32,
  ):
    """Puts the parameters on the devices.

    Args:
      params: parameter tree, float32, as from `weights.load`.
      config: model config, as from `weights.load`. Its `preprocess`, None or a dict of `mean` and
        `std` (per channel or one for all, of pixels in [0, 1]), `crop` and `crop_fraction` (of
        `make_preprocess`), may leave out any of them: 0.5, 0.5, 'resize', and the usual margin.
      loss: that the model was trained with, `config.loss.name`, which makes the probabilities.
      dtype: of the computation.

    Raises:
      UsageError: the model doesn't give one number per class, or the images that it takes aren't
        known or don't fit `mean` and `std`.
    """
    check_choice('loss', loss, _PROBABILITIES)
    num_classes = config['num_classes']
    self.class_names = config['class_names'] or [f'class {i}' for i in range(num_classes)]
    self._preprocess, mean, std = preparation(config)
    self._image_shape = (*config['image_size'], config['channels'])
    model = from_description(config, dtype=jnp.dtype(dtype))

    def outputs(params, images):
      images = augment.normalize(images, mean, std)
      return model.apply(variables(params), images, train=False)

    def predict(params, images):
      values = outputs(params, images)
      if not isinstance(values, dict):
        return _PROBABILITIES[loss](values)
      return {'probabilities': _PROBABILITIES[loss](values['logits']), 'box': values['box']}

    _check_outputs(jax.eval_shape(outputs, params, self._batch(1)), num_classes)
    self._none = jax.tree.map(
      lambda x: np.empty((0, *x.shape[1:]), np.float32),
      jax.eval_shape(predict, params, self._batch(1)),
    )
    mesh = Mesh(jax.local_devices(), 'batch')
    self._split = NamedSharding(mesh, PartitionSpec('batch'))
    self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    self._predict = jax.jit(predict)

  def __call__(self, images: Sequence[np.ndarray], batch_size: int = 32) -> Prediction:
    """Returns the predictions of N images, each uint8 [height, width, 1 or 3], any size.

    They go through one compiled function, `batch_size` at a time, or the power of two that fewer
    images need; at least one for each device.

    Raises:
      UsageError: the model gives something else than finite numbers.
    """
    size = self._batch_size(len(images), batch_size)
    prepared = [self._prepare(image) for image in images]
    parts = [self._compute(prepared[i : i + size], size) for i in range(0, len(prepared), size)]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), self._none, *parts)

  def prepare(self, image: np.ndarray) -> np.ndarray:
    """Returns an image, uint8 [height, width, 1 or 3], as the model takes it before scaling."""
    return self._preprocess({'image': image})['image']

  def map(
    self, read: Callable[[Any], np.ndarray], items: Sequence[Any], batch_size: int = 32
  ) -> Iterator[tuple[Any, Prediction | Exception]]:
    """Yields, in order, each item with the prediction of its image, or why `read` failed.

    Batches are as in a call; threads read ahead of the devices.

    Args:
      read: item to image, uint8 [height, width, 1 or 3].
      items: what images are read by, such as their paths.
      batch_size: as in a call.

    Raises:
      UsageError: as a call.
    """
    size = self._batch_size(len(items), batch_size)
    pool = ThreadPoolExecutor()
    try:
      try_to_read = functools.partial(self._try_to_read, read)
      images = _map_ahead(pool, try_to_read, items, (1 + _BATCHES_AHEAD) * size)
      while batch := list(itertools.islice(images, size)):
        good = [prepared for _, prepared in batch if not isinstance(prepared, Exception)]
        values, rows = self._compute(good, size) if good else None, itertools.count()
        for item, prepared in batch:
          if isinstance(prepared, Exception):
            yield item, prepared
          else:
            yield item, jax.tree.map(operator.itemgetter(next(rows)), values)
    finally:
      pool.shutdown(wait=False, cancel_futures=True)

  def _batch_size(self, num_images: int, most: int) -> int:
    wanted = min(most, 2 ** math.ceil(math.log2(max(num_images, 1))))
    num_devices = jax.local_device_count()
    return -(-wanted // num_devices) * num_devices

  def _batch(self, size: int) -> np.ndarray:
    return np.zeros((size, *self._image_shape), np.uint8)

  def _prepare(self, image: np.ndarray) -> _Prepared:
    return _Prepared(self.prepare(image), self._preprocess.window(*image.shape[:2]))

  def _try_to_read(self, read: Callable, item: Any) -> tuple[Any, _Prepared | Exception]:
    try:
      return item, self._prepare(read(item))
    except Exception as e:  # Pillow raises many types on damaged files
      return item, e

  def _compute(self, images: Sequence[_Prepared], size: int) -> Prediction:
    """Returns the predictions of up to `size` images."""
    batch = self._batch(size)
    for row, image in zip(batch, images, strict=False):
      row[...] = image.pixels
    values = jax.device_get(self._predict(self._params, jax.device_put(batch, self._split)))
    values = jax.tree.map(lambda x: x[: len(images)], values)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(values)):
      raise UsageError('the model gives numbers that are not finite; its weights are damaged')
    if isinstance(values, dict):
      pairs = zip(values['box'], images, strict=True)
      values['box'] = np.stack([out_of_window(box, image.window) for box, image in pairs])
    return values


def _map_ahead(pool: ThreadPoolExecutor, function: Callable, items: Iterable, ahead: int):
  """Yields function(item) of each item, in order, with up to `ahead` of them under way."""
  items = iter(items)
  futures = collections.deque(pool.submit(function, i) for i in itertools.islice(items, ahead))
  while futures:
    result = futures.popleft().result()
    futures.extend(pool.submit(function, i) for i in itertools.islice(items, 1))
    yield result


def preparation(
  config: Mapping[str, Any],
) -> tuple[Preprocess, Sequence[float], Sequence[float]]:
  """Returns what is done to images for a model: on the host, then `(pixels / 255 - mean) / std`.

  Args:
    config: model config, as for `Predictor`.

  Returns:
    (the function of a record, mean, std), the last two per channel or of one number for all.

  Raises:
    UsageError: it isn't clear which pixels the model takes, or they don't fit `mean` and `std`.
  """
  preprocess = PREPROCESS | (config.get('preprocess') or {})
  if config['image_size'] is None:
    raise UsageError(
      '--image_size: the weights do not say how large their images are; give HEIGHT,WIDTH'
    )
  channels = config['channels']
  if channels not in (1, 3):
    raise UsageError(f'the model takes images of {channels} channels; image files have 1 or 3')
  for name in ('mean', 'std'):
    if len(preprocess[name]) not in (1, channels):
      raise UsageError(
        f'--{name}: {len(preprocess[name])} values, but images have {channels} channels; '
        'give one value for each, or one for all'
      )
  if min(preprocess['std']) <= 0:
    raise UsageError(f'--std: {tuple(preprocess["std"])} has a value that is not positive')
  function = make_preprocess(
    config['image_size'], channels, preprocess['crop'], False, preprocess.get('crop_fraction')
  )
  return function, preprocess['mean'], preprocess['std']


def _check_outputs(outputs: Any, num_classes: int) -> None:
  """Raises UsageError unless a model's outputs are a logit for each class, perhaps with a box."""
  if num_classes < 1:
    raise UsageError('the model has no classification head, and so no classes to predict')
  shapes = jax.tree.map(lambda x: x.shape[1:], outputs)
  if shapes not in ((num_classes,), {'logits': (num_classes,), 'box': (4,)}):
    raise UsageError(
      f'the model gives outputs of shape {shapes} an image, and prediction needs ({num_classes},)'
    )
