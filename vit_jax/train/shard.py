"""The state of a run spread over all devices of all processes, where `config.shard` asks for it.

'optimizer' spreads the optimiser's state and the moving average, and with them the gradients and
the update (ZeRO stages 1 and 2, arXiv 1910.02054); 'all' the parameters too, which are gathered for
the forward and again for the backward pass (ZeRO stage 3; PyTorch's FSDP, arXiv 2304.11277).

Layers that a model runs in a loop (`config.model.scan`) are gathered one by one, within the loop.

An array is spread along its first axis that the devices divide. It keeps its shape, so that
checkpoints know nothing of it. Loss and gradients are those of `jax.shard_map` under the axis
'batch', as under `jax.pmap`; XLA partitions the optimiser's update by the places of its arguments,
so that any optax transformation gives what it gives of whole arrays.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from vit_jax.errors import check_choice
from vit_jax.models import layers
from vit_jax.train import collectives, partition
from vit_jax.train.step import WHOLE, Whole

MODES = ('none', 'optimizer', 'all')

_AXIS = 'batch'
# Entries of the smallest array that is spread: a collective operation costs more than it saves.
_SMALLEST = 2**10


def make_layout(config: ConfigDict) -> Whole:
  """Returns where the state of a run lies; on one device always whole.

  Raises:
    FieldError: `config.shard` is none of `MODES`.
  """
  check_choice('shard', config.shard, MODES)
  if config.shard == 'none' or jax.device_count() == 1:
    return WHOLE
  return Spread(
    params=config.shard == 'all',
    average=bool(config.ema_decay),
    loops=bool(config.model.get('scan')),
  )


def device_bytes(tree: Any) -> int:
  """Returns the bytes of arrays, or of their shapes, on each device."""

  def count(x):
    shape = x.sharding.shard_shape(x.shape) if getattr(x, 'sharding', None) else x.shape
    return math.prod(shape) * x.dtype.itemsize

  return sum(map(count, jax.tree.leaves(tree)))


def without_places(shapes: Any) -> Any:
  """Returns shapes and dtypes alone."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)


class Spread(Whole):
  """Arrays that are large enough and that the devices divide are spread, the others whole."""

  def __init__(self, params: bool, average: bool, loops: bool):
    """Takes the devices of all processes.

    Args:
      params: whether parameters are spread.
      average: whether there is a moving average of them, which is then what is evaluated.
      loops: whether the model may run layers in loops.
    """
    self._params, self._evaluates_spread, self._loops = params, params or average, loops
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    self._mesh = Mesh(np.array(devices), (_AXIS,))

  def _spec(self, x: Any) -> P:
    axes = [axis for axis, size in enumerate(x.shape) if size % self._mesh.size == 0]
    if math.prod(x.shape) < _SMALLEST or not axes:
      return P()
    # Parts along the first axis stand one after the other in memory, and are joined in less time.
    return P(*[None] * axes[0], _AXIS)

  def _specs(self, tree: Any, spread: bool = True) -> Any:
    return jax.tree.map(self._spec if spread else lambda _: P(), tree)

  def _param_specs(self, params: Any) -> Any:
    return self._specs(params, self._params)

  def _state_specs(self, state: Any) -> Any:
    return self._specs(state, False).replace(
      params=self._param_specs(state.params),
      opt_state=self._specs(state.opt_state),
      ema_params=self._specs(state.ema_params),
    )

  def _sharding(self, spec: P) -> NamedSharding:
    return NamedSharding(self._mesh, spec)

  def _constrain(self, tree: Any, specs: Any) -> Any:
    shardings = jax.tree.map(self._sharding, specs)
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)

  def put(self, tree: Any) -> Any:
    """Puts arrays of the host on every device; what `create` gave, or was restored, has a place."""
    whole = self._sharding(P())

    def put(x):
      is_placed = isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding)
      if is_placed and x.sharding.mesh == self._mesh:
        return x
      return _put(x, whole)

    return jax.tree.map(put, tree)

  def place(self, state: Any) -> Any:
    """Within a step, constrains a state; of shapes, returns some with their places."""
    specs = self._state_specs(state)
    if isinstance(state.step, jax.ShapeDtypeStruct):
      return self._with_places(state, specs)
    return self._constrain(state, specs)

  def place_gradients(self, params: Any) -> Any:
    """Gradients are spread, whether parameters are or not."""
    return self._with_places(params, self._specs(params))

  def _with_places(self, shapes: Any, specs: Any) -> Any:
    def place(x, spec):
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding(spec))

    return jax.tree.map(place, shapes, specs)

  def spread(self, params: Any) -> Any:
    """Each device takes a part of what it has whole, and updates that."""
    return self._constrain(params, self._specs(params))

  def create(self, make: Callable, arrays: Any) -> Any:
    """The result is spread from the start."""
    arrays = jax.tree.map(lambda x: _put(x, self._sharding(self._spec(x))), arrays)
    places = jax.tree.map(self._sharding, self._state_specs(jax.eval_shape(make, arrays)))
    return jax.jit(make, out_shardings=places)(arrays)

  def _map(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
    return jax.shard_map(
      function, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )

  def batch(self, gather: Callable, arrays: Any, rows: Any, i: jax.Array) -> Any:
    """Each device gathers its own rows; a batch's leading axis is that of devices."""

    def local(arrays, rows, i):
      return jax.tree.map(lambda x: x[None], gather(arrays, _own(rows), i))

    return self._map(local, (P(), P(_AXIS), P()), P(_AXIS))(arrays, rows, i)

  def on_each_device(self, gradients: Callable, carry: tuple[Any, ...], batch: Any) -> Any:
    """Maps `gradients`, with parts of the parameters in place of them."""
    _, trainable, (frozen, teacher), _ = carry
    specs = self._param_specs(trainable), (self._param_specs(frozen), self._specs(teacher))
    grads = self._specs(trainable)
    return self._map(
      lambda carry, batch: gradients(_Parts(specs, grads, self._loops), carry, _own(batch)),
      ((P(), *specs, P()), P(_AXIS)),
      ((grads, P()), P()),
    )(carry, batch)

  def compile_training(self, steps: Callable, state: Any) -> Callable:
    """Compiles steps, which map by themselves what is mapped."""
    places, whole = jax.tree.map(lambda x: x.sharding, state), self._sharding(P())
    compiled = jax.jit(
      steps,
      donate_argnums=0,
      in_shardings=(places, self._sharding(P(_AXIS)), whole),
      out_shardings=(places, whole),
    )
    return self._takes_local_rows(compiled)

  def compile_evaluation(self, step: Callable) -> Callable:
    """Compiles a step that is mapped whole, and gathers the variables within."""

    def evaluate(variables, mapped, shared):
      specs = {
        name: self._specs(tree, name == 'params' and self._evaluates_spread)
        for name, tree in variables.items()
      }

      def local(variables, mapped, shared):
        def evaluate(variables):
          return step(variables, _own(mapped), shared)

        params = specs['params']
        paths = _looped(evaluate, variables, specs) if self._loops else ()
        with _gathering(params, paths):
          outside = specs | {'params': _outside(params, paths)}
          return evaluate(_gather(variables, outside))

      return self._map(local, (specs, P(_AXIS), P()), P())(variables, mapped, shared)

    return self._takes_local_rows(jax.jit(evaluate))

  def _takes_local_rows(self, compiled: Callable) -> Callable:
    """Returns a compiled function that takes this process's rows of what is mapped."""
    place = self._sharding(P(_AXIS))

    def call(carry, mapped, shared):
      mapped = jax.tree.map(
        functools.partial(jax.make_array_from_process_local_data, place), mapped
      )
      return compiled(carry, mapped, shared)

    call.lower = compiled.lower
    return call


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
  """Returns an array of the host, which every process has, on the devices of all."""
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


class _Parts:
  """What `Whole.on_each_device` gives to gradients of parameters of which a device has parts."""

  def __init__(self, specs: Any, grads: Any, loops: bool):
    """Takes the specs of (trainable, fixed) parameters, and of the gradients.

    `loops` says whether the model may run layers in a loop.
    """
    self._specs, self._grads, self._loops = specs, grads, loops

  def gradient(self, loss_fn: Callable) -> Callable:
    """Gathers parameters for the forward pass, and again for the backward pass.

    Gradients are added up over the devices where each keeps a part.
    """
    trainable_specs, (frozen_specs, _) = self._specs
    is_whole = not any(map(len, jax.tree.leaves((trainable_specs, frozen_specs))))

    def gradient(trainable, fixed, *args):
      parts, specs = (trainable, fixed), self._specs
      if is_whole:
        grads, aside = jax.grad(loss_fn, has_aux=True)(*_gather(parts, specs), *args)
        return _scatter(grads, self._grads), aside
      paths = ()
      if self._loops:
        paths = _looped(lambda parts: loss_fn(*parts, *args), parts, specs)
        outside = functools.partial(_outside, looped=paths)
        specs = outside(specs[0]), tuple(map(outside, specs[1]))
      whole = _gather(parts, specs)
      with _gathering(partition.merge(trainable_specs, frozen_specs), paths):
        loss, pullback, aside = jax.vjp(
          lambda trainable: loss_fn(trainable, whole[1], *args), whole[0], has_aux=True
        )
      # Else what waits for the backward pass has whole parameters, or the two gathers are made one.
      # jax.checkpoint around all would undo what the model's own do.
      parts, loss = jax.lax.optimization_barrier((parts, loss))
      old, new = map(jax.tree.leaves, (whole, _gather(parts, specs)))
      replaced = {id(x): y for x, y in zip(old, new, strict=True)}
      pullback = jax.tree.map(lambda x: replaced.get(id(x), x), pullback)
      (grads,) = pullback(jnp.ones_like(loss))
      # Those of what a loop gathers are scattered by the gather's own gradient.
      return _scatter(grads, _outside(self._grads, paths)), aside

    return gradient

  def add_up(self, grads: Any, sums: Any) -> Any:
    """Adds up over the devices what `gradient` has left."""
    whole = jax.tree.map(lambda grad, spec: None if len(spec) else grad, grads, self._grads)
    whole, sums = collectives.psum((whole, sums), _AXIS)
    return partition.merge(whole, grads), sums


def _looped(function: Callable, parts: Any, specs: Any) -> Collection[str]:
  """Returns the paths of the layers that `function`, of whole arrays, runs in loops."""
  found = set()

  def note(paths, params):
    found.update(paths)
    return params

  with layers.gather_looped_by(note):
    jax.eval_shape(lambda parts: function(_gather(parts, specs)), parts)
  return found


def _outside(specs: Any, looped: Collection[str]) -> Any:
  """Returns specs of parameters as if those of layers in loops were whole, which gather their own.

  So they stay parts where the others are gathered, and where gradients are scattered.
  """
  prefixes = tuple(f'{path}/' for path in looped)
  return jax.tree.map(
    lambda name, spec: P() if name.startswith(prefixes) else spec,
    partition.path_names(specs),
    specs,
  )


def _gathering(specs: Any, looped: Collection[str]) -> contextlib.AbstractContextManager:
  """Returns a context in which layers in loops gather their parameters, of which `specs` are."""

  def gather(paths, params):
    layer = functools.reduce(lambda tree, key: tree[key], paths[0].split('/'), specs)
    return _gather(params, layer)

  return layers.gather_looped_by(gather) if looped else contextlib.nullcontext()


def _gather(tree: Any, specs: Any) -> Any:
  """Returns whole arrays of the parts that each device has."""
  return _of_spread(collectives.all_gather, tree, specs)


def _scatter(grads: Any, specs: Any) -> Any:
  """Adds whole gradients up over the devices; returns the parts that each device keeps."""
  return _of_spread(collectives.psum_scatter, grads, specs)


def _of_spread(operation: Callable, tree: Any, specs: Any) -> Any:
  """Applies `operation(arrays, axes, axis_name)` to the leaves that are spread."""
  leaves, structure = jax.tree.flatten(tree)
  axes = {i: len(s) - 1 for i, s in enumerate(structure.flatten_up_to(specs)) if len(s)}
  found = operation([leaves[i] for i in axes], [*axes.values()], _AXIS)
  for i, x in zip(axes, found, strict=True):
    leaves[i] = x
  return structure.unflatten(leaves)


def _own(tree: Any) -> Any:
  """Drops the axis of devices, of which one is left."""
  return jax.tree.map(lambda x: x[0], tree)
