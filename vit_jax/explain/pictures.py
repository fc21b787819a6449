"""What `python -m vit_jax.explain` draws: PICTURES, a function of a `Context` each.

It returns a figure, or why there is none, in words; `applies`, an attribute, is whether the model
has what it shows.
"""

import functools
from collections.abc import Callable, Iterable

import jax
import numpy as np
from matplotlib.figure import Figure

from vit_jax.explain import (
  attention,
  attention_plots,
  boxes,
  filters,
  masks,
  mistakes,
  panels,
  positions,
  reconstructions,
  token_maps,
)
from vit_jax.explain.context import NOT_OF_MODEL, Context, Nothing
from vit_jax.models.backbone import Attention
from vit_jax.models.heads.mae import join_patches

_OVERLAID = 'lowest to highest attention, laid over the image'
_MASS = 0.6  # share of its attention by which a head is told
_OUTSIDE = 0.25  # brightness of the rest of the image
_DARKEST = 0.3  # of black inside
_MOST_WRONG = 18  # images
_MOST_TOKENS = 16  # that maps can be told apart
# Outputs that are drawn together: patches that were hidden, as they are or standardised.
_RECONSTRUCTED = ({'reconstruction', 'mask'}, {'prediction', 'mask', 'mean', 'std'})

Picture = Callable[[Context], Figure | str]


def _of_models(applies: Callable[[Context], bool]) -> Callable[..., Picture]:
  """Makes a picture of those models alone of which `applies` is true."""

  def decorate(draw: Picture) -> Picture:
    @functools.wraps(draw)
    def picture(context: Context) -> Figure | str:
      return draw(context) if applies(context) else NOT_OF_MODEL

    picture.applies = applies
    return picture

  return decorate


def shown(context: Context) -> list[str]:
  """Returns the names of the pictures of a model; without images, of those that need none."""
  names = PICTURES if len(context.images) else WITHOUT_IMAGES
  return [name for name in names if PICTURES[name].applies(context)]


@_of_models(lambda context: bool(context.attention_maps))
def _attention(context: Context) -> Figure | str:
  """What the model attends to, per head and averaged over heads."""
  found = context.attention_maps
  heads, first = np.concatenate([answer.maps for answer in found]), found[0]
  maps = np.concatenate([heads.mean(axis=1, keepdims=True), heads], axis=1)
  return attention_plots.overlays(
    context.images,
    attention.min_max_normalize(context.to_pixels(maps, first.patch, first.stride)),
    ['mean', *(f'head {i}' for i in range(heads.shape[1]))],
    context.lines,
    title=f'Attention of the {first.source}',
    label=_OVERLAID,
  )


@_of_models(lambda context: bool(context.attention_maps))
def _attention_masks(context: Context) -> Figure | str:
  """The patches that most of each head's attention goes to, as in DINO's paper."""
  found = context.attention_maps
  heads, first = np.concatenate([answer.maps for answer in found]), found[0]
  kept = np.where(attention.mass_masks(heads, _MASS), 1.0, _OUTSIDE)
  return attention_plots.highlights(
    context.images,
    context.to_pixels(kept, first.patch, first.stride, attention.upsample_nearest),
    [f'head {i}' for i in range(heads.shape[1])],
    context.lines,
    title=f'Where {_MASS:.0%} of the attention of the {first.source} goes',
    darkest=_DARKEST,
  )


@_of_models(lambda context: context.has_attention)
def _rollout(context: Context) -> Figure | str:
  """Attention rollout."""
  return _draw_rollout(context, context.attentions(), 'Attention rollout', scale_rows=True)


@_of_models(lambda context: context.has_attention and context.classifies_alone)
def _gradient_rollout(context: Context) -> Figure | str:
  """Attention rollout, weighed by the gradient of a class, of a backbone that classifies."""
  classes, name = context.predictions, 'the predicted class'
  if context.target is not None:
    classes = np.full_like(classes, context.target)
    name = f"class '{panels.shorten(context.class_names[context.target])}'"
  weigh = jax.jit(functools.partial(attention.weigh_by_gradient, context.backbone))
  weighed = (
    jax.device_get(weigh(context.backbone_variables, image[None], label[None]))
    for image, label in zip(context.inputs, classes, strict=True)
  )
  title = f'Gradient attention rollout for {name}'
  return _draw_rollout(context, weighed, title, scale_rows=False)


def _draw_rollout(
  context: Context, weights: Iterable[Attention], title: str, scale_rows: bool
) -> Figure:
  layout, fusion, ratio = context.layout, context.head_fusion, context.discard_ratio
  roll_out = functools.partial(
    attention.rollout_map,
    num_prefix=layout.num_prefix,
    head_tokens=layout.head_tokens,
    head_fusion=fusion,
    discard_ratio=ratio,
    scale_rows=scale_rows,
  )
  maps = np.concatenate([roll_out(w) for w in weights]).reshape(-1, *layout.grid)
  return attention_plots.heat_maps(
    context.images,
    attention.min_max_normalize(context.to_pixels(maps, layout.patch, layout.stride)),
    context.captions,
    title=f'{title} ({fusion} of heads, {ratio:.0%} discarded)',
    label=_OVERLAID,
  )


@_of_models(lambda context: context.has_attention)
def _attention_distance(context: Context) -> Figure | str:
  """Mean attention distance of each head over depth."""
  layout = context.layout
  measure = functools.partial(
    attention.mean_attention_distance, grid=layout.grid, stride=layout.stride
  )
  per_image = [measure(w.layers, num_prefix=layout.num_prefix) for w in context.attentions()]
  uniform = np.ones((1, 1, 1) + (layout.grid[0] * layout.grid[1],) * 2)
  title = f'Mean attention distance (images: {len(context.images)})'
  return attention_plots.distances(
    np.mean(per_image, axis=0), measure(uniform, num_prefix=0).item(), title
  )


@_of_models(lambda context: context.patch_kernel is not None)
def _filters(context: Context) -> Figure | str:
  """Principal components of the patch embedding."""
  return filters.components_figure(*filters.principal_components(context.patch_kernel))


@_of_models(lambda context: context.positions is not None)
def _positions(context: Context) -> Figure | str:
  """Cosine similarity of position embeddings."""
  found = context.positions
  return positions.similarity_figure(
    positions.cosine_similarity(found.embeddings),
    f'Position embeddings ({found.kind}): cosine similarity',
  )


@_of_models(lambda context: bool(context.token_maps))
def _token_maps(context: Context) -> Figure | str:
  """Where the tokens look that are learned first."""
  found = context.token_maps
  maps = np.concatenate([first.maps for first, *_ in found])
  count, source, layout = maps.shape[1], found[0][0].source, context.layout
  shown = f', the first {_MOST_TOKENS} of {count}' if count > _MOST_TOKENS else ''
  return token_maps.token_maps_figure(
    context.images,
    context.to_pixels(maps[:, :_MOST_TOKENS], layout.patch, layout.stride),
    context.lines,
    f'{source}: where each token looks{shown}',
  )


@_of_models(lambda context: 'box' in context.outputs)
def _boxes(context: Context) -> Figure | str:
  """Where the object of each image is, and where the model says it is."""
  predicted = context.outputs['box']
  return boxes.boxes_figure(context.images, context.boxes, predicted, context.captions)


@_of_models(lambda context: context.predicted_masks is not None)
def _masks(context: Context) -> Figure | str:
  """The class of each pixel, and the predicted one."""
  return masks.masks_figure(
    context.images, context.masks, context.predicted_masks, context.class_names, context.captions
  )


@_of_models(lambda context: context.predicted_masks is not None)
def _class_iou(context: Context) -> Figure | str:
  """How well each class is found."""
  evaluation = context.mask_evaluation
  if isinstance(evaluation, str):
    return evaluation
  return masks.class_iou_figure(evaluation, context.class_names)


@_of_models(lambda context: context.predicted_masks is not None)
def _worst_masks(context: Context) -> Figure | str:
  """The images whose masks are worst."""
  evaluation = context.mask_evaluation
  if isinstance(evaluation, str):
    return evaluation
  chosen, ious = masks.worst(evaluation, len(context.images))
  drawn = map(np.stack, zip(*map(evaluation.drawn, chosen.tolist()), strict=True))
  captions = [f'mean IoU {iou:.1%}' for iou in ious]
  title = f'Lowest mean IoU of {evaluation.name}: true masks, and predicted'
  return masks.masks_figure(*drawn, context.class_names, captions, title)


@_of_models(lambda context: any(names <= context.outputs.keys() for names in _RECONSTRUCTED))
def _reconstructions(context: Context) -> Figure | str:
  """Images with patches hidden at random, and what the model draws in their place."""
  outputs, layout = context.outputs, context.layout
  if {'reconstruction', 'mask'} <= outputs.keys():
    hidden, pixels = outputs['mask'][..., None], context.to_bytes(outputs['reconstruction'])
    return reconstructions.reconstructions_figure(context.images, hidden, pixels, context.lines)
  patches = outputs['prediction'] * outputs['std'] + outputs['mean']
  hidden = np.broadcast_to(outputs['mask'][..., None] > 0, patches.shape)
  hidden, pixels = (
    join_patches(values, layout.patch, context.image_size) for values in (hidden, patches)
  )
  return reconstructions.reconstructions_figure(
    context.images, hidden[..., :1], context.to_bytes(pixels), context.lines
  )


@_of_models(lambda context: context.predictions is not None)
def _confusion(context: Context) -> Figure | str:
  """Which classes are taken for which."""
  evaluation = context.evaluation
  if isinstance(evaluation, str):
    return evaluation
  predicted = evaluation.probabilities.argmax(axis=1)
  names = [panels.shorten(name) for name in context.class_names]
  counts = mistakes.confusion_matrix(evaluation.labels, predicted, len(names))
  return mistakes.confusion_figure(counts, names, title=f'Confusion matrix: {evaluation.name}')


@_of_models(lambda context: context.predictions is not None)
def _wrong(context: Context) -> Figure | str:
  """What is most confidently taken for something else."""
  evaluation = context.evaluation
  if isinstance(evaluation, str):
    return evaluation
  name, labels, probabilities, image = evaluation
  chosen = mistakes.most_confidently_wrong(probabilities, labels, _MOST_WRONG)
  if not len(chosen):
    return Nothing(f'nothing is wrong of {len(labels):,} images')
  num_wrong = (probabilities.argmax(axis=1) != labels).sum()
  return mistakes.wrong_figure(
    np.stack([image(i) for i in chosen]),
    labels[chosen],
    probabilities[chosen],
    context.class_names,
    f'Most confidently wrong of {name}: {len(chosen)} of {num_wrong:,} mistakes',
  )


PICTURES: dict[str, Picture] = {
  'attention': _attention,
  'attention_masks': _attention_masks,
  'rollout': _rollout,
  'gradient_rollout': _gradient_rollout,
  'attention_distance': _attention_distance,
  'token_maps': _token_maps,
  'filters': _filters,
  'positions': _positions,
  'boxes': _boxes,
  'masks': _masks,
  'class_iou': _class_iou,
  'worst_masks': _worst_masks,
  'reconstructions': _reconstructions,
  'confusion': _confusion,
  'wrong': _wrong,
}
WITHOUT_IMAGES = ('filters', 'positions')
