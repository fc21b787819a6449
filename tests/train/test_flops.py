"""Operations counted in jaxprs, against counts by hand and published ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

from vit_jax.models import sizes
from vit_jax.models.vit import ViT
from vit_jax.train import flops
from vit_jax.train.experiment import Experiment

A, B = jax.ShapeDtypeStruct((3, 4), jnp.float32), jax.ShapeDtypeStruct((4, 5), jnp.float32)
MATMUL = 2 * 3 * 4 * 5


def convolve(x, kernel, stride=1, groups=1):
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )  # fmt: skip


def test_a_matrix_product():
  assert flops.count(jnp.matmul, A, B) == MATMUL


def test_contracted_and_batch_dimensions():
  x = jnp.zeros((2, 7, 3, 4))
  assert (
    flops.count(lambda x, y: jnp.einsum('bqhd,bkhd->bhqk', x, y), x, x) == 2 * 2 * 3 * 7 * 7 * 4
  )


def test_elementwise_operations_do_not_count():
  assert flops.count(lambda a: jax.nn.softmax(jnp.exp(a) + 1).sum(), A) == 0


def test_a_scan_counts_as_often_as_it_runs_and_in_what_it_is_nested():
  def twice_five(a, b):
    body = jax.jit(lambda carry, _: (carry + a @ b, None))
    for _ in range(2):
      out, _ = jax.lax.scan(body, jnp.zeros((3, 5)), length=5)
    return out

  assert flops.count(jax.jit(twice_five), A, B) == 10 * MATMUL


def test_of_branches_the_dearest_counts():
  def either(a, b):
    branches = [lambda: a @ b @ b.T @ b, lambda: a @ b, lambda: jnp.zeros((3, 5))]
    return jax.lax.switch(a[0, 0].astype(int), branches)

  assert flops.count(either, A, B) == 3 * MATMUL


def test_recomputation_counts():
  def loss(f):
    return lambda a, b: jax.grad(lambda a: (f(a @ b) ** 2).sum())(a)

  plain = flops.count(loss(jnp.sin), A, B)
  remat = flops.count(loss(jax.checkpoint(lambda x: jnp.sin(x @ jnp.ones((5, 5))))), A, B)
  assert plain == 2 * MATMUL
  assert remat == 2 * MATMUL + 3 * 2 * 3 * 5 * 5


@pytest.mark.parametrize(('stride', 'groups'), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_a_convolution_and_its_two_gradients_cost_the_same(stride, groups):
  x, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4 // groups, 8))
  forward = 2 * (2 * (8 // stride) ** 2 * 8) * (3 * 3 * 4 // groups)

  def f(x, kernel):
    return convolve(x, kernel, stride, groups)

  out = jax.eval_shape(f, x, kernel)
  of_image = jax.linear_transpose(lambda x: f(x, kernel), x)
  of_kernel = jax.linear_transpose(lambda kernel: f(x, kernel), kernel)
  assert flops.count(f, x, kernel) == forward
  assert flops.count(of_image, out) == forward
  assert flops.count(of_kernel, out) == forward


def test_a_mapped_axis_counts_one_device():
  assert flops.count(lambda a, b: jax.lax.psum(a @ b, 'batch'), A, B, axis='batch') == MATMUL


def vit_by_hand(size, image, patch, channels, classes):
  """Multiply-adds of a ViT with a class token, from its sizes."""
  d, mlp, layers = size['hidden_size'], size['mlp_dim'], size['num_layers']
  patches = (image // patch) ** 2
  n = patches + 1
  block = 4 * n * d * d + 2 * n * n * d + 2 * n * d * mlp
  return patches * patch * patch * channels * d + layers * block + d * classes


def test_vit_b16_is_what_is_published():
  """17.58 billion multiply-adds at 224 pixels, as torchvision lists of vit_b_16."""
  size = sizes.parse('B/16')
  model = ViT.from_config({**size, 'classifier': 'token'}, num_classes=1000)
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x)['params'], image)
  counted = flops.count(lambda p, x: model.apply({'params': p}, x), params, image)
  assert counted == 2 * vit_by_hand(size, 224, 16, 3, 1000)
  assert counted / 2e9 == pytest.approx(17.58, abs=0.02)


@pytest.mark.parametrize(
  'changes', [{}, {'grad_accum_steps': 4}, {'data.resident': 'no', 'augment.mixup_alpha': 0.2}]
)
def test_a_training_step_costs_three_times_the_forward_pass(changes):
  """But for the gradient of the image, which is not computed; however the step is divided."""
  config = tiny_config(**{'model.classifier': 'token', **changes})
  experiment = Experiment(config)
  counted = experiment.flops_per_image(experiment.initial_state())
  size = {'hidden_size': 16, 'mlp_dim': 16, 'num_layers': 1}
  forward = 2 * vit_by_hand(size, 8, 4, 1, 10)
  assert counted == {'forward': forward, 'training': 3 * forward - 2 * 4 * 16 * 16}


def test_frozen_layers_cost_less():
  whole = Experiment(tiny_config())
  frozen = Experiment(tiny_config(freeze=('embedding', 'Transformer/.*')))
  forward, training = (
    experiment.flops_per_image(experiment.initial_state()) for experiment in (whole, frozen)
  )
  assert training['forward'] == forward['forward']
  head = 2 * 16 * 10
  np.testing.assert_allclose(training['training'], forward['forward'] + head)
