"""Records to batches: which record goes where, kept on the device or streamed from the host.

(seed, step) decides everything: batch k is a function of the seed and k, so that training goes on
at any step without the state of an iterator, and however many processes and devices share the
global batch, it holds the same records in the same rows.
"""

import contextlib
import functools
import itertools
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from vit_jax import host_memory
from vit_jax.data import decoding, kinds
from vit_jax.data.preprocess import Preprocess
from vit_jax.data.sampling import ClassSampler, make_sampler
from vit_jax.data.sources.records import Record, Source
from vit_jax.data.views import Views
from vit_jax.errors import FieldError, check_choice

if TYPE_CHECKING:
  import grain  # which imports Orbax, and resident data never need

Arrays = dict[str, np.ndarray]

_RECORD_STREAM = 1  # of random numbers, apart from that of the order of examples
_MAX_CHUNK = 64  # rows that one thread loads at a time
_READ_AT_ONCE = 256  # records of a resident set, likewise
_ENDLESS = 2**62
# Bytes of an image up to which decoding is mostly Python's own work, in which threads wait for its
# lock: an image of MNIST took 500 us with eight of them, and 340 with one.
_SMALL = 2**12
_GIB = 2**30

_one_set = threading.Lock()  # held while a resident set is decoded


def _generator(*entropy: int) -> np.random.Generator:
  return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


@functools.lru_cache(maxsize=4)
def epoch_order(
  seed: int, epoch: int, num_examples: int, sampler: ClassSampler | None = None
) -> np.ndarray:
  """Returns the examples of an epoch in their order, int64 [num_examples].

  They are a permutation of all, or what `sampler` draws.
  """
  rng = _generator(seed, epoch)
  order = rng.permutation(num_examples) if sampler is None else sampler.draw(rng)
  order.flags.writeable = False
  return order


@dataclass(frozen=True)
class Plan:
  """Which record is in which row of which batch, for the rows that this process holds.

  Training goes through an endless stream of positions: position p is place p % N of epoch p // N
  (`epoch_order`), and batch k holds positions k * B to (k + 1) * B - 1, so batches may span epochs.
  Evaluation goes through the examples once, in order; rows left over in its last batch repeat
  example 0 with weight 0.

  Attributes:
    num_examples: N.
    batch_size: B, of the global batch.
    seed: of the order of examples; None to evaluate.
    num_devices: of this process; each holds a contiguous part of this process's contiguous part.
    process_index: of this process.
    process_count: how many share the global batch.
    sampler: draws the examples of each epoch; None takes each once.
  """

  num_examples: int
  batch_size: int
  seed: int | None
  num_devices: int
  process_index: int
  process_count: int
  sampler: ClassSampler | None = None

  @property
  def rows(self) -> int:
    """Rows of each batch that this process holds."""
    return self.batch_size // self.process_count

  @property
  def num_batches(self) -> int:
    """Batches of an evaluation."""
    return math.ceil(self.num_examples / self.batch_size)

  @property
  def slot(self) -> np.ndarray:
    """Places of this process's rows in the global batch, int32 [num_devices, rows / devices]."""
    first = self.process_index * self.rows
    return np.arange(first, first + self.rows, dtype=np.int32).reshape(self.num_devices, -1)

  def positions(self, first: int, count: int) -> np.ndarray:
    """Returns int64 [count]: positions of rows `first` on, counted over batches of this process."""
    step, row = np.divmod(np.arange(first, first + count), self.rows)
    return step * self.batch_size + self.process_index * self.rows + row

  def examples(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (indices of examples int64, weights float32) of positions, in the same shape."""
    if self.seed is None:
      real = positions < self.num_examples
      return np.where(real, positions, 0), real.astype(np.float32)
    epochs, offsets = np.divmod(positions, self.num_examples)
    index = np.empty_like(positions)
    for epoch in np.unique(epochs):
      here = epochs == epoch
      order = epoch_order(self.seed, int(epoch), self.num_examples, self.sampler)
      index[here] = order[offsets[here]]
    return index, np.ones(positions.shape, np.float32)


class ResidentLoader:
  """A data set small enough to stay on the device, and the rows of its batches.

  It is decoded in the background from the start, while the step that takes it is compiled; several
  sets one after another: training's, which is made first, is also waited for first.

  Attributes:
    shapes: those of `arrays`, and their dtypes, by name.
  """

  def __init__(self, source: Source, preprocess: Preprocess | Views, plan: Plan, num_threads: int):
    first = kinds.stack([preprocess(source[0])])
    self.shapes = {
      name: jax.ShapeDtypeStruct((len(source), *a.shape[1:]), a.dtype) for name, a in first.items()
    }
    background = ThreadPoolExecutor(1)
    self._decoding = background.submit(_decode_all, source, preprocess, self.shapes, num_threads)
    background.shutdown(wait=False)
    self._plan = plan

  @functools.cached_property
  def arrays(self) -> Arrays:
    """The whole set on the host, as `kinds.stack` of all N preprocessed records."""
    decoded, self._decoding = self._decoding, None  # which would keep them, once deleted here
    return decoded.result()

  def indices(self, start_step: int = 0, num_steps: int | None = None) -> Arrays:
    """Returns what batches `start_step` on are made of, D local devices with R rows of each.

    To train: index int32 [D, num_steps, R] into `arrays`, and slot int32 [D, R], the places of
    the rows in the global batch. To evaluate, where `num_steps` is all batches if not given: index,
    and weight float32 [D, num_steps, R].
    """
    plan = self._plan
    num_steps = plan.num_batches - start_step if num_steps is None else num_steps
    positions = plan.positions(start_step * plan.rows, num_steps * plan.rows)
    positions = positions.reshape(num_steps, plan.num_devices, -1).swapaxes(0, 1)
    index, weight = plan.examples(positions)
    rest = {'weight': weight} if plan.seed is None else {'slot': plan.slot}
    return {'index': index.astype(np.int32)} | rest


def _decode_all(
  source: Source,
  preprocess: Preprocess | Views,
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  num_threads: int,
) -> Arrays:
  """Decodes a whole data set, once, into arrays; a bar shows where it takes long."""
  arrays = {name: np.empty(a.shape, a.dtype) for name, a in shapes.items()}
  stored = math.prod(side or math.inf for side in source.image_shape)  # None where they differ
  decoded = sum(a.nbytes for a in arrays.values()) / len(source)
  is_small = max(stored, decoded) <= _SMALL
  alone = threading.Lock() if is_small else contextlib.nullcontext()

  def decode(start):
    indices = range(start, min(start + _READ_AT_ONCE, len(source)))
    records = source.read(indices)
    if is_small:  # with the first, sources read all that they read at once
      records = itertools.chain([next(records)], records)
    with alone:
      prepared = decoding.in_turn(records, preprocess)
      for i, record in zip(indices, prepared, strict=True):
        for name, array in arrays.items():
          array[i] = record[name]
    return len(indices)

  bar = tqdm(total=len(source), desc='Decoding', unit='image', delay=2, disable=None, leave=False)
  with _one_set, bar, ThreadPoolExecutor(num_threads) as pool:
    for done in pool.map(decode, range(0, len(source), _READ_AT_ONCE)):
      bar.update(done)
  return arrays


@dataclass(frozen=True)
class _Chunk:
  """Consecutive rows of a batch.

  Grain takes it for one leaf and so pickles it through a pipe. Arrays would go through shared
  memory, which containers have little of and which is left behind when workers are stopped early.
  """

  arrays: Arrays


@dataclass(frozen=True)
class _LoadChunk:
  """Loads the i-th chunk of this process's rows, counted from step 0."""

  source: Source
  preprocess: Preprocess | Views
  plan: Plan
  size: int

  def __call__(self, i: int) -> _Chunk:
    positions = self.plan.positions(i * self.size, self.size)
    index, weight = self.plan.examples(positions)
    rngs = map(self._rng, positions.tolist())
    read = self.source.read(index.tolist())
    prepared = decoding.in_turn(read, lambda record: self.preprocess(record, next(rngs)))
    records = [record for _, record in zip(index, prepared, strict=True)]
    return _Chunk(kinds.stack(records) | {'weight': weight})

  def _rng(self, position: int) -> np.random.Generator | None:
    if not self.preprocess.random:
      return None
    return _generator(self.plan.seed, _RECORD_STREAM, position)


@dataclass(frozen=True)
class StreamedLoader:
  """Batches made on the host by threads, or by worker processes with threads, ahead of their use.

  Host memory is bounded by `prefetch` batches, plus one that is in use.
  """

  source: Source
  preprocess: Preprocess | Views
  plan: Plan
  num_workers: int
  num_threads: int
  prefetch: int

  @property
  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the arrays of a batch."""
    arrays = kinds.stack([self.preprocess(self.source[0], _generator(0))])
    slot = self.plan.slot
    arrays |= {'weight': np.ones(1, np.float32), 'slot': slot[0, :1]}
    return {
      name: jax.ShapeDtypeStruct((*slot.shape, *a.shape[1:]), a.dtype) for name, a in arrays.items()
    }

  def batches(self, start_step: int = 0) -> Iterator[Arrays]:
    """Yields batches `start_step` on: without end to train, up to the last to evaluate.

    Closing the generator stops its threads and processes. D local devices have R rows each: the
    entries of the records, as `kinds.stack` gives them, with leading axes [D, R], as in image uint8
    [D, R, H, W, C]; weight float32 [D, R]; and slot int32 [D, R], the places of the rows in the
    global batch.
    """
    import grain

    plan = self.plan
    # Chunks come in order, and whoever is done early takes another: two for each thread.
    taken = 2 * self.num_threads * max(self.num_workers, 1)
    most = min(_MAX_CHUNK, max(plan.rows * self.prefetch // taken, 1))
    size = max(n for n in range(1, most + 1) if plan.rows % n == 0)
    per_batch = plan.rows // size
    stop = _ENDLESS if plan.seed is not None else plan.num_batches * per_batch
    chunks = grain.MapDataset.range(start_step * per_batch, stop)
    chunks = chunks.map(_LoadChunk(self.source, self.preprocess, plan, size))
    iterator = iter(self._parallel(chunks, per_batch).batch(per_batch, batch_fn=list))
    try:
      for parts in iterator:
        arrays = parts[0].arrays
        if len(parts) > 1:
          arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in arrays}
        split = (plan.num_devices, plan.rows // plan.num_devices)
        yield {n: a.reshape(*split, *a.shape[1:]) for n, a in arrays.items()} | {'slot': plan.slot}
    finally:
      iterator.close()

  def first_rows(self, step: int, count: int) -> Arrays:
    """Returns the first rows of a batch that this process holds, as `batches` has them: [count]."""
    load = _LoadChunk(self.source, self.preprocess, self.plan, 1)
    rows = [load(step * self.plan.rows + row).arrays for row in range(count)]
    arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return arrays | {'slot': self.plan.slot.reshape(-1)[:count]}

  def _parallel(self, chunks: 'grain.MapDataset', per_batch: int) -> 'grain.IterDataset':
    import grain

    workers = max(self.num_workers, 1)
    ahead = math.ceil(self.prefetch * per_batch / workers)
    threads = min(self.num_threads, ahead)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    chunks = chunks.to_iter_dataset(options)
    if self.num_workers:
      if not flags.FLAGS.is_parsed():  # in a notebook, say; Grain reads flags to start workers
        flags.FLAGS.mark_as_parsed()
      options = grain.MultiprocessingOptions(self.num_workers, per_worker_buffer_size=1)
      chunks = chunks.mp_prefetch(options, worker_init_fn=_init_worker)
    return chunks


def _init_worker(worker_index: int, num_workers: int) -> None:
  """Has a worker process live exactly as long as its parent wants, and end with it."""
  del worker_index, num_workers
  host_memory.reuse_freed_memory()
  # Ctrl-C, cluster managers and a terminal's end signal all processes, and the parent still has a
  # step to finish.
  for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
    if signum := getattr(signal, name, None):  # Windows has no SIGHUP
      signal.signal(signum, signal.SIG_IGN)

  def follow():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def train_loader(
  source: Source,
  preprocess: Preprocess | Views,
  *,
  batch_size: int,
  seed: int,
  num_devices: int,
  process_index: int,
  process_count: int,
  resident: bool,
  num_workers: int,
  num_threads: int,
  prefetch: int,
  sampling: str = 'uniform',
) -> ResidentLoader | StreamedLoader:
  """Returns the loader of an endless stream of shuffled batches.

  Args:
    source: the records.
    preprocess: for training; not a random one where `resident`.
    batch_size: of the global batch, 1 or more.
    seed: 0 or more; of the order of examples and of what `preprocess` draws.
    num_devices: of this process.
    process_index: of this process.
    process_count: how many share the global batch.
    resident: decode the whole set now, to stay on the device; else make batches on the host.
    num_workers: processes that make batches; 0: threads of this process.
    num_threads: that decode images, in each process, 1 or more.
    prefetch: batches made ahead, 1 or more.
    sampling: how often classes are drawn, a key of `sampling.SAMPLING`.

  Raises:
    FieldError: a `batch_size` that doesn't divide over the devices, images of different sizes and
      no `image_size`, or a `sampling` that needs other labels.
  """
  _check_batch_size('batch_size', batch_size, num_devices * process_count)
  sampler = make_sampler(sampling, source)
  plan = Plan(len(source), batch_size, seed, num_devices, process_index, process_count, sampler)
  return _make_loader(source, preprocess, plan, resident, num_workers, num_threads, prefetch)


def eval_loader(
  source: Source,
  preprocess: Preprocess | Views,
  *,
  batch_size: int,
  num_devices: int,
  process_index: int,
  process_count: int,
  resident: bool,
  num_workers: int,
  num_threads: int,
  prefetch: int,
) -> ResidentLoader | StreamedLoader:
  """Returns the loader of every example once, in order; rows left over have weight 0.

  Arguments and errors are those of `train_loader`, but that `batch_size` is `eval_batch_size` in
  errors.
  """
  _check_batch_size('eval_batch_size', batch_size, num_devices * process_count)
  plan = Plan(len(source), batch_size, None, num_devices, process_index, process_count)
  return _make_loader(source, preprocess, plan, resident, num_workers, num_threads, prefetch)


def _make_loader(
  source: Source,
  preprocess: Preprocess | Views,
  plan: Plan,
  resident: bool,
  num_workers: int,
  num_threads: int,
  prefetch: int,
) -> ResidentLoader | StreamedLoader:
  if not preprocess.resizes and None in source.image_shape:
    raise FieldError(
      'image_size',
      '() leaves images as they are stored, and these differ in size; give (height, width)',
    )
  if not preprocess.takes_clips and source.num_frames is None:
    raise FieldError(
      'num_frames', '0 leaves videos as they are stored, and these differ in length; give a number'
    )
  if not preprocess.takes_points and source.num_points is None:
    raise FieldError(
      'num_points', '0 leaves points as they are stored, and their number differs; give one'
    )
  if resident:
    return ResidentLoader(source, preprocess, plan, num_threads)
  return StreamedLoader(source, preprocess, plan, num_workers, num_threads, prefetch)


def _check_batch_size(field: str, given: int, num_devices: int) -> None:
  if given % num_devices:
    raise FieldError(field, f'{given} does not divide over {num_devices} devices')


def resolve_resident(
  resident: str, sets: Sequence[tuple[Source, Preprocess | Views]], devices: Sequence[Any]
) -> tuple[bool, str]:
  """Decides whether data sets stay on the devices; all processes of a run decide alike.

  Args:
    resident: 'yes', 'no', or 'auto': where nothing is random on the host and the decoded images
      fit in a quarter of a device's memory; where that isn't known, as on CPU, in 1 GiB of host
      memory, which virtual devices share.
    sets: (source, preprocess) of everything that would stay.
    devices: the local `jax.Device`s, each of which would hold a copy.

  Returns:
    The decision, and the reason for it in a few words.

  Raises:
    FieldError: an unknown value, or 'yes' with a random `preprocess`.
  """
  check_choice('resident', resident, ('auto', 'yes', 'no'))
  is_random = any(preprocess.random for _, preprocess in sets)
  if resident == 'yes' and is_random:
    raise FieldError(
      'resident',
      "'yes' keeps each image as it is decoded once, and a random crop on the host "
      "(crop='inception', num_frames of a video, or num_points) needs it anew every time; give "
      "'auto' or 'no'",
    )
  if resident != 'auto':
    return resident == 'yes', f'resident={resident!r}'
  if is_random:
    return False, 'crops, clips or points are taken at random on the host'
  size = sum(len(source) * _num_bytes(preprocess(source[0])) for source, preprocess in sets)
  # The whole memory, not what is free: that may differ between processes.
  stats = devices[0].memory_stats() or {}
  limit = stats['bytes_limit'] // 4 if 'bytes_limit' in stats else _GIB // len(devices)
  relation = 'at most' if size <= limit else 'more than'
  reason = f'{size / 2**20:,.1f} MiB decoded, {relation} the {limit / 2**20:,.0f} MiB for data'
  return size <= limit, reason


def _num_bytes(record: Record) -> int:
  """Returns the size of a record's arrays; that of a single number doesn't count."""
  return sum(value.nbytes for value in record.values() if isinstance(value, np.ndarray))
