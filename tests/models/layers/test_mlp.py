"""The MLP of a layer."""

import jax
import jax.numpy as jnp

from vit_jax.models import layers


def test_mlp_widths():
  shapes = jax.eval_shape(
    lambda: layers.MlpBlock(out_dim=3).init(
      jax.random.key(0), jnp.zeros((1, 5)), deterministic=True
    )
  )
  kernels = [shapes['params'][f'Dense_{i}']['kernel'].shape for i in range(2)]
  assert kernels == [(5, 20), (20, 3)]
