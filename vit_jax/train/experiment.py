"""From a configuration to everything that a run needs, all mistakes found before it starts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vit_jax.data import augment
from vit_jax.data import loader as loaders
from vit_jax.data.preprocess import make_preprocess
from vit_jax.data.sources import load_source
from vit_jax.errors import UsageError, check_choice
from vit_jax.models import build_model
from vit_jax.tasks import build_task
from vit_jax.train import feeds, step
from vit_jax.train.optimizers import make_optimizer
from vit_jax.train.schedules import make_schedule
from vit_jax.train.state import TrainState, create_state


def resolve_dtype(dtype: str) -> str:
  """Returns the compute dtype; 'auto' is bfloat16 where the hardware has it."""
  check_choice('config.dtype', dtype, ('auto', 'float32', 'bfloat16'))
  if dtype != 'auto':
    return dtype
  return 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'


def resolve(config: ConfigDict, num_examples: int) -> ConfigDict:
  """Returns a copy in which every field that stands for another value has that value.

  Args:
    config: the experiment.
    num_examples: size of the training split.

  Raises:
    UsageError: a number out of range, a batch that doesn't divide.
  """
  c = config.copy_and_resolve_references()
  c.dtype = resolve_dtype(c.dtype)
  c.eval_batch_size = c.eval_batch_size or c.batch_size
  for field in ('batch_size', 'eval_batch_size', 'grad_accum_steps'):
    if c[field] <= 0:
      raise UsageError(f'config.{field}: {c[field]} is not positive')
  for field in ('batch_size', 'eval_batch_size'):
    if c[field] % jax.device_count():
      raise UsageError(
        f'config.{field}: {c[field]} does not divide over {jax.device_count()} devices'
      )
  if c.batch_size // jax.device_count() % c.grad_accum_steps:
    raise UsageError(
      f'config.grad_accum_steps: {c.grad_accum_steps} does not divide the '
      f'{c.batch_size // jax.device_count()} examples of a device'
    )
  epoch = max(num_examples // c.batch_size, 1)
  c.num_steps = c.num_steps or round(c.num_epochs * num_examples / c.batch_size)
  if c.num_steps <= 0:
    raise UsageError(f'config.num_epochs: {c.num_epochs} gives no step, and config.num_steps is 0')
  c.eval_every = c.eval_every or epoch
  c.checkpoint_every = c.checkpoint_every or c.eval_every
  c.log_every = c.log_every or max(c.eval_every // 20, 1)
  for field in ('eval_every', 'checkpoint_every', 'log_every'):
    if c[field] < 0:
      raise UsageError(f'config.{field}: {c[field]} is negative')
  _check_range('ema_decay', c.ema_decay, 0, 1)
  _check_range('plateau.min_scale', c.plateau.min_scale, 0, 1)
  if not 0 < c.plateau.factor <= 1:
    raise UsageError(f'config.plateau.factor: {c.plateau.factor} is not in (0, 1]')
  return c


def _check_range(field: str, value: float, low: float, high: float) -> None:
  if not low <= value < high:
    raise UsageError(f'config.{field}: {value} is not in [{low}, {high})')


class Experiment:
  """The parts of a run: data, model, task, optimiser, and the feeds that connect them."""

  def __init__(self, config: ConfigDict):
    """Builds everything but the state and what lives on devices.

    Raises:
      UsageError: any mistake in the configuration.
    """
    augment.validate(config.augment)
    data = config.data
    self._sources = {
      split: load_source(data.name, data[f'{split}_split'], data.dir) for split in ('train', 'test')
    }
    self.config = config = resolve(config, len(self._sources['train']))
    self._preprocess = {
      split: make_preprocess(data.image_size, data.channels, data.crop, train=split == 'train')
      for split in self._sources
    }
    self.num_classes = self._sources['train'].num_classes
    self.resident, self._why = loaders.resolve_resident(...)
    self.model = build_model(config.model, self.num_classes, jnp.dtype(config.dtype))
    self.task = build_task(config, self.num_classes)
    self.image_shape = self._first_image().shape
    self._check_shapes()

  def _first_image(self) -> np.ndarray:
    return self._preprocess['test'](self._sources['train'][0], None)['image']

  def _check_shapes(self) -> None:
    """Traces the model and the task once, so that sizes that don't fit show before a run starts."""
    channels, config = self.image_shape[-1], self.config
    for field in ('mean', 'std'):
      if len(config.data[field]) not in (1, channels):
        raise UsageError(
          f'config.data.{field}: {len(config.data[field])} values for images of {channels} channels'
        )
    params = jax.eval_shape(self._init_params)
    image = jax.ShapeDtypeStruct((2, *self.image_shape), jnp.float32)
    logits = jax.eval_shape(lambda p, x: self.model.apply({'params': p}, x, train=False), params, image)
    if logits.shape != (2, self.num_classes):
      raise UsageError(
        f'config.model.classifier: {config.model.classifier!r} gives outputs of shape '
        f'{logits.shape[1:]}, and {config.task} needs ({self.num_classes},)'
      )
    batch = {'label': jnp.zeros(2, jnp.int32), 'weight': jnp.ones(2)}
    names = [f'test/{n}' for n in jax.eval_shape(self.task, logits, batch)]
    check_choice('config.monitor', config.monitor, names)
    self._tx, self._schedule = self._make_optimizer(params)
    ...
