"""The train and evaluation steps: plain functions of (state, batch), mapped over devices once.

Every function here sees one device's part of the batch; 'batch' is the axis of the devices.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vit_jax.data import augment
from vit_jax.tasks import Metrics, Task
from vit_jax.train import partition
from vit_jax.train.state import TrainState

Batch = dict[str, jax.Array]


def _split(batch: Batch, parts: int) -> Batch:
  # Every `parts`-th row, so that a micro-batch of all devices is the same however many they are.
  return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def _moving_average(config: ConfigDict, ema_params: Any, trainable: Any) -> Any:
  if ema_params is None:
    return None
  # A frozen parameter's average is itself, but wouldn't be after rounding.
  ema, frozen = partition.split(config.freeze, ema_params)
  ema = optax.incremental_update(trainable, ema, 1 - config.ema_decay)
  return partition.merge(ema, frozen)


def make_train_step(
  config: ConfigDict,
  model: nn.Module,
  task: Task,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  num_classes: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns `train_step(state, batch) -> (state, metrics)`, for use under an axis named 'batch'.

  The batch has uint8 `image` [B, H, W, C], `label`, float32 `weight` [B] and int32 `slot` [B], the
  row's place in the global batch. Augmentation keys come from (seed, step, slot), so they don't
  depend on how many devices share the batch; dropout keys come from (seed, step, device). The
  gradient is that of the global batch's weighted mean loss, however it is split, and of the
  trainable parameters alone: frozen ones aren't differentiated, and stay as they are to the bit.
  The model's other variables (running statistics of batch normalisation) follow each micro-batch
  in turn, those of frozen modules too, as in PyTorch, where requires_grad doesn't stop them.
  `metrics` are the task's (sum, count) pairs over the global batch, with `learning_rate` and
  `grad_norm`.
  """

  def loss_fn(trainable, frozen, model_state, batch, key):
    outputs, model_state = model.apply(
      {'params': partition.merge(trainable, frozen), **model_state},
      batch['image'],
      train=True,
      rngs={'dropout': key},
      mutable=list(model_state),
    )
    metrics = task(outputs, batch, True)
    return metrics['loss'][0], (metrics, model_state)

  def compute(trainable, frozen, model_state, batch, key):
    """Returns ((gradients, metrics), the next model state)."""
    grad_fn = jax.grad(loss_fn, has_aux=True)
    grads, (metrics, model_state) = grad_fn(trainable, frozen, model_state, batch, key)
    return (grads, metrics), model_state

  def add_up(trainable, frozen, model_state, batch, key):
    """Computes as `compute` does, in micro-batches whose gradients and metrics are summed."""
    parts = config.grad_accum_steps
    if parts == 1:
      return compute(trainable, frozen, model_state, batch, key)
    keys, batches = jax.random.split(key, parts), _split(batch, parts)
    first = jax.tree.map(lambda x: x[0], batches)
    shapes, _ = jax.eval_shape(compute, trainable, frozen, model_state, first, keys[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(carry, xs):
      total, model_state = carry
      part, model_state = compute(trainable, frozen, model_state, *xs)
      return (jax.tree.map(jnp.add, total, part), model_state), None

    return jax.lax.scan(body, (zeros, model_state), (batches, keys))[0]

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    step_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    augment_key, dropout_key = jax.random.split(step_key)
    keys = jax.vmap(lambda slot: jax.random.fold_in(augment_key, slot))(batch['slot'])
    batch = augment.augment(
      config.augment, keys, batch, num_classes, config.data.mean, config.data.std
    )
    dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index('batch'))

    trainable, frozen = partition.split(config.freeze, state.params)
    sums, model_state = add_up(trainable, frozen, state.model_state, batch, dropout_key)
    grads, metrics = jax.lax.psum(sums, 'batch')
    grads = jax.tree.map(lambda g: g / metrics['loss'][1], grads)
    updates, opt_state = tx.update(grads, state.opt_state, trainable)
    scale = 1.0 if state.plateau is None else state.plateau.scale
    updates = jax.tree.map(lambda u: u * scale, updates)
    trainable = optax.apply_updates(trainable, updates)
    ema_params = _moving_average(config, state.ema_params, trainable)

    one = jnp.ones(())
    metrics |= {
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
    return state, metrics

  return train_step


def make_eval_step(
  config: ConfigDict, model: nn.Module, task: Task
) -> Callable[[Any, Batch], Metrics]:
  """Returns `eval_step(variables, batch) -> metrics`, summed over the axis 'batch'."""

  def eval_step(variables, batch):
    image = augment.normalize(batch['image'], config.data.mean, config.data.std)
    outputs = model.apply(variables, image, train=False)
    return jax.lax.psum(task(outputs, batch, False), 'batch')

  return eval_step


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


def many_train_steps(train_step: Callable, max_steps: int) -> Callable:
  """Returns `steps(state, rows, (arrays, n)) -> (state, metrics)`: n steps on resident data.

  n is data, not shape, so that one program serves every n up to `max_steps`, and n steps give
  the same bits however they are divided. Entry i of every metric is that of the i-th step. Where
  `max_steps` is 1 there is no loop.
  """

  def steps(state, rows, shared):
    arrays, n = shared
    if max_steps == 1:
      state, metrics = train_step(state, gather(arrays, rows, 0))
      return state, jax.tree.map(lambda m: m[None], metrics)
    shapes = jax.eval_shape(train_step, state, gather(arrays, rows, 0))[1]
    log = jax.tree.map(lambda s: jnp.zeros((max_steps, *s.shape), s.dtype), shapes)

    def body(i, carry):
      state, log = carry
      state, metrics = train_step(state, gather(arrays, rows, i))
      return state, jax.tree.map(lambda entries, m: entries.at[i].set(m), log, metrics)

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
