"""What is stated for a CPU computes what the usual statement does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vit_jax.models.layers import cpu


def test_the_derivative_of_softmax():
  logits = jax.random.normal(jax.random.key(0), (3, 5)) * 3
  check_grads(cpu.softmax, (logits,), order=2, modes=['fwd', 'rev'])
  ours, theirs = (jax.jacobian(f)(logits) for f in (cpu.softmax, jax.nn.softmax))
  np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize('size', [1, 3])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('shape', [(1, 1), (2, 2), (8, 5), (9, 2)])
@pytest.mark.parametrize('groups', [1, 3])
def test_convolutions_in_other_ways_are_convolutions(groups, shape, stride, size):
  """Of small maps, and of each channel by itself."""
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(2, *shape, 3)), rng.normal(size=(size, size, 3 // groups, 3))
  how = (stride, stride), [(size // 2, size // 2)] * 2
  axes = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'), 'feature_group_count': groups}

  @jax.jit
  def values_and_gradients(x, kernel):
    results = []
    for convolve in (cpu.convolve, jax.lax.conv_general_dilated):
      y, back = jax.vjp(lambda x, k, f=convolve: f(x, k, *how, **axes), x, kernel)
      results.append((y, *back(jnp.cos(y))))
    return results

  ours, expected = values_and_gradients(jnp.float32(x), jnp.float32(kernel))
  for array, its_expected in zip(ours, expected, strict=True):
    np.testing.assert_allclose(array, its_expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('side', 'groups'), [(4, 1), (20, 3)])
def test_other_devices_convolve_as_usual(side, groups):
  """The choice is made where the program is lowered, not by the process."""
  x, kernel = jnp.zeros((2, side, side, 3)), jnp.zeros((3, 3, 3 // groups, 3))
  options = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'), 'feature_group_count': groups}
  convolve = jax.jit(lambda x, k: cpu.convolve(x, k, (1, 1), [(1, 1), (1, 1)], **options))
  for platform, convolutions in (('cpu', 0), ('cuda', 1), ('tpu', 1)):
    text = convolve.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert text.count('stablehlo.convolution') == convolutions, platform
