"""Ctrl-C in commands: a line and the end while they start, an exception once they are under way.

While modules are imported there is nothing to close, and whoever imports may swallow an exception,
or take it for another.
"""

import _signal as signal  # whose other half takes longer to import than all that is here
import os
import sys


def command_name() -> str:
  """Returns what this process calls itself in front of what it tells: 'train.py', 'explain'."""
  if sys.argv[0] == '-m':
    return _located_module()
  folder, name = os.path.split(sys.argv[0])
  return os.path.basename(folder) if name == '__main__.py' else name  # of a package


def _located_module() -> str:
  """Returns what `python -m` names, while Python looks for it and imports its package."""
  return sys.orig_argv[-len(sys.argv)].removeprefix('-m')


def _is_command() -> bool:
  """Whether Python was started for a command of this project, and not for a user's own program."""
  started = next(iter(sys.argv), '')
  if started == '-m':
    return _located_module().startswith('vit_jax.')
  checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  is_training = os.path.abspath(started) == os.path.join(checkout, 'train.py')
  return is_training or os.path.basename(started).startswith('vit-jax-')


def _leave(signum, frame):
  del frame
  os.write(2, f'{command_name()}: interrupted\n'.encode())
  os._exit(128 + signum)


def end_with_a_line() -> None:
  """Has Ctrl-C end a command at once; in a user's own program, signals stay as they are."""
  # A shell starts what runs in the background with the signal ignored, which stays so.
  if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)


def raise_exceptions() -> None:
  """Has Ctrl-C raise KeyboardInterrupt again, for what a command has to close."""
  if signal.getsignal(signal.SIGINT) is _leave:
    signal.signal(signal.SIGINT, signal.default_int_handler)
