"""What is stated for a CPU computes what the usual statement does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
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
  _check_convolution(x, kernel, how, groups)


@pytest.mark.parametrize(('shape', 'size'), [((12, 18), (4, 3)), ((10, 10), (5, 5))])
def test_a_convolution_whose_kernels_tile_the_map_is_one_product(shape, size):
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(2, *shape, 3)), rng.normal(size=(*size, 3, 7))
  _check_convolution(x, kernel, (size, [(0, 0)] * 2))


@pytest.mark.parametrize(('channels', 'filters'), [(2, 2), (5, 4), (40, 5)])
@pytest.mark.parametrize('padding', [[(1, 1), (1, 1)], [(0, 3), (2, 0)]])
@pytest.mark.parametrize('size', [(3, 3), (1, 4)])
def test_a_convolution_to_few_filters_is_a_product_and_a_sum(size, padding, channels, filters):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 9, 12, channels)) / channels**0.5
  kernel = rng.normal(size=(*size, channels, filters))
  _check_convolution(x, kernel, ((1, 1), padding))


def _check_convolution(x, kernel, how, groups=1):
  """Compares `cpu.convolve` and its gradients with the usual one; `how` has strides, padding."""
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


@pytest.mark.parametrize(('axes', 'batch'), [((2, 3), ()), ((3,), ()), ((1, 2), ()), ((3,), (0,))])
def test_a_dense_layers_product_is_the_usual_one(axes, batch):
  """Of the last axes, which becomes a product of two matrices on a CPU, and of others."""
  rng = np.random.default_rng(0)
  x = jnp.float32(rng.normal(size=(2, 3, 4, 5)))
  shape = [x.shape[i] for i in (*batch, *axes)]
  kernel = jnp.float32(rng.normal(size=(*shape, 6, 7)))
  kernel_axes = tuple(range(len(batch), len(shape)))
  dimensions = ((axes, kernel_axes), (batch, batch))
  usual = functools.partial(jax.lax.dot_general, dimension_numbers=dimensions)
  ours = functools.partial(cpu.dot_general, dimension_numbers=dimensions)
  inputs, changes = (x, kernel), (jnp.cos(x), jnp.sin(kernel))
  for array, expected in zip(
    *(_derivatives(f, inputs, changes) for f in (ours, usual)), strict=True
  ):
    np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-4)
  is_dense = not batch and axes[-1] == 3
  (product,) = (
    e for e in jax.make_jaxpr(ours)(x, kernel).eqns if e.primitive.name == 'dot_general'
  )
  assert product.outvars[0].aval.ndim == (2 if is_dense else usual(x, kernel).ndim)


def test_a_dense_layer_is_left_alone_elsewhere(monkeypatch):
  x, kernel = jnp.zeros((2, 3, 4)), jnp.zeros((4, 5))
  count = functools.partial(cpu.dot_general, dimension_numbers=(((2,), (0,)), ((), ())))
  with cpu.left_alone():
    assert len(jax.make_jaxpr(count)(x, kernel).eqns) == 1
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  assert len(jax.make_jaxpr(count)(x, kernel).eqns) == 1


@pytest.mark.parametrize(('dtype', 'rtol'), [('float32', 2e-6), ('bfloat16', 2**-8)])
def test_gelu_is_x_times_the_normal_distribution(dtype, rtol):
  x = jnp.linspace(-4, 9, 1001).astype(dtype)
  wide = np.float64(x)
  expected = wide * scipy.stats.norm.cdf(wide)
  ours = jax.jit(cpu.gelu_exact)(x)
  assert ours.dtype == dtype
  np.testing.assert_allclose(np.float64(ours), expected, rtol=rtol, atol=5e-7)
  slope = np.float64(jax.jit(jax.vmap(jax.grad(cpu.gelu_exact)))(x))
  expected = scipy.stats.norm.cdf(wide) + wide * scipy.stats.norm.pdf(wide)
  np.testing.assert_allclose(slope, expected, rtol=rtol, atol=5e-7)


@pytest.mark.parametrize(
  ('side', 'size', 'stride', 'groups'), [(4, 3, 1, 1), (20, 3, 1, 1), (20, 3, 1, 3), (20, 5, 5, 1)]
)
def test_other_devices_convolve_as_usual(side, size, stride, groups):
  """The choice is made where the program is lowered, not by the process."""
  x, kernel = jnp.zeros((2, side, side, 3)), jnp.zeros((size, size, 3 // groups, 3))
  options = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'), 'feature_group_count': groups}
  how = (stride, stride), [(int(stride == 1),) * 2] * 2
  convolve = jax.jit(lambda x, k: cpu.convolve(x, k, *how, **options))
  for platform, convolutions in (('cpu', 0), ('cuda', 1), ('tpu', 1)):
    text = convolve.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert text.count('stablehlo.convolution') == convolutions, platform


@pytest.mark.parametrize('size', [5, 70])
def test_a_product_has_the_derivatives_of_one(size):
  """Of matrices that are transposed for the gradient, and of larger ones."""
  rng = np.random.default_rng(0)
  shapes = [(2, 3, 4, size), (2, 3, size, 6)]
  inputs = [jnp.float32(rng.normal(size=shape)) for shape in shapes]
  changes = [jnp.float32(rng.normal(size=shape)) for shape in shapes]
  for ours, theirs in zip(
    *(_derivatives(f, inputs, changes) for f in (cpu.product, jnp.matmul)), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
  lowered = jax.jit(jax.grad(lambda b: cpu.product(inputs[0], b).sum())).trace(inputs[1])
  for platform, transposes in (('cpu', size == 5), ('cuda', False)):
    text = lowered.lower(lowering_platforms=(platform,)).as_text()
    assert ('optimization_barrier' in text) == transposes, platform


def _derivatives(f, inputs, changes):
  """Returns f, its change, and the gradients of a function of it to both inputs."""
  value, change = jax.jvp(f, inputs, changes)
  return value, change, *jax.grad(lambda *x: jnp.sin(f(*x)).sum(), (0, 1))(*inputs)
