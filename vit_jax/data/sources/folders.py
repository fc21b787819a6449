"""Folders of image files, with one for each class or without; of videos or points, see there."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vit_jax.data import images
from vit_jax.data.kinds import KINDS
from vit_jax.data.sources.records import Record, Source
from vit_jax.data.sources.splits import (
  EVALUATION_SPLITS,
  resolve_aliases,
  split_names,
  split_ranges,
)
from vit_jax.errors import FieldError, check_choice

OPTIONS = {
  # auto: the names of folders, and none of images that are in no folder of their own. none: all
  # images, however deep, are read without.
  'labels': 'auto',
}
_UNLABELLED = ''  # the one class of images without


class FolderSource(Source):
  """Records from image files, all of which decode.

  Attributes:
    plural: what the files hold, for messages.
    files: paths below `root`, in the order of the records.
    skipped: those of the used splits that can't be decoded.
  """

  plural = 'images'

  def __init__(
    self,
    root: Path,
    files: Sequence[str],
    labels: Sequence[int | np.ndarray],
    class_names: Sequence[str],
    image_shape: tuple[int | None, int | None, int],
    skipped: Sequence[str],
  ):
    self.class_names, self.image_shape = tuple(class_names), image_shape
    self.files, self.skipped = tuple(files), tuple(skipped)
    self._root, self._labels = root, KINDS['label'].stack(labels)

  @classmethod
  def check(cls, root: Path, folders: Sequence[str]) -> images.Checked:
    """Returns the files in folders below `root`, those that can't be decoded apart."""
    return images.check_images(root, *images.list_images(root, folders))

  def __len__(self) -> int:
    return len(self.files)

  def labels(self) -> np.ndarray | None:
    return self._labels if self.class_names else None

  def read(self, indices: Sequence[int]) -> Iterator[Record]:
    for i in indices:
      label = self._labels[i]
      labels = {'label': label if label.ndim else int(label)} if self.class_names else {}
      # No name holds the image, whose file would stay in memory until the next is asked for.
      yield {'image': images.EncodedImage(self._root / self.files[i], self.image_shape[2])} | labels


def load(split: str, directory: str, labels: str = 'auto') -> FolderSource:
  """Opens splits of a folder of images: colour where any image of 'train' is, grey otherwise.

  Args:
    split: as for `open_folder`, as `directory`, and the errors.
    directory: with a folder for each class or, of images without labels, with the images, or train
      and test (or 'val' and so on) with the images.
    labels: see `OPTIONS`.
  """
  check_choice('options.labels', labels, ('auto', 'none'))
  is_labelled = labels == 'auto' and not _is_flat(Path(directory).expanduser())
  return open_folder(FolderSource, split, directory, is_labelled)


def _is_flat(root: Path) -> bool:
  """Whether there are images, or folders of splits with images, and no folders of classes."""
  folders = _visible_folders(root) if root.is_dir() else []
  if 'train' in folders and {*folders} <= {'train', *EVALUATION_SPLITS}:
    return _is_flat(root / 'train')
  return not folders and any(file.suffix.lower() in images.SUFFIXES for file in root.glob('*'))


def open_folder(
  kind: type[FolderSource], split: str, directory: str, is_labelled: bool = True
) -> FolderSource:
  """Opens splits of a folder with a folder of files for each class, or without them.

  Args:
    kind: the class of the source, which knows the files.
    split: in TFDS syntax; 'val', 'valid', 'validation' and 'test' stand for each other where there
      is but one. A slice takes each class in proportion.
    directory: the folder, with CLASS/*, or train/CLASS/* and test/CLASS/* (or 'val' and so on), or
      CLASS/train/* and CLASS/test/*.
    is_labelled: whether there are classes; else all files in it, or in those of splits, are read.

  Raises:
    FieldError: no such folder (`dir`) or split, fewer than two classes, splits whose classes
      differ, or a class without images.
  """
  root = Path(directory).expanduser().absolute()
  if not directory or not root.is_dir():
    raise FieldError('dir', f'{directory!r} is not a folder; give the folder of {kind.plural}')
  splits = _find_splits(root, kind.plural) if is_labelled else _find_unlabelled(root)
  split = resolve_aliases(str(split), splits)
  if splits['train'] == {c: c for c in splits['train']} and split in EVALUATION_SPLITS:
    raise FieldError(
      'split',
      f'{split!r} is not a folder of {root}; without folders for the splits, give slices '
      "such as 'train[:80%]' to train and 'train[80%:]' to test",
    )
  names = split_names(split, splits)
  class_names = list(splits['train'])
  checked = {}
  for name in dict.fromkeys(('train', *names)):
    _compare_classes(root, name, splits[name], class_names)
    checked[name] = kind.check(root, [splits[name][class_name] for class_name in class_names])
  labels = {name: _labels(checked[name].files, splits[name], class_names) for name in checked}
  if empty := set(range(len(class_names))) - set(labels['train']):
    folder = root / splits['train'][class_names[min(empty)]]
    raise FieldError('dir', f'{folder} holds no {kind.plural}')

  sizes = {name: len(checked[name].files) for name in names}
  ranges = split_ranges(split, sizes, labels.__getitem__)
  return kind(
    root,
    [checked[name].files[i] for name, r in ranges for i in r],
    [labels[name][i] for name, r in ranges for i in r],
    class_names if is_labelled else (),
    images.common_shape({shape for c in checked.values() for shape in c.shapes}, checked['train']),
    [file for name in dict.fromkeys(names) for file in checked[name].skipped],
  )


def _visible_folders(folder: Path) -> list[str]:
  return sorted(f.name for f in folder.iterdir() if f.is_dir() and f.name[0] != '.')


def _find_splits(root: Path, plural: str) -> dict[str, dict[str, str]]:
  """Returns split -> class -> its folder below `root`; all is 'train' where there are no splits."""
  names = ('train', *EVALUATION_SPLITS)
  found = [n for n in names if (root / n).is_dir() and _visible_folders(root / n)]
  if 'train' in found:
    _check_classes(root / 'train', plural)
    return {n: {c: f'{n}/{c}' for c in _visible_folders(root / n)} for n in found}
  classes = _check_classes(root, plural)
  if not all((root / c / 'train').is_dir() for c in classes):
    return {'train': {c: c for c in classes}}
  inner = {n: {c: f'{c}/{n}' for c in classes if (root / c / n).is_dir()} for n in names}
  return {n: folders for n, folders in inner.items() if folders}


def _find_unlabelled(root: Path) -> dict[str, dict[str, str]]:
  """Returns what `_find_splits` does, with one class whose files are all of a split."""
  if not (root / 'train').is_dir():
    return {'train': {_UNLABELLED: ''}}
  names = ('train', *EVALUATION_SPLITS)
  return {name: {_UNLABELLED: name} for name in names if (root / name).is_dir()}


def _check_classes(folder: Path, plural: str) -> list[str]:
  names = _visible_folders(folder)
  if len(names) < 2:
    raise FieldError(
      'dir',
      f'{folder} has {len(names)} folders of {plural} and needs two or more, one per class: '
      'CLASS/* or train/CLASS/* and test/CLASS/*'
      + ("; options.labels='none' reads images without labels" if plural == 'images' else ''),
    )
  return names


def _compare_classes(
  root: Path, split: str, found: Collection[str], class_names: Sequence[str]
) -> None:
  """Raises FieldError where the class folders of a split aren't those of 'train'."""
  there, known = set(found), set(class_names)
  wrong = [f'{name!r} is missing' for name in class_names if name not in there]
  wrong += [f'{name!r} is not in train' for name in found if name not in known]
  if wrong:
    raise FieldError(
      'dir', f'the classes of {root / split} differ from those of train: {", ".join(wrong[:5])}'
    )


def _labels(
  files: Sequence[str], folders: Mapping[str, str], class_names: Sequence[str]
) -> list[int]:
  index = {Path(folders[name]).parts: i for i, name in enumerate(class_names)}
  depth = len(next(iter(index)))
  return [index[Path(file).parts[:depth]] for file in files]
