"""What tracing a model tells of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.train import trace


class Whitening(nn.Module):
  """A model of one's own, with a parameter that starts from the inputs."""

  @nn.compact
  def __call__(self, x, *, train=False):
    scale = self.param('scale', lambda _: 1 / (1 + jnp.std(x, axis=(0, 1, 2))))
    return nn.Dense(2)(x * scale)


def test_variables_may_depend_on_the_inputs():
  found = trace.init(Whitening(), 3, (1, 2, 2, 5))
  expected = Whitening().init(jax.random.key(3), jnp.zeros((1, 2, 2, 5)))
  jax.tree.map(np.testing.assert_array_equal, found, expected)
