"""Commands run one after the other in one process: cheaper than a process for each."""

import contextlib
import json
import os
import subprocess
import sys

from conftest import ROOT
from training_process import serving_process

# Not in the tests' process: commands define flags of equal names.
_SERVER = """
import gc, importlib, json, os, sys, tempfile
import grain  # defines flags, which would be removed with those of a command
from absl import flags
from absl.testing import flagsaver
from vit_jax import cli

module, arguments = importlib.import_module(sys.argv[1]), sys.argv[2:]
unparsed = flagsaver.save_flag_values()
gc.set_threshold(100_000, 50, 1000)  # as in conftest.py
answers, streams = os.fdopen(os.dup(1), 'w'), (sys.stdout, sys.stderr)
for stream in streams:
  stream.reconfigure(encoding='utf-8')
os._exit = sys.exit  # how cli leaves
for line in sys.stdin:
  flagsaver.restore_flag_values(unparsed)  # which also removes the fields of the last --config
  flags.FLAGS.unparse_flags()
  sys.argv = [module.__file__, *json.loads(line)]
  files = [tempfile.TemporaryFile() for _ in streams]
  for stream, file in zip(streams, files):
    os.dup2(file.fileno(), stream.fileno())
  try:
    code = cli.run(module.main, arguments=arguments)
  except SystemExit as e:
    code = e.code
  written = []
  for stream, file in zip(streams, files):
    stream.flush()
    file.seek(0)
    written.append(file.read().decode())
  print(json.dumps([code or 0, *written]), file=answers, flush=True)
"""


@contextlib.contextmanager
def command_server(module, *arguments, fresh=False):
  """Yields a function that runs the command of a module.

  It takes the command's arguments and flags, and returns exit code, output and errors.

  Args:
    module: with the command's `main`.
    *arguments: the names of the command's arguments, as `vit_jax.cli.run` takes them.
    fresh: whether the process imports all by itself, for what depends on that.
  """
  start = _fresh_process if fresh else serving_process
  with start(_SERVER, [module, *arguments], dict(os.environ), ROOT) as (requests, answers):

    def run(*args):
      print(json.dumps([str(arg) for arg in args]), file=requests, flush=True)
      return subprocess.CompletedProcess(args, *json.loads(answers.readline()))

    yield run


@contextlib.contextmanager
def _fresh_process(code, args, environment, cwd):
  pipe, command = subprocess.PIPE, [sys.executable, '-c', code, *args]
  with subprocess.Popen(
    command, env=environment, cwd=cwd, stdin=pipe, stdout=pipe, text=True
  ) as process:
    yield process.stdin, process.stdout
