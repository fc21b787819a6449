"""Where commands keep compiled programs, so that the second start of a run doesn't compile."""

import contextlib
import hashlib
import os
import platform
import sys
from pathlib import Path

import jax
import jaxlib

MIN_SECONDS = 0.2  # of compilation; what is faster isn't kept


def folder() -> Path:
  """Returns ~/.cache/vit_jax/MACHINE, of $XDG_CACHE_HOME where that is set.

  MACHINE stands for jaxlib's version and the instructions that the processor has. Homes are shared
  by hosts, JAX's keys don't tell processors apart, and a program for another one may crash
  (github.com/jax-ml/jax/issues/38445).
  """
  instructions = platform.processor()
  with contextlib.suppress(OSError):
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    instructions += next((line for line in lines if line.startswith(('flags', 'Features'))), '')
  parts = jaxlib.__version__, platform.machine(), instructions
  cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
  return cache / 'vit_jax' / hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def use() -> None:
  """Keeps compiled programs in `folder()`, unless $JAX_COMPILATION_CACHE_DIR says where.

  JAX_ENABLE_COMPILATION_CACHE=false turns it off. Elsewhere than on Linux it is off: reading what
  was kept has crashed there.
  """
  if jax.config.jax_compilation_cache_dir is not None or sys.platform != 'linux':
    return
  with contextlib.suppress(OSError, RuntimeError):  # no home, or nothing can be written there
    folder().mkdir(parents=True, exist_ok=True)
    jax.config.update('jax_compilation_cache_dir', str(folder()))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_SECONDS)
