"""Writes the features of images: python -m vit_jax.features RUN|WEIGHTS [IMAGE...] FEATURES.npz

Without images, those of a run's data set: --split. A model of videos or points reads these. The
file has `features`, float32 [N, D] or, of all tokens, [N, T, D]; `files` [N], of images that are no
data set; and where images are in folders of two names or more, or a data set has classes, `labels`
and `class_names`. With labels, the accuracy of k-NN is printed, and --map colours by them.
"""

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from vit_jax import cli, neighbors, weight_flags
from vit_jax.data import decoding, kinds
from vit_jax.errors import UsageError, field_prefix, printable
from vit_jax.feature_reader import ALL, FeatureReader
from vit_jax.models import ModelConfig
from vit_jax.models.features import POOLING
from vit_jax.precision import DTYPES, resolve_dtype
from vit_jax.run import splits

_POOLING = flags.DEFINE_enum(
  'pooling',
  POOLING[0],
  [*POOLING, ALL],
  "What the backbone's own head reads; the class token; the mean of the patches'; or all tokens.",
)
_LAYER = flags.DEFINE_integer('layer', None, 'Whose tokens, from 0. Default: after the last norm.')
_SPLIT = flags.DEFINE_enum(
  'split', 'test', ['train', 'val', 'test'], "Of a run's data, without images."
)
_K = flags.DEFINE_integer('k', 20, 'Neighbours that vote.', lower_bound=1)
_MAP = flags.DEFINE_string('map', None, 'MAP.png to draw: PCA, then t-SNE, to two dimensions.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 32, 'Images computed at once.', lower_bound=1)
_DTYPE = flags.DEFINE_enum('dtype', 'auto', DTYPES, 'To compute in; auto: bfloat16 on GPU and TPU.')

_TEMPERATURE = 0.07  # of the votes, as in config.evaluators.knn
_MOST_JUDGED = 10_000  # examples that k-NN classifies
_JUDGED_AT_ONCE = 256
_BANK = 2**14  # examples that are compared with these
_MOST_DRAWN = 2_000  # in a map


class _Data(NamedTuple):
  """What features are read of.

  Attributes:
    items: one for each example.
    read: item to input.
    name: of them all.
    files: paths; None of a data set.
    labels: int [N] or multi-hot float [N, K]; None where there are none.
    class_names: of the labels.
  """

  items: Sequence[Any]
  read: Callable[[Any], Any]
  name: str
  files: list[str] | None
  labels: np.ndarray | None
  class_names: Sequence[str]


def main(source: str, *paths: str) -> int:
  """Writes the features; returns the exit code, 1 if a file is damaged."""
  warnings.filterwarnings('ignore', module='PIL')  # of odd files, which it reads all the same
  *inputs, out = _check_paths(paths)
  variables, config = weight_flags.load(source)
  data = _of_files(inputs, config) if inputs else _of_run(Path(source))
  is_labelled = data.labels is not None and data.labels.ndim == 1
  if _K.present and not is_labelled:
    raise UsageError(
      f'--k: k-NN needs one label of each image, and {data.name} has none or several'
    )
  with field_prefix('--'):
    reader = FeatureReader(
      variables,
      config,
      pooling=_POOLING.value,
      layer=_LAYER.value,
      dtype=resolve_dtype(_DTYPE.value),
    )
  try:
    with tempfile.TemporaryFile(dir=out.parent) as file:  # there may be more than memory holds
      kept = _read(reader, data, file)
      features = np.memmap(file, np.float32, 'r+', shape=(len(kept), *reader.shape))
      data = _take(data, kept)
      _save(features, data, out)
  except OSError as e:
    raise UsageError(f'{out}: cannot be written ({e.strerror})') from e
  if is_labelled and features.ndim == 2 and len(kept) > 1:
    print(_judge(features, data))
  if _MAP.value:
    _draw(reader, features, data if is_labelled else data._replace(labels=None), kept)
  return int(len(kept) < len(data.items))


def _check_paths(paths: Sequence[str]) -> list[Any]:
  """Returns the inputs, and the file to write."""
  if not paths or not paths[-1].endswith('.npz'):
    raise UsageError('give RUN_OR_WEIGHTS [IMAGE_OR_FOLDER...] FEATURES.npz; the last is written')
  if _SPLIT.present and len(paths) > 1:
    raise UsageError(f'--split: {_SPLIT.value}, but images are given')
  for path in filter(None, (paths[-1], _MAP.value)):
    if not Path(path).absolute().parent.is_dir():
      raise UsageError(f'{path}: there is no such folder to write to')
  if _MAP.value and not _MAP.value.endswith('.png'):
    raise UsageError(f'--map: {_MAP.value} does not end in .png')
  for flag in (_MAP, _K):
    if flag.present and _POOLING.value == ALL:
      raise UsageError(f'--{flag.name}: needs one vector of each image, not --pooling={ALL}')
  return [*paths[:-1], Path(paths[-1]).absolute()]


def _of_files(paths: Sequence[str], config: ModelConfig) -> _Data:
  """Returns files, whose classes are the folders that they are in, where these have two names."""
  kind = kinds.kind_of(config.model.INPUT)
  files = [file for path in paths for file in kind.find_files(path)]
  folders = [os.path.basename(os.path.dirname(os.path.abspath(file))) for file in files]
  names, labels = np.unique(folders, return_inverse=True)
  return _Data(
    items=files,
    read=kind.decode,
    name=f'the {kind.plural} given',
    files=[str(file) for file in files],
    labels=labels.astype(np.int32) if len(names) > 1 else None,
    class_names=names.tolist(),
  )


def _of_run(workdir: Path) -> _Data:
  """Returns a split of the data of a run."""
  if not (workdir / 'config.json').exists():
    raise UsageError(f'{workdir} is no run, which would have data of its own; give images')
  source, name = splits.read_split(workdir, _SPLIT.value)
  labels = source.labels()
  return _Data(
    items=range(len(source)),
    read=source.__getitem__,
    name=name,
    files=None,
    labels=None if labels is None else np.asarray(labels),
    class_names=list(source.class_names),
  )


def _read(reader: FeatureReader, data: _Data, file: BinaryIO) -> list[int]:
  """Writes the features of what can be decoded; returns its indices and prints what can't."""
  kept, is_set = [], data.files is None

  def read(index):
    value = data.read(data.items[index])
    return value[reader.input] if is_set else value

  rows = reader.map(read, range(len(data.items)), _BATCH_SIZE.value)
  bar = {'total': len(data.items), 'desc': 'Reading features', 'unit': reader.input}
  with tqdm(rows, **bar, delay=2, disable=None, leave=False) as rows:
    for index, row in rows:
      if not isinstance(row, Exception):
        file.write(row.tobytes())
        kept.append(index)
      elif is_set:
        raise row
      else:
        line = printable(f'{data.files[index]}: cannot be decoded ({decoding.reason(row)})')
        rows.write(line, file=sys.stderr)
  if not kept:
    raise UsageError(f'no {reader.input} can be decoded')
  file.flush()
  return kept


def _take(data: _Data, kept: Sequence[int]) -> _Data:
  """Returns what belongs to some of the examples."""
  return data._replace(
    files=data.files and [data.files[i] for i in kept],
    labels=None if data.labels is None else data.labels[kept],
  )


def _save(features: np.ndarray, data: _Data, out: Path) -> None:
  """Writes the file, so that it is either the old or the new one; prints what is in it."""
  arrays = {'features': features}
  if data.files is not None:
    arrays['files'] = np.array(data.files)
  if data.labels is not None:
    arrays |= {'labels': data.labels, 'class_names': np.array(data.class_names)}
  temporary = out.with_name(f'{out.name}.tmp')
  try:
    with temporary.open('wb') as file:
      np.savez(file, **arrays)
    temporary.replace(out)
  finally:
    temporary.unlink(missing_ok=True)
  shape = ', '.join(map(str, features.shape))
  print(f'{out}: {", ".join(arrays)}; features are float32 [{shape}]', flush=True)


def _judge(features: np.ndarray, data: _Data) -> str:
  """Returns the accuracy of k-NN in words: each example by the votes of its nearest others."""
  k = min(_K.value, len(features) - 1)
  judged = _sample(len(features), _MOST_JUDGED)
  accuracy = leave_one_out(features, data.labels, judged, k, len(data.class_names))
  of = _count(len(judged), len(features))
  return f'k-NN accuracy, each of {of} by the {k} nearest others: {accuracy:.2%}'


def leave_one_out(
  features: np.ndarray, labels: np.ndarray, judged: np.ndarray, k: int, num_classes: int
) -> float:
  """Returns the share of examples that the votes of the k nearest others classify rightly.

  Args:
    features: float32 [N, D], on disk; `_BANK` of them at a time are compared with the judged ones.
    labels: int [N].
    judged: int [M], indices of the examples that are classified.
    k: neighbours that vote, fewer than N.
    num_classes: that labels are below.
  """

  @jax.jit
  def take_nearer(best, queries, block, classes, start):
    block, index = neighbors.unit(block), start + jnp.arange(len(block))

    def take(args):
      best, query, itself = args
      others = jnp.where(index == itself, -1, classes)
      best = jax.tree.map(lambda x: x[None], best)
      best = neighbors.take_nearer(best, query[None], block, others)
      return jax.tree.map(lambda x: x[0], best)

    return jax.lax.map(take, (best, queries, judged), batch_size=_JUDGED_AT_ONCE)

  best, queries = neighbors.none_yet(len(judged), k), neighbors.unit(features[judged])
  for start in range(0, len(features), _BANK):
    part = slice(start, start + _BANK)
    best = take_nearer(best, queries, features[part], labels[part].astype(np.int32), start)
  guesses = neighbors.votes(best, _TEMPERATURE, num_classes).argmax(axis=1)
  return float((np.asarray(guesses) == labels[judged]).mean())


def _count(some: int, whole: int) -> str:
  return f'{some:,} of {whole:,}' if some < whole else f'{whole:,}'


def _sample(count: int, most: int) -> np.ndarray:
  """Returns up to `most` of the indices below `count`, evenly spread."""
  return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _draw(reader: FeatureReader, features: np.ndarray, data: _Data, kept: Sequence[int]) -> None:
  from vit_jax.explain import feature_map  # Matplotlib and scikit-learn, which take a while

  drawn = _sample(len(features), _MOST_DRAWN)
  try:
    places = feature_map.places(features[drawn])
  except ValueError as e:
    raise UsageError(f'--map: {e}') from e

  def picture(i):
    value = data.read(data.items[kept[drawn[i]]])
    return reader.picture(value if data.files is not None else value[reader.input])

  figure = feature_map.map_figure(
    places,
    None if data.labels is None else data.labels[drawn],
    data.class_names,
    picture,
    f'Features of {data.name} ({_count(len(drawn), len(features))}): t-SNE',
  )
  try:
    figure.savefig(_MAP.value)
  except OSError as e:
    raise UsageError(f'--map: {_MAP.value} cannot be written ({e.strerror})') from e
  print(_MAP.value)


if __name__ == '__main__':
  cli.run(main, arguments=('RUN_OR_WEIGHTS', '[IMAGE_OR_FOLDER...]'))
