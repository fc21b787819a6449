"""The parts of a run, all mistakes found before it starts: `Experiment`."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vit_jax import experiment_config, host_memory, models, tasks
from vit_jax.data import (
  Preprocess,
  ResidentLoader,
  Source,
  StreamedLoader,
  Views,
  augment,
  eval_loader,
  kinds,
  make_preprocess,
  open_splits,
  resolve_resident,
  title,
  train_loader,
)
from vit_jax.data.preprocess import CENTRAL_CROPS
from vit_jax.errors import UsageError, field_prefix, printable
from vit_jax.models import ModelConfig, Preprocessing
from vit_jax.tasks import Metric
from vit_jax.train import (
  evaluators,
  feeds,
  flops,
  metrics,
  partition,
  pretrained,
  resolve,
  shard,
  step,
)
from vit_jax.train.optimizers import make_optimizer
from vit_jax.train.schedules import make_schedule
from vit_jax.train.state import TrainState, create_state
from vit_jax.train.trace import check_train_size, init, trace

# Fields of config.data that decide which frames of a video are taken, and where.
_CLIPS = ('num_frames', 'frame_stride', 'temporal_views', 'spatial_crops')
_MAX_EXAMPLE = 2**31  # bytes of an example as the model takes it


def _preprocess(data: ConfigDict, split: str, stored: Sequence[int | None] = ()) -> Preprocess:
  """Returns what prepares examples; `stored` is the (height, width) of their pictures, if known."""
  with field_prefix('config.data.', {'area': 'crop_area'}):
    preprocess = make_preprocess(
      data.image_size,
      data.channels,
      data.crop,
      split == 'train',
      data.crop_fraction,
      area=data.crop_area,
      **{name: data[name] for name in _CLIPS},
      train_size=data.train_size,
      num_points=data.num_points,
      decoding=data.decoding,
      resizing=data.resizing,
    )
  sides = preprocess.image_size or [side or 1 for side in stored]
  views = max(data.num_frames, 1) * data.temporal_views * data.spatial_crops
  size = math.prod(sides) * (data.channels or 1) * views
  if size > _MAX_EXAMPLE:
    raise UsageError(
      f'config.data: an example of image_size, num_frames and views has {size:,} bytes, more than '
      f'the {_MAX_EXAMPLE:,} that it may have'
    )
  return preprocess


class Experiment:
  """The parts of a run: data, model, task, optimiser, and the feeds that connect them.

  Attributes:
    config: the resolved configuration.
    num_classes: of the training split; 0 where the task learns none.
    model: the Flax module.
    task: what it learns.
    metrics: of evaluations, by name: the task's, those that `config.metrics` asks for, and those of
      evaluators, as 'knn/accuracy'.
    further_metrics: those of them that `config.metrics` asks for.
    evaluators: what judges the features, where `config.evaluators` turns some on.
    model_config: of the model, as whoever loads its variables needs it.
    resident: whether the data stay on the devices.
    sets: split -> (source, preprocess), of train, val where there is one, and test.
    judged: the split that is evaluated during the run, and chooses: val if there is one, else test.
    layout: where the state lies.
  """

  def __init__(self, config: ConfigDict, workdir: Path | None = None):
    """Builds everything but the state and what lives on devices.

    Args:
      config: the experiment, see `experiment_config`.
      workdir: the run directory; where a run there goes on, `config.init_from` isn't read again.

    Raises:
      UsageError: any mistake in the configuration.
    """
    experiment_config.check(config)
    kind = resolve.find_task(config)
    targets = kind.TARGETS
    with field_prefix('config.'):
      opened = open_splits(config.data, config.seed)
    sources = {split: source for split, (source, _) in opened.items()}
    self.judged = 'val' if 'val' in sources else 'test'
    self._judged_name = opened[self.judged][1]
    channels = config.data.channels or sources['train'].channels
    self._warmup_asked_for = config.schedule.warmup_steps
    config, start = pretrained.complete(config, channels, workdir)
    self.config = config = resolve.resolve(config, len(sources['train']))
    with field_prefix('config.'):
      self.layout = shard.make_layout(config)
    self.sets = {
      split: (source, _preprocess(config.data, split, source.image_shape[:2]))
      for split, source in sources.items()
    }
    self._class_names = sources['train'].class_names if kind.LEARNS_CLASSES else ()
    self.num_classes = len(self._class_names)
    if missing := [name for name in targets if name not in sources['train'][0]]:
      raise UsageError(
        f'config.task: {config.task!r} needs {kinds.kind_of(missing[0]).plural}, and the records '
        f'of config.data.name={config.data.name!r} have none'
      )
    self.model = resolve.build_model(config, self.num_classes)
    resolve.check_input(config, self.model, sources['train'][0])
    used = self.model.INPUT, *targets
    with field_prefix('config.augment.'):
      augment.validate(config.augment, used)
    with field_prefix('config.data.', {'rotation': 'test_rotation'}):
      augment.check_rotation(config.data.test_rotation, used)
    self.task = resolve.build_task(config, self.model, self.num_classes, sources['train'])
    resolve.complete(config, self.model, self.task)
    resolve.check_task(config, self.model, self.task)
    self._train_preprocess = self.sets['train'][1]
    for split in self.sets:  # nothing is read yet, but every option is checked
      self._loader(split, resident=False)
    test_source, test_preprocess = self.sets['test']
    with field_prefix('config.data.'):
      record = test_preprocess(test_source[0])
    with field_prefix('config.augment.'):
      augment.check_own(config.augment.own, record)
    self._views = self._plan_views(kinds.example(record, self.model.INPUT))
    with field_prefix('config.data.'):
      self.resident, self._reason = resolve_resident(
        config.data.resident,
        [(sources['train'], self._train_preprocess), *list(self.sets.values())[1:]],
        jax.local_devices(),
      )
    traced = trace(config, self.model, self.task, record, self._views['test'])
    self._input_shape, self._shapes = traced.input, traced.variables
    with field_prefix('config.'):
      self.further_metrics = metrics.further(config.metrics, config.monitor, self.task, record)
    self.metrics = self.task.metrics | self.further_metrics | evaluators.metrics(config)
    single = [name for name, metric in self.further_metrics.items() if not metric.per_class]
    config.monitor = resolve.find_monitor(
      config, self.judged, [*traced.metrics, *single], evaluators.metrics(config)
    )
    check_train_size(self.model, self._shapes, self._input_shape, self.sets['train'][1].image_size)
    self._param_shapes = self._shapes['params']
    self.model_config = self._describe_model(kinds.example(record, self.model.INPUT))
    self.evaluators = self._make_evaluators()
    self._trainable, frozen = partition.split(config.freeze, self._param_shapes)
    self._pretrained, self._notes = {}, []
    self._eval_steps = {}  # by whether they give rows
    if start:
      variables, self._notes = pretrained.fit(start, self.model_config, config)
      self._pretrained = models.flatten(variables)
      self._check_frozen(frozen)
    self._schedule = make_schedule(config, config.num_steps)
    self._tx = make_optimizer(config, self.model, self._param_shapes, self._schedule)

  def _plan_views(self, example: np.ndarray) -> dict[str, step.Views]:
    """Returns split -> the augmentations of the views that the task takes, by groups.

    Where `data.crop` takes random parts to train, the host cuts out the views, of the images as
    they are stored; else the device does, of the images that `data.crop` gives. Evaluation does so
    in any case.

    Args:
      example: of the model's inputs.
    """
    data, train = self.config.data, self._train_preprocess
    kind = kinds.kind_of(self.model.INPUT)
    groups = self.task.views(kind.size(example))
    if groups and not kind.is_spatial:
      raise UsageError(
        f'config.model.name: {self.config.model.name!r} takes {kind.plural}, and the task '
        f'{self.config.task} learns from parts of images'
      )
    crop = self.config.augment.resized_crop.size
    whole = crop or train.image_size or kind.size(example)
    sizes = [group.size for group in groups.values()] or [whole]
    with field_prefix('config.augment.'):
      augment.check_moves(self.config.augment, sizes)
    is_set = {
      'train_size': data.train_size,
      'crop': data.crop == 'scale',
      'crop_area': data.crop_area,
      'spatial_crops': data.spatial_crops > 1,
      'temporal_views': data.temporal_views > 1,
    }
    for field in is_set:
      if groups and is_set[field]:
        raise UsageError(
          f'config.data.{field}: {data[field]!r}, but the task {self.config.task} takes views of '
          'its own'
        )
    if groups and train.random_crop:
      clips = {name: data[name] for name in (*_CLIPS, 'decoding', 'resizing')}
      self._train_preprocess = Views(
        {
          name: (
            make_preprocess(group.size, data.channels, data.crop, True, area=group.area, **clips),
            len(group.changes),
          )
          for name, group in groups.items()
        }
      )
    on_device = {'train': self._train_preprocess is train, 'test': True}
    with field_prefix('config.augment.'):
      return {
        split: {name: g.configs(self.config.augment, crop) for name, g in groups.items()}
        for split, crop in on_device.items()
      }

  def _describe_model(self, example: np.ndarray) -> ModelConfig:
    """Returns the model's config; `example` is of its inputs."""
    data, crop, kind = self.config.data, {'crop': 'resize'}, kinds.kind_of(self.model.INPUT)
    if data.crop in CENTRAL_CROPS:  # as in evaluation
      crop = {'crop': 'central', 'crop_fraction': self.sets['test'][1].crop_fraction}
    clips = {name: data[name] for name in _CLIPS[1:] if data[name] > 1}
    pixels = Preprocessing(mean=data.mean, std=data.std, **crop, **clips)
    return ModelConfig(
      model=self.model,
      channels=example.shape[-1],
      image_size=kind.size(example),
      num_frames=kind.num_frames(example),
      num_points=kind.num_points(example),
      class_names=tuple(self._class_names) or None,
      preprocess=pixels if kind.has_pixels else None,
      task=tasks.stated(self.config.task, self.task, self.config.model.get('head', {}).get('name')),
    )

  def _make_evaluators(self) -> evaluators.Evaluators:
    data, model = self.config.data.copy_and_resolve_references(), self.model_config
    if kinds.kind_of(self.model.INPUT).has_pixels:  # as the backbone sees them
      data.update(image_size=model.seen_size, channels=model.channels)
      data.num_frames = model.num_frames or 0
    return evaluators.Evaluators(
      self.config,
      model,
      self._shapes,
      _preprocess(data, 'test').one_view,
      self._eval_loader,
      {'train': self.sets['train'][0], 'test': self.sets[self.judged][0]},
      self.sets.values() if self.resident else (),
      self.layout,
    )

  def check_memory(self, trains: bool = True) -> None:
    """To be called before the state is made.

    Args:
      trains: else the model is only evaluated.

    Raises:
      UsageError: a device can't hold the state, or the variables that are evaluated, and its part
        of a batch at once.
    """
    c, devices, state = self.config, jax.local_devices(), self.state_shapes
    batch = c.eval_batch_size // jax.device_count() * math.prod(self._input_shape)
    if trains:
      batch = max(batch, shard.device_bytes(self.batch_shapes()))
    needed = shard.device_bytes(state if trains else state.eval_variables) + batch
    present = (devices[0].memory_stats() or {}).get('bytes_limit')
    is_host = present is None and devices[0].platform == 'cpu'
    if is_host and (total := host_memory.total()):
      present = total // len(devices)
    if present is not None and needed > present:
      what = 'parameters, optimiser' if trains else 'parameters'
      raise UsageError(
        f'config.model: {what} and a batch need {needed:,} bytes of each device, which has '
        f'{present:,}'
      )

  def _check_frozen(self, frozen: Any) -> None:
    """Raises UsageError for a parameter that would stay as it is initialised, at random or zero."""
    for name, leaf in models.flatten({'params': frozen}).items():
      given = name in self._pretrained or self.model.works_untrained(name)
      if leaf is not None and not given:
        raise UsageError(
          f'config.freeze: {name} is frozen, but {self.config.init_from} has none to start from'
        )

  @property
  def monitored(self) -> Metric:
    """The metric that decides which checkpoint is the best."""
    return metrics.monitored(self.config.monitor, self.metrics)

  def values(self, sums: Any, rows: Any) -> dict[str, float]:
    """Returns the metrics of what `eval_feed` found; see `metrics.of_split`."""
    return metrics.of_split(
      self.task,
      self.further_metrics,
      (sums, rows),
      self.model_config.class_names,
      needed=self.config.monitor.rpartition('/')[2],
    )

  def period(self, name: str) -> int | None:
    """Returns steps from one value of a metric to the next; None where it is due at the end alone.

    Args:
      name: as in metrics.jsonl, 'train/loss', 'val/loss', 'knn/accuracy', 'images_per_second'.
    """
    judge = name.partition('/')[0]
    if judge == self.judged:
      return self.config.eval_every
    if judge == 'test':
      return None
    return self.evaluators.periods.get(judge, self.config.log_every)

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Shape of what the model takes of an example, as (height, width, channels) of images."""
    return self._input_shape

  @property
  def schedule(self) -> optax.Schedule:
    """The learning rate by the number of steps that are done."""
    return self._schedule

  @property
  def descriptions(self) -> dict[str, dict[str, Any]]:
    """What there is to know of the metrics, by name, as results.json has it."""
    fields = ('unit', 'higher_is_better', 'label')
    return {name: {f: getattr(m, f) for f in fields} for name, m in self.metrics.items()}

  def _apply(self, variables: Any, inputs: jax.Array) -> Any:
    return self.model.apply(variables, inputs, train=False)

  def initial_state(self) -> TrainState:
    """Returns the state before the first step, the same in every process.

    Its arrays are NumPy's, but where `config.shard` spreads them: there they have their places.
    """

    def create(pretrained):
      variables = init(self.model, self.config.seed, (1, *self._input_shape))
      flat = models.flatten(variables) | pretrained
      return self._create_state(models.unflatten(flat, tuple(self._shapes)))

    return self.layout.create(create, self._pretrained)

  def _create_state(self, variables: Any) -> TrainState:
    params, model_state = variables['params'], {n: v for n, v in variables.items() if n != 'params'}
    return create_state(self.config, params, tx=self._tx, model_state=model_state)

  @property
  def state_shapes(self) -> TrainState:
    """Shapes and dtypes of the state; and its places, where `config.shard` spreads it."""
    return self.layout.place(jax.eval_shape(self._create_state, self._shapes))

  @property
  def gradient_shapes(self) -> Any:
    """Shapes and dtypes of the gradients, with their places as `state_shapes` has them."""
    return self.layout.place_gradients(self._trainable)

  def _loader(self, split: str, resident: bool) -> ResidentLoader | StreamedLoader:
    if split != 'train':
      return self._eval_loader(*self.sets[split], resident)
    config = self.config
    with self._names_fields():
      return train_loader(
        self.sets[split][0],
        self._train_preprocess,
        batch_size=config.batch_size,
        seed=config.seed,
        sampling=config.data.sampling,
        resident=resident,
        **self._loader_options(),
      )

  def _eval_loader(
    self, source: Source, preprocess: Preprocess, resident: bool
  ) -> ResidentLoader | StreamedLoader:
    with self._names_fields():
      return eval_loader(
        source,
        preprocess,
        batch_size=self.config.eval_batch_size,
        resident=resident,
        **self._loader_options(),
      )

  def _names_fields(self) -> contextlib.AbstractContextManager:
    return field_prefix('config.', {name: f'data.{name}' for name in self.config.data})

  def _loader_options(self) -> dict[str, int]:
    return {
      'num_devices': jax.local_device_count(),
      'process_index': jax.process_index(),
      'process_count': jax.process_count(),
      **{name: self.config.data[name] for name in ('num_workers', 'num_threads', 'prefetch')},
    }

  def train_loader(self) -> ResidentLoader | StreamedLoader:
    """Returns what training batches come from."""
    return self._loader('train', self.resident)

  def train_feed(self) -> feeds.ResidentTrainFeed | feeds.StreamedTrainFeed:
    """Returns what runs training steps: (state, step, limit) -> (state, metrics, steps done)."""
    loader, train_step = self.train_loader(), self._train_step(self.layout)
    if not self.resident:
      return feeds.StreamedTrainFeed(train_step, loader, self.state_shapes, self.layout)
    # XLA compiles gradients of convolutions to slow code where they stand in a loop on a CPU
    # (github.com/jax-ml/jax/issues/12868); those of a patch embedding alone don't matter.
    num_convolutions = sum(leaf.ndim == 4 for leaf in jax.tree.leaves(self._param_shapes))
    is_slow = jax.default_backend() == 'cpu' and num_convolutions > 1
    max_steps = 1 if is_slow else feeds.MAX_STEPS
    return feeds.ResidentTrainFeed(train_step, loader, self.state_shapes, max_steps, self.layout)

  def training_rows(self, steps_done: int, count: int) -> dict[str, np.ndarray]:
    """Returns the first rows of a step's batch as the model is trained on them: augmented.

    Args:
      steps_done: steps before this one.
      count: how many rows, at most all that this process holds.
    """
    loader = self._loader('train', resident=False)
    whole_pairs = count + count % 2  # mixup and cutmix blend neighbours
    rows = loader.first_rows(steps_done, min(whole_pairs, loader.plan.rows))
    augmented = functools.partial(
      step.augmented, self.config, num_classes=self.num_classes, views=self._views['train']
    )
    key, _ = step.step_keys(self.config.seed, steps_done)
    rows = jax.device_get(jax.jit(augmented)(rows, key))
    return {name: value[:count] for name, value in rows.items() if name != 'rng'}

  def _train_step(self, layout: step.Whole = step.WHOLE) -> Callable:
    return step.make_train_step(
      self.config,
      self.model,
      self.task,
      self._tx,
      self._schedule,
      self.num_classes,
      self._views['train'],
      layout,
    )

  def eval_feed(
    self, split: str, with_rows: bool = False
  ) -> feeds.ResidentEvalFeed | feeds.StreamedEvalFeed:
    """Returns what evaluates a model's variables on 'val' or 'test': variables -> (sums, rows).

    There are rows for `further_metrics`, or where `with_rows`.
    """
    feed = feeds.ResidentEvalFeed if self.resident else feeds.StreamedEvalFeed
    with_rows = with_rows or bool(self.further_metrics)
    if with_rows not in self._eval_steps:  # all splits are evaluated by one, which compiles once
      eval_step = step.make_eval_step(
        self.config, self.model, self.task, self._views['test'], with_rows
      )
      self._eval_steps[with_rows] = feed.mapped(eval_step, self.layout)
    longest = max(len(source) for name, (source, _) in self.sets.items() if name != 'train')
    loader = self._loader(split, self.resident)
    return feed(self._eval_steps[with_rows], loader, longest, self.layout)

  def flops_per_image(self, state: TrainState) -> dict[str, float]:
    """Returns floating-point operations an example, counted as `vit_jax.train.flops` does.

    Args:
      state: of the run; only its shapes matter.

    Returns:
      `forward`: of the model in evaluation; `training`: of a training step, over its inputs.
    """
    batch, inputs = self.batch_shapes(), jax.ShapeDtypeStruct((1, *self._input_shape), jnp.float32)
    total = flops.count(self._train_step(), state, batch, axis='batch')
    return {
      'forward': flops.count(self._apply, self._shapes, inputs),
      'training': total / len(batch['slot']),
    }

  def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns a device's part of a training batch, as the loader gives it, in shapes and dtypes."""
    source, _ = self.sets['train']
    row = kinds.stack([self._train_preprocess(source[0], np.random.default_rng(0))])
    row |= {'weight': np.ones(1, np.float32), 'slot': np.zeros(1, np.int32)}
    rows = self.config.batch_size // jax.device_count()
    return {n: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for n, x in row.items()}

  def compiled_train_step(self) -> jax.stages.Compiled:
    """Compiles one training step for the devices; of several steps in a dispatch, one."""
    devices = jax.local_device_count()
    batch = {
      name: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype)
      for name, x in self.batch_shapes().items()
    }
    one_step, state = step.one_train_step(self._train_step(self.layout)), self.state_shapes
    return self.layout.compile_training(one_step, state).lower(state, batch, ()).compile()

  def _spread(self) -> str:
    """Says what `config.shard` saves."""
    text, state = f'config.shard={self.config.shard}', self.state_shapes
    whole, part = (shard.device_bytes(x) for x in (shard.without_places(state), state))
    if self.layout is step.WHOLE:
      return f'{text}: nothing to spread over, on one device'
    return f'{text}: of the state of {whole / 2**20:,.1f} MiB each device has {part / 2**20:,.1f}'

  def _epochs(self) -> str:
    c, num_examples = self.config, len(self.sets['train'][0])
    text = f'{c.num_steps * c.batch_size / num_examples:.4g} epochs'
    if c.num_epochs and resolve.steps_of_epochs(c, num_examples) != c.num_steps:
      text += f' (config.num_steps stands instead of config.num_epochs, {c.num_epochs:g})'
    return text

  def _choice(self) -> str:
    """Says which split chooses the best checkpoint."""
    monitor, test = self.config.monitor, self.config.data.test_split
    text = f'the best checkpoint is chosen by {monitor}, on'
    split = self.evaluators.splits.get(monitor.partition('/')[0], '')
    if self.judged == 'val' and not split:
      return f'{text} val ({self._judged_name}); test is evaluated once, at the end'
    text = f'{text} {split or test}'
    if self.judged == 'test' and split in ('', test):
      text += "; --config.data.val_split='10%' would choose on a part of train, and spare test"
    return text

  @property
  def data_title(self) -> str:
    """What people call the data set."""
    return title(self.config.data.name, self.config.data.dir)

  def describe(self) -> str:
    """Returns some lines on what is about to be run."""
    *counts, test = [f'{len(source):,} {split}' for split, (source, _) in self.sets.items()]
    inputs, shape = kinds.kind_of(self.model.INPUT).plural, 'x'.join(map(str, self._input_shape))
    where = 'resident on the device' if self.resident else 'streamed from the host'
    count, trained = models.num_entries(self._param_shapes), models.num_entries(self._trainable)
    parameters = f'{count:,} parameters' + (f' ({trained:,} train)' if trained < count else '')
    classes = f', {self.num_classes} classes' if self.num_classes else ''
    lines = [
      f'{self.data_title}: {", ".join(counts)} and {test} {inputs} of '
      f'{shape}{classes}, {where} ({self._reason})',
      f'{self.config.model.name}: {parameters}, {self.config.dtype}, '
      f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      f'{self.config.num_steps:,} steps of {self.config.batch_size} examples, {self._epochs()}',
      self._choice(),
    ]
    if self.config.shard != 'none':
      lines.append(self._spread())
    if self.config.batch_size > (num_train := len(self.sets['train'][0])):
      lines.append(
        f'config.batch_size: {self.config.batch_size:,} is more than the {num_train:,} train '
        f'{inputs}; a step takes some of them several times'
      )
    if (warmup := self.config.schedule.warmup_steps) != self._warmup_asked_for:
      lines.append(
        f'config.schedule.warmup_steps: cut from {self._warmup_asked_for:,} to {warmup:,}, half of '
        'the run, which is not longer than the warmup asked for'
      )
    if self._pretrained:
      lines += [f'starting from {self.config.init_from}', *(f'  {note}' for note in self._notes)]
    return '\n'.join(map(printable, lines))
