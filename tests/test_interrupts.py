"""Ctrl-C while commands start, and what it does otherwise."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from vit_jax import interrupts

RAISES = 'import os, signal; os.kill(os.getpid(), signal.SIGINT)'
SCRIPT = 'import sys; sys.argv[0] = "vit-jax-predict"; from vit_jax import scripts'


@pytest.mark.parametrize(
  ('command', 'imported', 'name'),
  [
    (['train.py'], 'packaging', 'train.py'),
    (['train.py'], 'absl', 'train.py'),
    (['-m', 'vit_jax.predict', 'x.png'], 'packaging', 'vit_jax.predict'),
    (['-m', 'vit_jax.predict', 'x.png'], 'absl', 'predict.py'),
    (['-c', SCRIPT], 'packaging', 'vit-jax-predict'),
  ],
)
def test_ctrl_c_while_a_command_imports_is_a_line(tmp_path, command, imported, name):
  (tmp_path / f'{imported}.py').write_text(RAISES)
  result = subprocess.run(
    [sys.executable, *command],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'},
    capture_output=True,
    text=True,
  )
  assert (result.returncode, result.stderr) == (130, f'{name}: interrupted\n')


def test_a_program_that_imports_the_package_keeps_its_signals():
  code = 'import signal, vit_jax; assert signal.getsignal(2) is signal.default_int_handler'
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_once_a_command_is_under_way_it_is_an_exception(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['vit-jax-predict'])
  interrupts.end_with_a_line()
  assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
  interrupts.raise_exceptions()
  with pytest.raises(KeyboardInterrupt):
    signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_so(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['vit-jax-predict'])
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  interrupts.end_with_a_line()
  interrupts.raise_exceptions()
  assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN
