"""Commands run one after the other in a process of their own, cheaper than one for each."""

import contextlib
import json
import subprocess
import sys

from conftest import ROOT

# Not in the tests' process: commands define flags of equal names.
_SERVER = """
import contextlib, importlib, io, json, os, sys
from absl import flags
from vit_jax import cli

module, argument = importlib.import_module(sys.argv[1]), sys.argv[2]
os._exit = sys.exit  # how cli leaves
for line in sys.stdin:
  flags.FLAGS.unparse_flags()
  sys.argv = [module.__file__, *json.loads(line)]
  streams = [io.TextIOWrapper(io.BytesIO(), 'utf-8') for _ in range(2)]
  with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
    try:
      code = cli.run(module.main, arguments=(argument,))
    except SystemExit as e:
      code = e.code
    for stream in streams:
      stream.flush()
  written = [stream.buffer.getvalue().decode() for stream in streams]
  print(json.dumps([code or 0, *written]), flush=True)
"""


@contextlib.contextmanager
def command_server(module, argument):
  """Yields what runs a command's module; it returns its exit code, output and errors."""
  pipe = subprocess.PIPE
  process = subprocess.Popen(
    [sys.executable, '-c', _SERVER, module, argument], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
  )

  def run(*args):
    print(json.dumps([str(arg) for arg in args]), file=process.stdin, flush=True)
    return subprocess.CompletedProcess(args, *json.loads(process.stdout.readline()))

  yield run
  process.communicate()
