"""Collective operations give the bits of jax.lax's, with fewer of them between CPUs."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, virtual_devices

from vit_jax.train import collectives

# Compares an operation on four devices with that of jax.lax, and counts both in their programs.
CHECK = """
import functools
import sys
import jax
import jax.numpy as jnp
import numpy as np
from vit_jax.train import collectives

draw = lambda i, *shape: jax.random.normal(jax.random.key(i), (4, *shape))
TREE = {
  'kernel': draw(0, 3, 8),
  'count': (jnp.arange(32).reshape(4, 8) + 2**24, jnp.ones((4, 4), bool)),
  'large': draw(1, 4, 400, 800),
  'narrow': draw(2, 7, 4).astype(jnp.bfloat16),
  'middle': draw(3, 2, 8, 3),
}
AXES = {'kernel': 1, 'count': (0, 0), 'large': 0, 'narrow': 1, 'middle': 1}
if sys.argv[1] == 'psum':
  TREE['none'] = draw(4, 0, 2)

def over_tree(operation, tree):
  found = operation(jax.tree.leaves(tree), jax.tree.leaves(AXES), 'x')
  return jax.tree.unflatten(jax.tree.structure(tree), found)

def usual(tree):
  match sys.argv[1]:
    case 'psum':
      return jax.lax.psum(tree, 'x')
    case 'all_gather':
      f = lambda x, axis: jax.lax.all_gather(x, 'x', axis=axis, tiled=True)
    case 'psum_scatter':
      f = lambda x, axis: jax.lax.psum_scatter(x, 'x', scatter_dimension=axis, tiled=True)
  return jax.tree.map(f, tree, AXES)

def ours(tree):
  if sys.argv[1] == 'psum':
    return collectives.psum(tree, 'x')
  return over_tree(getattr(collectives, sys.argv[1]), tree)

def check(a, b):
  assert (a.dtype, a.shape) == (b.dtype, b.shape)
  np.testing.assert_array_equal(a, b)

if sys.argv[1] == 'psum_scatter':
  TREE['count'] = TREE['count'][0], jnp.ones((4, 4), jnp.int8)  # which adds up no bool
mapped = [jax.pmap(f, axis_name='x') for f in (usual, ours)]
jax.tree.map(check, *(jax.device_get(f(TREE)) for f in mapped))
name = {'psum': 'all_reduce', 'psum_scatter': 'reduce_scatter'}.get(sys.argv[1], 'all_gather')
print([f.lower(TREE).as_text().count(f'stablehlo.{name}"') for f in mapped])
"""


@pytest.mark.parametrize(
  ('operation', 'arrays'), [('psum', 7), ('all_gather', 6), ('psum_scatter', 6)]
)
def test_arrays_of_a_dtype_are_one_operation_with_the_same_bits(operation, arrays):
  command = [sys.executable, '-c', CHECK, operation]
  environment = virtual_devices(4)
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  # One for each of the four dtypes, and one for the large array.
  assert (done.returncode, done.stdout) == (0, f'[{arrays}, 5]\n'), done.stderr


def test_one_device_adds_nothing_up():
  tree = {'a': jnp.arange(3.0)[None], 'b': jnp.ones((1, 2), int)}
  sums = jax.pmap(lambda x: collectives.psum(x, 'x'), axis_name='x')
  jax.tree.map(np.testing.assert_array_equal, tree, sums(tree))
  assert 'concatenate' not in sums.lower(tree).as_text()


@pytest.mark.parametrize(
  ('sizes', 'groups'),
  [
    ([0, 2**18 - 8, 8], [[0, 1, 2]]),
    ([2**18 - 8, 9, 2], [[0], [1, 2]]),
    ([5, 2**19, 5, 2**18 + 1, 1], [[0, 2, 4], [1], [3]]),
  ],
)
def test_together_they_have_a_mebibyte_at_most(sizes, groups):
  assert collectives._groups([jnp.zeros(size) for size in sizes]) == groups
