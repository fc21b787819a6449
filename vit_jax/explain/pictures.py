"""What `python -m vit_jax.explain` draws: PICTURES, a function of what there is to explain each.

It returns a figure, or why there is none, in words.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from matplotlib.figure import Figure

from vit_jax.errors import UsageError
from vit_jax.explain import (
  attention,
  attention_plots,
  boxes,
  errors,
  filters,
  positions,
  token_maps,
)
from vit_jax.explain.evaluation import Evaluation
from vit_jax.models import layers, variables
from vit_jax.models.localization import Localizer
from vit_jax.models.vit import VisionTransformer, ViT

NOT_OF_MODEL = 'not of this model'
_LONGEST = 28  # characters of a name in a caption
_MOST_WRONG = 18  # images
_MOST_TOKENS = 16  # that maps can be told apart


def _shorten(name: str) -> str:
  return name if len(name) <= _LONGEST else f'{name[: _LONGEST - 1]}…'


@dataclasses.dataclass(frozen=True)
class Context:
  """A model, some images, and what was asked for.

  Attributes:
    model: the Flax module.
    params: its parameters, with running statistics, if any, under 'batch_stats'.
    images: uint8 [N, H, W, C], as they go into the model; none do for what `WITHOUT_IMAGES` names.
    inputs: float32 [N, H, W, C], the same, normalised.
    class_names: a name for each logit.
    file_names: N names, empty of images from a data set.
    labels: bool [N, num_classes], the true classes of each image; None where they aren't known.
    boxes: float [N, 4], the true boxes, (cx, cy, width, height) in fractions of the image as it
      goes into the model; None where they aren't known.
    evaluate: classifies all there is, not the N images alone; or says why it can't.
    layer: index of the layer whose class token is looked at; None for the last.
    head_fusion: see `attention.rollout`.
    discard_ratio: see `attention.rollout`.
    target: index of the class that gradients are of; None for the predicted one.
  """

  model: nn.Module
  params: Mapping[str, Any]
  images: np.ndarray
  inputs: np.ndarray
  class_names: Sequence[str]
  file_names: Sequence[str]
  labels: np.ndarray | None
  boxes: np.ndarray | None
  evaluate: Callable[[], Evaluation | str]
  layer: int | None
  head_fusion: str
  discard_ratio: float
  target: int | None

  @property
  def backbone(self) -> nn.Module:
    """The model without a task's heads."""
    return self.model.backbone if isinstance(self.model, Localizer) else self.model

  @property
  def backbone_params(self) -> Mapping[str, Any]:
    """The parameters of `backbone`."""
    return self.params['backbone'] if isinstance(self.model, Localizer) else self.params

  @functools.cached_property
  def outputs(self) -> np.ndarray | dict[str, np.ndarray]:
    """What the model gives for the images.

    Raises:
      UsageError: some of it isn't finite.
    """
    apply = jax.jit(functools.partial(self.model.apply, variables(self.params), train=False))
    rows = [jax.device_get(apply(image[None])) for image in self.inputs]
    outputs = jax.tree.map(lambda *x: np.concatenate(x), *rows)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(outputs)):
      raise UsageError('the model gives numbers that are not finite; its weights are damaged')
    return outputs

  @property
  def predictions(self) -> np.ndarray | None:
    """Most probable classes, int [N]; None of a model that classifies nothing."""
    outputs = self.outputs['logits'] if isinstance(self.outputs, dict) else self.outputs
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
  def evaluation(self) -> Evaluation | str:
    """What `evaluate` returns, or why there is nothing to evaluate."""
    if self.predictions is None:
      return NOT_OF_MODEL
    if self.labels is None:
      return 'the images are not in folders of the names of classes'
    return self.evaluate()

  @property
  def grid(self) -> tuple[int, int]:
    """(rows, columns) of patches."""
    model = self.backbone
    return layers.patch_grid(self.images.shape[1:3], model.patch_size, model.patch_stride)

  @property
  def has_patches(self) -> bool:
    """Whether the model is a transformer over patches of the image."""
    return isinstance(self.backbone, VisionTransformer)

  @property
  def keeps_tokens(self) -> bool:
    """Whether tokens are those of patches from the first layer to the last."""
    return self.has_patches and (
      isinstance(self.backbone, ViT) or self.backbone.tokenizer['type'] == 'patch'
    )

  @functools.cached_property
  def _capture(self) -> Callable[..., tuple[jax.Array, attention.Attention]]:
    return jax.jit(functools.partial(attention.capture, self.backbone))

  def attentions(self) -> Iterator[attention.Attention]:
    """Yields the attention weights of each image of a ViT, one by one, since they are large."""
    for image in self.inputs:
      yield jax.device_get(self._capture(self.backbone_params, image[None])[1])

  def over_pixels(self, maps: Sequence[np.ndarray]) -> np.ndarray:
    """Joins maps [B, ..., patches], brought to the image and scaled: [N, ..., H, W] in [0, 1]."""
    joined = np.concatenate(maps)
    joined = joined.reshape(*joined.shape[:-1], *self.grid)
    return attention.min_max_normalize(self.upsample(joined))

  def upsample(self, maps: np.ndarray) -> np.ndarray:
    """Brings maps [..., rows, columns] to the image: [..., H, W]."""
    return attention.upsample(maps, self.backbone.patch_size, self.backbone.patch_stride)

  @property
  def lines(self) -> list[str]:
    """The captions, each in one line."""
    return [caption.replace('\n', ', ') for caption in self.captions]


def _head_attention(context: Context) -> Figure | str:
  """What the class token or the MAP head attends to, per head and averaged over them."""
  if not context.keeps_tokens or context.backbone.classifier not in ('token', 'map'):
    return NOT_OF_MODEL
  last = context.backbone.num_layers - 1
  layer = last if context.layer is None else context.layer
  heads = [attention.head_attention(weights, layer) for weights in context.attentions()]
  maps = [np.concatenate([h.mean(axis=1, keepdims=True), h], axis=1) for h in heads]
  num_heads = context.backbone.num_heads
  names = [
    'mean',
    'head 0',
    *(f'head {i}' if num_heads <= 8 else f'{i}' for i in range(1, num_heads)),
  ]
  is_map = context.backbone.classifier == 'map'
  who = "MAP head's probe" if is_map else f'class token in layer {layer} (0 to {last})'
  title = f'Attention of the {who}, times the image'
  return attention_plots.highlights(
    context.images, context.over_pixels(maps), names, context.lines, title
  )


def _rollout(context: Context) -> Figure | str:
  """Attention rollout."""
  if not context.keeps_tokens:
    return NOT_OF_MODEL
  return _draw_rollout(context, context.attentions(), 'Attention rollout', scale_rows=True)


def _gradient_rollout(context: Context) -> Figure | str:
  """Attention rollout, weighed by the gradient of a class."""
  if (
    not context.keeps_tokens or context.predictions is None or isinstance(context.model, Localizer)
  ):
    return NOT_OF_MODEL
  classes = context.predictions
  if context.target is not None:
    classes = np.full_like(classes, context.target)
  weigh = jax.jit(functools.partial(attention.weigh_by_gradient, context.backbone))
  weighed = (
    jax.device_get(weigh(context.backbone_params, image[None], label[None]))
    for image, label in zip(context.inputs, classes, strict=True)
  )
  what = 'the predicted class'
  if context.target is not None:
    what = f"class '{_shorten(context.class_names[context.target])}'"
  title = f'Gradient attention rollout for {what}'
  return _draw_rollout(context, weighed, title, scale_rows=False)


def _draw_rollout(
  context: Context, weights: Iterable[attention.Attention], title: str, scale_rows: bool
) -> Figure:
  how = context.head_fusion, context.discard_ratio
  of = context.backbone.classifier, *how, context.backbone.has_class_token, scale_rows
  maps = [attention.rollout_map(w, *of) for w in weights]
  title += f' ({how[0]} of heads, {how[1]:.0%} discarded)'
  label = 'lowest to highest attention, laid over the image'
  return attention_plots.heat_maps(
    context.images, context.over_pixels(maps), context.captions, title, label
  )


def _attention_distance(context: Context) -> Figure | str:
  """Mean attention distance of each head over depth."""
  if not context.keeps_tokens:
    return NOT_OF_MODEL
  measure = functools.partial(
    attention.mean_attention_distance, grid=context.grid, stride=context.backbone.patch_stride
  )
  has_class_token = context.backbone.has_class_token
  per_image = [measure(w.layers, has_class_token=has_class_token) for w in context.attentions()]
  uniform = np.ones((1, 1, 1) + (context.grid[0] * context.grid[1],) * 2)
  title = f'Mean attention distance (images: {len(context.images)})'
  return attention_plots.distances(
    np.mean(per_image, axis=0), measure(uniform, has_class_token=False).item(), title
  )


def _filters(context: Context) -> Figure | str:
  """Principal components of the patch embedding."""
  if not context.has_patches:
    return NOT_OF_MODEL
  kernel = np.asarray(context.backbone_params['embedding']['kernel'])
  return filters.components_figure(*filters.principal_components(kernel))


def _positions(context: Context) -> Figure | str:
  """Cosine similarity of position embeddings."""
  kind = context.backbone.positional_embedding if context.has_patches else 'none'
  if kind == 'none':
    return NOT_OF_MODEL
  embeddings = positions.position_embeddings(context.backbone_params, kind, context.grid)
  return positions.similarity_figure(
    positions.cosine_similarity(embeddings), f'Position embeddings ({kind}): cosine similarity'
  )


def _token_maps(context: Context) -> Figure | str:
  """Where the tokens look that the first tokenized layer learns."""
  if context.keeps_tokens or not context.has_patches:
    return NOT_OF_MODEL
  run = functools.partial(context.backbone.apply, train=False, mutable=['intermediates'])
  apply = jax.jit(lambda params, image: run({'params': params}, image)[1]['intermediates'])
  maps = [
    token_maps.token_maps(
      jax.device_get(apply(context.backbone_params, image[None])), context.grid
    )[0]
    for image in context.inputs
  ]
  joined = np.concatenate(maps)
  count, layer = joined.shape[1], context.backbone.tokenizer['tokenlearner_loc']
  shown = f', the first {_MOST_TOKENS} of {count}' if count > _MOST_TOKENS else ''
  title = f'TokenLearner before layer {layer}: where each token looks{shown}'
  maps = context.upsample(joined[:, :_MOST_TOKENS])
  return token_maps.token_maps_figure(context.images, maps, context.lines, title)


def _boxes(context: Context) -> Figure | str:
  """Where the object of each image is, and where the model says it is."""
  if not isinstance(context.outputs, dict):
    return NOT_OF_MODEL
  return boxes.boxes_figure(context.images, context.boxes, context.outputs['box'], context.captions)


def _confusion(context: Context) -> Figure | str:
  """Which classes are taken for which."""
  evaluation = context.evaluation
  if isinstance(evaluation, str):
    return evaluation
  predicted = evaluation.probabilities.argmax(axis=1)
  names = [_shorten(name) for name in context.class_names]
  counts = errors.confusion_matrix(evaluation.labels, predicted, len(names))
  return errors.confusion_figure(counts, names, title=f'Confusion matrix: {evaluation.name}')


def _wrong(context: Context) -> Figure | str:
  """What is most confidently taken for something else."""
  evaluation = context.evaluation
  if isinstance(evaluation, str):
    return evaluation
  _, labels, probabilities, image = evaluation
  chosen = errors.most_confidently_wrong(probabilities, labels, _MOST_WRONG)
  if not len(chosen):
    return f'nothing is wrong of {len(labels):,} images'
  num_wrong = (probabilities.argmax(axis=1) != labels).sum()
  return errors.wrong_figure(
    np.stack([image(i) for i in chosen]),
    labels[chosen],
    probabilities[chosen],
    context.class_names,
    f'Most confidently wrong of {evaluation.name}: {len(chosen)} of {num_wrong:,} mistakes',
  )


PICTURES: dict[str, Callable[[Context], Figure | str]] = {
  'attention': _head_attention,
  'rollout': _rollout,
  'gradient_rollout': _gradient_rollout,
  'attention_distance': _attention_distance,
  'token_maps': _token_maps,
  'filters': _filters,
  'positions': _positions,
  'boxes': _boxes,
  'confusion': _confusion,
  'wrong': _wrong,
}
WITHOUT_IMAGES = ('filters', 'positions')
