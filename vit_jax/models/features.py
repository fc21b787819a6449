"""Which numbers of a backbone stand for an input: one vector of it, or all its tokens."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.errors import FieldError, UsageError
from vit_jax.models.backbone import Backbone, Features

POOLING = ('head', 'token', 'mean')


def read_features(
  backbone: Backbone, variables: Any, inputs: jax.Array, pooling: str, layer: int | None
) -> jax.Array:
  """Returns a vector of each input, float32 [B, D].

  Args:
    backbone: the model without a task's head.
    variables: its own.
    inputs: normalised.
    pooling: 'head': what the backbone's own head reads; where that is nothing, or of a layer, the
      class token if there is one, else the mean. 'token': the class token. 'mean': the mean of the
      tokens of patches, or of the last map.
    layer: whose tokens are read, from 0; None for what comes after the last layer and its norm.

  Raises:
    FieldError: of `pooling` or `layer`: the model has no class token, or no such layer.
  """
  found = _apply(backbone, variables, inputs, layer)
  if pooling == 'head' and layer is None and found.pooled is not None:
    return found.pooled.astype(jnp.float32)
  has_class_token = found.num_prefix > found.num_registers
  if pooling == 'token' and not has_class_token:
    raise FieldError('pooling', "'token', but the model has no class token")
  tokens = _tokens(found, layer)
  if has_class_token and pooling != 'mean':
    return tokens[:, 0].astype(jnp.float32)
  return tokens[:, found.num_prefix :].astype(jnp.float32).mean(axis=1)


def read_tokens(
  backbone: Backbone, variables: Any, inputs: jax.Array, layer: int | None
) -> jax.Array:
  """Returns all tokens, those before the patches' first, or the last map: float32 [B, T, D].

  Args and errors are those of `read_features`.
  """
  return _tokens(_apply(backbone, variables, inputs, layer), layer).astype(jnp.float32)


def _tokens(found: Features, layer: int | None) -> jax.Array:
  """Returns [B, num_prefix + N, D]."""
  tokens = found.tokens if layer is None else found.layers[0]
  if tokens is None:
    last = found.maps[-1]
    tokens = last.reshape(len(last), -1, last.shape[-1])
  return tokens


def _apply(backbone: Backbone, variables: Any, inputs: jax.Array, layer: int | None) -> Features:
  features = functools.partial(backbone.apply, variables, inputs, train=False, method='features')
  if layer is None:
    return features()
  last = backbone.layer_of('output_projection/kernel')  # the layers, and what precedes them
  if last is not None and not 0 <= layer < last - 1:
    raise FieldError('layer', f'{layer} is not from 0 to {last - 2}, as the layers of the model')
  try:
    return features(layers=(layer,))
  except UsageError as e:
    raise FieldError('layer', str(e)) from e
