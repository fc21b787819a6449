"""`Function`: a model with its parameters and its normalisation, as a function of one array."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data import augment, kinds
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig, Preprocessing
from vit_jax.models.backbone import AXES
from vit_jax.predictor import check_finite, preparation, with_dtype
from vit_jax.tasks import task_for
from vit_jax.tasks.task import Outputs

# Largest difference from the model itself, as a share of its largest output.
TOLERANCES = {'float32': 1e-5, 'bfloat16': 2e-2}
# Two numbers of inputs, one of them that which is like no other.
BATCHES = (1, 3)
# Labels of pixels or points that may differ: where two classes are as probable, rounding decides.
_DIFFERING_LABELS = 1e-3
_MOST_BYTES = 2**31 - 2**24  # of parameters: what messages of Protocol Buffers and FlatBuffers hold


@dataclasses.dataclass(frozen=True)
class Function:
  """A function of a batch of inputs, for as many as there are.

  Attributes:
    call: maps [B, *shape] to arrays [B, ...] by name; can be traced.
    input: the kind of data that it takes, a key of `kinds.KINDS`, which is the input's name.
    shape: of one input.
    dtype: of inputs.
    compute_dtype: 'float32' or 'bfloat16', which the model computes in.
    description: plain values that say what the function takes and gives, and of which model it is.
  """

  call: Callable[[jax.Array], Outputs]
  input: str
  shape: tuple[int, ...]
  dtype: Any
  compute_dtype: str
  description: dict[str, Any]

  def spec(self, batch: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of `batch` inputs, a number or a symbol."""
    return jax.ShapeDtypeStruct((batch, *self.shape), self.dtype)

  def check(self, run: Callable[[np.ndarray], Mapping[str, Any]]) -> float:
    """Returns the largest difference between what `run` computes and what the function does.

    It is one of float outputs, as a share of the output's largest number, over random inputs in
    batches of `BATCHES`.

    Args:
      run: maps inputs to outputs by name.

    Raises:
      UsageError: it is more than `TOLERANCES` allows, or the model's outputs are not finite.
    """
    call = jax.jit(self.call)
    return max(self._difference(call, run, inputs) for inputs in map(self._inputs, BATCHES))

  def _inputs(self, count: int) -> np.ndarray:
    rng, shape = np.random.default_rng(count), (count, *self.shape)
    if np.issubdtype(self.dtype, np.integer):
      return rng.integers(0, 256, shape, self.dtype)
    return rng.normal(size=shape).astype(self.dtype)

  def _difference(self, call, run, inputs: np.ndarray) -> float:
    theirs, largest = run(inputs), 0.0
    for name, ours in jax.device_get(call(inputs)).items():
      array = np.asarray(theirs[name])
      if array.shape != ours.shape or array.dtype != ours.dtype:
        raise UsageError(
          f'{name} is {array.dtype} {array.shape} there and {ours.dtype} {ours.shape} here'
        )
      if np.issubdtype(ours.dtype, np.integer):
        share = np.mean(array != ours)
        if share > _DIFFERING_LABELS:
          raise UsageError(f'{share:.2g} of {name} are other labels than here')
        continue
      check_finite(ours)
      scale = max(np.abs(ours).max(), np.finfo(np.float32).tiny)
      difference = float(np.abs(array - ours).max() / scale)
      limit = TOLERANCES[self.compute_dtype]
      if not difference <= limit:  # nor NaN
        raise UsageError(
          f'{name} differ from those here by {difference:.1e} of the largest, more than {limit:g}'
        )
      largest = max(largest, difference)
    return largest


def make(
  variables: Mapping[str, Any],
  config: ModelConfig,
  *,
  loss: str = 'softmax',
  dtype: str = 'float32',
  normalize: bool = True,
  predictions: bool = False,
) -> Function:
  """Returns the function of a model.

  A model without classes, such as one that learned without labels, gives `features`, float
  [B, D]: what a head would read. Others give the outputs of their head by name, as `logits`.

  Args:
    variables: of the model.
    config: of the model.
    loss: that it was trained with, `config.loss.name`, which makes probabilities.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters are float32.
    normalize: whether inputs are uint8 pixels, or points as they are measured, which the function
      normalises; else float32 that is normalised already.
    predictions: whether outputs are those of `vit_jax.predict`, such as `probabilities`.

  Raises:
    UsageError: it isn't known which inputs the model takes, it has no such outputs, or it is too
      large for one file.
  """
  size = sum(x.nbytes for x in jax.tree.leaves(variables))
  if size > _MOST_BYTES:
    raise UsageError(f'{size / 2**30:.1f} GiB of parameters; one file holds less than 2 GiB')
  _, mean, std = preparation(config)
  name, kind = config.model.INPUT, kinds.kind_of(config.model.INPUT)
  task = task_for(config, **({} if loss == 'softmax' else {'name': loss}))
  if not config.num_classes:
    if predictions:
      raise UsageError('the model has no classification head, and so no classes to predict')
    variables, model = config.backbone_variables(variables), config.backbone
    model = with_dtype(model, jnp.dtype(dtype))
    apply = functools.partial(model.apply, method='features')
  else:
    apply = with_dtype(config.model, jnp.dtype(dtype)).apply

  def call(inputs: jax.Array) -> Outputs:
    batch = augment.normalize_batch({name: inputs}, mean, std) if normalize else {name: inputs}
    outputs = apply(variables, batch[name], train=False)
    if not config.num_classes:
      return {'features': outputs.pooled}
    outputs = task.name_outputs(outputs)
    if not predictions:
      return outputs
    found = task.predict(outputs)
    return found if isinstance(found, dict) else {'probabilities': found}

  shape = (*config.input_size, config.channels)
  taken = kind.dtype if normalize else np.float32
  function = Function(call, name, shape, np.dtype(taken), dtype, {})
  (batch,) = jax.export.symbolic_shape('batch')
  outputs = jax.eval_shape(call, function.spec(batch))
  if 'features' in outputs and outputs['features'] is None:
    raise UsageError('the model has no classes, and pools its tokens into no one vector')
  axes = ['batch', *AXES[name], 'channels']
  description = {
    'model': config.backbone.summary(),
    'input': {
      'name': name,
      'axes': axes,
      'shape': ['batch', *shape],
      'dtype': function.dtype.name,
      'values': _values(config, normalize),
    },
    'outputs': {
      output: {'shape': list(map(_dimension, x.shape)), 'dtype': x.dtype.name}
      for output, x in sorted(outputs.items())
    },
    'class_names': None if config.class_names is None else list(config.class_names),
    'size': _size(config),
    'compute_dtype': dtype,
    'config': config.to_dict(),
  }
  return dataclasses.replace(function, description=description)


def _dimension(size: Any) -> int | str:
  return size if isinstance(size, int) else str(size)


def _values(config: ModelConfig, normalize: bool) -> str:
  """Returns, in words, which numbers the input holds."""
  if not kinds.kind_of(config.model.INPUT).has_pixels:
    how = 'coordinates in any unit' if normalize else 'coordinates'
    return how + ('' if normalize else ' about their mean, the farthest at a distance of 1')
  preprocess = config.preprocess or Preprocessing()
  colours = 'RGB' if config.channels == 3 else 'grey'
  if normalize:
    return f'{colours} pixels from 0 to 255'
  mean, std = (list(values) for values in (preprocess.mean, preprocess.std))
  return f'{colours} pixels / 255, less {mean}, divided by {std}'


def _size(config: ModelConfig) -> str:
  """Returns, in words, how inputs are brought to the input's shape."""
  preprocess = config.preprocess or Preprocessing()
  if config.image_size is None:
    return f'{config.num_points} points of the object'
  height, width = config.image_size
  fraction, how = preprocess.crop_fraction or 0.875, preprocess.interpolation
  size, larger = f'{height}x{width}', f'{height / fraction:.0f}x{width / fraction:.0f}'
  middle = f'the central {size} of the image'
  text = {
    'resize': f'the whole image, resized to {size} ({how})',
    'central': f'{middle}, resized ({how}, keeping its shape) to just cover {larger}',
    'squash': f'{middle}, resized ({how}) to {larger}',
    'border': f'{middle}, resized ({how}, keeping its shape) into {larger}, on the mean',
    'cut': f'{middle}, not resized, on black',
    'none': f'an image of {size}',
  }[preprocess.crop]
  if config.num_frames is not None:
    text += f'; {config.num_frames} frames, every {preprocess.frame_stride or 1} of the video'
  return text
