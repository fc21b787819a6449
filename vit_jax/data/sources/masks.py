"""Folders of images and of masks, which have the class of each pixel."""

import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vit_jax.data import decoding, images
from vit_jax.data.kinds import KINDS, VOID
from vit_jax.data.sources.records import Record, Source
from vit_jax.data.sources.splits import (
  EVALUATION_SPLITS,
  resolve_aliases,
  split_names,
  split_ranges,
)
from vit_jax.errors import FieldError, UsageError
from vit_jax.regular_files import read_text

NO_CLASS = 'void'  # the name in classes.txt of what isn't learned


class MaskSource(Source):
  """Records with an image and its mask, uint8 [H, W], from files that fit each other.

  Attributes:
    files: paths of the images below `root`, in the order of the records.
  """

  def __init__(
    self,
    root: Path,
    pairs: Sequence[tuple[str, str]],
    names: Sequence[str],
    image_shape: tuple[int | None, int | None, int],
  ):
    self.files = tuple(image for image, _ in pairs)
    self.class_names, self.image_shape = tuple(n for n in names if n != NO_CLASS), image_shape
    self._root, self._masks, self._labels = root, [mask for _, mask in pairs], label_table(names)

  def __len__(self) -> int:
    return len(self.files)

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    for i in indices:
      # No name holds the image, whose file would stay in memory until the next is asked for.
      yield {
        'image': images.EncodedImage(self._root / self.files[i], self.image_shape[2]),
        'mask': self._labels[KINDS['mask'].decode(self._root / self._masks[i])],
      }


def load(split: str, directory: str) -> MaskSource:
  """Opens splits of a folder of images and masks.

  It has classes.txt, the name of each id in the masks, from 0, one a line, and `images` and `masks`
  in a folder for each split (train, val, test), or all in two of these names. A mask is a PNG,
  grey or with a palette, whose values are ids, of its image's size and name but for the ending.
  Pixels of a class that is called `void`, or of the id 255, are of no class. Images that can't be
  decoded are skipped.

  Args:
    split: in TFDS syntax; 'val', 'valid', 'validation' and 'test' stand for each other where there
      is but one.
    directory: the folder.

  Raises:
    FieldError: no such folder or no classes.txt (`dir`), or no such split.
    UsageError: classes.txt can't be used, an image without a mask or a mask without an image, or a
      mask that isn't one, is of another size, or has an id that isn't in classes.txt.
  """
  root = Path(directory).expanduser().absolute()
  if not directory or not (root / 'classes.txt').is_file():
    raise FieldError('dir', f'{directory!r} is not a folder with a classes.txt')
  names = _read_names(root / 'classes.txt')
  found = [name for name in ('train', *EVALUATION_SPLITS) if (root / name / 'images').is_dir()]
  prefixes = {name: f'{name}/' for name in found} if 'train' in found else {'train': ''}
  if not (root / prefixes['train'] / 'images').is_dir():
    raise FieldError('dir', f'{root} has neither train/images nor images')
  split = resolve_aliases(str(split), prefixes)
  chosen = split_names(split, prefixes)
  checked, pairs = {}, {}
  for name in dict.fromkeys(('train', *chosen)):
    listed = images.list_images(root, [f'{prefixes[name]}images'])
    checked[name] = images.check_images(root, *listed)
    if not checked[name].files:
      raise FieldError('dir', f'{root / prefixes[name] / "images"} holds no images')
    masks, stamp = images.list_images(root, [f'{prefixes[name]}masks'])
    pairs[name] = _pair(root, prefixes[name], checked[name], masks)
    _check_masks(root, tuple(pairs[name]), len(names), (listed[1], stamp))
  ranges = split_ranges(split, {name: len(pairs[name]) for name in chosen})
  shapes = {shape for c in checked.values() for shape in c.shapes}
  return MaskSource(
    root,
    [pairs[name][i] for name, r in ranges for i in r],
    names,
    images.common_shape(shapes, checked['train']),
  )


def label_table(names: Sequence[str]) -> np.ndarray:
  """Returns the class of each id in masks, uint8 [256], by the names of ids; `VOID` for none."""
  table, is_class = np.full(256, VOID, np.uint8), np.array([name != NO_CLASS for name in names])
  table[: len(names)][is_class] = np.arange(is_class.sum())
  return table


def _read_names(path: Path) -> list[str]:
  names = [line.strip() for line in read_text(path).removeprefix('\ufeff').splitlines()]
  while names and not names[-1]:
    names.pop()
  if '' in names:
    raise UsageError(f'{path}:{names.index("") + 1}: an empty line, in place of a name')
  classes = [name for name in names if name != NO_CLASS]
  if not 2 <= len(classes) <= VOID or len(names) > VOID:
    raise UsageError(f'{path}: {len(classes)} classes in {len(names)} lines, not 2 to {VOID}')
  if repeated := [name for name in classes if classes.count(name) > 1]:
    raise UsageError(f'{path}: {repeated[0]!r} stands there twice')
  return names


def _pair(
  root: Path, prefix: str, checked: images.Checked, masks: Sequence[str]
) -> list[tuple[str, str]]:
  """Returns (image, mask) for each image, matched by their paths without the ending."""

  def stem(file: str) -> str:
    return os.path.splitext(file[len(prefix) :].partition('/')[2])[0]

  by_stem, pairs = {}, []
  for mask in masks:
    if (other := by_stem.setdefault(stem(mask), mask)) != mask:
      raise UsageError(f'{root / mask}: {root / other} has the same name')
  for image in checked.files:
    if stem(image) not in by_stem:
      raise UsageError(f'{root / image}: no mask of this name in {root / prefix / "masks"}')
    pairs.append((image, by_stem.pop(stem(image))))
  for image in checked.skipped:
    by_stem.pop(stem(image), None)
  if by_stem:
    mask = next(iter(by_stem.values()))
    raise UsageError(f'{root / mask}: no image of this name in {root / prefix / "images"}')
  return pairs


@functools.lru_cache(maxsize=4)  # splits are loaded one by one, often from the same files
def _check_masks(
  root: Path, pairs: tuple[tuple[str, str], ...], num_ids: int, stamp: tuple[object, ...]
) -> None:
  """Decodes every mask once; raises UsageError for the first that doesn't fit."""
  del stamp  # only keeps changed files from being taken for checked ones
  bar = {'total': len(pairs), 'desc': 'Checking masks', 'unit': 'mask'}
  with ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool:
    problems = pool.map(lambda pair: _problem(root, *pair, num_ids), pairs)
    for (_, mask), problem in zip(
      pairs, tqdm(problems, **bar, delay=2, disable=None, leave=False), strict=True
    ):
      if problem:
        pool.shutdown(wait=False, cancel_futures=True)
        raise UsageError(f'{root / mask}: {problem}')


def _problem(root: Path, image: str, mask: str, num_ids: int) -> str | None:
  """Returns what is wrong with a mask; None where nothing is."""
  with decoding.turn():
    try:
      ids = KINDS['mask'].decode(root / mask)
    except decoding.UnreadableFile as e:
      return f'no mask: {e.reason}'
    size = images.probe_image(root / image)[:2]
  if ids.shape != size:
    return '{}x{} pixels, but its image has {}x{}'.format(*ids.shape, *size)
  beyond = ids[(ids >= num_ids) & (ids != VOID)]
  if beyond.size:
    return f'id {beyond[0]}, but classes.txt names 0 to {num_ids - 1} (and {VOID} is of no class)'
  return None
