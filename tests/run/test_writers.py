"""Writers: metrics.jsonl, TensorBoard, Weights & Biases and the user's own."""

import json
import math
import shutil
import struct
import sys
import types

import pytest
from conftest import tiny_config
from tensorboardX.proto.event_pb2 import Event, SessionLog

from vit_jax.errors import FieldError, UsageError, UsageWarning
from vit_jax.run import writers

NAME = f'{__name__}:Recorder'
calls = []


class Recorder(writers.Writer):
  def __init__(self, workdir, config, start_step):
    calls.append(('open', workdir.name, config.batch_size, start_step))

  def write(self, step, values):
    calls.append((step, values))

  def close(self):
    calls.append('close')


class Broken(Recorder):
  def write(self, step, values):
    raise RuntimeError('no space there')


class Nothing(writers.Writer):
  pass


def write(workdir, start_step, steps, is_kept=lambda name: True, **changes):
  config = tiny_config(**changes)
  with writers.MetricWriter(workdir, config, start_step, is_kept=is_kept) as writer:
    for step in steps:
      writer.write(step, {'train/loss': 1.0 / step})


def read_events(data):
  """Returns the events in a file of TensorBoard's: lengths, checksums and messages."""
  events = []
  while data:
    (length,) = struct.unpack_from('<Q', data)
    events.append(Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  return events


@pytest.fixture(autouse=True)
def _no_calls():
  calls.clear()


@pytest.mark.parametrize('start', [1, 2])
def test_metrics_that_are_not_kept_are_gone(tmp_path, start):
  lines = [{'step': step, 'train/loss': 1.0, 'test/loss': 2.0} for step in range(start + 2)]
  lines.insert(start, {'step': start, 'test/accuracy': 0.5})
  path = tmp_path / 'metrics.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  write(tmp_path, start, [], lambda name: name == 'train/loss', writers=(NAME,))
  kept = {'step': start, 'train/loss': 1.0}
  assert writers.read_history(path) == [*lines[:start], kept]
  first = [(0, {'train/loss': 1.0, 'test/loss': 2.0})] if start == 1 else []
  told = [*first, (start, {'train/loss': 1.0})]
  assert calls == [('open', tmp_path.name, 64, start - 1), *told, 'close']


def test_a_writer_of_the_user_s_own_is_told_everything_and_closed(tmp_path):
  write(tmp_path, 0, [1, 2], writers=(NAME,))
  expected = [('open', tmp_path.name, 64, 0), (1, {'train/loss': 1.0}), (2, {'train/loss': 0.5})]
  assert calls == [*expected, 'close']
  assert not (tmp_path / 'tensorboard').exists()


def test_writers_are_closed_where_one_fails(tmp_path):
  with pytest.raises(RuntimeError, match='no space there'):
    write(tmp_path, 0, [1], writers=(NAME, f'{__name__}:Broken'))
  assert calls[2:] == [(1, {'train/loss': 1.0}), 'close', 'close']


def test_one_process_of_several_has_writers(tmp_path):
  with writers.MetricWriter(tmp_path, tiny_config(writers=(NAME,)), 0, enabled=False) as writer:
    writer.write(1, {'train/loss': 1.0})
  assert calls == []
  assert writer.history == [{'step': 1, 'train/loss': 1.0}]
  assert list(tmp_path.iterdir()) == []


def test_what_was_written_after_the_step_that_a_run_goes_on_from_is_dropped(tmp_path):
  write(tmp_path, 0, [1, 2, 3], writers=('tensorboard', NAME))
  shutil.rmtree(tmp_path / 'tensorboard')  # files are named after seconds
  write(tmp_path, 1, [2], writers=('tensorboard', NAME))
  assert [line['step'] for line in writers.read_history(tmp_path / 'metrics.jsonl')] == [1, 2]
  assert calls[5] == ('open', tmp_path.name, 64, 1)
  (file,) = (tmp_path / 'tensorboard').iterdir()
  *_, start, value = read_events(file.read_bytes())
  assert (start.step, start.session_log.status) == (2, SessionLog.START)  # steps from 2 on go
  assert (value.step, value.summary.value[0].simple_value) == (2, 0.5)


def test_weights_and_biases_go_on_in_the_same_run(tmp_path, monkeypatch):
  starts, logged = [], []
  run = types.SimpleNamespace(
    log=lambda values, step: logged.append((step, values)), finish=lambda: logged.append('finish')
  )
  fake = types.ModuleType('wandb')
  fake.__spec__ = types.SimpleNamespace(name='wandb')
  fake.init = lambda **options: starts.append(options) or run
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  monkeypatch.setenv('WANDB_PROJECT', 'digits')
  for start_step, steps in ((0, [1, 2]), (1, [2])):
    write(tmp_path, start_step, steps, writers=('wandb',))
  first, second = starts
  assert first == second
  assert (first['resume'], first['name'], first['project']) == ('allow', tmp_path.name, 'digits')
  assert first['config']['batch_size'] == 64
  assert json.dumps(first['config'])
  values = {'train/loss': 0.5}
  assert logged == [(1, {'train/loss': 1.0}), (2, values), 'finish', (2, values), 'finish']
  (tmp_path / 'other').mkdir()
  write(tmp_path / 'other', 0, [], writers=('wandb',))
  assert starts[2]['id'] != first['id']


def test_weights_and_biases_that_do_not_start_are_one_line(tmp_path, monkeypatch):
  fake = types.ModuleType('wandb')
  fake.__spec__ = types.SimpleNamespace(name='wandb')
  fake.Error = KeyError

  def init(**options):
    raise fake.Error('no API key')

  fake.init = init
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  with pytest.raises(UsageError, match=r"^config\.writers: 'wandb' does not start: 'no API key'"):
    write(tmp_path, 0, [], writers=('wandb',))


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('tensorbord', r"'tensorbord' is not one of .*; did you mean 'tensorboard'"),
    (f'{__name__}:Nothing', r'lacks write'),
    (f'{__name__}:calls', r'is not a subclass of vit_jax\.run\.writers\.Writer'),
  ],
)
def test_mistakes_name_the_field(name, message):
  with pytest.raises(FieldError, match=rf'^writers: .*{message}'):
    writers.find(name)


def test_what_a_writer_needs_is_named(monkeypatch):
  monkeypatch.setattr(writers.WeightsAndBiases, 'PACKAGE', 'no_such_package')
  with pytest.raises(FieldError, match=r"^writers: 'wandb' needs the package no_such_package: pip"):
    writers.find('wandb')


LINE = b'{"step": 2, "train/loss": 0.5}'


@pytest.mark.parametrize(
  'damage',
  [
    b'{"step": 2, "train/lo',
    b'',
    b'null',
    b'[' * 100_000,
    b'{"train/loss": 0.5}',
    b'{"step": "2", "train/loss": 0.5}',
    b'{"step": 2, "train/loss": "x"}',
    b'{"step": 2, "train/loss": 0' + b' ' * 999 + b'}',
    b'{"step": 2, "train/loss": 1' + b'0' * 400 + b'}',
    LINE.replace(b'loss', b'lo\xffs'),
  ],
)
def test_a_damaged_line_costs_no_other(tmp_path, monkeypatch, damage):
  monkeypatch.setattr(writers, 'MAX_JSON', 900)
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'\n'.join([LINE, damage, LINE, LINE[:9]]))
  with pytest.warns(UsageWarning, match=rf'^{path}: damaged, and left out: line 2$'):
    history = writers.read_history(path)
  assert history == [{'step': 2, 'train/loss': 0.5}] * 2


def test_what_a_writer_wrote_is_read(tmp_path):
  """Also what has no value, as the recall of a class of which there are no examples."""
  values = {'test/recall': math.nan, 'test/distance': math.inf}
  with writers.MetricWriter(tmp_path, tiny_config(), 0) as writer:
    writer.write(1, values)
  assert writers.read_history(tmp_path / 'metrics.jsonl') == [
    {'step': 1, **{name: pytest.approx(value, nan_ok=True) for name, value in values.items()}}
  ]


def test_a_last_line_cut_short_is_left_out(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  assert writers.read_history(path) == []
  path.write_bytes(LINE + b'\n' + LINE[:9])
  assert writers.read_history(path) == [{'step': 2, 'train/loss': 0.5}]
  path.unlink()
  path.mkdir()
  with pytest.raises(UsageError, match=r'metrics\.jsonl: cannot be read \(Is a directory\)'):
    writers.read_history(path)


def test_a_disk_that_fills_reaches_the_loop(tmp_path):
  """A thread that writes would die of it, and who fills its queue would wait for ever."""
  resource = pytest.importorskip('resource')
  writer = writers.TensorBoard(tmp_path, tiny_config(), 0)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def write_much():
    for step in range(1000):
      writer.write(step, {'train/loss': 1.0})

  resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
  try:
    with pytest.raises(OSError, match='File too large'):
      write_much()
    with pytest.raises(OSError, match='File too large'):
      writer.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
