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


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')
def test_large_pieces_are_not_mapped_anew():
  def page_faults(mode):
    command = [sys.executable, '-c', FAULTS, mode]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)

  assert page_faults('reuse') < page_faults('default') / 10


@pytest.mark.parametrize(('platforms', 'expected'), [('cpu', True), ('cuda', False)])
def test_the_platform_asked_for_decides(monkeypatch, platforms, expected):
  from vit_jax import host_memory

  monkeypatch.setenv('JAX_PLATFORMS', platforms)
  assert host_memory.runs_on_cpu() is expected
