"""What Windows lacks is not needed: modules and functions of Unix alone."""

import subprocess
import sys

from conftest import ROOT, tiny_config

from vit_jax import host_memory
from vit_jax.run import directory
from vit_jax.train import loop

# For this package's own modules: others know what they run on.
WINDOWS = """
import builtins, os, select, signal

lacking = ('fcntl', 'grp', 'pwd', 'resource', 'termios')
real = builtins.__import__

def import_module(name, globals=None, locals=None, fromlist=(), level=0):
  if name in lacking and (globals or {}).get('__name__', '').startswith('vit_jax'):
    raise ModuleNotFoundError(name)
  return real(name, globals, locals, fromlist, level)

builtins.__import__ = import_module
del os.getloadavg, select.poll, signal.SIGPIPE, signal.SIGKILL, signal.SIGHUP
"""
IMPORT_ALL = """
import importlib, pkgutil
from absl import flags
import vit_jax

for module in pkgutil.walk_packages(vit_jax.__path__, 'vit_jax.'):
  for name in list(flags.FLAGS):  # commands define flags of equal names
    delattr(flags.FLAGS, name)
  importlib.import_module(module.name)
"""


def test_everything_is_imported():
  command = [sys.executable, '-c', WINDOWS + IMPORT_ALL]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (result.returncode, result.stderr) == (0, '')


def test_a_run_trains_without_them(tmp_path, monkeypatch):
  monkeypatch.setattr(directory, 'fcntl', None)
  monkeypatch.setattr(host_memory, 'resource', None)
  config = tiny_config(num_steps=1)
  assert loop.train_and_evaluate(config, tmp_path)['peak_host_memory_mib'] is None
  assert 'peak_host_memory_mib' not in (tmp_path / 'metrics.jsonl').read_text()
