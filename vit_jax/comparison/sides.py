"""The two sides of a comparison: a model in this project, and in Hugging Face's transformers.

Neither needs the other's framework. Each computes logits in full float32, and runs two tasks on a
batch that is on its device beforehand: 'inference', and 'training', a step of softmax
cross-entropy and AdamW, without dropout, that goes on from the last one's parameters. In bfloat16,
parameters stay float32 and are cast where they are used (in PyTorch: torch.autocast).
"""

import copy
import functools
import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax import host_memory
from vit_jax.errors import UsageError

TASKS = ('inference', 'training')
_LEARNING_RATE, _WEIGHT_DECAY = 1e-4, 1e-2
# Endings of fields that training alone reads, here and in transformers' configs.
_DROPOUT = ('dropout_rate', 'stochastic_depth', 'droplayer_rate', 'dropout_prob', 'drop_path_rate')


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


class _Side:
  """What both sides share: how their tasks, functions without arguments, are timed."""

  def __init__(self, images: np.ndarray, num_classes: int):
    self._images = images
    self._labels = np.arange(len(images), dtype=np.int32) % num_classes

  def warm_up(self) -> list[float]:
    """Compiles, and returns the losses of the first three training steps."""
    self._run('inference', 1)
    return [float(self._tasks['training']()) for _ in range(3)]

  def images_per_second(self, task: str, seconds: float) -> float:
    """Runs a task for about so long, at least once; a first time, uncounted, tells how often."""
    steps = max(1, round(seconds / self._run(task, 1)))
    return steps * len(self._images) / self._run(task, steps)

  def _run(self, task: str, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
      result = self._tasks[task]()
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
      host_memory.reuse_freed_memory()  # as train.py does
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
      'inference': lambda: inference(self._variables, self._batch[0]),
      'training': self._training(self._model(dtype)),
    }

  def describe(self) -> dict[str, Any]:
    """Returns versions, device and threads on the host."""
    import jax

    affinity = getattr(os, 'sched_getaffinity', None)  # Linux alone has it
    return {
      'versions': {'python': platform.python_version(), **_versions('jax', 'jaxlib', 'flax')},
      'device': jax.devices()[0].device_kind,
      'threads': len(affinity(0)) if affinity else os.cpu_count(),  # XLA takes them all
    }

  def logits(self, images: np.ndarray) -> np.ndarray:
    """Returns float32 [B, num_classes] of the initial parameters for [B, H, W, C]."""
    import jax

    with jax.default_matmul_precision('highest'):
      return np.asarray(self._forward(self._variables, images))

  def _model(self, dtype: str):
    import jax.numpy as jnp

    return self._config.model.clone(dtype=jnp.dtype(dtype))

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
    result.block_until_ready()


class TorchSide(_Side):
  """A classifier of Hugging Face's transformers."""

  def __init__(
    self,
    path: str,
    class_name: str,
    images: np.ndarray,
    dtype: str,
    device: str,
    compile: bool = False,
  ):
    """Loads a model.

    Args:
      path: a folder, or a name on the hub that has been downloaded.
      class_name: of transformers, as 'ViTForImageClassification'.
      images: as for `JaxSide`.
      dtype: as for `JaxSide`.
      device: 'cpu' or 'cuda'.
      compile: whether the tasks' model goes through torch.compile.

    Raises:
      UsageError: there is no such device, or the path lacks some of the model's tensors.
    """
    import torch

    if device == 'cuda' and not torch.cuda.is_available():
      raise UsageError(
        f'JAX runs on GPU, and PyTorch {torch.__version__} finds none; install one for CUDA, or '
        'set JAX_PLATFORMS=cpu'
      )
    torch.set_float32_matmul_precision('highest')
    torch.backends.cudnn.allow_tf32 = False  # of convolutions, which the line above leaves
    self._model = _load_torch_model(path, class_name).to(device).eval()
    super().__init__(images, self._model.config.num_labels)
    self._device, self._dtype, self._on_cpu = device, dtype, device == 'cpu'
    self._compiled = compile
    self._batch = self._to_device(self._images)
    wrap = torch.compile if compile else (lambda model: model)
    self._tasks = {
      'inference': self._inference(wrap(self._model)),
      'training': self._training(wrap(copy.deepcopy(self._model).train())),
    }

  def describe(self) -> dict[str, Any]:
    """Returns versions, device and threads on the host."""
    import torch

    return {
      'versions': {'python': platform.python_version(), **_versions('torch', 'transformers')},
      'device': 'cpu' if self._on_cpu else torch.cuda.get_device_name(),
      'threads': torch.get_num_threads(),
      'compiled': self._compiled,
    }

  def logits(self, images: np.ndarray) -> np.ndarray:
    """Returns float32 [B, num_classes] of the initial parameters for [B, H, W, C]."""
    import torch

    with torch.inference_mode():
      return self._model(pixel_values=self._to_device(images)).logits.cpu().numpy()

  def _to_device(self, images: np.ndarray):
    import torch

    channels_first = np.ascontiguousarray(np.moveaxis(images, -1, -3))
    return torch.from_numpy(channels_first).to(self._device)

  def _cast(self):
    import torch

    return torch.autocast(self._device, torch.bfloat16, enabled=self._dtype == 'bfloat16')

  def _inference(self, model):
    import torch

    def run():
      with torch.inference_mode(), self._cast():
        return model(pixel_values=self._batch).logits

    return run

  def _training(self, model):
    import torch

    labels = torch.from_numpy(self._labels).long().to(self._device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)

    def run():
      optimizer.zero_grad()
      with self._cast():
        logits = model(pixel_values=self._batch).logits
      loss = torch.nn.functional.cross_entropy(logits.float(), labels)
      loss.backward()
      optimizer.step()
      return loss.detach()

    return run

  def _wait(self, result: Any) -> None:
    import torch

    if not self._on_cpu:
      torch.cuda.synchronize()


def _load_torch_model(path: str, class_name: str):
  """Returns the model in float32, without dropout, in silence."""
  import transformers

  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  kind = getattr(transformers, class_name)
  config = kind.config_class.from_pretrained(path, local_files_only=True)
  for name in config.to_dict():
    if name.endswith(_DROPOUT):
      setattr(config, name, 0.0)
  model, info = kind.from_pretrained(
    path, config=config, output_loading_info=True, local_files_only=True
  )
  if info['missing_keys']:
    raise UsageError(f'{path}: PyTorch finds no {", ".join(sorted(info["missing_keys"]))} there')
  return model.float()


def _versions(*packages: str) -> dict[str, str]:
  return {package: importlib.metadata.version(package) for package in packages}
