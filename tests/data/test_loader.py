import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from image_files import make_folder

from vit_jax.data.loader import epoch_order, eval_loader, resolve_resident, train_loader
from vit_jax.data.preprocess import make_preprocess
from vit_jax.data.sources import load_source
from vit_jax.data.sources.records import ArraySource
from vit_jax.errors import FieldError, UsageError

AS_STORED = make_preprocess((), 0, 'resize', train=True)
INCEPTION = make_preprocess((5, 4), 0, 'inception', train=True)


class Labelled(ArraySource):
  """Records whose pixels say which they are; multi-hot where asked; some fail to load."""

  def __init__(self, count, multi_hot=False, broken=(), size=(6, 7)):
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    arrays = {'image': images, 'label': np.arange(count)}
    super().__init__(arrays, [str(i) for i in range(count)])
    self.multi_hot, self.broken = multi_hot, broken

  def read(self, indices):
    for record in super().read(indices):
      if record['label'] in self.broken:
        raise UsageError('broken record')
      if self.multi_hot:
        record['label'] = np.eye(len(self), dtype=np.float32)[record['label']]
      yield record


def options(**changes):
  defaults = {
    'num_devices': 1,
    'process_index': 0,
    'process_count': 1,
    'resident': False,
    'num_workers': 0,
    'num_threads': 3,
    'prefetch': 2,
  }
  return defaults | changes


def train(source, preprocess=AS_STORED, batch_size=8, seed=0, **changes):
  return train_loader(source, preprocess, batch_size=batch_size, seed=seed, **options(**changes))


def evaluate(source, preprocess=AS_STORED, batch_size=8, **changes):
  return eval_loader(source, preprocess, batch_size=batch_size, **options(**changes))


def take(loader, count, start=0):
  batches = loader.batches(start)
  try:
    return list(itertools.islice(batches, count))
  finally:
    batches.close()


def merged(batch):
  """A batch without the axis of devices."""
  return {name: array.reshape(-1, *array.shape[2:]) for name, array in batch.items()}


def assert_equal(one, other):
  assert one.keys() == other.keys()
  for name in one:
    assert one[name].dtype == other[name].dtype, name
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def gathered(loader, start, count):
  """The batches that indices of a resident training set stand for."""
  rows = loader.indices(start, count)
  for k in range(count):
    batch = {name: array[rows['index'][:, k]] for name, array in loader.arrays.items()}
    weight = np.ones(rows['slot'].shape, np.float32)
    yield batch | {'slot': rows['slot'], 'weight': weight}


def test_order_is_that_of_permuted_epochs():
  source, batch = Labelled(13), 5
  labels = np.concatenate(
    [merged(b)['label'] for b in take(train(source, batch_size=batch), 11, 2)]
  )
  stream = []
  for epoch in range(6):
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0, epoch])))
    stream += generator.permutation(13).tolist()
  assert labels.tolist() == stream[10:65]
  for epoch in range(5):
    assert sorted(stream[13 * epoch : 13 * epoch + 13]) == list(range(13))
  other = np.concatenate([b['label'][0] for b in take(train(source, seed=1), 2)])
  assert other.tolist() == epoch_order(1, 0, 13).tolist() + epoch_order(1, 1, 13)[:3].tolist()


def test_records_arrive_whole():
  source = Labelled(13)
  for batch in take(train(source), 4):
    for image, label in zip(batch['image'][0], batch['label'][0], strict=True):
      np.testing.assert_array_equal(image, source[label]['image'])


@pytest.mark.parametrize('start', [0, 1, 7])
@pytest.mark.parametrize('devices', [1, 4])
@pytest.mark.parametrize('multi_hot', [False, True])
def test_resident_and_streamed_batches_are_equal(start, devices, multi_hot):
  source = Labelled(13, multi_hot)
  streamed = take(train(source, num_devices=devices), 5, start)
  resident = train(source, num_devices=devices, resident=True)
  for one, other in zip(streamed, gathered(resident, start, 5), strict=True):
    assert_equal(one, other)
  assert streamed[0]['image'].shape == (devices, 8 // devices, 6, 7, 3)
  assert streamed[0]['label'].dtype == (np.float32 if multi_hot else np.int32)


@pytest.mark.parametrize('preprocess', [AS_STORED, INCEPTION])
@pytest.mark.parametrize(('processes', 'devices'), [(1, 4), (2, 1), (2, 4)])
def test_shares_make_up_the_global_batch(preprocess, processes, devices):
  source = Labelled(13)
  whole = take(train(source, preprocess), 4, 3)
  shares = [
    take(
      train(source, preprocess, num_devices=devices, process_index=i, process_count=processes), 4, 3
    )
    for i in range(processes)
  ]
  for k, batch in enumerate(whole):
    parts = [merged(share[k]) for share in shares]
    joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    assert_equal(joined, merged(batch))
    assert joined['slot'].tolist() == list(range(8))


def test_each_process_reads_only_its_share():
  read = []

  class Spy(Labelled):
    def read(self, indices):
      read.extend(indices)
      return super().read(indices)

  list(evaluate(Spy(16), process_index=1, process_count=2, prefetch=1).batches())
  assert sorted(read) == [4, 5, 6, 7, 12, 13, 14, 15]


def test_random_crops_depend_on_seed_and_position_alone():
  source = Labelled(13)
  steps = take(train(source, INCEPTION), 6)
  assert_equal(take(train(source, INCEPTION, num_threads=1, prefetch=1), 1, 5)[0], steps[5])
  # The same examples come back in later epochs, in other crops.
  stream = {name: np.concatenate([merged(b)[name] for b in steps]) for name in ('image', 'label')}
  first, second = np.flatnonzero(stream['label'] == 5)[:2]
  assert (stream['image'][first] != stream['image'][second]).any()


def test_random_crops_differ_by_seed():
  """Of the one example there is, so that its order says nothing."""
  one, other = (
    take(train(Labelled(1, size=(20, 20)), INCEPTION, seed=s), 1)[0]['image'] for s in (0, 1)
  )
  assert (one != other).any(axis=(0, 2, 3, 4)).all()


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize(('count', 'batch'), [(1797, 128), (16, 8), (3, 8)])
def test_evaluation_counts_each_example_once(count, batch, devices):
  source = load_source('digits', 'all') if count == 1797 else Labelled(count)
  streamed = list(evaluate(source, batch_size=batch, num_devices=devices).batches())
  resident = evaluate(source, batch_size=batch, num_devices=devices, resident=True)
  rows = resident.indices()
  assert rows.keys() == {'index', 'weight'}
  assert rows['index'].shape == rows['weight'].shape == (devices, len(streamed), batch // devices)
  assert (rows['index'].dtype, rows['weight'].dtype) == (np.int32, np.float32)
  seen = rows['index'][rows['weight'] == 1]
  assert sorted(seen.tolist()) == list(range(count))
  assert set(rows['weight'].ravel().tolist()) <= {0.0, 1.0}
  assert len(streamed) == -(-count // batch)
  for k, streamed_batch in enumerate(streamed):
    index = rows['index'][:, k]
    assert_equal(
      {name: streamed_batch[name] for name in ('image', 'label', 'weight')},
      {name: a[index] for name, a in resident.arrays.items()} | {'weight': rows['weight'][:, k]},
    )


def test_evaluation_shared_by_processes():
  source = Labelled(21)
  shares = [
    evaluate(source, num_devices=2, process_index=i, process_count=2, resident=True).indices()
    for i in (0, 1)
  ]
  seen = np.concatenate([s['index'][s['weight'] == 1] for s in shares])
  assert sorted(seen.tolist()) == list(range(21))


class Image:
  """An image that calls a function when it is decoded, but for that which tells the shape."""

  dtype, ndim = np.dtype(np.uint8), 3

  def __init__(self, shape, decode):
    self.shape, self._decode = shape, decode

  def __array__(self, dtype=None, copy=None):
    if threading.current_thread() != threading.main_thread():
      self._decode()
    return np.zeros(self.shape, self.dtype)


class Undecoded(Labelled):
  def __init__(self, count, decode, size):
    super().__init__(count, size=size)
    self._decode = decode

  def read(self, indices):
    for record in super().read(indices):
      yield record | {'image': Image(self.image_shape, self._decode)}


def test_resident_sets_are_decoded_in_the_order_in_which_they_are_made():
  order, begun, may_go_on = [], threading.Event(), threading.Event()

  def first():
    begun.set()
    assert may_go_on.wait(20)
    order.append(1)

  one = train(Undecoded(3, first, (2, 2)), resident=True)
  assert begun.wait(20)
  other = evaluate(Undecoded(5, lambda: order.append(2), (2, 2)), resident=True)
  time.sleep(0.1)  # in which the other one is decoded unless it waits
  may_go_on.set()
  assert len(one.arrays['image']) == 3
  assert len(other.arrays['image']) == 5
  assert order == [1] * 3 + [2] * 5


def test_one_thread_at_a_time_decodes_small_images():
  found, at_once = [], []

  def decode():
    at_once.append(1)
    found.append(len(at_once))
    time.sleep(1e-4)  # lets other threads run
    at_once.pop()

  loader = train(Undecoded(600, decode, (32, 32)), resident=True)
  assert len(loader.arrays['image']) == 600
  assert max(found) == 1


def test_threads_decode_larger_images_side_by_side():
  both = threading.Barrier(2, timeout=20)
  loader = train(Undecoded(512, both.wait, (40, 40)), resident=True, num_threads=2)
  assert len(loader.arrays['image']) == 512


def test_large_batches_in_chunks():
  """129 rows load as 3 chunks of 43, 256 as 4 of 64; a prime number of rows one by one."""
  source = Labelled(50, size=(1, 1))
  order = np.concatenate([epoch_order(0, e, 50) for e in range(30)])
  for batch in (129, 256, 131):
    labels = [b['label'][0] for b in take(train(source, batch_size=batch), 4, 1)]
    np.testing.assert_array_equal(np.concatenate(labels), order[batch : 5 * batch])


@pytest.mark.parametrize('workers', [1, 2])
def test_worker_processes_give_the_same_batches(workers):
  source = Labelled(200, size=(2, 2))  # 130 rows: chunks of 26 or 13, of which workers take turns
  expected = take(train(source, INCEPTION, batch_size=130), 4, 3)
  found = take(train(source, INCEPTION, batch_size=130, num_workers=workers), 4, 3)
  for one, other in zip(found, expected, strict=True):
    assert_equal(one, other)
  whole = list(evaluate(source, batch_size=130, num_workers=workers).batches())
  assert len(whole) == 2
  assert sum(b['weight'].sum() for b in whole) == 200
  assert multiprocessing.active_children() == []


def running():
  return {t for t in threading.enumerate() if t.name.startswith('grain')}


def wait_until(condition, seconds=20):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def test_closing_stops_threads():
  wait_until(lambda: not running())  # those of other tests
  batches = train(Labelled(13)).batches()
  next(batches)
  assert running()
  batches.close()
  wait_until(lambda: not running())


@pytest.mark.parametrize('workers', [0, 1])
def test_errors_reach_the_caller_and_stop_everything(workers):
  with pytest.raises(UsageError, match='broken record'):
    take(train(Labelled(13, broken=[5]), num_workers=workers), 4)
  wait_until(lambda: not running() and not multiprocessing.active_children())


@pytest.mark.parametrize('resident', [False, True])
@pytest.mark.parametrize('how', ['deleted', 'cut', 'pipe'])
def test_a_file_that_goes_while_data_are_read_ends_it_by_name(tmp_path, how, resident):
  root = make_folder(tmp_path, splits=('.',))
  source, path = load_source('folder', 'train', root), tmp_path / 'dog' / '3.png'
  content = path.read_bytes()
  path.unlink()
  if how == 'cut':
    path.write_bytes(content[:-30])
  elif how == 'pipe':
    os.mkfifo(path)
  loader = train(source, batch_size=8, resident=resident)
  with pytest.raises(UsageError, match=rf'^{path}: '):
    _ = loader.arrays if resident else take(loader, 1)


def test_workers_ignore_signals_meant_for_their_parent():
  batches = train(Labelled(13), num_workers=1, prefetch=1).batches()
  next(batches)
  (worker,) = multiprocessing.active_children()
  for signum in (signal.SIGINT, signal.SIGTERM):
    os.kill(worker.pid, signum)
  for _ in range(50):
    next(batches)
  batches.close()


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs /proc')
def test_workers_end_with_a_killed_parent():
  script = """
    import multiprocessing
    from vit_jax.data import load_source, make_preprocess, train_loader
    if __name__ == '__main__':
      loader = train_loader(
        load_source('digits', 'train'), make_preprocess((), 0, 'resize', True), batch_size=8,
        seed=0, num_devices=1, process_index=0, process_count=1, resident=False, num_workers=1,
        num_threads=1, prefetch=1,
      )
      batches = loader.batches()
      next(batches)
      print(multiprocessing.active_children()[0].pid, flush=True)
      while True:
        next(batches)
  """
  with subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(script)],
    cwd=Path(__file__).parents[2],
    stdout=subprocess.PIPE,
    text=True,
  ) as parent:
    worker = int(parent.stdout.readline())
    parent.kill()
  try:
    wait_until(lambda: not is_running(worker))
  finally:
    if is_running(worker):
      os.kill(worker, signal.SIGKILL)


def is_running(pid):
  """Whether there is such a process, other than one whose end nobody has noted yet."""
  try:
    return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def test_nothing_is_printed(tmp_path):
  """Neither threads nor workers write to the terminal, stopped early or read to the end."""
  script = """
    from vit_jax.data import eval_loader, load_source, make_preprocess
    if __name__ == '__main__':
      for workers in (0, 1):
        loader = eval_loader(
          load_source('digits', 'test'), make_preprocess((), 0, 'resize', True), batch_size=8,
          num_devices=1, process_index=0, process_count=1, resident=False, num_workers=workers,
          num_threads=2, prefetch=2,
        )
        assert len(list(loader.batches())) == 45
        batches = loader.batches()
        next(batches)
        batches.close()
  """
  path = tmp_path / 'main.py'
  path.write_text(textwrap.dedent(script))
  done = subprocess.run(
    [sys.executable, path],
    env=os.environ | {'PYTHONPATH': str(Path(__file__).parents[2])},
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_reading_ahead_is_bounded():
  read = []

  class Spy(Labelled):
    def read(self, indices):
      read.extend(indices)
      return super().read(indices)

  batches = train(Spy(1000), prefetch=3).batches()
  for step in range(1, 30):
    next(batches)
    time.sleep(0.005)
    assert len(read) <= 8 * (step + 3)
  batches.close()


def test_loaders_pickle_without_batches():
  loader = train(load_source('digits', 'train'))
  assert_equal(take(pickle.loads(pickle.dumps(loader)), 1)[0], take(loader, 1)[0])


@pytest.mark.parametrize('names', [('image',), ('image', 'mask', 'box'), ('video',), ('points',)])
def test_records_of_any_kinds_without_labels(names):
  count, rng = 13, np.random.default_rng(0)
  arrays = {
    'image': rng.integers(0, 256, (count, 6, 7, 3), np.uint8),
    'video': rng.integers(0, 256, (count, 4, 6, 7, 1), np.uint8),
    'mask': rng.integers(0, 9, (count, 6, 7)).astype(np.int32),
    'box': np.float32(rng.uniform(0.3, 0.5, (count, 4))),
    'points': np.float32(rng.normal(size=(count, 10, 3))),
  }
  arrays = {name: arrays[name] for name in names}
  source = ArraySource(arrays)
  assert source.num_classes == 0
  streamed = take(train(source, num_devices=2), 3, 1)
  resident = train(source, num_devices=2, resident=True)
  for one, other in zip(streamed, gathered(resident, 1, 3), strict=True):
    assert_equal(one, other)
  assert streamed[0].keys() == {*names, 'weight', 'slot'}
  for name in names:
    assert streamed[0][name].dtype == arrays[name].dtype
    assert streamed[0][name].shape == (2, 4, *arrays[name].shape[1:])
    np.testing.assert_array_equal(resident.arrays[name], arrays[name])
  fits, _ = resolve_resident('auto', [(source, AS_STORED)], [memory(4 * source_bytes(arrays))])
  full, _ = resolve_resident('auto', [(source, AS_STORED)], [memory(4 * source_bytes(arrays) - 4)])
  assert (fits, full) == (True, False)


def source_bytes(arrays):
  return sum(array.nbytes for array in arrays.values())


def memory(size):
  """A device with so many bytes."""
  return SimpleNamespace(memory_stats=lambda: {'bytes_limit': size})


# How often classes are drawn.

SIZES = 3, 40, 10, 7  # of classes; there is none between the third and the last


class Unbalanced(Labelled):
  """Records of four classes in a random order, whose pixels say which they are."""

  def __init__(self, shape=()):
    super().__init__(sum(SIZES))
    classes = np.random.default_rng(0).permutation(np.repeat((0, 1, 2, 4), SIZES))
    self.classes, self.shape = classes.astype(np.int32), shape

  def labels(self):
    return np.broadcast_to(self.classes.reshape(-1, *self.shape), (60, *self.shape))


def epochs_of(sampling, count=40):
  loader = train(Unbalanced(), batch_size=60, sampling=sampling, resident=True)
  return loader.indices(0, count)['index'][0]  # [epochs, 60]


@pytest.mark.parametrize(('sampling', 'power'), [('balanced', 0), ('sqrt', 0.5), ('uniform', 1)])
def test_each_class_is_drawn_as_often_as_asked(sampling, power):
  classes, epochs = Unbalanced().classes, epochs_of(sampling)
  shares = np.array(SIZES) ** power
  expected = 60 * shares / shares.sum()
  counts = np.array([np.bincount(classes[epoch], minlength=5)[[0, 1, 2, 4]] for epoch in epochs])
  assert (np.abs(counts - expected) < 1).all()
  np.testing.assert_allclose(counts.mean(axis=0), expected, atol=0.25)
  for epoch in epochs:
    times = np.bincount(epoch, minlength=60)
    for label in (0, 1, 2, 4):  # of a class, no example is left out while another comes twice
      assert np.ptp(times[classes == label]) <= 1
  assert (np.bincount(epochs.ravel(), minlength=60) > 0).all()
  assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
  mixed = classes[epochs[:, :30]]  # the order within an epoch doesn't follow the classes
  assert (np.abs((mixed == 1).mean(axis=1) - expected[1] / 60) < 0.35).all()


@pytest.mark.parametrize('start', [0, 5])
@pytest.mark.parametrize('resident', [True, False])
def test_drawn_classes_are_alike_for_devices_processes_and_starts(start, resident):
  source, given = Unbalanced(), {'batch_size': 24, 'sampling': 'balanced'}
  whole = np.stack([merged(b)['label'] for b in take(train(source, **given), 9)])[start:]
  shares = []
  for process in range(2):
    share = {**given, 'num_devices': 4, 'process_index': process, 'process_count': 2}
    if resident:
      loader = train(source, resident=True, **share)
      batches = gathered(loader, start, 9 - start)
    else:
      loader = pickle.loads(pickle.dumps(train(source, **share)))
      batches = take(loader, 9 - start, start)
    shares.append(np.stack([merged(b)['label'] for b in batches]))
  np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)


@pytest.mark.parametrize(
  ('sampling', 'source', 'problem'),
  [
    ('equal', Labelled(4), 'is not one of uniform, sqrt, balanced'),
    ('sqrt', Unbalanced((1,)), 'needs one class of each example, and these may have several'),
    ('sqrt', ArraySource({'image': np.zeros((3, 2, 2, 1), np.uint8)}), '.* these have no labels'),
  ],
)
def test_sampling_that_labels_do_not_allow(sampling, source, problem):
  with pytest.raises(FieldError, match=f"^sampling: '{sampling}' {problem}"):
    train(source, sampling=sampling)


# Decisions and mistakes.


def test_resolve_resident():
  gpu = SimpleNamespace(memory_stats=lambda: {'bytes_limit': 4 * 1000, 'bytes_in_use': 3900})
  cpu = SimpleNamespace(memory_stats=lambda: None)
  small, large = Labelled(5), Labelled(8)  # of 126 bytes each
  assert resolve_resident('auto', [(small, AS_STORED)], [gpu])[0]
  resident, reason = resolve_resident('auto', [(small, AS_STORED), (large, AS_STORED)], [gpu])
  assert not resident
  assert 'more than' in reason
  # What counts is the size of preprocessed images: 48 bytes.
  shrink = make_preprocess((4, 4), 0, 'resize', train=True)
  assert resolve_resident('auto', [(small, shrink), (large, shrink)], [gpu])[0]

  big = Labelled(1)
  big.__class__ = type('Big', (Labelled,), {'__len__': lambda self: 2**22})  # 504 MiB
  assert resolve_resident('auto', [(big, AS_STORED)], [cpu] * 2)[0]
  assert not resolve_resident('auto', [(big, AS_STORED)], [cpu] * 4)[0]

  assert not resolve_resident('auto', [(small, INCEPTION)], [gpu])[0]
  assert not resolve_resident('no', [(small, AS_STORED)], [gpu])[0]
  assert resolve_resident('yes', [(big, AS_STORED)], [cpu] * 4)[0]
  with pytest.raises(FieldError, match=r"^resident: 'yes' keeps"):
    resolve_resident('yes', [(small, INCEPTION)], [gpu])
  with pytest.raises(FieldError, match=r"^resident: 'atuo' .* did you mean 'auto'"):
    resolve_resident('atuo', [(small, AS_STORED)], [gpu])


class Mixed(Labelled):
  def __init__(self):
    super().__init__(8)
    self.image_shape = (None, None, 3)


def test_a_batch_that_does_not_divide_over_all_devices():
  with pytest.raises(FieldError, match=r'^batch_size: 12 .* 8 devices'):
    train(Labelled(13), batch_size=12, num_devices=4, process_count=2)


def test_mistakes_of_evaluation():
  with pytest.raises(FieldError, match=r'^eval_batch_size: 9 does not divide over 2 devices'):
    evaluate(Labelled(13), batch_size=9, num_devices=2)
  with pytest.raises(FieldError, match=r'^image_size: \(\) leaves .* differ in size'):
    evaluate(Mixed())
  evaluate(Mixed(), make_preprocess((4, 4), 0, 'resize', train=False))
