"""Host memory: how much a process uses and may, and the C library's allocator for runs on CPU."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

try:
  import resource
except ImportError:  # Windows
  resource = None

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def peak_mib() -> float | None:
  """Returns the peak resident memory of this process so far, in MiB; None on Windows."""
  if resource is None:
    return None
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, on macOS in bytes
  return peak / (2**20 if sys.platform == 'darwin' else 2**10)


def total() -> int | None:
  """Returns how many bytes this process may have at most, None where nothing tells.

  That is the least of the machine's memory and what a container or `ulimit -v` leaves of it. Limits
  of control groups inside of these aren't seen, as those of Slurm's jobs and systemd's services.
  """
  limits = []
  with contextlib.suppress(AttributeError, ValueError):  # Windows
    limits.append(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
  if resource is not None:
    limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])  # below 0 where there is none
  with contextlib.suppress(OSError, ValueError):  # no Linux, or 'max'
    limits.append(int(Path('/sys/fs/cgroup/memory.max').read_text()))
  return min((limit for limit in limits if limit > 0), default=None)


class _AddressSpace:
  """The limit that all who are inside `bounded` share; the last to leave lifts it."""

  def __init__(self):
    self._lock, self._inside, self._before = threading.Lock(), 0, None

  def enter(self, num_bytes: int) -> None:
    with self._lock:
      soft, hard = resource.getrlimit(resource.RLIMIT_AS)
      if not self._inside:
        self._before = soft, hard
      self._inside += 1
      pages = int(Path('/proc/self/statm').read_text().split()[0])
      limit = pages * resource.getpagesize() + num_bytes
      limits = (n for n in (limit, soft, hard) if n != resource.RLIM_INFINITY)
      resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))

  def leave(self) -> None:
    with self._lock:
      self._inside -= 1
      if not self._inside:
        resource.setrlimit(resource.RLIMIT_AS, self._before)


_address_space = _AddressSpace()


@contextlib.contextmanager
def bounded(num_bytes: int) -> Iterator[None]:
  """Lets this process take so much more address space inside the context, where Linux counts it.

  Beyond that, what allocates raises MemoryError, or what a library makes of it. This holds for all
  threads: use it where no other one is at work that mustn't fail.
  """
  if sys.platform != 'linux':
    yield
    return
  _address_space.enter(num_bytes)
  try:
    yield
  finally:
    _address_space.leave()


def runs_on_cpu() -> bool:
  """Whether JAX can only be going to run on CPU; asks without starting its backends."""
  if platforms := os.environ.get('JAX_PLATFORMS'):
    return platforms == 'cpu'
  plugins = importlib.metadata.entry_points(group='jax_plugins')
  return not plugins and importlib.util.find_spec('libtpu') is None


def run_in_calling_thread() -> None:
  """Has JAX run programs on one CPU device in the thread that calls them; call it before any is.

  By default threads of XLA run them, as they do those of several devices in any case.
  """
  import jax  # which not all that use this module need

  jax.config.update('jax_cpu_enable_async_dispatch', False)


def reuse_freed_memory(in_calling_thread: bool = False) -> bool:
  """Has malloc keep freed memory for later use; call it before any thread starts, as JAX's.

  The commands do so by themselves; in a program of your own that runs on CPU, call it first.

  XLA allocates a step's temporary buffers anew for every dispatch on CPU. By default, glibc maps
  so large a piece afresh, and the kernel clears it page by page, for up to half of a step. Memory
  is not given back in between.

  Args:
    in_calling_thread: whether `run_in_calling_thread` is called, too, and by the main thread. What
      steps allocate is then in its arena, and other threads have arenas of their own; in a single
      one, those that compile wait for each other, and small models train slower. Several virtual
      devices run in threads of XLA in any case: of them, pieces over 64 MiB are mapped afresh.

  Returns:
    Whether it was done: only glibc has these settings.
  """
  if platform.libc_ver()[0] != 'glibc':
    return False
  libc = ctypes.CDLL(None)
  settings = [(_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)]
  # In any arena but the main thread's, glibc maps pieces over 64 MiB afresh whatever it is told,
  # and with several it is chance which one has the thread of XLA that runs a step.
  if not in_calling_thread:
    settings.append((_M_ARENA_MAX, 1))
  return all(libc.mallopt(name, value) for name, value in settings)
