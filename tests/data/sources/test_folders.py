"""Folders with a folder of images for each class."""

import logging
import os
import pickle
import re
import shutil
import struct
import weakref
import zlib

import numpy as np
import pytest
from image_files import make_folder, one_line, pixels, save, smooth
from PIL import Image, ImageFile

from vit_jax.data import decode_image, decoding, images, load_source, title
from vit_jax.data.decoding import UnreadableFile
from vit_jax.data.sources import folders
from vit_jax.errors import FieldError, UsageError


def test_folder_with_splits(tmp_path):
  root = make_folder(tmp_path)
  train, test = load_source('folder', 'train', root), load_source('folder', 'test', root)
  assert train.class_names == test.class_names == ('cat', 'dog')
  assert train.image_shape == (4, 4, 3)
  found = {(r['image'].tobytes(), r['label']) for r in test}
  assert found == {
    (pixels(4, 4, seed=100 + 10 * c + i).tobytes(), c) for c in (0, 1) for i in range(4)
  }
  assert [r['label'] for r in train] == [['cat', 'dog'].index(f.split('/')[1]) for f in train.files]
  assert len(load_source('folder', 'all', root)) == 16


@pytest.mark.parametrize('name', ['val', 'valid', 'validation'])
def test_validation_folders_are_found_as_test(tmp_path, name):
  root = make_folder(tmp_path, splits=('train', name))
  expected = load_source('folder', name, root).files
  assert load_source('folder', 'test', root).files == expected
  half = load_source('folder', 'test[:50%]', root)
  assert half.files == tuple(file for file in expected if file in half.files)
  assert np.bincount(half.labels()).tolist() == [2, 2]
  with pytest.raises(FieldError, match='not one of train'):
    load_source('folder', 'dev', root)


def test_folder_without_splits_is_sliced_over_classes(tmp_path):
  root = make_folder(tmp_path, splits=('.',), classes=('a', 'b', 'c', 'd'), count=10)
  whole = load_source('folder', 'train', root).files
  parts = [load_source('folder', s, root) for s in ('train[:50%]', 'train[50%:]')]
  assert {*parts[0].files} | {*parts[1].files} == {*whole}
  assert len(set(whole)) == 40
  for part in parts:
    assert np.bincount([r['label'] for r in part]).tolist() == [5] * 4
  assert load_source('folder', 'all', root).files == whole
  # The order of what is there stays when another file comes.
  save(tmp_path / 'a' / 'new.png', pixels(4, 4))
  longer = load_source('folder', 'train', root).files
  assert [f for f in longer if f != 'a/new.png'] == list(whole)
  assert len(longer) == 41


def test_folder_without_splits_has_no_test(tmp_path):
  root = make_folder(tmp_path, splits=('.',))
  with pytest.raises(FieldError) as error:
    load_source('folder', 'test', root)
  assert one_line(error).startswith("split: 'test' is not a folder of")
  assert 'train[80%:]' in one_line(error)


def test_nested_hidden_and_other_files(tmp_path):
  root = make_folder(tmp_path, splits=('.',), count=1)
  save(tmp_path / 'cat/deep/er/x.PNG', pixels(4, 4))
  for hidden in ('cat/.x.png', 'cat/.cache/x.png', '.trash/x.png'):
    save(tmp_path / hidden, pixels(4, 4))
  (tmp_path / 'cat/notes.txt').write_text('no image')
  (tmp_path / 'labels.csv').write_text('no image')
  source = load_source('folder', 'train', root)
  assert sorted(source.files) == ['cat/0.png', 'cat/deep/er/x.PNG', 'dog/0.png']
  assert source.skipped == ()


def test_colour_and_size_as_stored(tmp_path):
  for name in ('a', 'b'):
    save(tmp_path / 'train' / name / 'x.png', pixels(4, 6, 1))
    save(tmp_path / 'test' / name / 'x.png', pixels(4, 6, 3))
  source = load_source('folder', 'test', str(tmp_path))
  assert source.image_shape == source[0]['image'].shape == (4, 6, 1)  # as train
  save(tmp_path / 'train/a/y.png', pixels(6, 4, 3))
  source = load_source('folder', 'train', str(tmp_path))
  assert source.image_shape == (None, None, 3)
  assert {r['image'].shape for r in source} == {(4, 6, 3), (6, 4, 3)}


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'gif', 'bmp'])
def test_truncated_files_are_named_counted_and_skipped(tmp_path, caplog, suffix):
  root = make_folder(tmp_path, count=3, suffix=suffix)
  damaged = ['train/cat/1', 'train/dog/0', 'test/dog/2']
  for name, kept in zip(damaged, (0.0, 0.6, 0.75), strict=True):
    path = tmp_path / f'{name}.{suffix}'
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
  with caplog.at_level(logging.WARNING):
    train, test = load_source('folder', 'train', root), load_source('folder', 'test', root)
  assert (len(train), len(test)) == (4, 5)
  assert set(train.skipped + test.skipped) == {f'{name}.{suffix}' for name in damaged}
  for name in damaged:
    assert sum(f'{name}.{suffix} cannot be decoded' in m for m in caplog.messages) == 1
  assert any(m.startswith('2 of 6 images') for m in caplog.messages)
  assert len([*train, *test]) == 9  # what is left decodes


def test_mended_files_are_found(tmp_path):
  root = make_folder(tmp_path, splits=('.',), count=2)
  (tmp_path / 'cat/0.png').write_bytes(b'')
  assert load_source('folder', 'train', root).skipped == ('cat/0.png',)
  save(tmp_path / 'cat/0.png', pixels(4, 4))
  assert load_source('folder', 'train', root).skipped == ()


@pytest.mark.parametrize('progressive', [False, True])
def test_every_truncation_that_stops_decoding_is_found(tmp_path, progressive):
  root = make_folder(tmp_path, splits=('.',), count=1)
  whole = save(tmp_path / 'whole.jpg', smooth(40, 56), progressive=progressive).read_bytes()
  for size in range(0, len(whole), 25):
    path = tmp_path / 'cat' / f'{size}.jpg'
    path.write_bytes(whole[:size])
  source = load_source('folder', 'train', root)
  assert len(source.skipped) > 20
  for file in source.skipped:
    with pytest.raises(UnreadableFile):
      decode_image(tmp_path / file)
  assert len(list(source)) == len(source)


def test_decompression_bomb_is_skipped(tmp_path, monkeypatch):
  root = make_folder(tmp_path, splits=('.',))
  save(tmp_path / 'cat/bomb.png', np.zeros((100, 100), np.uint8))
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
  assert load_source('folder', 'train', root).skipped == ('cat/bomb.png',)


def chunk(kind, data):
  content = kind + data
  return struct.pack('>I', len(data)) + content + struct.pack('>I', zlib.crc32(content))


def header_alone(path, width, height, mode=2):
  """Writes a PNG that says that it is so large."""
  header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, mode, 0, 0, 0))
  path.write_bytes(b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', b'') + chunk(b'IEND', b''))


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_what_must_not_be_opened_or_decoded_is_skipped_and_named(tmp_path, caplog):
  root = make_folder(tmp_path, splits=('.',), count=2)
  os.mkfifo(tmp_path / 'cat/pipe.png')
  (tmp_path / 'cat/link.jpg').symlink_to(tmp_path / 'cat/pipe.png')
  (tmp_path / 'dog/device.gif').symlink_to('/dev/zero')
  header_alone(tmp_path / 'dog/strip.png', 2**20 + 1, 1)
  header_alone(tmp_path / 'dog/area.png', 14_000, 14_000)
  expected = {
    'cat/pipe.png': 'not a regular file',
    'cat/link.jpg': 'not a regular file',
    'dog/device.gif': 'not a regular file',
    'dog/strip.png': '1048577x1 pixels; a side may have 1,048,576',
    'dog/area.png': 'Image size (196000000 pixels) exceeds limit of 178956970 pixels',
  }
  with caplog.at_level(logging.WARNING):
    source = load_source('folder', 'train', root)
  assert set(source.skipped) == expected.keys()
  for file, reason in expected.items():
    told = f'{tmp_path / file} cannot be decoded and is skipped: {reason}'
    assert any(message.startswith(told) for message in caplog.messages), file
    with pytest.raises(UnreadableFile, match=re.escape(reason)):
      decode_image(tmp_path / file)


def test_damage_without_a_reason_is_damage_all_the_same(tmp_path):
  def probe(path):
    if path.name == 'bad':
      raise UnreadableFile(path, '')
    return (4, 4, 3)

  checked = images.check_files(tmp_path, ('bad', 'good'), (0, 0), probe, 'image')
  assert checked == (['good'], {(4, 4, 3)}, ['bad'])


def test_files_do_not_stay_in_memory_after_their_turn(tmp_path):
  source = load_source('folder', 'train', make_folder(tmp_path, splits=('.',), count=2))
  files = []

  def prepare(record):
    files.append(weakref.ref(record['image']))

  for _ in decoding.in_turn(source.read(range(len(source))), prepare):
    assert files[-1]() is None


def test_files_that_could_be_decoded_with_more_memory_are_not_skipped(tmp_path, monkeypatch):
  root = make_folder(tmp_path, splits=('.',), count=2)

  def load(image):
    raise MemoryError

  monkeypatch.setattr(ImageFile.ImageFile, 'load', load)
  monkeypatch.setattr(Image.Image, 'load', load)
  with pytest.raises(UsageError, match=r'\.png: not enough memory to decode it'):
    load_source('folder', 'train', root)


def test_folder_mistakes(tmp_path):
  def message(split='train', root=tmp_path):
    with pytest.raises(FieldError) as error:
      load_source('folder', split, str(root))
    assert one_line(error).startswith('dir: ')
    return one_line(error)

  assert 'is not a folder' in message(root='')
  assert 'is not a folder' in message(root=tmp_path / 'missing')
  assert 'has 0 folders' in message()
  (tmp_path / 'cat').mkdir()
  assert 'has 1 folders' in message()
  (tmp_path / 'dog').mkdir()
  assert 'cat holds no images' in message()
  save(tmp_path / 'cat/x.png', pixels(4, 4))
  (tmp_path / 'dog/x.png').write_text('not an image')
  assert 'dog holds no images' in message()


def test_classes_of_test_that_differ(tmp_path):
  root = make_folder(tmp_path)
  (tmp_path / 'test/dog').rename(tmp_path / 'test/dgo')
  with pytest.raises(FieldError) as error:
    load_source('folder', 'test', root)
  assert "'dog' is missing" in one_line(error)
  assert "'dgo' is not in train" in one_line(error)
  assert len(load_source('folder', 'train', root)) == 8


def test_classes_of_splits_are_compared_once_each(tmp_path):
  class Name(str):
    """A name that counts how often it is compared."""

    __hash__, compared = str.__hash__, 0

    def __eq__(self, other):
      Name.compared += 1
      return str.__eq__(self, other)

  train, test = ([Name(f'class {i}') for i in range(20_000)] for _ in range(2))
  folders._compare_classes(tmp_path, 'test', test, train)
  assert 0 < Name.compared < 10 * len(train)
  with pytest.raises(FieldError, match="'class 0' is missing, 'extra' is not in train"):
    folders._compare_classes(tmp_path, 'test', [*test[1:], Name('extra')], train)
  assert Name.compared < 20 * len(train)


def test_folder_source_pickles_to_paths(tmp_path):
  source = load_source('folder', 'train', make_folder(tmp_path, count=20))
  data = pickle.dumps(source)
  assert len(data) < 4000
  copy = pickle.loads(data)
  assert len(copy) == len(source)
  np.testing.assert_array_equal(copy[7]['image'], source[7]['image'])


@pytest.mark.parametrize('splits', [('.',), ('train', 'test')])
def test_images_in_no_folder_of_their_own_have_no_labels(tmp_path, splits):
  for split in splits:
    for i in range(3):
      save(tmp_path / split / f'{i}.png', pixels(4, 4, seed=i))
  source = load_source('folder', 'train', str(tmp_path))
  assert [record.keys() for record in source] == [{'image'}] * 3
  assert (source.class_names, source.num_classes) == ((), 0)
  expected = {pixels(4, 4, seed=i).tobytes() for i in range(3)}
  assert {record['image'].tobytes() for record in source} == expected
  if '.' in splits:
    assert len(load_source('folder', 'train[:1]', str(tmp_path))) == 1
  else:
    assert len(load_source('folder', 'train+test', str(tmp_path))) == 6


def test_folders_of_classes_are_read_without_labels_where_asked(tmp_path):
  root = make_folder(tmp_path, count=2)
  save(tmp_path / 'train/one.png', pixels(4, 4))
  save(tmp_path / 'train/deep/er/x.png', pixels(4, 4))
  save(tmp_path / 'train/.hidden/x.png', pixels(4, 4))
  source = load_source('folder', 'train', root, {'labels': 'none'})
  assert sorted(source.files) == [
    *(f'train/{name}' for name in ('cat/0.png', 'cat/1.png', 'deep/er/x.png')),
    *(f'train/{name}' for name in ('dog/0.png', 'dog/1.png', 'one.png')),
  ]
  assert [record.keys() for record in source] == [{'image'}] * 6
  assert len(load_source('folder', 'test', root, {'labels': 'none'})) == 4
  whole = load_source('folder', 'train', str(tmp_path / 'train'), {'labels': 'none'})
  assert len(whole) == 6


def test_labels_are_never_left_out_unasked(tmp_path):
  """Images beside folders of classes change nothing; beside a single folder they are refused."""
  root = make_folder(tmp_path, splits=('.',), count=1)
  save(tmp_path / 'overview.png', pixels(4, 4))
  assert [record.keys() for record in load_source('folder', 'all', root)] == [
    {'image', 'label'}
  ] * 2
  shutil.rmtree(tmp_path / 'dog')
  with pytest.raises(FieldError, match=r"^dir: .* 1 folders .*options\.labels='none' reads images"):
    load_source('folder', 'train', root)
  assert len(load_source('folder', 'train', root, {'labels': 'none'})) == 2
  # A class may be called as a split is.
  save(tmp_path / 'train/x.png', pixels(4, 4))
  assert load_source('folder', 'train', root).class_names == ('cat', 'train')


def test_mistakes_without_labels(tmp_path):
  save(tmp_path / 'x.png', pixels(4, 4))
  with pytest.raises(FieldError, match=r'^split: .* give slices'):
    load_source('folder', 'test', str(tmp_path))
  (tmp_path / 'x.png').write_text('not an image')
  with pytest.raises(FieldError, match=r'^dir: .* holds no images'):
    load_source('folder', 'train', str(tmp_path))
  with pytest.raises(FieldError, match=r"^options\.labels: 'no' is not one of auto, none"):
    load_source('folder', 'train', str(tmp_path), {'labels': 'no'})


@pytest.mark.parametrize('dir', ['.', '..', '../birds', '../birds/'])
def test_the_title_is_the_name_of_the_folder_that_a_path_stands_for(tmp_path, monkeypatch, dir):
  inside = tmp_path / 'birds' / 'train' if dir == '..' else tmp_path / 'birds'
  inside.mkdir(parents=True)
  monkeypatch.chdir(inside)
  assert title('folder', dir) == 'birds'
