"""The allocator's settings take effect: freed memory is used again."""

import platform
import subprocess
import sys

import pytest
from conftest import ROOT

FAULTS = """
import resource, sys, threading
import numpy as np
from vit_jax import host_memory
if sys.argv[1] == 'reuse':
  assert host_memory.reuse_freed_memory()
def allocate():
  for i in range(6):
    if i == 1:
      before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**27, np.uint8)  # 128 MiB, freed at once
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=allocate)  # as XLA's allocate, and not the main thread
thread.start()
thread.join()
"""

COMPUTED = """
import resource
from vit_jax import host_memory
assert host_memory.reuse_freed_memory(in_calling_thread=True)
host_memory.run_in_calling_thread()
import jax
import jax.numpy as jnp
ones = jax.jit(lambda: jnp.ones(2**25))
for i in range(80):
  if i == 40:  # till then small pieces may take a part of what was freed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  ones().block_until_ready()  # 128 MiB, freed at once
assert not jax.config.read('jax_cpu_enable_async_dispatch')
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')
def test_large_pieces_are_not_mapped_anew():
  def page_faults(mode):
    command = [sys.executable, '-c', FAULTS, mode]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)

  assert page_faults('reuse') < page_faults('default') / 10


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')
def test_programs_allocate_where_freed_memory_is_used_again():
  command = [sys.executable, '-c', COMPUTED]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
  assert int(done.stdout) < 40 * 2**15 / 4  # pages of all, were they mapped anew


@pytest.mark.parametrize(('platforms', 'expected'), [('cpu', True), ('cuda', False)])
def test_the_platform_asked_for_decides(monkeypatch, platforms, expected):
  from vit_jax import host_memory

  monkeypatch.setenv('JAX_PLATFORMS', platforms)
  assert host_memory.runs_on_cpu() is expected
