"""An experiment whose training, inference and input are timed: `TimedExperiment`."""

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vit_jax import compilation_cache, host_memory, models, weights
from vit_jax.comparison import compile_time, measure, sides
from vit_jax.comparison.images import RandomImages
from vit_jax.comparison.sides import TrainingSet
from vit_jax.comparison.torch_models import Timm, Transformers
from vit_jax.data import ResidentLoader
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.models.variables import Variables
from vit_jax.train import feeds
from vit_jax.train.experiment import Experiment

_NO_LIMIT = 10**9  # of the steps of a dispatch
_WARM_UP = 8  # dispatches, at most
_NOISE = 0.02  # standard deviation, of what is added to parameters
_COMPARED = 8  # inputs whose logits are compared
_TOLERANCE = 1e-2  # by which they may differ, of their standard deviation
_TASK_OF_MODEL = {'infer': 'inference', 'plain': 'training'}  # of `sides.JaxSide`
_LABEL = '--against=torch'  # of a model, in messages


class TimedExperiment:
  """A side of a benchmark; its tasks are what `--what` names, and 'plain'.

  'train' is the step that train.py runs, with its feed: batches made by the loader, augmentation,
  the task's loss, its optimiser, over all devices. 'infer' is the model alone, jitted, on one
  device and one batch. 'data' is the loader alone: of a set that stays on the device, decoding all
  of it; else making batches. 'plain' is what PyTorch's side does to train: forward, softmax
  cross-entropy, backward, AdamW, of one batch on one device, without augmentation or dropout.

  Attributes:
    config: resolved.
  """

  def __init__(self, config: ConfigDict):
    start = time.perf_counter()
    self._experiment = Experiment(config)
    self.config = self._experiment.config
    self._seconds_to_build = time.perf_counter() - start
    self._feed, self._state, self._step = None, None, 0
    self._model_side = None

  def describe(self) -> dict[str, Any]:
    """Returns what is timed, and on what."""
    shapes = self._experiment.state_shapes
    flops = self._experiment.flops_per_image(shapes)
    return {
      'versions': sides.versions('jax', 'jaxlib', 'flax'),
      'device': jax.devices()[0].device_kind,
      'device_count': jax.device_count(),
      'threads': sides.threads(),
      'dtype': self.config.dtype,
      'batch_size': self.config.batch_size,
      'data': 'resident' if self._experiment.resident else 'streamed',
      'parameters': sum(leaf.size for leaf in jax.tree.leaves(shapes.params)),
      'flops_per_image': {
        'train': flops['training'],
        'plain': flops['training'],
        'infer': flops['forward'],
      },
    }

  # Timing.

  def prepare(self, task: str) -> dict[str, Any]:
    """Compiles a task and runs it a few times.

    Returns:
      As of `JaxSide.prepare`. Of 'train', the first step has everything before it, the data of a
      resident set too. Of 'data' it is the time to the first batch, or to the whole resident set.
    """
    if task in ('infer', 'plain'):
      return self.model_side.prepare(_TASK_OF_MODEL[task])
    start, compiled = time.perf_counter(), compile_time.so_far()
    if task == 'data':
      seconds = self._decode() if self._experiment.resident else self._first_batch()
      return {
        'first_step_seconds': seconds,
        **sides.peak_memory(),
      }
    self._experiment.check_memory()
    self._feed = self._experiment.train_feed()
    self._state = feeds.put_on_devices(self._experiment.initial_state(), self._experiment.layout)
    jax.block_until_ready(self._dispatch(1))
    seconds = self._seconds_to_build + time.perf_counter() - start
    before = 0
    for _ in range(_WARM_UP):  # until the number of steps of a dispatch fits
      first = self._step
      jax.block_until_ready(self._dispatch(_NO_LIMIT))
      if self._step - first <= before:
        break
      before = self._step - first
    return {
      **compile_time.so_far().since(compiled),
      'first_step_seconds': seconds,
      **sides.peak_memory(),
    }

  def images_per_second(self, task: str, seconds: float) -> float:
    """Does a task, once prepared, for about so long; input and training for at least so long."""
    if task in ('infer', 'plain'):
      return self.model_side.images_per_second(_TASK_OF_MODEL[task], seconds)
    if task == 'data':
      return self._input_per_second(seconds)
    first, start = self._step, time.perf_counter()

    def results():
      while time.perf_counter() - start < seconds:
        yield self._dispatch(_NO_LIMIT)
      # Whole, so that the pause after it counts for nothing when steps of a dispatch are chosen.
      yield self._dispatch(1)

    for _ in feeds.to_host(results()):
      pass
    jax.block_until_ready(self._state)
    return (self._step - first) * self.config.batch_size / (time.perf_counter() - start)

  def _dispatch(self, limit: int) -> Any:
    self._state, metrics, n = self._feed(self._state, self._step, limit)
    self._step += n
    return metrics

  def _decode(self) -> float:
    start = time.perf_counter()
    _ = self._experiment.train_loader().arrays
    return time.perf_counter() - start

  def _first_batch(self) -> float:
    start = time.perf_counter()
    with contextlib.closing(self._experiment.train_loader().batches()) as batches:
      next(batches)
      return time.perf_counter() - start

  def _input_per_second(self, seconds: float) -> float:
    elapsed = 0.0
    if self._experiment.resident:
      rounds = 0
      while elapsed < seconds:
        elapsed += self._decode()
        rounds += 1
      return rounds * len(self._experiment.sets['train'][0]) / elapsed
    loader, count = self._experiment.train_loader(), 0
    with contextlib.closing(loader.batches()) as batches:
      for _ in range(loader.prefetch + 1):  # or those made ahead of the first would count
        next(batches)
      start = time.perf_counter()
      while elapsed < seconds:
        next(batches)
        count += self.config.batch_size // jax.process_count()
        elapsed = time.perf_counter() - start
    return count / elapsed

  def close(self) -> None:
    """Stops the feed."""
    if self._feed is not None:
      self._feed.__exit__()

  # The model alone, here and for PyTorch.

  @property
  def model_side(self) -> sides.JaxSide:
    """The model alone, with `variables`, on random inputs."""
    if self._model_side is None:
      self._model_side = sides.JaxSide(
        self.variables(), self.model_config.to_dict(), self.batch(), self.config.dtype
      )
    return self._model_side

  @property
  def model_config(self) -> ModelConfig:
    """The model's config."""
    return self._experiment.model_config

  def variables(self) -> Variables:
    """Returns the model's first variables, float32, with noise on its parameters.

    Heads start from zeros: without noise, all models would have the same logits.
    """
    state = self._experiment.initial_state()
    rng = np.random.default_rng(0)
    params = {
      name: np.asarray(leaf + _NOISE * rng.standard_normal(leaf.shape, np.float32))
      for name, leaf in sorted(models.flatten({'params': state.params}).items())
    }
    return models.unflatten(params) | state.model_state

  def batch(self) -> np.ndarray:
    """Returns normally distributed inputs, float32 [B, ...] as of a batch."""
    size = self.config.batch_size
    return next(RandomImages(self.model_config, size).batches(size))[0]

  def training_set(self) -> TrainingSet:
    """Returns the whole training set as it is decoded for the device.

    Raises:
      UsageError: it doesn't stay there, has no single label for each image, or fills no batch.
    """
    loader, data = self._experiment.train_loader(), self.config.data
    if not isinstance(loader, ResidentLoader):
      raise UsageError('--torch_loader: needs a set that stays on the device, and this is streamed')
    arrays, batch_size = loader.arrays, self.config.batch_size
    if 'image' not in arrays or arrays.get('label', np.zeros(())).ndim != 1:
      raise UsageError('--torch_loader: needs images with one label each')
    if batch_size > (count := len(arrays['label'])):
      raise UsageError(
        f'--torch_loader: config.batch_size {batch_size} is more than {count} images'
      )
    return TrainingSet(arrays['image'], arrays['label'], data.mean, data.std)

  def torch_model(self, folder: str, origins: Sequence[str]) -> Timm | Transformers:
    """Writes `variables` for PyTorch into a folder; returns what makes the model there.

    Args:
      folder: that is there.
      origins: 'timm' and 'transformers', or one of them, the better first. Where one isn't
        installed, or has no such model, it is the other.

    Raises:
      UsageError: neither has such a model.
    """
    if not self.model_config.num_classes:
      raise UsageError(f'{_LABEL}: the model has no head, so there are no logits to compare')
    problems = []
    for origin in filter(importlib.util.find_spec, origins):
      try:
        return {'timm': self._timm, 'transformers': self._transformers}[origin](folder)
      except UsageError as e:
        problems.append(f'{origin}: {str(e).removeprefix(_LABEL + ": ")}')
    raise UsageError(f'{_LABEL}: {"; ".join(problems)}')

  def _timm(self, folder: str) -> Timm:
    config, path = self.model_config, os.path.join(folder, 'model.safetensors')
    model = Timm(path, *weights.timm_creation(config, _LABEL))
    weights.save(self.variables(), config, path, format='timm', label=_LABEL)
    return model

  def _transformers(self, folder: str) -> Transformers:
    config, path = self.model_config, os.path.join(folder, 'model')
    model = Transformers(path, weights.transformers_class(config, _LABEL))
    weights.save(self.variables(), config, path, format='huggingface', label=_LABEL)
    return model

  def check_same(self, call: Callable[..., Any], ours: int, theirs: int) -> dict[str, float]:
    """Returns how far the logits of PyTorch's side are apart from those here.

    Args:
      call: of a method of that side.
      ours: number of parameters.
      theirs: likewise, in PyTorch.

    Raises:
      UsageError: they are further apart than rounding explains, or the numbers differ.
    """
    if ours != theirs:
      raise UsageError(f'{_LABEL}: {ours:,} parameters here, and {theirs:,} in PyTorch')
    inputs = self.batch()[:_COMPARED]
    logits = self.model_side.logits(inputs), call('logits', inputs)
    found = measure.compare_logits([(*logits, np.full(len(inputs), -1))])
    difference, deviation = found['largest_difference'], found['standard_deviation']
    if not difference <= _TOLERANCE * deviation:
      raise UsageError(
        f"{_LABEL}: PyTorch's logits differ by {difference:.2g}, of a standard deviation of "
        f'{deviation:.2g}; it is another model there'
      )
    return {'largest_difference': difference, 'standard_deviation': deviation}


def start(config: ConfigDict) -> TimedExperiment:
  """Returns an experiment in a process of its own, which is set up as those of commands are."""
  if host_memory.runs_on_cpu():
    host_memory.reuse_freed_memory(in_calling_thread=True)
    host_memory.run_in_calling_thread()
  compilation_cache.use()
  return TimedExperiment(config)
