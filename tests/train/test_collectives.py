"""Sums over devices: those of jax.lax.psum, to the bit, in fewer operations."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from conftest import ROOT, virtual_devices

from vit_jax.train import collectives

SUMS = """
import functools
import jax
import jax.numpy as jnp
import numpy as np
from vit_jax.train import collectives

draw = lambda i, *shape: jax.random.normal(jax.random.key(i), (4, *shape))
tree = {
  'kernel': draw(0, 3, 5),
  'count': (jnp.arange(8).reshape(4, 2) + 2**24, jnp.ones(4, bool)),
  'scalar': draw(1),
  'large': draw(2, 600, 500),
  'narrow': draw(3, 7).astype(jnp.bfloat16),
  'empty': draw(4, 0, 2),
}
sums = [
  jax.pmap(functools.partial(psum, axis_name='x'), axis_name='x')
  for psum in (jax.lax.psum, collectives.psum)
]
usual, ours = (jax.device_get(f(tree)) for f in sums)
assert jax.tree.structure(usual) == jax.tree.structure(ours)
for a, b in zip(*map(jax.tree.leaves, (usual, ours)), strict=True):
  assert (a.dtype, a.shape) == (b.dtype, b.shape)
  np.testing.assert_array_equal(a, b)
# One for each of the four dtypes, and one for the large array.
print([f.lower(tree).as_text().count('stablehlo.all_reduce') for f in sums])
"""


def test_sums_of_each_dtype_are_one_operation_with_the_same_bits():
  command = [sys.executable, '-c', SUMS]
  environment = virtual_devices(4)
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (0, '[7, 5]\n'), done.stderr


def test_one_device_adds_nothing_up():
  tree = {'a': jnp.arange(3.0)[None], 'b': jnp.ones((1, 2), int)}
  sums = jax.pmap(lambda x: collectives.psum(x, 'x'), axis_name='x')
  for a, b in zip(*map(jax.tree.leaves, (tree, sums(tree))), strict=True):
    np.testing.assert_array_equal(a, b)
  assert 'concatenate' not in sums.lower(tree).as_text()
