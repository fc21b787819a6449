"""The train and evaluation steps: plain functions of (state, batch), mapped over devices once.

Functions here see one device's part of the batch; 'batch' is the axis of the devices. Where
`shard.Spread` lays the state out, a train step sees whole arrays, and maps the gradients alone.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vit_jax.data import augment
from vit_jax.tasks import Apply, Sums, Task
from vit_jax.train import collectives, partition
from vit_jax.train.schedules import cosine_between
from vit_jax.train.state import TrainState

Batch = dict[str, jax.Array]
# Group of views -> the augmentations of each.
Views = Mapping[str, Sequence[ConfigDict]]

# Streams of random numbers, apart from those of augmentation, which count from 0.
_TASK, _EVALUATION, _ROTATION = 2**30, 2**30 + 1, 2**30 + 2


class Whole:
  """Every device has all of the state, and one mapped function does all of a step.

  `shard.Spread` has the same methods for a state that is spread over the devices.
  """

  def put(self, tree: Any) -> Any:
    """Returns arrays on the devices, laid out as compiled functions take and return them."""
    return _identity()(tree, np.zeros(jax.local_device_count()))

  def place(self, state: Any) -> Any:
    """Returns a state, or its shapes, with every leaf where it lies between steps."""
    return state

  def place_gradients(self, params: Any) -> Any:
    """Returns shapes of parameters with the places that their gradients have."""
    return params

  def spread(self, params: Any) -> Any:
    """Returns parameters where the optimiser updates them."""
    return params

  def create(self, make: Callable, arrays: Any) -> Any:
    """Returns the state that `make(arrays)` gives, from arrays on the host."""
    return jax.device_get(jax.jit(make)(arrays))

  def batch(self, gather: Callable, arrays: Any, rows: Any, i: jax.Array) -> Any:
    """Returns a batch of resident data by the function `gather`, within a step."""
    return gather(arrays, rows, i)

  def on_each_device(self, gradients: Callable, carry: tuple[Any, ...], batch: Batch) -> Any:
    """Returns `gradients(self, carry, batch)`, within a step, of each device's part of a batch."""
    return gradients(self, carry, batch)

  def gradient(self, loss_fn: Callable) -> Callable:
    """Returns the function of `loss_fn`'s arguments that gives its gradient, and what is aside.

    It gives what a device keeps of the gradient.

    Args:
      loss_fn: (trainable, (frozen, teacher) parameters, *args) -> (loss, aside).
    """
    return jax.grad(loss_fn, has_aux=True)

  def add_up(self, grads: Any, sums: Any) -> Any:
    """Returns both, added up over the devices."""
    return collectives.psum((grads, sums), 'batch')

  def compile_training(self, steps: Callable, state: Any) -> Callable:
    """Compiles `steps(state, mapped, shared)` as `map_over_devices` does; the state is donated.

    Args:
      steps: see `many_train_steps`.
      state: what `place` gives of its shapes.
    """
    del state
    return map_over_devices(steps, donate=True)

  def compile_evaluation(self, step: Callable) -> Callable:
    """Compiles `step(variables, mapped, shared)` as `map_over_devices` does."""
    return map_over_devices(step)


WHOLE = Whole()


@functools.cache
def _identity() -> Callable:
  return jax.pmap(lambda x, _: x, axis_name='batch', in_axes=(None, 0), out_axes=None)


def _split(batch: Batch, parts: int) -> Batch:
  # Every `parts`-th row, so that a micro-batch of all devices is the same however many they are.
  return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def ema_decay(config: ConfigDict) -> optax.Schedule:
  """Returns the decay of the parameters' moving average, by steps done."""
  if config.ema_decay_end is None:
    return optax.constant_schedule(config.ema_decay)
  return cosine_between(config.ema_decay, config.ema_decay_end, config.num_steps)


def _moving_average(config: ConfigDict, step: jax.Array, ema_params: Any, trainable: Any) -> Any:
  if ema_params is None:
    return None
  decay = ema_decay(config)(step)
  # A frozen parameter's average is itself, but wouldn't be after rounding.
  ema, frozen = partition.split(config.freeze, ema_params)
  ema = optax.incremental_update(trainable, ema, 1 - decay)
  return partition.merge(ema, frozen)


def augmented(
  config: ConfigDict,
  batch: Batch,
  key: jax.Array,
  num_classes: int,
  views: Views | None = None,
) -> Batch:
  """Returns a batch as the model is trained on it, with a key for each example in `rng`.

  Args:
    config: the experiment; reads `augment` and `data`.
    batch: as for `make_train_step`.
    key: of the step.
    num_classes: as for `make_train_step`, like `views`.
    views: of the task.
  """
  keys = jax.vmap(lambda slot: jax.random.fold_in(key, slot))(batch['slot'])
  pixels = config.data.mean, config.data.std
  if views:
    batch = augment.augment_views(views, keys, batch, *pixels)
  else:
    batch = augment.augment(config.augment, keys, batch, num_classes, *pixels)
  return batch | {'rng': jax.vmap(lambda key: jax.random.fold_in(key, _TASK))(keys)}


def step_keys(seed: int, step: int | jax.Array) -> jax.Array:
  """Returns two keys of a step: of its augmentation, and of its dropout."""
  return jax.random.split(jax.random.fold_in(jax.random.key(seed), step))


def make_train_step(
  config: ConfigDict,
  model: nn.Module,
  task: Task,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  num_classes: int,
  views: Views | None = None,
  layout: Whole = WHOLE,
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
  """Returns `train_step(state, batch) -> (state, sums)`, for use under an axis named 'batch'.

  The batch has the task's input, as uint8 `image` [B, H, W, C], and its targets, float32 `weight`
  [B] and int32 `slot` [B], the row's place in the global batch. Augmentation and the task draw by
  keys from (seed, step, slot), so that they don't depend on how many devices share the batch;
  dropout keys come from (seed, step, device). The gradient is that of the global batch's weighted
  mean loss, however it is split, and of the trainable parameters alone: frozen ones aren't
  differentiated, and stay as they are to the bit. The model's other variables (running statistics
  of batch normalisation) follow each micro-batch in turn, those of frozen modules too, as in
  PyTorch, where requires_grad doesn't stop them. The sums are the task's over the global batch,
  with `learning_rate` and `grad_norm`. Where the task takes views of its input, `views` has the
  augmentations of each (`ViewGroup.configs`). `layout` says where the state lies; what it spreads
  over the devices, the step takes and returns so, and calls what is mapped by itself.
  """

  def loss_fn(trainable, fixed, totals, model_state, batch, key):
    frozen, teacher_params = fixed
    params, calls, batch = partition.merge(trainable, frozen), itertools.count(), batch | totals
    rng, teacher = batch.pop('rng'), None

    def apply(inputs, **options):
      nonlocal model_state
      call = next(calls)
      outputs, model_state = model.apply(
        {'params': params, **model_state},
        inputs,
        train=True,
        rngs={'dropout': jax.random.fold_in(key, call) if call else key},
        mutable=list(model_state),
        **options,
      )
      return task.name_outputs(outputs)

    if task.TEACHER:
      teacher = _evaluated(model, task, {'params': teacher_params, **model_state})
    outputs = task.outputs(apply, batch, rng, True, teacher)
    sums = task.loss(outputs, batch, rng, True)
    return sums['loss'][0], (sums, model_state)

  def add_up(compute, model_state, batch, key):
    """Computes in micro-batches whose gradients and sums are added up."""
    parts = config.grad_accum_steps
    if parts == 1:
      return compute(model_state, batch, key)
    keys, batches = jax.random.split(key, parts), _split(batch, parts)
    first = jax.tree.map(lambda x: x[0], batches)
    shapes, _ = jax.eval_shape(compute, model_state, first, keys[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(carry, xs):
      total, model_state = carry
      part, model_state = compute(model_state, *xs)
      return (jax.tree.map(jnp.add, total, part), model_state), None

    return jax.lax.scan(body, (zeros, model_state), (batches, keys))[0]

  def gradients(parts, carry, batch):
    """Returns ((gradients, sums) of the global batch, the next model state)."""
    step, trainable, fixed, model_state = carry
    augment_key, dropout_key = step_keys(config.seed, step)
    batch = augmented(config, batch, augment_key, num_classes, views)
    dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index('batch'))
    totals = jax.lax.psum(task.totals(batch), 'batch') | task.scheduled(step)
    grad_fn = parts.gradient(loss_fn)

    def compute(model_state, batch, key):
      grads, (sums, model_state) = grad_fn(trainable, fixed, totals, model_state, batch, key)
      return (grads, sums), model_state

    found, model_state = add_up(compute, model_state, batch, dropout_key)
    return parts.add_up(*found), model_state

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
    trainable, frozen = partition.split(config.freeze, state.params)
    fixed = frozen, state.ema_params if task.TEACHER else None
    carry = state.step, trainable, fixed, state.model_state
    (grads, sums), model_state = layout.on_each_device(gradients, carry, batch)
    trainable = layout.spread(trainable)
    grads = jax.tree.map(lambda g: g / sums['loss'][1], grads)
    updates, opt_state = tx.update(grads, state.opt_state, trainable)
    scale = 1.0 if state.plateau is None else state.plateau.scale
    updates = jax.tree.map(lambda u: u * scale, updates)
    trainable = optax.apply_updates(trainable, updates)
    ema_params = _moving_average(config, state.step, state.ema_params, trainable)

    one = jnp.ones(())
    sums |= {
      'learning_rate': (schedule(state.step) * scale * one, one),
      'grad_norm': (optax.tree.norm(grads), one),
    }
    state = state.replace(
      step=state.step + 1,
      params=partition.merge(trainable, frozen),
      opt_state=opt_state,
      ema_params=ema_params,
      model_state=model_state,
    )
    return layout.place(state), sums

  return train_step


def _evaluated(model: nn.Module, task: Task, variables: Any) -> Apply:
  """Returns the model with these variables, without draws, as tasks are given it."""
  return lambda inputs, **options: task.name_outputs(
    model.apply(variables, inputs, train=False, **options)
  )


def prepare(
  config: ConfigDict, task: Task, batch: Batch, rng: jax.Array, views: Views | None = None
) -> Batch:
  """Returns a batch as evaluation takes it: normalised, or where the task takes views, those.

  The result has what the task's `scheduled` gives, and not its totals.
  """
  pixels = config.data.mean, config.data.std
  if views:
    batch = augment.augment_views(views, rng, batch, *pixels)
  else:
    batch = augment.normalize_batch(batch, *pixels)
  return batch | task.scheduled(None)


def evaluate(
  model: nn.Module, task: Task, variables: Any, batch: Batch, rng: jax.Array
) -> tuple[Sums, dict[str, jax.Array]]:
  """Returns the task's sums, and its rows in their order, of a batch of `prepare` with its totals.

  There is a key in `rng` for each row.
  """
  apply = _evaluated(model, task, variables)
  outputs = task.outputs(apply, batch, rng, False, apply if task.TEACHER else None)
  rows = collections.OrderedDict(task.rows(outputs, batch))  # a dict would lose its order in JAX
  return task.loss(outputs, batch, rng, False), rows


def make_eval_step(
  config: ConfigDict,
  model: nn.Module,
  task: Task,
  views: Views | None = None,
  with_rows: bool = False,
) -> Callable[[Any, Batch], tuple[Sums, Any]]:
  """Returns `eval_step(variables, batch) -> (sums, rows)`, for use under an axis named 'batch'.

  The batch is that of training, but for `slot`, which is the row's place in the split. The task
  and `config.data.test_rotation` draw by keys from (seed, slot): every evaluation of a run draws
  alike. So are `views` drawn, all from the images as evaluation has them. The sums are those of the
  global batch. The rows are what `gather_rows` gives of `Task.rows`, or None unless `with_rows`.
  """

  def eval_step(variables, batch):
    key = jax.random.fold_in(jax.random.key(config.seed), _EVALUATION)
    rng = jax.vmap(lambda slot: jax.random.fold_in(key, slot))(batch['slot'])
    batch = prepare(config, task, batch, rng, views)
    turns = jax.vmap(lambda key: jax.random.fold_in(key, _ROTATION))(rng)
    batch = augment.rotate(config.data.test_rotation, turns, batch)
    batch |= jax.lax.psum(task.totals(batch), 'batch')
    sums, rows = evaluate(model, task, variables, batch, rng)
    return collectives.psum(sums, 'batch'), gather_rows(rows, batch) if with_rows else None

  return eval_step


def gather_rows(rows: Any, batch: Batch) -> tuple[Any, jax.Array, jax.Array]:
  """Returns `rows`, arrays [B, ...], of the global batch, and the weight and slot of each."""
  return jax.lax.all_gather((rows, batch['weight'], batch['slot']), 'batch', tiled=True)


def gather(arrays: Batch, rows: Batch, i: jax.Array) -> Batch:
  """Returns batch i of a resident data set.

  Args:
    arrays: the whole set, leading axis examples.
    rows: what each batch is made of, leading axes [num_batches, B]: `index` int32 into the set,
      and anything that goes into the batch as it is (`weight`, `slot`).
    i: which batch.
  """
  batch = {name: array[i] for name, array in rows.items()}
  index = batch.pop('index')
  return {name: array[index] for name, array in arrays.items()} | batch


def one_train_step(train_step: Callable) -> Callable:
  """Returns `steps(state, batch, ()) -> (state, sums)` of one step, as `many_train_steps` does."""

  def steps(state, batch, _):
    state, sums = train_step(state, batch)
    return state, jax.tree.map(lambda x: x[None], sums)

  return steps


def many_train_steps(train_step: Callable, max_steps: int, layout: Whole = WHOLE) -> Callable:
  """Returns `steps(state, rows, (arrays, n)) -> (state, sums)`: n steps on resident data.

  n is data, not shape, so that one program serves every n up to `max_steps`, and n steps give
  the same bits however they are divided. Entry i of every sum is that of the i-th step. Where
  `max_steps` is 1 there is no loop.
  """

  # Traced once, though its shapes are needed before the loop.
  train_step = jax.jit(train_step, inline=True)

  def steps(state, rows, shared):
    arrays, n = shared
    if max_steps == 1:
      return one_train_step(train_step)(state, layout.batch(gather, arrays, rows, 0), ())
    shapes = jax.eval_shape(train_step, state, layout.batch(gather, arrays, rows, 0))[1]
    log = jax.tree.map(lambda s: jnp.zeros((max_steps, *s.shape), s.dtype), shapes)

    def body(i, carry):
      state, log = carry
      state, sums = train_step(state, layout.batch(gather, arrays, rows, i))
      return state, jax.tree.map(lambda entries, x: entries.at[i].set(x), log, sums)

    return jax.lax.fori_loop(0, n, body, (state, log))

  return steps


def map_over_devices(step: Callable, donate: bool = False) -> Callable:
  """Compiles `step(carry, mapped, shared)` for all devices; the one place that does.

  `carry` (donated, if so asked), `shared` and the result are ordinary trees, the same on every
  device; `mapped` has a leading axis of local devices.
  """
  return jax.pmap(
    step,
    axis_name='batch',
    in_axes=(None, 0, None),
    out_axes=None,
    donate_argnums=0 if donate else (),
  )
