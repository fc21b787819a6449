"""Measures input from JPEG photographs: ours, PyTorch's DataLoader with Pillow, tf.data, in turns.

    python benchmarks/jpeg_input.py --photos=FOLDER --tensorflow_python=OTHER_VENV/bin/python

Photographs from the folder are written as JPEGs of 500x375 pixels, and each side makes batches of
them: decoded, a random part cut out as RandomResizedCrop does, resized by Pillow's bicubic with
antialiasing to 224x224, as uint8. `--resizings fast` has ours resized by cykooz-resizer. PyTorch's
float32 rows have ToTensor besides, as its examples. tf.data decodes the part alone, and resizes by
TensorFlow's bicubic with antialiasing; it runs where `--tensorflow_python` names an interpreter
that has TensorFlow and Pillow. Every side is a process of its own that keeps its loader; they run
one at a time, in turns. Images a core are those in a second of processor time, of a side's process
and its workers (Linux).
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

_SIZE = 224
_SUFFIXES = ('.jpg', '.jpeg', '.png')
_QUALITY = 95
_AREA, _ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of RandomResizedCrop


def _write_photographs(photos: Path, folder: Path, count: int, size: list[int]) -> float:
  """Writes photographs of a (width, height) in two folders; returns their mean bytes."""
  found = sorted(f for f in photos.rglob('*') if f.suffix.lower() in _SUFFIXES)
  chosen = found[:: max(len(found) // count, 1)][:count]
  if not chosen:
    raise SystemExit(f'--photos: {photos}: no photographs ({", ".join(_SUFFIXES)})')
  sizes = []
  for i, file in enumerate(chosen):
    image = Image.open(file).convert('RGB')
    image = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    path = folder / str(i % 2) / f'{i}.jpg'
    path.parent.mkdir(exist_ok=True)
    image.save(path, quality=_QUALITY)
    sizes.append(path.stat().st_size)
  return statistics.mean(sizes)


class _Photographs:
  """A torch data set, map-style: the i-th photograph, cropped at random, and its class."""

  def __init__(self, folder: Path, is_float: bool):
    self._files, self._is_float = sorted(map(str, folder.rglob('*.jpg'))), is_float

  def __len__(self) -> int:
    return 1000 * len(self._files)  # epochs without the pause between them

  def __getitem__(self, i: int):
    import torch

    file = self._files[i % len(self._files)]
    with Image.open(file) as image:
      image = image.convert('RGB')
    image = image.crop(self._part(*image.size)).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image))
    if self._is_float:
      pixels = pixels.permute(2, 0, 1).contiguous().float().div(255)
    return pixels, i % 2

  def _part(self, width: int, height: int) -> tuple[int, int, int, int]:
    import torch

    for _ in range(10):
      area = width * height * torch.empty(1).uniform_(*_AREA).item()
      aspect = math.exp(torch.empty(1).uniform_(*map(math.log, _ASPECT)).item())
      w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
      if 0 < w <= width and 0 < h <= height:
        left = torch.randint(0, width - w + 1, (1,)).item()
        top = torch.randint(0, height - h + 1, (1,)).item()
        return left, top, left + w, top + h
    return 0, 0, width, height


def _torch_batches(folder: Path, side: dict):
  from torch.utils.data import DataLoader

  dataset = _Photographs(folder, side['is_float'])
  return iter(DataLoader(dataset, side['batch_size'], shuffle=True, num_workers=side['workers']))


def _tensorflow_batches(folder: Path, side: dict):
  """Returns tf.data's batches, made by as many threads as there are "workers"."""
  import tensorflow as tf

  def load(file, label):
    data = tf.io.read_file(file)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
      tf.io.extract_jpeg_shape(data),
      tf.zeros((1, 0, 4)),
      area_range=_AREA,
      aspect_ratio_range=_ASPECT,
      max_attempts=10,
      use_image_if_no_bounding_boxes=True,
    )
    part = tf.concat([begin[:2], size[:2]], 0)
    # As accurate as Pillow's decoder is.
    image = tf.io.decode_and_crop_jpeg(data, part, channels=3, dct_method='INTEGER_ACCURATE')
    image = tf.image.resize(image, (_SIZE, _SIZE), 'bicubic', antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8), label

  files, threads = sorted(map(str, folder.rglob('*.jpg'))), side['workers']
  data = tf.data.Dataset.from_tensor_slices((files, [i % 2 for i in range(len(files))]))
  data = data.shuffle(len(files)).repeat().map(load, threads).batch(side['batch_size'], True)
  options = tf.data.Options()
  options.threading.private_threadpool_size = threads
  return data.prefetch(2).with_options(options).as_numpy_iterator()


def _our_batches(folder: Path, side: dict):
  from vit_jax import host_memory
  from vit_jax.data import load_source, make_preprocess, train_loader

  host_memory.reuse_freed_memory()  # in one arena, as workers do; train.py has several
  loader = train_loader(
    load_source('folder', 'train', str(folder)),
    make_preprocess((_SIZE, _SIZE), 3, 'inception', train=True, **side['options']),
    batch_size=side['batch_size'],
    seed=0,
    num_devices=1,
    process_index=0,
    process_count=1,
    resident=False,
    num_workers=side['workers'],
    num_threads=side['threads'],
    prefetch=4,
  )
  return loader.batches()


def _serve(folder: Path, side: dict) -> None:
  """For each line that is read, makes batches for some seconds; prints images/s, and a core."""
  makers = {'torch': _torch_batches, 'tf.data': _tensorflow_batches, 'ours': _our_batches}
  batches = makers[side['name'].partition(',')[0]](folder, side)
  next(batches)
  print('ready', flush=True)
  for line in sys.stdin:
    # What was made ahead while others ran doesn't count.
    for _ in range(2 * max(side['workers'], 1) + 5):
      next(batches)
    count, start, cpu = 0, time.perf_counter(), _cpu_seconds()
    while time.perf_counter() - start < float(line):
      next(batches)
      count += side['batch_size']
    # The processor's time is counted before that of a queue which fills again.
    cpu, seconds = _cpu_seconds() - cpu, time.perf_counter() - start
    print(json.dumps([count / seconds, count / cpu]), flush=True)
  if side['name'].startswith('ours'):
    batches.close()


def _cpu_seconds() -> float:
  """Returns the processor time so far of this process and of all in its session."""
  ticks = 0
  for path in Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = path.read_text().rpartition(')')[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
      continue
    if int(fields[3]) == os.getsid(0):
      ticks += int(fields[11]) + int(fields[12])
  return ticks / os.sysconf('SC_CLK_TCK')


class _Side:
  """A process that makes batches when told to."""

  def __init__(self, folder: Path, side: dict):
    self.rates = []
    command = [
      side.pop('python', sys.executable),
      __file__,
      '--serve',
      json.dumps(side),
      '--photos',
      str(folder),
    ]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    self._process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
    self._read()

  def _read(self) -> str:
    if not (line := self._process.stdout.readline()):
      raise SystemExit('a side ended before its time; see above')
    return line

  def run(self, seconds: float) -> None:
    self._process.stdin.write(f'{seconds}\n')
    self._process.stdin.flush()
    self.rates.append(json.loads(self._read()))

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def _sides(
  workers: list[int],
  threads: list[int],
  decodings: list[str],
  resizings: list[str],
  tensorflow_python: str,
):
  """Yields the sides to compare."""
  for count in filter(None, workers if tensorflow_python else ()):
    name = f'tf.data, {count} threads'
    yield {'name': name, 'workers': count, 'is_float': False, 'python': tensorflow_python}
  for count in workers:
    for is_float in (False, True):
      name = f'torch, {count} workers, {"float32" if is_float else "uint8"}'
      yield {'name': name, 'workers': count, 'is_float': is_float}
  for decoding, resizing, count in itertools.product(decodings, resizings, workers):
    options = {'decoding': decoding, 'resizing': resizing}
    for n in [1] if count else threads:
      name = f'ours, {count} workers' if count else f'ours, {n} threads'
      name = ', '.join([name, *(value for value in options.values() if value != 'exact')])
      yield {'name': name, 'workers': count, 'threads': n, 'options': options}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--photos', type=Path, required=True, help='a folder of photographs')
  parser.add_argument('--count', type=int, default=400, help='photographs that are used')
  parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2, 4])
  parser.add_argument('--threads', type=int, nargs='+', default=[1, 2, 8], help='without workers')
  parser.add_argument('--stored', type=int, nargs=2, default=[500, 375], help='width, height')
  parser.add_argument('--decodings', nargs='+', default=['exact'], help='exact, reduced')
  parser.add_argument('--resizings', nargs='+', default=['exact'], help='exact, fast')
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--turns', type=int, default=5)
  parser.add_argument('--seconds', type=float, default=1.0, help='of a turn of a side')
  parser.add_argument('--tensorflow_python', default='', help='an interpreter with TensorFlow')
  parser.add_argument('--serve', help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.serve:
    _serve(flags.photos, json.loads(flags.serve))
    return
  with tempfile.TemporaryDirectory() as temporary:
    size = _write_photographs(flags.photos, Path(temporary), flags.count, flags.stored)
    sides = {
      side['name']: _Side(Path(temporary), side | {'batch_size': flags.batch_size})
      for side in _sides(
        flags.workers, flags.threads, flags.decodings, flags.resizings, flags.tensorflow_python
      )
    }
    for _ in range(flags.turns):
      for side in sides.values():
        side.run(flags.seconds)
    for side in sides.values():
      side.close()
  width, height = flags.stored
  cores = len(os.sched_getaffinity(0))
  print(f'JPEGs of {width}x{height}, {size / 1000:.0f} kB; {cores} cores; {flags.turns} turns')
  first = next(name for name in sides if name.startswith(f'torch, {max(flags.workers)} workers'))
  print(f'ratios to "{first}" in each turn, medians (ranges)')
  print(f'{"":26}  images/s  ratio' + ' ' * 20 + 'images/s a core  ratio')
  for name, side in sides.items():
    cells = []
    for values, other in zip(
      np.transpose(side.rates), np.transpose(sides[first].rates), strict=True
    ):
      ratio = values / other
      spread = f'{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})'
      cells.append(f'{np.median(values):8.0f}  {spread:24}')
    print(f'{name:26}  ' + ' '.join(cells))


if __name__ == '__main__':
  main()
