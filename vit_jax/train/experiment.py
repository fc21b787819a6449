"""From a configuration to everything that a run needs, all mistakes found before it starts."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.data import (
  ResidentLoader,
  StreamedLoader,
  augment,
  eval_loader,
  load_source,
  make_preprocess,
  resolve_resident,
  train_loader,
)
from vit_jax.errors import UsageError, check_choice
from vit_jax.models import tree, variables
from vit_jax.tasks import build_task, task_module
from vit_jax.train import feeds, flops, partition, pretrained, step
from vit_jax.train.optimizers import make_optimizer
from vit_jax.train.schedules import make_schedule
from vit_jax.train.state import TrainState, create_state
from vit_jax.weights import adapt


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
  per_device = c.batch_size // jax.device_count()
  if per_device % c.grad_accum_steps:
    raise UsageError(
      f'config.grad_accum_steps: {c.grad_accum_steps} does not divide the '
      f'{per_device} examples of a device'
    )
  if per_device % 2 and (c.augment.mixup_alpha or c.augment.cutmix_alpha):
    raise UsageError(
      f'config.batch_size: {c.batch_size} gives a device {per_device} examples, '
      'and mixup and cutmix pair them: give an even number'
    )
  epoch = max(num_examples // c.batch_size, 1)
  if c.num_steps < 0:
    raise UsageError(f'config.num_steps: {c.num_steps} is negative')
  c.num_steps = c.num_steps or _steps_of_epochs(c, num_examples)
  if c.num_steps <= 0:
    raise UsageError(f'config.num_epochs: {c.num_epochs} gives no step, and config.num_steps is 0')
  c.eval_every = c.eval_every or epoch
  c.checkpoint_every = c.checkpoint_every or c.eval_every
  c.log_every = c.log_every or max(min(c.eval_every, c.num_steps, 400) // 4, 1)
  for field in ('eval_every', 'checkpoint_every', 'log_every'):
    if c[field] < 0:
      raise UsageError(f'config.{field}: {c[field]} is negative')
  if c.early_stopping_patience < 0:
    raise UsageError(f'config.early_stopping_patience: {c.early_stopping_patience} is negative')
  if c.plateau.patience < 1 or c.plateau.cooldown < 0:
    raise UsageError(
      f'config.plateau: patience {c.plateau.patience} is less than 1, '
      f'or cooldown {c.plateau.cooldown} less than 0'
    )
  _check_range('ema_decay', c.ema_decay, 0, 1)
  _check_range('plateau.min_scale', c.plateau.min_scale, 0, 1)
  if not 0 < c.plateau.factor <= 1:
    raise UsageError(f'config.plateau.factor: {c.plateau.factor} is not in (0, 1]')
  if c.plateau.min_delta <= 0:
    raise UsageError(f'config.plateau.min_delta: {c.plateau.min_delta} is not positive')
  return c


def _steps_of_epochs(config: ConfigDict, num_examples: int) -> int:
  return round(config.num_epochs * num_examples / config.batch_size)


def _check_range(field: str, value: float, low: float, high: float) -> None:
  if not low <= value < high:
    raise UsageError(f'config.{field}: {value} is not in [{low}, {high})')


def _flatten(params: Any) -> dict[str, Any]:
  return flax.traverse_util.flatten_dict(params, sep='/')


def _size(tree: Any) -> int:
  return sum(x.size for x in jax.tree.leaves(tree))


class Experiment:
  """The parts of a run: data, model, task, optimiser, and the feeds that connect them.

  Attributes:
    config: the resolved configuration.
    num_classes: of the training split.
    model: the Flax module.
    resident: whether the data stay on the devices.
    sets: split -> (source, preprocess).
  """

  def __init__(self, config: ConfigDict, workdir: Path | None = None):
    """Builds everything but the state and what lives on devices.

    Args:
      config: the experiment, see configs/common.py.
      workdir: the run directory; where a run there goes on, `config.init_from` isn't read again.

    Raises:
      UsageError: any mistake in the configuration.
    """
    data, targets = config.data, task_module(config).TARGETS
    augment.validate(config.augment, boxes='box' in targets)
    sources = {
      split: load_source(
        data.name, data[f'{split}_split'], data.dir, field=f'config.data.{split}_split'
      )
      for split in ('train', 'test')
    }
    channels = data.channels or sources['train'].image_shape[2]
    config, start = pretrained.complete(config, channels, workdir)
    self.config = config = resolve(config, len(sources['train']))
    data = config.data
    how = data.image_size, data.channels, data.crop
    self.sets = {
      split: (source, make_preprocess(*how, split == 'train', data.crop_fraction))
      for split, source in sources.items()
    }
    self.num_classes = sources['train'].num_classes
    if missing := [name for name in targets if name not in sources['train'][0]]:
      raise UsageError(
        f'config.task: {config.task!r} needs a {missing[0]} of each image, and those of '
        f'config.data.name={data.name!r} have none'
      )
    self.resident, self._reason = resolve_resident(
      data.resident, list(self.sets.values()), jax.local_devices()
    )
    dtype, head = jnp.dtype(config.dtype), task_module(config).HEAD
    self.model = models.build_model(
      config.model, self.num_classes, dtype, axis_name='batch', head=head
    )
    self._task = build_task(config, self.num_classes)
    for split in self.sets:  # nothing is read yet, but every option is checked
      self._loader(split, resident=False)
    self._check_sizes()
    self._trainable, frozen = partition.split(config.freeze, self._param_shapes)
    self._pretrained, self._notes = self._adapt(start) if start else ({}, [])
    if start:
      self._check_frozen(frozen)
    self._schedule = make_schedule(config, config.num_steps)
    self._tx = make_optimizer(config, self._param_shapes, self._schedule)

  def _check_sizes(self) -> None:
    """Traces model and task once, so that sizes that don't fit show before a run starts."""
    config, (source, preprocess) = self.config, self.sets['test']
    record = preprocess(source[0])
    self._image_shape = record['image'].shape
    for field in ('mean', 'std'):
      if len(config.data[field]) not in (1, self._image_shape[-1]):
        raise UsageError(
          f'config.data.{field}: {len(config.data[field])} values, but images have '
          f'{self._image_shape[-1]} channels; give one value for each, or one for all'
        )
    if min(config.data.std) <= 0:
      raise UsageError(f'config.data.std: {config.data.std} has a value that is not positive')
    self._shapes = jax.eval_shape(self._init)
    self._param_shapes = variables(self._shapes)['params']
    image = jax.ShapeDtypeStruct((1, *self._image_shape), jnp.float32)
    outputs = jax.eval_shape(self._apply, self._shapes, image)
    batch = {name: jnp.asarray(value)[None] for name, value in record.items() if name != 'image'}
    batch['weight'] = jnp.ones(1)
    metrics = jax.eval_shape(lambda *x: self._task(*x, False), outputs, batch)
    check_choice('config.monitor', config.monitor, [f'test/{name}' for name in metrics])

  def _adapt(self, start: pretrained.Pretrained) -> tuple[dict[str, Any], list[str]]:
    """Returns (what the run takes from `start`, flat; what was changed)."""
    taken, notes = adapt.adapt(
      *start,
      {name: leaf.shape for name, leaf in _flatten(self._shapes).items()},
      self.model_config,
      self.config.init_from,
      head=self.config.init_options.head,
      allow=self.config.init_options.allow,
    )
    return _flatten(taken), notes

  def _check_frozen(self, frozen: Any) -> None:
    """Raises UsageError for a parameter that would stay as it is initialised, at random or zero."""
    for name, leaf in _flatten(frozen).items():
      # A new fc_norm does what a norm should, untrained.
      if leaf is not None and name not in self._pretrained and '/fc_norm/' not in f'/{name}':
        raise UsageError(
          f'config.freeze: {name} is frozen, but {self.config.init_from} has none to start from'
        )

  @property
  def model_config(self) -> dict[str, Any]:
    """What the parameters are of, as `vit_jax.weights` describes it, with all of its attributes."""
    fields = models.describe(self.config.model, task_module(self.config).HEAD)
    model, data = getattr(self.model, 'backbone', self.model), self.config.data
    crop = {'crop': 'resize'}
    if data.crop != 'resize':  # as in evaluation
      crop = {'crop': 'central', 'crop_fraction': self.sets['test'][1].crop_fraction}
    return {name: getattr(model, name) if v is None else v for name, v in fields.items()} | {
      'num_classes': self.num_classes,
      'channels': self._image_shape[-1],
      'image_size': self._image_shape[:2],
      'class_names': list(self.sets['train'][0].class_names),
      'preprocess': {'mean': data.mean, 'std': data.std, **crop},
    }

  def _apply(self, weights, image):
    return self.model.apply(variables(weights), image, train=False)

  def _init(self) -> dict[str, Any]:
    """Returns the tree of all variables, as `vit_jax.weights` has it."""
    image = jnp.zeros((1, *self._image_shape))
    return tree(self.model.init(jax.random.key(self.config.seed), image, train=False))

  def initial_state(self) -> TrainState:
    """Returns the state before the first step as NumPy arrays, the same in every process."""
    weights = _flatten(jax.jit(self._init)()) | self._pretrained
    model_state = variables(flax.traverse_util.unflatten_dict(weights, sep='/'))
    params = model_state.pop('params')
    create = jax.jit(functools.partial(create_state, self.config, tx=self._tx))
    return jax.device_get(create(params, model_state=model_state))

  def _loader(self, split: str, resident: bool) -> ResidentLoader | StreamedLoader:
    config = self.config
    options = {
      'num_devices': jax.local_device_count(),
      'process_index': jax.process_index(),
      'process_count': jax.process_count(),
      'resident': resident,
      **{name: config.data[name] for name in ('num_workers', 'num_threads', 'prefetch')},
    }
    if split == 'train':
      options |= {'batch_size': config.batch_size, 'seed': config.seed}
      return train_loader(*self.sets[split], **options)
    return eval_loader(*self.sets[split], batch_size=config.eval_batch_size, **options)

  def train_feed(self) -> feeds.ResidentTrainFeed | feeds.StreamedTrainFeed:
    """Returns what runs training steps: (state, step, limit) -> (state, metrics, steps done)."""
    loader = self._loader('train', self.resident)
    if not self.resident:
      return feeds.StreamedTrainFeed(self._train_step(), loader)
    # XLA compiles gradients of convolutions to slow code where they stand in a loop on a CPU
    # (github.com/jax-ml/jax/issues/12868); those of a patch embedding alone don't matter.
    num_convolutions = sum(leaf.ndim == 4 for leaf in jax.tree.leaves(self._param_shapes))
    is_slow = jax.default_backend() == 'cpu' and num_convolutions > 1
    return feeds.ResidentTrainFeed(self._train_step(), loader, 1 if is_slow else feeds.MAX_STEPS)

  def _train_step(self) -> Callable:
    return step.make_train_step(
      self.config, self.model, self._task, self._tx, self._schedule, self.num_classes
    )

  def eval_feed(self) -> feeds.ResidentEvalFeed | feeds.StreamedEvalFeed:
    """Returns what evaluates a model's variables on the test split: variables -> metrics."""
    eval_step = step.make_eval_step(self.config, self.model, self._task)
    feed = feeds.ResidentEvalFeed if self.resident else feeds.StreamedEvalFeed
    return feed(eval_step, self._loader('test', self.resident))

  def flops_per_image(self, state: TrainState) -> dict[str, float]:
    """Returns floating-point operations an image, counted as `vit_jax.train.flops` does.

    Args:
      state: of the run; only its shapes matter.

    Returns:
      `forward`: of the model in evaluation; `training`: of a training step, over its images.
    """
    source, preprocess = self.sets['test']
    row = preprocess(source[0]) | {'weight': np.float32(1), 'slot': np.int32(0)}
    rows = self.config.batch_size // jax.device_count()
    batch = {name: np.broadcast_to(value, (rows, *np.shape(value))) for name, value in row.items()}
    image = jax.ShapeDtypeStruct((1, *self._image_shape), jnp.float32)
    return {
      'forward': flops.count(self._apply, self._shapes, image),
      'training': flops.count(self._train_step(), state, batch, axis='batch') / rows,
    }

  def _epochs(self) -> str:
    c, num_examples = self.config, len(self.sets['train'][0])
    text = f'{c.num_steps * c.batch_size / num_examples:.4g} epochs'
    if c.num_epochs and _steps_of_epochs(c, num_examples) != c.num_steps:
      text += f' (config.num_steps stands instead of config.num_epochs, {c.num_epochs:g})'
    return text

  def describe(self) -> str:
    """Returns some lines on what is about to be run."""
    (train, _), (test, _) = self.sets['train'], self.sets['test']
    height, width, channels = self._image_shape
    where = 'resident on the device' if self.resident else 'streamed from the host'
    count, trained = _size(self._param_shapes), _size(self._trainable)
    parameters = f'{count:,} parameters' + (f' ({trained:,} train)' if trained < count else '')
    lines = [
      f'{self.config.data.name}: {len(train):,} train and {len(test):,} test images of '
      f'{height}x{width}x{channels}, {self.num_classes} classes, {where} ({self._reason})',
      f'{self.config.model.name}: {parameters}, {self.config.dtype}, '
      f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      f'{self.config.num_steps:,} steps of {self.config.batch_size} examples, {self._epochs()}',
    ]
    if self._pretrained:
      lines += [f'starting from {self.config.init_from}', *(f'  {note}' for note in self._notes)]
    return '\n'.join(lines)
