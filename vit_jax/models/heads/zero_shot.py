"""Classes told by embeddings of their names: CLIP (arXiv 2103.00020), SigLIP (arXiv 2303.15343)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.heads.head import Head


class ZeroShot(Head, kw_only=True):
  """Compares images with classes: [B, H, W, C], float, to logits, float32 [B, num_classes].

  They are exp(logit_scale) * cosine + logit_bias, the cosine being that of what the backbone makes
  of the image, [B, D], and a class's embedding. Parameters, all float32, are in `backbone`, and
  `class_embeddings` [num_classes, D], `logit_scale` and `logit_bias`, both [].
  """

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    x = self.backbone(x, train=train).astype(jnp.float32)  # [B, D]
    shape = (self.num_classes, x.shape[-1])
    classes = self.param('class_embeddings', nn.initializers.normal(1.0), shape)
    scale = self.param('logit_scale', nn.initializers.zeros, ())
    bias = self.param('logit_bias', nn.initializers.zeros, ())
    cosines = _unit(x) @ _unit(classes).T  # [B, num_classes]
    return jnp.exp(scale) * cosines + bias


def _unit(x: jax.Array) -> jax.Array:
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
