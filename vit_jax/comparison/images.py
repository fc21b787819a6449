"""The images, or videos, that a comparison is made on."""

import itertools
import os
from collections.abc import Iterator

import numpy as np

from vit_jax import data
from vit_jax.data import kinds
from vit_jax.errors import FieldError, field_prefix
from vit_jax.models import ModelConfig
from vit_jax.predictor import preparation

_NUM_RANDOM = 64


class RandomImages:
  """Normally distributed pixels, without labels, the same every time.

  Attributes:
    name: what they are, in words.
    shape: of an image (height, width, channels), of a video (frames, height, width, channels).
  """

  def __init__(self, config: ModelConfig, count: int):
    """Takes a model config and how many images there are, 0 standing for 64."""
    preparation(config)  # raises where it isn't known which inputs the model takes
    self.name = f'random {kinds.kind_of(config.model.INPUT).plural}'
    self.shape = (*config.input_size, config.channels)
    self._count = count or _NUM_RANDOM

  def __len__(self) -> int:
    return self._count

  def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (float32 [B, ...], labels int [B], here all -1); the last may be smaller."""
    rng = np.random.default_rng(0)
    for start in range(0, len(self), size):
      shape = (min(size, len(self) - start), *self.shape)
      yield rng.standard_normal(shape, np.float32), np.full(shape[0], -1)


class DatasetImages:
  """The first images of a data set's split, as the model takes them.

  They are preprocessed as the model config says under `preprocess`; see `Predictor`.

  Attributes:
    name: what they are, in words.
    shape: as of `RandomImages`.
  """

  def __init__(self, config: ModelConfig, dataset: str, split: str, dir: str, count: int):
    """Opens the data set.

    Args:
      config: model config.
      dataset: 'digits', a name that TFDS knows, or the path of a folder, with a slash in it.
      split: as for `data.load_source`.
      dir: of TFDS's data sets, or ''.
      count: how many images, 0 standing for all.

    Raises:
      UsageError: what `preparation` raises, and `data.load_source`, by the names of the command's
        flags; or the data set lacks what the model takes.
    """
    self.name, self._input = f'{dataset}, {split}', config.model.INPUT
    preprocess, mean, std = preparation(config)
    self.shape = (*config.input_size, config.channels)
    self._preprocess = preprocess.one_view
    self._mean, self._std = np.float32(mean), np.float32(std)
    is_folder = os.sep in dataset
    names = {'name': 'dataset', 'dir': 'dataset' if is_folder else 'data_dir'}
    with field_prefix('--', names):
      name, dir = (data.FOLDER_OF[self._input], dataset) if is_folder else (dataset, dir)
      self._source = data.load_source(name, split, dir)
      if self._input not in self._source[0]:
        inputs = kinds.kind_of(self._input).plural
        raise FieldError('name', f'{dataset!r} has no {inputs}, which the model takes')
    self._count = min(count or len(self._source), len(self._source))
    self._labelled = self._source.num_classes == config.num_classes

  def __len__(self) -> int:
    return self._count

  def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (float32 [B, ...], labels int [B]); the last may be smaller.

    Labels are -1 where they can't be the model's: there are none, it has another number of classes,
    or they are several to an image.
    """
    records = self._source.read(range(self._count))
    while block := list(itertools.islice(records, size)):
      images = np.stack([self._preprocess(record)[self._input] for record in block])
      yield (images / np.float32(255) - self._mean) / self._std, self._labels(block)

  def _labels(self, records: list[data.Record]) -> np.ndarray:
    labels = np.asarray([record.get('label', -1) for record in records])
    return labels if self._labelled and labels.ndim == 1 else np.full(len(records), -1)
