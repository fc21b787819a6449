"""Attention: its weights, and what of the image they reach, as maps and as distances.

Tokens are in the model's order: those before the grid, such as the class token, then patches row by
row. What takes a model is JAX, the rest NumPy.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UsageError, check_choice
from vit_jax.models.backbone import Attention, Backbone

HEAD_FUSIONS = {'mean': np.mean, 'max': np.max, 'min': np.min}


def apply_with_intermediates(
  model: nn.Module, variables: Mapping[str, Any], images: jax.Array
) -> tuple[Any, dict[str, Any]]:
  """Returns (the model's outputs, the tree of what its modules sow as 'intermediates').

  The leaves of the tree are arrays, taken out of Flax's tuples; it is empty if nothing is sown.

  Args:
    model: any model of this project.
    variables: its variables.
    images: float [B, H, W, C], normalised.
  """
  outputs, state = model.apply(variables, images, train=False, mutable=['intermediates'])
  sown = flax.traverse_util.flatten_dict(state.get('intermediates', {}))
  return outputs, flax.traverse_util.unflatten_dict({path: leaf for path, (leaf,) in sown.items()})


def capture(
  model: Backbone, variables: Mapping[str, Any], images: jax.Array
) -> tuple[jax.Array, Attention | None]:
  """Returns (the model's outputs, the attention weights that it computes them with).

  The weights are None for a model whose tokens aren't those of the patches throughout.

  Args:
    model: a backbone.
    variables: its variables.
    images: float [B, H, W, C], normalised.
  """
  outputs, intermediates = apply_with_intermediates(model, variables, images)
  return outputs, model.attention(intermediates)


def has_attention(
  model: Backbone, variables: Mapping[str, Any], input_size: Sequence[int], channels: int
) -> bool:
  """Whether a backbone has attention between the tokens of the patches in every layer.

  Args:
    model: a backbone.
    variables: its variables.
    input_size: as for `Backbone.variable_shapes`.
    channels: of its inputs.
  """
  inputs = jax.ShapeDtypeStruct((1, *input_size, channels), np.float32)
  return jax.eval_shape(functools.partial(capture, model), variables, inputs)[1] is not None


def weigh_by_gradient(
  model: Backbone, variables: Mapping[str, Any], images: jax.Array, classes: jax.Array
) -> Attention:
  """Returns max(0, A * dy/dA) for attention weights A and the logit y of each image's class.

  It holds for a head where its attention speaks for the class (arXiv 2103.15679, equation 5).

  Args:
    model: a backbone that gives logits [B, num_classes], and whose `attention` isn't None.
    variables: its variables.
    images: float [B, H, W, C], normalised.
    classes: int [B].
  """

  def logit(perturbations):
    perturbed = {**variables, 'perturbations': perturbations}
    logits, intermediates = apply_with_intermediates(model, perturbed, images)
    return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), intermediates

  apply = functools.partial(apply_with_intermediates, model)
  _, shapes = jax.eval_shape(apply, variables, images)
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
  gradients, intermediates = jax.grad(logit, has_aux=True)(zeros)
  weighed = jax.tree.map(lambda w, g: jnp.maximum(w * g, 0), intermediates, gradients)
  return model.attention(weighed)


def rollout(
  layers: np.ndarray,
  *,
  head_fusion: str = 'mean',
  discard_ratio: float = 0.0,
  num_prefix: int = 1,
  scale_rows: bool = True,
) -> np.ndarray:
  """Follows attention through the layers (arXiv 2005.00928): what each token draws from each input.

  A layer's heads are fused to A; A + I, rows scaled to a sum of 1, stands for the layer with its
  residual connection; the result is the product over layers, the last one leftmost.

  Args:
    layers: [layers, B, heads, N, N].
    head_fusion: name in `HEAD_FUSIONS`, of what makes one weight of those of the heads.
    discard_ratio: share of each A, in [0, 1), whose lowest values are taken as 0, except for what
      the class token pays to itself, as in jacobgil/vit-explain. Values equal to the lowest that
      stays do so too.
    num_prefix: tokens before those of the grid, such as the class token.
    scale_rows: without it, A + I stays as it is (arXiv 2103.15679, equation 6): how much speaks for
      a class, by `weigh_by_gradient`, differs between tokens.

  Returns:
    [B, N, N], rows adding up to 1 where they are scaled.

  Raises:
    UsageError: an unknown head fusion, or a ratio out of range.
  """
  result = np.eye(layers.shape[-1], dtype=np.float32)
  for weights in layers:
    fused = _discard(_fuse(weights, head_fusion), discard_ratio, num_prefix)
    mixed = fused + np.eye(fused.shape[-1], dtype=np.float32)
    result = (mixed / mixed.sum(axis=-1, keepdims=True) if scale_rows else mixed) @ result
  return result


def _fuse(weights: np.ndarray, head_fusion: str) -> np.ndarray:
  """[B, heads, queries, keys] to [B, queries, keys]."""
  check_choice('head_fusion', head_fusion, HEAD_FUSIONS)
  return HEAD_FUSIONS[head_fusion](np.asarray(weights), axis=1)


def _discard(fused: np.ndarray, ratio: float, num_prefix: int) -> np.ndarray:
  """Zeroes the lowest values of each matrix of [B, N, N]."""
  if not 0 <= ratio < 1:
    raise UsageError(f'discard_ratio: {ratio} is not in [0, 1)')
  flat = fused.reshape(len(fused), -1)
  discarded = int(ratio * flat.shape[1])
  lowest_kept = np.partition(flat, discarded, axis=1)[:, discarded]
  kept = fused >= lowest_kept[:, None, None]
  prefix = np.arange(num_prefix)
  kept[:, prefix, prefix] = True
  return np.where(kept, fused, 0)


def rollout_map(
  attention: Attention,
  *,
  num_prefix: int,
  head_tokens: Sequence[int] | None,
  head_fusion: str = 'mean',
  discard_ratio: float = 0.0,
  scale_rows: bool = True,
) -> np.ndarray:
  """Returns what the model's head draws from each patch, by `rollout`: [B, patches].

  Of a MAP head that is the probe's attention, heads fused alike, times the rows of the rolled-out
  matrix that are of the tokens it reads; of one token its row; of several, whatever the pooling,
  the mean over their rows.

  Args:
    attention: weights, or what stands for them, as `weigh_by_gradient` returns it.
    num_prefix: of the model's `Layout`.
    head_tokens: likewise.
    head_fusion: as for `rollout`.
    discard_ratio: as for `rollout`.
    scale_rows: as for `rollout`; not for weights by gradient.

  Raises:
    UsageError: as `rollout`.
  """
  rolled = rollout(
    np.asarray(attention.layers),
    head_fusion=head_fusion,
    discard_ratio=discard_ratio,
    num_prefix=num_prefix,
    scale_rows=scale_rows,
  )
  rows = rolled[:, num_prefix:] if head_tokens is None else rolled[:, list(head_tokens)]
  rows = rows[..., num_prefix:]
  if attention.probe is not None:
    return (_fuse(attention.probe, head_fusion) @ rows)[:, 0]
  return rows.mean(axis=1)


def min_max_normalize(maps: np.ndarray) -> np.ndarray:
  """Scales each map of [..., h, w] to [0, 1], from its lowest value to its highest.

  A map of one value, which tells no place from another, is 1 everywhere, or 0 if it is of zeros.
  """
  low, high = (f(maps, axis=(-2, -1), keepdims=True) for f in (np.min, np.max))
  return np.where(high > low, (maps - low) / np.where(high > low, high - low, 1), high > 0)


def upsample(maps: np.ndarray, patch: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
  """Interpolates maps over patches bilinearly at the pixels of the image.

  A patch's value stands at its centre; towards the border the outermost values go on.

  Args:
    maps: [..., rows, columns], over patches that tile the image.
    patch: (height, width) in pixels.
    stride: (vertical, horizontal) step between patches in pixels.

  Returns:
    [..., height, width].
  """
  vertical, horizontal = map(_interpolation, maps.shape[-2:], patch, stride)
  return vertical @ maps @ horizontal.T


def _interpolation(count: int, patch: int, stride: int) -> np.ndarray:
  """Returns the matrix [pixels, count] of linear interpolation along an axis."""
  centres = np.arange(count) * stride + (patch - 1) / 2
  pixels = np.arange((count - 1) * stride + patch)
  return np.stack([np.interp(pixels, centres, unit) for unit in np.eye(count)], axis=1)


def upsample_nearest(
  maps: np.ndarray, patch: tuple[int, int], stride: tuple[int, int]
) -> np.ndarray:
  """Gives each pixel the value of the patch whose centre is nearest; see `upsample`."""
  rows, columns = map(_nearest, maps.shape[-2:], patch, stride)
  return maps[..., rows[:, None], columns]


def _nearest(count: int, patch: int, stride: int) -> np.ndarray:
  """Returns the index of a patch for each pixel of an axis."""
  pixels = np.arange((count - 1) * stride + patch)
  return ((pixels - (patch - stride) // 2) // stride).clip(0, count - 1)


def mass_masks(maps: np.ndarray, share: float) -> np.ndarray:
  """Returns where each map of [..., h, w] has its highest values, which make up a share of its sum.

  As facebookresearch/dino's visualize_attention.py: in order from the lowest, bool, True from where
  the values so far are over 1 - `share` of the sum.
  """
  flat = maps.reshape(*maps.shape[:-2], -1)
  order = flat.argsort(axis=-1, kind='stable')
  values = np.take_along_axis(flat, order, axis=-1).cumsum(axis=-1)
  kept = np.empty(flat.shape, bool)
  np.put_along_axis(kept, order, values > (1 - share) * values[..., -1:], axis=-1)
  return kept.reshape(maps.shape)


def mean_attention_distance(
  layers: np.ndarray, grid: tuple[int, int], stride: tuple[int, int], num_prefix: int
) -> np.ndarray:
  """Returns how far heads look, in pixels (arXiv 2010.11929, figure 7 and appendix D.7).

  It is the distance between the centres of the query's and the key's patch, weighted by attention,
  averaged over queries and images. Tokens before the grid are left out, and what a patch pays to
  the patches is scaled to a sum of 1.

  Args:
    layers: [layers, B, heads, N, N].
    grid: (rows, columns) of patches.
    stride: (vertical, horizontal) step between patches in pixels.
    num_prefix: tokens before those of the grid, such as the class token.

  Returns:
    [layers, heads].
  """
  rows, columns = grid
  centres = np.stack(np.divmod(np.arange(rows * columns), columns), axis=-1) * np.array(stride)
  distances = np.linalg.norm(centres[:, None] - centres, axis=-1)
  weights = layers[..., num_prefix:, num_prefix:]
  sums = np.maximum(weights.sum(axis=-1), np.finfo(np.float32).tiny)
  return ((weights * distances).sum(axis=-1) / sums).mean(axis=(1, 3))
