"""Signals that ask a run to stop."""

import os
import signal

import pytest

from vit_jax.train.signals import StopSignal


@pytest.fixture(autouse=True)
def hangs_up():
  """Has SIGHUP heard, also where the tests themselves run under nohup."""
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  yield
  signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_it_is_seen_between_steps(signum):
  before = signal.getsignal(signum)
  with StopSignal() as stop_signal:
    assert stop_signal.agreed(at_boundary=False) == 0
    os.kill(os.getpid(), signum)
    assert stop_signal.agreed(at_boundary=False) == signum
  assert signal.getsignal(signum) is before


def test_a_second_ctrl_c_interrupts_at_once():
  with StopSignal():
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)


def test_what_nohup_ignores_stays_ignored():
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  with StopSignal() as stop_signal:
    os.kill(os.getpid(), signal.SIGHUP)
    assert stop_signal.agreed(at_boundary=False) == 0


def test_what_is_written_to_a_terminal_that_is_closed_goes_nowhere():
  leader, terminal = os.openpty()
  saved = os.dup(1)
  os.dup2(terminal, 1)
  os.close(terminal)
  try:
    with StopSignal():
      os.close(leader)
      with pytest.raises(OSError, match='Input/output error'):
        os.write(1, b'a line\n')
      os.kill(os.getpid(), signal.SIGHUP)
      assert os.write(1, b'a line\n') == 7
  finally:
    os.dup2(saved, 1)
    os.close(saved)
