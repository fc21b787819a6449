"""The two sides of a comparison: a model in this project, and in Hugging Face's transformers.

Neither needs the other's framework. Each computes logits in full float32, and runs two tasks on a
batch that is on its device beforehand: 'inference', and 'training', a step of softmax
cross-entropy and AdamW, without dropout, that goes on from the last one's parameters. In bfloat16,
parameters stay float32 and are cast where they are used (in PyTorch: torch.autocast).
"""

import copy
import functools
import importlib.metadata
import itertools
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax import host_memory
from vit_jax.comparison import compile_time
from vit_jax.comparison.torch_models import Timm, Transformers
from vit_jax.errors import UsageError

TASKS = ('inference', 'training')
_LEARNING_RATE, _WEIGHT_DECAY = 1e-4, 1e-2
# Endings of fields of backbones here that training alone reads.
_DROPOUT = ('dropout_rate', 'stochastic_depth', 'droplayer_rate')


class TrainingSet(NamedTuple):
  """Images in memory, for PyTorch's DataLoader.

  Attributes:
    images: uint8 [N, H, W, C].
    labels: int [N].
    mean: of pixels in [0, 1], for each channel or one for all.
    std: likewise.
  """

  images: np.ndarray
  labels: np.ndarray
  mean: tuple[float, ...]
  std: tuple[float, ...]


def torch_device(backend: str) -> str:
  """Returns PyTorch's name of the kind of device that JAX's `backend` is.

  Raises:
    UsageError: PyTorch has none here.
  """
  if backend not in ('cpu', 'gpu'):
    raise UsageError(
      f'JAX runs on {backend}, and PyTorch is compared on CPU or GPU; set JAX_PLATFORMS=cpu'
    )
  return {'cpu': 'cpu', 'gpu': 'cuda'}[backend]


def threads() -> int:
  """Returns how many threads of the host this process may use at once; XLA takes them all."""
  affinity = getattr(os, 'sched_getaffinity', None)  # Linux alone has it
  return len(affinity(0)) if affinity else os.cpu_count()


class _Side:
  """What both sides share: how their tasks, functions without arguments, are timed.

  A task is built where it is first asked for: who times inference alone has no optimiser's state.

  Attributes:
    _tasks: name -> what builds the task.
  """

  _tasks: Mapping[str, Callable[[], Callable[[], Any]]]

  def __init__(self, images: np.ndarray, num_classes: int):
    self._images = images
    self._labels = np.arange(len(images), dtype=np.int32) % max(num_classes, 1)
    self._built = {}

  def _task(self, name: str) -> Callable[[], Any]:
    if name not in self._built:
      self._built[name] = self._tasks[name]()
    return self._built[name]

  def warm_up(self) -> list[float]:
    """Compiles, and returns the losses of the first three training steps."""
    self._run('inference', 1)
    return [float(self._task('training')()) for _ in range(3)]

  def images_per_second(self, task: str, seconds: float) -> float:
    """Runs a task for about so long, at least once; a first time, uncounted, tells how often."""
    steps = max(1, round(seconds / self._run(task, 1)))
    return steps * len(self._images) / self._run(task, steps)

  def _run(self, task: str, steps: int) -> float:
    run, start = self._task(task), time.perf_counter()
    for _ in range(steps):
      result = run()
      if self._on_cpu:  # where queued steps would run side by side in JAX, but not in PyTorch
        self._wait(result)
    self._wait(result)
    return time.perf_counter() - start


class JaxSide(_Side):
  """This project's model."""

  def __init__(
    self,
    variables: Mapping[str, Any],
    config: Mapping[str, Any],
    images: np.ndarray,
    dtype: str,
  ):
    """Takes what `weights.load` returns.

    Args:
      variables: of the model.
      config: its `ModelConfig`, or that as a dict, which needs no JAX to come from another process.
      images: the batch of the tasks, normalised float32 [B, H, W, C], or videos [B, T, H, W, C].
      dtype: of the tasks' computation, float32 or bfloat16.
    """
    if host_memory.runs_on_cpu():
      host_memory.reuse_freed_memory(in_calling_thread=True)  # as train.py does
      host_memory.run_in_calling_thread()
    import jax

    from vit_jax.models import ModelConfig
    from vit_jax.models import fields as fields_lib

    config = ModelConfig.from_dict(config)
    names = [n for n in fields_lib.names(type(config.backbone)) if n.endswith(_DROPOUT)]
    self._config = config.replace(**dict.fromkeys(names, 0.0))
    super().__init__(images, config.num_classes)
    self._precision = 'highest' if dtype == 'float32' else None
    self._on_cpu = jax.default_backend() == 'cpu'
    self._variables, self._batch = jax.device_put((variables, (self._images, self._labels)))
    self._forward = jax.jit(self._model('float32').apply)
    inference = jax.jit(self._model(dtype).apply)
    self._tasks = {
      'inference': lambda: functools.partial(inference, self._variables, self._batch[0]),
      'training': lambda: self._training(self._model(dtype)),
    }

  def describe(self) -> dict[str, Any]:
    """Returns versions, device and threads on the host."""
    import jax

    return {
      'versions': {'python': platform.python_version(), **versions('jax', 'jaxlib', 'flax')},
      'device': jax.devices()[0].device_kind,
      'threads': threads(),
    }

  def prepare(self, task: str) -> dict[str, Any]:
    """Compiles a task and runs it twice.

    Returns:
      `compile_seconds` and `programs_from_cache`, as `compile_time` counts them;
      `first_step_seconds`, of the first run, with compiling; and what `peak_memory` does.
    """
    compiled = compile_time.so_far()
    first = self._run(task, 1)
    self._run(task, 1)
    return {
      **compile_time.so_far().since(compiled),
      'first_step_seconds': first,
      **peak_memory(),
    }

  def logits(self, images: np.ndarray) -> np.ndarray:
    """Returns float32 [B, num_classes] of the initial parameters for [B, H, W, C]."""
    import jax

    with jax.default_matmul_precision('highest'):
      return np.asarray(self._forward(self._variables, images))

  def _model(self, dtype: str):
    import jax.numpy as jnp

    from vit_jax.predictor import with_dtype

    return with_dtype(self._config.model, jnp.dtype(dtype))

  def _training(self, model):
    import jax
    import jax.numpy as jnp
    import optax

    tx = optax.adamw(_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)

    def loss_fn(params, statistics, images, labels):
      variables, mutable = {'params': params, **statistics}, list(statistics)
      logits, statistics = model.apply(variables, images, train=True, mutable=mutable)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), statistics

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, images, labels):
      params, statistics, opt_state = state
      grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
      (loss, statistics), grads = grad_fn(params, statistics, images, labels)
      updates, opt_state = tx.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), statistics, opt_state), loss

    statistics = jax.tree.map(jnp.copy, self._variables)
    params = statistics.pop('params')
    state = params, statistics, jax.jit(tx.init)(params)

    def run():
      nonlocal state
      state, loss = train_step(state, *self._batch)
      return loss

    return run

  def _run(self, task: str, steps: int) -> float:
    import jax

    with jax.default_matmul_precision(self._precision):
      return super()._run(task, steps)

  def _wait(self, result: Any) -> None:
    import jax

    jax.block_until_ready(result)


_TIMES_ASKED = itertools.count()  # how often this process was asked for its peak


def peak_memory() -> dict[str, Any]:
  """Returns `peak_memory_mib` of this process, and what it is `peak_memory_of`: device or host.

  It is that of JAX's first device where the device counts it. None stands where nobody counts, and
  from the second call on: what a later task takes can't be told from what the first one took.
  """
  import jax

  statistics = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' not in statistics:
    return _host_memory()
  if next(_TIMES_ASKED):
    return _memory(None, None)
  return _memory(statistics['peak_bytes_in_use'] / 2**20, 'device')


def _host_memory() -> dict[str, Any]:
  return _memory(None if next(_TIMES_ASKED) else host_memory.peak_mib(), 'host')


def _memory(mib: float | None, of: str | None) -> dict[str, Any]:
  return {'peak_memory_mib': mib, 'peak_memory_of': of if mib is not None else None}


class TorchSide(_Side):
  """A classifier in PyTorch, as fast as it is without changes to its code.

  AdamW is fused, cuDNN chooses its convolutions by timing them, and models with more convolutions
  than a patch embedding's have their channels last.
  """

  def __init__(
    self,
    model: Transformers | Timm,
    images: np.ndarray,
    dtype: str,
    device: str,
    compile: bool = False,
    training_set: TrainingSet | None = None,
  ):
    """Makes a model.

    Args:
      model: which.
      images: as for `JaxSide`.
      dtype: as for `JaxSide`.
      device: 'cpu' or 'cuda'.
      compile: whether the tasks' model goes through torch.compile.
      training_set: what training draws its batches from, through a DataLoader; None: it has one
        batch, that is on the device.

    Raises:
      UsageError: there is no such device, or the model's tensors aren't all there.
    """
    import torch

    if device == 'cuda' and not torch.cuda.is_available():
      raise UsageError(
        f'JAX runs on GPU, and PyTorch {torch.__version__} finds none; install one for CUDA, or '
        'set JAX_PLATFORMS=cpu'
      )
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False  # of convolutions, which the line above leaves
    torch.backends.cudnn.benchmark = True
    module, num_classes = model.make()
    num_convolutions = sum(p.ndim == 4 and p.shape[-1] > 1 for p in module.parameters())
    self._format = torch.contiguous_format
    if num_convolutions > 1 and images.ndim == 4:
      self._format = torch.channels_last
    self._model = module.to(device, memory_format=self._format).eval()
    super().__init__(images, num_classes)
    self._device, self._dtype, self._on_cpu = device, dtype, device == 'cpu'
    self._compiled, self._packages = compile, model.PACKAGES
    self._training_set = training_set
    self._batch = self._to_device(self._images)
    wrap = torch.compile if compile else (lambda module: module)
    self._tasks = {
      'inference': lambda: self._inference(wrap(self._model)),
      'training': lambda: self._training(wrap(copy.deepcopy(self._model).train())),
    }

  def describe(self) -> dict[str, Any]:
    """Returns versions, device and threads on the host, and the number of parameters."""
    import torch

    return {
      'versions': {'python': platform.python_version(), **versions(*self._packages)},
      'device': 'cpu' if self._on_cpu else torch.cuda.get_device_name(),
      'threads': torch.get_num_threads(),
      'compiled': self._compiled,
      'parameters': sum(p.numel() for p in self._model.parameters()),
    }

  def prepare(self, task: str) -> dict[str, Any]:
    """Runs a task three times.

    Returns:
      What `JaxSide.prepare` does; `compile_seconds` are what the first run took longer than the
      last, None where nothing is compiled, and `programs_from_cache` isn't known. Memory of a GPU
      is what tensors take.
    """
    import torch

    if not self._on_cpu:
      torch.cuda.reset_peak_memory_stats()
    first, _, last = (self._run(task, 1) for _ in range(3))
    if self._on_cpu:
      memory = _host_memory()
    else:
      memory = _memory(torch.cuda.max_memory_allocated() / 2**20, 'device')
    return {
      'compile_seconds': first - last if self._compiled else None,
      'programs_from_cache': None,
      'first_step_seconds': first,
      **memory,
    }

  def images_per_second(self, task: str, seconds: float) -> float:
    """As of `_Side`; then leaves other processes the memory of a GPU that nothing is in."""
    import torch

    speed = super().images_per_second(task, seconds)
    if not self._on_cpu:
      torch.cuda.empty_cache()
    return speed

  def logits(self, images: np.ndarray) -> np.ndarray:
    """Returns float32 [B, num_classes] of the initial parameters for [B, H, W, C]."""
    import torch

    with torch.inference_mode():
      return self._model(self._to_device(images)).cpu().numpy()

  def _to_device(self, images: np.ndarray):
    import torch

    channels_first = np.ascontiguousarray(np.moveaxis(images, -1, -3))
    return torch.from_numpy(channels_first).to(self._device, memory_format=self._format)

  def _cast(self):
    import torch

    return torch.autocast(self._device, torch.bfloat16, enabled=self._dtype == 'bfloat16')

  def _inference(self, model):
    import torch

    def run():
      with torch.inference_mode(), self._cast():
        return model(self._batch)

    return run

  def _training(self, model):
    import torch

    optimizer = torch.optim.AdamW(
      model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True
    )
    batches = self._batches()

    def run():
      images, labels = next(batches)
      optimizer.zero_grad()
      with self._cast():
        logits = model(images)
      loss = torch.nn.functional.cross_entropy(logits.float(), labels)
      loss.backward()
      optimizer.step()
      return loss.detach()

    return run

  def _batches(self) -> Iterator[tuple[Any, Any]]:
    """Yields (images, labels) on the device, without end."""
    import torch

    if self._training_set is None:
      labels = torch.from_numpy(self._labels).long().to(self._device)
      while True:
        yield self._batch, labels
    images, labels, *pixels = self._training_set
    images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, -3)))
    mean, std = (torch.tensor(x, device=self._device).reshape(-1, 1, 1) for x in pixels)
    loader = torch.utils.data.DataLoader(
      torch.utils.data.TensorDataset(images, torch.from_numpy(labels).long()),
      batch_size=len(self._images),
      shuffle=True,
      drop_last=True,
      pin_memory=not self._on_cpu,
    )
    while True:
      for images, labels in loader:
        images, labels = (x.to(self._device, non_blocking=True) for x in (images, labels))
        images = (images.float() / 255 - mean) / std
        yield images.contiguous(memory_format=self._format), labels

  def _wait(self, result: Any) -> None:
    import torch

    if not self._on_cpu:
      torch.cuda.synchronize()


def versions(*packages: str) -> dict[str, str]:
  """Returns the installed versions of packages."""
  return {package: importlib.metadata.version(package) for package in packages}
