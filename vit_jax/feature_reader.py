"""`FeatureReader`: what a model's backbone makes of images, videos, points and their files."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.data import augment, kinds
from vit_jax.errors import check_choice
from vit_jax.models import ModelConfig
from vit_jax.models.features import POOLING, read_features, read_tokens
from vit_jax.predictor import check_finite, map_batches, preparation

ALL = 'all'


class FeatureReader:
  """Reads features of inputs, prepared as in a run's evaluation, on all devices.

      variables, config = weights.load('hf:google/vit-base-patch16-224')
      reader = FeatureReader(variables, config)
      for path, features in reader.map(decode_image, paths): ...  # float32 [768]

  Of a video, the clip in the middle is read; where a model segments windows, the whole image at the
  size of one.

  Attributes:
    input: the kind of data that the model takes, a key of `kinds.KINDS`.
    shape: of an input's features, (D,) or, of all tokens, (T, D).
  """

  def __init__(
    self,
    variables: Mapping[str, Any],
    config: ModelConfig | Mapping[str, Any],
    *,
    pooling: str = POOLING[0],
    layer: int | None = None,
    dtype: Any = jnp.float32,
  ):
    """Puts the backbone's variables on the devices.

    Args:
      variables: as from `weights.load`.
      config: of the model, as from `weights.load`.
      pooling: as for `models.features.read_features`; or 'all', for all tokens.
      layer: likewise.
      dtype: of the computation.

    Raises:
      FieldError: of `pooling` or `layer`, or as `predictor.preparation`.
    """
    check_choice('pooling', pooling, (*POOLING, ALL))
    config = ModelConfig.from_dict(config)
    seen = config.replace(model=config.backbone, image_size=config.seen_size, class_names=None)
    self.input = seen.model.INPUT
    self._kind = kinds.kind_of(self.input)
    self._preprocess, mean, std = preparation(seen)
    self._input_shape = (*seen.input_size, seen.channels)
    backbone = seen.model.clone(dtype=jnp.dtype(dtype))
    pool = functools.partial(read_features, pooling=pooling) if pooling != ALL else read_tokens

    def read(variables, inputs):
      batch = augment.normalize_batch({self.input: inputs}, mean, std)
      return pool(backbone, variables, batch[self.input], layer=layer)

    variables = config.backbone_variables(variables)
    self.shape = jax.eval_shape(read, variables, self._batch(1)).shape[1:]
    mesh = Mesh(jax.local_devices(), 'batch')
    self._split = NamedSharding(mesh, PartitionSpec('batch'))
    self._variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    self._read = jax.jit(read)

  def prepare(self, value: np.ndarray) -> np.ndarray:
    """Returns an input as the model takes it before scaling."""
    return self._preprocess.one_view({self.input: value})[self.input]

  def picture(self, value: np.ndarray) -> np.ndarray:
    """Returns the one image, uint8 [H, W, C], that shows best what the model takes of an input."""
    return self._kind.picture(self.prepare(value))

  def map(
    self, read: Callable[[Any], np.ndarray], items: Sequence[Any], batch_size: int = 32
  ) -> Iterator[tuple[Any, np.ndarray | Exception]]:
    """Yields, in order, each item with the features of its input, or why `read` failed.

    Args:
      read: item to input; threads call it ahead of the devices.
      items: what inputs are read by, such as their paths.
      batch_size: inputs computed at once, rounded up to all devices.

    Raises:
      UsageError: the model gives something else than finite numbers.
    """
    size = -(-batch_size // jax.local_device_count()) * jax.local_device_count()
    yield from map_batches(read, self.prepare, self._compute, items, size)

  def _batch(self, size: int) -> np.ndarray:
    return np.zeros((size, *self._input_shape), self._kind.dtype)

  def _compute(self, inputs: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Returns the features of up to `size` inputs."""
    batch = self._batch(size)
    batch[: len(inputs)] = inputs
    rows = jax.device_get(self._read(self._variables, jax.device_put(batch, self._split)))
    rows = rows[: len(inputs)]
    check_finite(rows)
    return rows
