"""Attention of a ViT: its weights, and what of the image they reach, as maps and as distances.

Tokens are in the model's order: the class token where there is one, then patches row by row. All
but `capture` and `weigh_by_gradient` is NumPy.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UsageError, check_choice
from vit_jax.models.vit import ViT

HEAD_FUSIONS = {'mean': np.mean, 'max': np.max, 'min': np.min}
_ATTENTION = 'MultiHeadDotProductAttention_0'
_NAME = 'attention_weights'


class Attention(NamedTuple):
  """Weights of attention, or as many numbers that stand for them.

  Attributes:
    layers: float32 [layers, batch, heads, queries, keys], from the first layer to the last.
    probe: float32 [batch, heads, 1, keys] of the MAP head; None where there is none.
  """

  layers: Any
  probe: Any


def _collect(tree: Mapping[str, Any]) -> Attention:
  """Arranges weights that lie where the modules of a ViT sow them."""
  blocks = tree['Transformer']
  weights = [blocks[f'encoderblock_{i}'][_ATTENTION][_NAME] for i in range(len(blocks))]
  probe = tree['MAPHead_0'][_ATTENTION][_NAME] if 'MAPHead_0' in tree else None
  return Attention(jnp.stack(weights), probe)


def _apply(model: ViT, variables: Mapping[str, Any], images: jax.Array) -> tuple[jax.Array, Any]:
  """Returns the model's outputs and the tree of the weights that it attends with."""
  outputs, state = model.apply(variables, images, train=False, mutable=['intermediates'])
  sown = flax.traverse_util.flatten_dict(state['intermediates'])
  return outputs, flax.traverse_util.unflatten_dict({path: w for path, (w,) in sown.items()})


def capture(
  model: ViT, params: Mapping[str, Any], images: jax.Array
) -> tuple[jax.Array, Attention]:
  """Returns (the model's outputs, the attention weights that it computes them with).

  Args:
    model: a ViT.
    params: its parameters.
    images: float [B, H, W, C], normalised.
  """
  outputs, weights = _apply(model, {'params': params}, images)
  return outputs, _collect(weights)


def weigh_by_gradient(
  model: ViT, params: Mapping[str, Any], images: jax.Array, classes: jax.Array
) -> Attention:
  """Returns max(0, A * dy/dA) for attention weights A and the logit y of each image's class.

  It holds for a head where its attention speaks for the class (arXiv 2103.15679, equation 5).

  Args:
    model: a ViT that gives logits [B, num_classes].
    params: its parameters.
    images: float [B, H, W, C], normalised.
    classes: int [B].
  """

  def logit(perturbations):
    variables = {'params': params, 'perturbations': perturbations}
    logits, weights = _apply(model, variables, images)
    return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), weights

  _, shapes = jax.eval_shape(functools.partial(_apply, model), {'params': params}, images)
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
  gradients, weights = jax.grad(logit, has_aux=True)(zeros)
  return _collect(jax.tree.map(lambda w, g: jnp.maximum(w * g, 0), weights, gradients))


def head_attention(attention: Attention, layer: int = -1) -> np.ndarray:
  """Returns what the head's token pays to each patch: float32 [B, heads, patches].

  It is the probe of a MAP head, where there is one, and otherwise the class token in a layer.

  Args:
    attention: of a model with a MAP head or a class token.
    layer: index from 0, or from the end; without meaning for a MAP head.
  """
  if attention.probe is not None:
    return np.asarray(attention.probe[:, :, 0])
  return np.asarray(attention.layers[layer, :, :, 0, 1:])


def rollout(
  layers: np.ndarray,
  head_fusion: str = 'mean',
  discard_ratio: float = 0.0,
  has_class_token: bool = True,
  scale_rows: bool = True,
) -> np.ndarray:
  """Follows attention through the layers (arXiv 2005.00928): what each token draws from each input.

  A layer's heads are fused to A; A + I, rows scaled to a sum of 1, stands for the layer with its
  residual connection; the result is the product over layers, the last one leftmost.

  Args:
    layers: [layers, B, heads, N, N].
    head_fusion: name in `HEAD_FUSIONS`, of how a weight follows from those of the heads.
    discard_ratio: share of each A, in [0, 1), whose lowest values are taken as 0, except for what
      the class token pays to itself, as in jacobgil/vit-explain. Values equal to the lowest that
      stays do so too.
    has_class_token: whether token 0 is a class token.
    scale_rows: without it, A + I stays as it is (arXiv 2103.15679, equation 6): how much speaks for
      a class, by `weigh_by_gradient`, differs between tokens.

  Returns:
    [B, N, N], rows adding up to 1 where they are scaled.

  Raises:
    UsageError: an unknown head fusion, or a ratio out of range.
  """
  result = np.eye(layers.shape[-1], dtype=np.float32)
  for weights in layers:
    fused = _discard(_fuse(weights, head_fusion), discard_ratio, has_class_token)
    mixed = fused + np.eye(fused.shape[-1], dtype=np.float32)
    result = (mixed / mixed.sum(axis=-1, keepdims=True) if scale_rows else mixed) @ result
  return result


def _fuse(weights: np.ndarray, head_fusion: str) -> np.ndarray:
  """[B, heads, queries, keys] to [B, queries, keys]."""
  check_choice('head_fusion', head_fusion, HEAD_FUSIONS)
  return HEAD_FUSIONS[head_fusion](np.asarray(weights), axis=1)


def _discard(fused: np.ndarray, ratio: float, has_class_token: bool) -> np.ndarray:
  """Zeroes the lowest values of each matrix of [B, N, N]."""
  if not 0 <= ratio < 1:
    raise UsageError(f'discard_ratio: {ratio} is not in [0, 1)')
  flat = fused.reshape(len(fused), -1)
  discarded = int(ratio * flat.shape[1])
  lowest_kept = np.partition(flat, discarded, axis=1)[:, discarded]
  kept = fused >= lowest_kept[:, None, None]
  kept[:, 0, 0] |= has_class_token
  return np.where(kept, fused, 0)


def rollout_map(
  attention: Attention,
  classifier: str,
  head_fusion: str = 'mean',
  discard_ratio: float = 0.0,
  has_class_token: bool | None = None,
  scale_rows: bool = True,
) -> np.ndarray:
  """Returns what the classifier draws from each patch, by `rollout`: [B, patches].

  A class token's is its row of the rolled-out matrix; a MAP head's the probe's attention, heads
  fused alike, times the matrix; and that of pooling, of whatever kind, the mean over rows.

  Args:
    attention: weights of a ViT, or what stands for them, as `weigh_by_gradient` returns it.
    classifier: the model's.
    head_fusion: as for `rollout`.
    discard_ratio: as for `rollout`.
    has_class_token: whether token 0 is a class token, which only the classifier 'token' reads;
      None means where that is the classifier.
    scale_rows: as for `rollout`; not for weights by gradient.

  Raises:
    UsageError: as `rollout`.
  """
  is_token = classifier == 'token'
  first = int(is_token if has_class_token is None else has_class_token)
  layers = np.asarray(attention.layers)
  rolled = rollout(layers, head_fusion, discard_ratio, bool(first), scale_rows)
  if is_token:
    return rolled[:, 0, 1:]
  patches = rolled[:, first:, first:]
  if attention.probe is not None:
    return (_fuse(attention.probe, head_fusion) @ patches)[:, 0]
  return patches.mean(axis=1)


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


def mean_attention_distance(
  layers: np.ndarray, grid: tuple[int, int], stride: tuple[int, int], has_class_token: bool
) -> np.ndarray:
  """Returns how far heads look, in pixels (arXiv 2010.11929, figure 7 and appendix D.7).

  It is the distance between the centres of the query's and the key's patch, weighted by attention,
  averaged over queries and images. The class token is left out, and what a patch pays to the
  patches scaled to a sum of 1.

  Args:
    layers: [layers, B, heads, N, N].
    grid: (rows, columns) of patches.
    stride: (vertical, horizontal) step between patches in pixels.
    has_class_token: whether token 0 is a class token.

  Returns:
    [layers, heads].
  """
  rows, columns = grid
  centres = np.stack(np.divmod(np.arange(rows * columns), columns), axis=-1) * np.array(stride)
  distances = np.linalg.norm(centres[:, None] - centres, axis=-1)
  weights = layers[..., int(has_class_token) :, int(has_class_token) :]
  sums = np.maximum(weights.sum(axis=-1), np.finfo(np.float32).tiny)
  return ((weights * distances).sum(axis=-1) / sums).mean(axis=(1, 3))
