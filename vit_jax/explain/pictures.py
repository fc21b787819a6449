"""What `python -m vit_jax.explain` draws: PICTURES, a function of what there is to explain each."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from matplotlib.figure import Figure

from vit_jax.errors import UsageError
from vit_jax.explain import attention, attention_plots
from vit_jax.models.vit import ViT

_LONGEST = 28  # characters of a name in a caption


def _shorten(name: str) -> str:
  return name if len(name) <= _LONGEST else f'{name[: _LONGEST - 1]}…'


@dataclasses.dataclass(frozen=True)
class Context:
  """A model, some images, and what was asked for.

  Attributes:
    model: the Flax module.
    params: its parameters.
    config: model config, as `vit_jax.weights.load` returns it.
    images: uint8 [N, H, W, C], as they go into the model.
    inputs: float32 [N, H, W, C], the same, normalised.
    class_names: a name for each logit.
    file_names: N names, empty of images from a data set.
    labels: bool [N, num_classes], the true classes of each image; None where they aren't known.
    layer: index of the layer whose class token is looked at; None for the last.
    head_fusion: see `attention.rollout`.
    discard_ratio: see `attention.rollout`.
    target: index of the class that gradients are of; None for the predicted one.
  """

  model: nn.Module
  params: Mapping[str, Any]
  config: Mapping[str, Any]
  images: np.ndarray
  inputs: np.ndarray
  class_names: Sequence[str]
  file_names: Sequence[str]
  labels: np.ndarray | None
  layer: int | None
  head_fusion: str
  discard_ratio: float
  target: int | None

  @functools.cached_property
  def predictions(self) -> np.ndarray | None:
    """Most probable classes, int [N]; None of a model that classifies nothing.

    Raises:
      UsageError: the model gives something else than finite numbers.
    """
    apply = jax.jit(functools.partial(self.model.apply, train=False))
    outputs = np.stack([apply({'params': self.params}, x[None])[0] for x in self.inputs])
    if not np.isfinite(outputs).all():
      raise UsageError('the model gives numbers that are not finite; its weights are damaged')
    is_logits = outputs.ndim == 2 and self.model.num_classes > 0
    return outputs.argmax(axis=1) if is_logits else None

  @functools.cached_property
  def captions(self) -> list[str]:
    """For each image, in a line or two: its file, the predicted class and the true one."""
    captions = []
    for i, file_name in enumerate(self.file_names):
      lines = [_shorten(file_name)] if file_name else []
      if self.predictions is not None:
        lines.append(f'predicted {self._class_names([self.predictions[i]])}')
      if self.labels is not None:
        lines.append(f'true {self._class_names(np.flatnonzero(self.labels[i]))}')
      captions.append('\n'.join(lines))
    return captions

  def _class_names(self, classes: Sequence[int]) -> str:
    return _shorten(', '.join(self.class_names[c] for c in classes))

  @functools.cached_property
  def grid(self) -> tuple[int, int]:
    """(rows, columns) of patches."""
    sizes = zip(self.images.shape[1:3], self.model.patch_size, self.model.patch_stride, strict=True)
    rows, columns = ((image - patch) // stride + 1 for image, patch, stride in sizes)
    return rows, columns

  @functools.cached_property
  def _capture(self) -> Callable[..., tuple[jax.Array, attention.Attention]]:
    return jax.jit(functools.partial(attention.capture, self.model))

  def attentions(self) -> Iterator[attention.Attention]:
    """Yields the attention weights of each image of a ViT, one by one, since they are large."""
    for image in self.inputs:
      yield jax.device_get(self._capture(self.params, image[None])[1])

  def over_pixels(self, maps: Sequence[np.ndarray]) -> np.ndarray:
    """Joins maps [B, ..., patches], scaled and brought to the image: [N, ..., H, W] in [0, 1]."""
    joined = np.concatenate(maps)
    joined = attention.min_max_normalize(joined.reshape(*joined.shape[:-1], *self.grid))
    return attention.upsample(joined, self.model.patch_size, self.model.patch_stride)


def _head_attention(context: Context) -> Figure | None:
  """What the class token or the MAP head attends to, per head and averaged over them."""
  if not isinstance(context.model, ViT) or context.model.classifier not in ('token', 'map'):
    return None
  last = context.model.num_layers - 1
  layer = last if context.layer is None else context.layer
  heads = [attention.head_attention(weights, layer) for weights in context.attentions()]
  maps = [np.concatenate([h.mean(axis=1, keepdims=True), h], axis=1) for h in heads]
  num_heads = context.model.num_heads
  names = [
    'mean',
    'head 0',
    *(f'head {i}' if num_heads <= 8 else f'{i}' for i in range(1, num_heads)),
  ]
  is_map = context.model.classifier == 'map'
  who = "MAP head's probe" if is_map else f'class token in layer {layer} (0 to {last})'
  title = f'Attention of the {who}, times the image'
  captions = [caption.replace('\n', ', ') for caption in context.captions]
  return attention_plots.highlights(
    context.images, context.over_pixels(maps), names, captions, title
  )


def _rollout(context: Context) -> Figure | None:
  """Attention rollout."""
  if not isinstance(context.model, ViT):
    return None
  return _draw_rollout(context, context.attentions(), 'Attention rollout')


def _gradient_rollout(context: Context) -> Figure | None:
  """Attention rollout, weighed by the gradient of a class."""
  if not isinstance(context.model, ViT) or context.predictions is None:
    return None
  classes = context.predictions
  if context.target is not None:
    classes = np.full_like(classes, context.target)
  weigh = jax.jit(functools.partial(attention.weigh_by_gradient, context.model))
  weighed = (
    jax.device_get(weigh(context.params, image[None], label[None]))
    for image, label in zip(context.inputs, classes, strict=True)
  )
  what = 'the predicted class'
  if context.target is not None:
    what = f"class '{_shorten(context.class_names[context.target])}'"
  return _draw_rollout(context, weighed, f'Gradient attention rollout for {what}')


def _draw_rollout(context: Context, weights: Iterable[attention.Attention], title: str) -> Figure:
  how = context.head_fusion, context.discard_ratio
  maps = [attention.rollout_map(w, context.model.classifier, *how) for w in weights]
  title += f' ({how[0]} of heads, {how[1]:.0%} discarded)'
  label = 'lowest to highest attention'
  return attention_plots.heat_maps(
    context.images, context.over_pixels(maps), context.captions, title, label
  )


def _attention_distance(context: Context) -> Figure | None:
  """Mean attention distance of each head over depth."""
  if not isinstance(context.model, ViT):
    return None
  measure = functools.partial(
    attention.mean_attention_distance, grid=context.grid, stride=context.model.patch_stride
  )
  has_class_token = context.model.classifier == 'token'
  per_image = [measure(w.layers, has_class_token=has_class_token) for w in context.attentions()]
  uniform = np.ones((1, 1, 1) + (context.grid[0] * context.grid[1],) * 2)
  title = f'Mean attention distance (images: {len(context.images)})'
  return attention_plots.distances(
    np.mean(per_image, axis=0), measure(uniform, has_class_token=False).item(), title
  )


# Name of the file -> what draws it, or returns None where the model has no such thing.
PICTURES: dict[str, Callable[[Context], Figure | None]] = {
  'attention': _head_attention,
  'rollout': _rollout,
  'gradient_rollout': _gradient_rollout,
  'attention_distance': _attention_distance,
}
