"""Several processes, of which one is lost or ends otherwise than the others."""

import contextlib
import json
import os
import signal
import time

import pytest
from conftest import ROOT, free_port, start_training
from training_process import serving_process

# A process of several, which does what a line says, and then waits as for an exchange.
MEMBER = """
import atexit, os, sys, time
from vit_jax.errors import UsageError
from vit_jax.train import peers

def end(message, code):
  print(code, message, flush=True)
  os._exit(code)

coordinator, count, index, settings = sys.argv[1:]
vars(peers).update(eval(settings))
try:
  with peers.Peers(coordinator, int(count), int(index), end):
    print(os.getpid(), flush=True)
    exec(sys.stdin.readline())
  print('left', flush=True)
except UsageError as e:
  end(e, 2)
except Exception as e:
  print(repr(e), flush=True)
leave = os._exit
os._exit = lambda code: (print('exit', code, flush=True), leave(code))
atexit._run_exitfuncs()  # as the interpreter does, which here isn't all that runs
os._exit(0)
"""
WAIT = 'time.sleep(60)'


class Member:
  """Such a process; `stack` ends it with the test."""

  def __init__(self, stack, *args):
    process = serving_process(MEMBER, list(map(str, args)), dict(os.environ), ROOT)
    self._requests, self._answers = stack.enter_context(process)

  def joins(self, stack):
    self.pid = int(self._answers.readline())
    stack.callback(self.kill)

  def kill(self):
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.pid, signal.SIGKILL)

  def does(self, line):
    self._requests.write(f'{line}\n')
    self._requests.flush()

  def says(self):
    return self._answers.readline().strip()


@pytest.fixture
def start():
  """Starts so many processes that meet, with other seconds than those in the module.

  The last of them comes `late` seconds after the others.
  """
  with contextlib.ExitStack() as stack:

    def run(count, late=0, **settings):
      args = stack, f'127.0.0.1:{free_port()}', count
      members = [Member(*args, i, settings) for i in range(count - 1)]
      time.sleep(late)
      members.append(Member(*args, count - 1, settings))
      for member in members:
        member.joins(stack)
      return members

    yield run


def lost(index, count):
  line = f'process {index} of {count} was lost; what was saved is intact'
  return f'75 {line}; start all again to go on'


@pytest.mark.parametrize('victim', [0, 2])
def test_where_one_is_killed_the_others_end_with_a_line(start, victim):
  """Process 0, whose end JAX answers with an abort, or another."""
  members = start(3)
  for member in members:
    member.does(WAIT)
  members[victim].kill()
  begin = time.monotonic()
  assert [m.says() for m in members if m is not members[victim]] == [lost(victim, 3)] * 2
  assert time.monotonic() - begin < 15


@pytest.mark.parametrize('victim', [0, 1])
def test_one_that_is_silent_is_lost(start, victim):
  members = start(2, _PATIENCE=1, _BEAT=0.1)
  members[1 - victim].does(WAIT)
  os.kill(members[victim].pid, signal.SIGSTOP)
  assert members[1 - victim].says() == lost(victim, 2)


def test_of_a_failed_exchange_with_a_silent_one_there_is_no_traceback(start):
  members = start(2, _PATIENCE_AFTER_ERROR=1, _BEAT=0.1)
  os.kill(members[1].pid, signal.SIGSTOP)
  members[0].does('raise RuntimeError')
  assert members[0].says() == lost(1, 2)


def test_a_mistake_that_one_finds_ends_all(start):
  members = start(3, _FAREWELL=0.1)
  for member in members[:2]:
    member.does(WAIT)
  members[2].does('raise UsageError("no data")')
  assert members[2].says() == '2 no data'
  assert {m.says() for m in members[:2]} == {'2 process 2 of 3 ended with exit code 2'}


@pytest.mark.parametrize(
  ('failing', 'error', 'wait'), [(0, 'KeyError(3)', 60), (2, 'ValueError(3)', 0.1)]
)
def test_an_error_of_one_s_own_ends_all_with_its_code(start, failing, error, wait):
  """It waits for no other first, unless it's such as an exchange with a lost process raises."""
  members = start(3, _FAREWELL=0.5, _PATIENCE_AFTER_ERROR=wait, _BEAT=0.1)
  others = [m for i, m in enumerate(members) if i != failing]
  for member in others:
    member.does(WAIT)
  members[failing].does(f'raise {error}')
  assert [members[failing].says() for _ in range(2)] == [error, 'exit 1']
  assert {m.says() for m in others} == {f'1 process {failing} of 3 ended with exit code 1'}


def test_one_that_is_late_or_done_is_not_lost(start):
  members = start(3, late=1.5, _PATIENCE=1, _BEAT=0.1)
  for member in reversed(members):
    member.does('pass')
    assert member.says() == 'left'
  begin = time.monotonic()
  assert [member.says() for member in members] == ['exit 0'] * 3
  assert time.monotonic() - begin < 4  # the service would wait 5 seconds for open connections


@pytest.mark.parametrize('victim', [0, 1])
def test_killed_while_training_and_saving_they_go_on_with_the_same_bits(tmp_path, victim):
  flags = '--config.num_steps=40', '--config.log_every=1', '--config.checkpoint_every=3'

  def start_two(name):
    several = *flags, f'--workdir={tmp_path / name}', f'--coordinator=127.0.0.1:{free_port()}'
    return [start_training(*several, '--num_processes=2', f'--process_id={i}') for i in range(2)]

  def finish(name):
    for process in start_two(name):
      _, err = process.communicate()
      assert process.returncode == 0, err
    lines = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line).get('train/loss') for line in lines]

  for kill in range(6):
    processes = start_two('killed')
    assert any('step' in line for line in iter(processes[0].stdout.readline, ''))
    time.sleep(kill / 10)
    processes[victim].kill()
    errors = [process.communicate()[1] for process in processes]
    survivor = 1 - victim
    assert f'{processes[survivor].returncode} {errors[survivor]}' == (
      f'75 train.py: {lost(victim, 2).removeprefix("75 ")}\n'
    )
  assert finish('killed') == finish('undisturbed')
