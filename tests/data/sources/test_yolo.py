"""Folders in YOLO format: what is read from them, and what is refused in one line."""

import logging
import os
import pickle
import re
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import yolo_folders

from vit_jax.data import kinds, load_source
from vit_jax.errors import FieldError, UsageError


def write(tmp_path, **options):
  return yolo_folders.write(tmp_path / 'set', {'train': 5, 'val': 3, 'test': 2}, **options)


def open_source(root, split='train'):
  return load_source('yolo', split, str(root))


def names(source):
  return sorted(source.files)


def test_records_are_images_with_their_class_and_box(tmp_path):
  source = open_source(write(tmp_path, size=(12, 20)))
  assert (len(source), source.image_shape) == (5, (12, 20, 3))
  assert source.class_names == ('red', 'green', 'blue')
  for record in map(kinds.load, pickle.loads(pickle.dumps(source)).read(range(5))):
    assert record['box'].dtype == np.float32
    np.testing.assert_allclose(record['box'], yolo_folders.bounds(record['image']), atol=1e-6)
    middle = (record['box'][1::-1] * record['image'].shape[:2]).astype(int)
    assert record['label'] == record['image'][tuple(middle)].argmax()


@pytest.mark.parametrize(
  ('split', 'expected'),
  [
    ('val', 3),
    ('valid', 3),
    ('validation', 3),
    ('test', 2),
    ('train[:40%]', 2),
    ('train+test', 7),
    ('all', 10),
    ('valid[1:]', 2),
  ],
)
def test_splits_have_the_syntax_of_tfds(tmp_path, split, expected):
  assert len(open_source(write(tmp_path), split)) == expected


def test_slices_are_shuffled_but_the_same_every_time(tmp_path):
  root = yolo_folders.write(tmp_path / 'set', {'train': 20})
  first = open_source(root, 'train[:50%]').files
  assert first == open_source(root, 'train[:50%]').files
  numbers = [int(Path(file).stem) for file in first]
  assert numbers != sorted(numbers)
  second = open_source(root, 'train[50%:]')
  assert set(first).isdisjoint(second.files)
  whole, half = (np.bincount(s.labels()) for s in (open_source(root, 'train'), second))
  assert np.abs(half - whole / 2).max() < 1


def test_val_and_test_stand_for_each_other_where_there_is_but_one(tmp_path):
  root = yolo_folders.write(tmp_path / 'set', {'train': 3, 'val': 2})
  assert names(open_source(root, 'test')) == names(open_source(root, 'val'))
  with pytest.raises(FieldError, match=r"^split: 'tset' is not one of"):
    open_source(root, 'tset')


LAYOUTS = {
  'beside, as Roboflow writes it': ('{split}/images', 'train: ../train/images', ''),
  'with a slash': ('{split}/images', 'train: ./train/images/', ''),
  'images/train and labels/train': ('images/{split}', 'train: images/train', ''),
  'below path': ('there/{split}/images', 'train: train/images', 'path: there'),
  'path of another machine': ('{split}/images', 'train: train/images', 'path: /content/letters'),
  'a list': ('{split}/images', 'train: [train/images]', ''),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(tmp_path, layout):
  style, train, path = LAYOUTS[layout]
  source = open_source(
    write(tmp_path, style=style, yaml=f'{path}\n{train}\nnc: 3\nnames: [a, b, c]')
  )
  assert len(source) == 5
  for record in source.read(range(5)):
    np.testing.assert_allclose(record['box'], yolo_folders.bounds(record['image']), atol=1e-6)


def test_a_list_of_folders_has_all_their_images(tmp_path):
  root = write(tmp_path, yaml='train: [train/images, val/images]\nnc: 3')
  source = open_source(root)
  assert (len(source), source.class_names) == (8, ('0', '1', '2'))


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('names: {0: A, 2: C, 1: B}', ('A', 'B', 'C')),
    ('names:\n  - no\n  - 1e3\n  - 2020-01-01\n', ('no', '1e3', '2020-01-01')),
  ],
)
def test_names_are_taken_as_they_are_written(tmp_path, text, expected):
  assert open_source(write(tmp_path, yaml=f'train: train/images\n{text}')).class_names == expected


def test_damaged_images_are_skipped_with_a_warning(tmp_path, caplog):
  root = write(tmp_path)
  (root / 'train/images/3.png').write_bytes(b'no image')
  with caplog.at_level(logging.WARNING):
    source = open_source(root)
  assert [Path(file).name for file in source.skipped] == ['3.png']
  assert '3.png cannot be decoded and is skipped' in caplog.text
  assert len(source) == 4
  for record in source.read(range(4)):
    np.testing.assert_allclose(record['box'], yolo_folders.bounds(record['image']), atol=1e-6)


def test_a_box_that_ends_a_rounding_error_outside_is_cut_off(tmp_path):
  root = write(tmp_path)
  (root / 'train/labels/0.txt').write_text('1 0.25 0.5 0.5004 1.0002\n\n')
  source = open_source(root)
  box = next(r['box'] for i, r in enumerate(source.read(range(5))) if '0.png' in source.files[i])
  np.testing.assert_allclose(box, (0.2501, 0.5, 0.5002, 1), atol=1e-6)


LABELS = {
  '': r'0\.txt: 0 objects; each image must have exactly one',
  '0 .5 .5 .1 .1\n1 .5 .5 .1 .1': r'0\.txt: 2 objects',
  '\n0 .5 .5 .1': r"0\.txt:2: '0 \.5 \.5 \.1' is not \"class cx cy width height\"",
  '0 .1 .1 .2 .1 .2 .2': r'0\.txt:1: .* is not "class cx cy width height"',
  'red .5 .5 .1 .1': r"0\.txt:1: 'red .* is not \"class cx cy width height\"",
  '0 .5 nan .1 .1': r'0\.txt:1: .* is not "class cx cy width height"',
  '3 .5 .5 .1 .1': r'0\.txt:1: class 3 is not one of 0 to 2',
  '-1 .5 .5 .1 .1': r'0\.txt:1: class -1 is not one of 0 to 2',
  '0.5 .5 .5 .1 .1': r'0\.txt:1: class 0\.5 is not one of 0 to 2',
  '0 .9 .5 .4 .1': r'0\.txt:1: the box \.9 \.5 \.4 \.1 is not inside the image',
  '0 208 208 100 100': r'0\.txt:1: the box .* is not inside the image',
  '0 .5 .5 0 .1': r'0\.txt:1: the box .* is not inside the image',
  None: r'0\.txt: there is no such file, to say what is in 0\.png',
  b'\xff\xfe': r'0\.txt: damaged: not UTF-8 at byte 0',
}


@pytest.mark.parametrize('text', LABELS)
def test_mistakes_in_labels_name_file_and_line(tmp_path, text):
  root = write(tmp_path)
  path = root / 'train/labels/0.txt'
  path.unlink()
  if text is not None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(UsageError, match=f'^{re.escape(str(root))}/train/labels/{LABELS[text]}') as e:
    open_source(root)
  assert '\n' not in str(e.value)


YAMLS = {
  'train: [': r'cannot be read as YAML \(ParserError: while parsing',
  'a list of words': r'not a list of entries',
  'nc: 3': r'no entry train',
  'train: trian/images\nnc: 3': r"train: 'trian/images' is not a folder of images",
  'train: train/images.txt\nnc: 3': r"train: 'train/images.txt' is not a folder of images",
  'train: train/labels\nnc: 3': r'train \(train/labels\) has no images',
  'train: train/images': r'names is not a list of classes',
  'train: train/images\nnames: []': r'names is not a list of classes',
  'train: train/images\nnames: [a, b]\nnc: 3': r'2 names, but nc is 3',
  'train: train/images\nnames: {1: a, 2: b}': r'names has the keys 1, 2, not 0 to 1',
}


@pytest.mark.parametrize('text', YAMLS)
def test_mistakes_in_data_yaml_name_it(tmp_path, text):
  root = write(tmp_path, yaml=text)
  with pytest.raises(UsageError, match=f'^{re.escape(str(root))}/data.yaml: .*{YAMLS[text]}') as e:
    open_source(root)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  ('text', 'problem'),
  [
    ('train: train/images\nnc: "\\UFFFFFFFF"', 'cannot be read as YAML (OverflowError: '),
    ('#' * (2**20 + 1), 'cannot be read (1,048,577 bytes, more than the 1,048,576 that are read'),
    ('train: train/images\nnc: 999999999', 'nc: 999,999,999 classes, not 1 to 1,048,576'),
    (f'train: train/images\nnc: {"9" * 5000}', 'nc: 999,999,999,999,999,999 classes, not 1 to'),
    ('train: train/images\nnc: [3]', 'train, val, test, path or nc is neither a text nor'),
    (f'train: {"a" * 5000}\nnc: 3', f"train: '{'a' * 5000}' is not a folder of images"),
    # Aliases: its text would be of 10**9 words.
    (
      'a: &a [x, x, x, x, x, x, x, x, x, x]\n'
      + ''.join(f'{b}: &{b} [{", ".join(10 * [f"*{chr(ord(b) - 1)}"])}]\n' for b in 'bcdefghi')
      + 'train: [*i]\nnc: 3',
      'train, val, test, path or nc is neither a text nor',
    ),
  ],
  ids=['no character', 'long', 'many', 'digits', 'list', 'name', 'aliases'],
)
def test_what_would_take_memory_or_fail_elsewhere_is_refused(tmp_path, text, problem):
  root = write(tmp_path, yaml=text)
  with pytest.raises(UsageError) as e:
    open_source(root)
  assert str(e.value).startswith(f'{root}/data.yaml: {problem}')
  assert '\n' not in str(e.value)


def test_deep_nesting_is_refused(tmp_path):
  root, limit = write(tmp_path, yaml=f'train: {"[" * 10**5}'), sys.getrecursionlimit()
  sys.setrecursionlimit(len(list(traceback.walk_stack(None))) + 200)  # the usual one takes seconds
  try:
    with pytest.raises(UsageError, match=r'data\.yaml: cannot be read as YAML \(RecursionError'):
      open_source(root)
  finally:
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize('name', ['data.yaml', 'train/labels/0.txt'])
def test_pipes_are_refused_at_once(tmp_path, name):
  root = write(tmp_path)
  (root / name).unlink()
  os.mkfifo(root / name)
  with pytest.raises(UsageError, match=f'{name}: cannot be read \\(not a regular file'):
    open_source(root)


def test_nothing_in_data_yaml_is_run(tmp_path):
  mark = tmp_path / 'mark'
  root = write(tmp_path, yaml=f'train: !!python/object/apply:os.mkdir ["{mark}"]\nnc: 3')
  with pytest.raises(UsageError):
    open_source(root)
  assert not mark.exists()


@pytest.mark.parametrize('directory', ['', 'no/such/folder'])
def test_a_folder_without_data_yaml_is_refused(directory):
  message = rf"^dir: '{directory}' is not a folder with a data\.yaml"
  with pytest.raises(FieldError, match=message):
    open_source(directory)


def test_american_sign_language_letters():
  root = os.environ.get('ASL_LETTERS_DIR')
  if not root:
    pytest.skip('needs the letters of public.roboflow.com, in YOLO format, in $ASL_LETTERS_DIR')
  sizes = {split: len(open_source(root, split)) for split in ('train', 'valid', 'test')}
  assert sizes == {'train': 1512, 'valid': 144, 'test': 72}
  source = open_source(root, 'test')
  assert source.class_names == tuple('ABCDEFGHIJKLMNOPQRSTUVWXYZ')
  for file, record in zip(source.files, source.read(range(72)), strict=True):
    assert source.class_names[record['label']] == Path(file).name[0]
