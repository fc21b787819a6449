"""Folders of images and masks: records against files, and every mistake in one line."""

import shutil
import struct
import zlib

import mask_folders
import numpy as np
import pytest
from PIL import Image

from vit_jax.data import load_source
from vit_jax.data.images import decode_mask
from vit_jax.data.sources import masks
from vit_jax.errors import FieldError, UsageError


@pytest.fixture
def folder(tmp_path):
  return mask_folders.write(tmp_path / 'set', {'train': 4, 'val': 2}, size=(10, 12))


def read(path):
  return np.asarray(Image.open(path))


@pytest.mark.parametrize('mode', ['L', 'P'])
def test_records_are_the_files_with_void_for_no_class(tmp_path, mode):
  root = mask_folders.write(tmp_path / 'set', {'train': 3, 'val': 2}, (10, 12), mode=mode)
  source = load_source('masks', 'train', str(root))
  assert source.class_names == mask_folders.CLASSES
  assert source.image_shape == (10, 12, 3)
  assert sorted(source.files) == [f'train/images/{i}.png' for i in range(3)]
  classes = {0: 0, 1: 1, 2: 255, 3: 2, 255: 255}
  for file, record in zip(source.files, source.read(range(3)), strict=True):
    np.testing.assert_array_equal(record['image'], read(root / file))
    ids = read(root / file.replace('images', 'masks'))
    np.testing.assert_array_equal(record['mask'], np.vectorize(classes.get)(ids))
    assert record['mask'].dtype == np.uint8


def test_splits_stand_for_each_other_and_are_sliced(folder):
  assert len(load_source('masks', 'test', str(folder))) == 2
  assert len(load_source('masks', 'train[:50%]+val', str(folder))) == 4
  with pytest.raises(FieldError, match=r"^split: 'validate' is not one of train, val, all"):
    load_source('masks', 'validate', str(folder))


def test_a_folder_without_splits_is_all_for_training(folder):
  for name in ('images', 'masks'):
    shutil.move(folder / 'train' / name, folder / name)
  (folder / 'train').rmdir()
  shutil.rmtree(folder / 'val')
  assert len(load_source('masks', 'train[75%:]', str(folder))) == 1


def test_images_and_masks_are_matched_by_their_names_without_the_ending(folder):
  image = folder / 'train/images/0.png'
  Image.open(image).save(image.with_suffix('.jpg'))
  image.unlink()
  assert 'train/images/0.jpg' in load_source('masks', 'train', str(folder)).files


def test_images_that_cannot_be_decoded_are_skipped(folder):
  (folder / 'train/images/1.png').write_text('no image')
  assert len(load_source('masks', 'train', str(folder))) == 3


def damage(folder, what):
  """Makes a mistake in one file of the folder."""
  mask = folder / 'train/masks/2.png'
  if what == 'no mask':
    mask.unlink()
  elif what == 'no image':
    (folder / 'train/images/2.png').unlink()
  elif what == 'two masks':
    shutil.copy(mask, mask.with_suffix('.bmp'))
  elif what == 'colours':
    Image.new('RGB', (12, 10)).save(mask)
  elif what == 'damaged':
    mask.write_text('no mask')
  elif what == 'size':
    Image.new('L', (12, 11)).save(mask)
  elif what == 'id':
    Image.new('L', (12, 10), 4).save(mask)
  else:
    (folder / 'classes.txt').write_text(what)


@pytest.mark.parametrize(
  ('what', 'message'),
  [
    ('no mask', r'train/images/2\.png: no mask of this name in .*train/masks$'),
    ('no image', r'train/masks/2\.png: no image of this name in .*train/images$'),
    ('two masks', r'train/masks/2\.\w{3}: .*/train/masks/2\.\w{3} has the same name$'),
    ('colours', r'train/masks/2\.png: no mask: it is RGB, neither grey of 8 bits nor with a pal'),
    ('damaged', r'train/masks/2\.png: no mask: not an image in BMP, GIF or PNG'),
    ('size', r'train/masks/2\.png: 11x12 pixels, but its image has 10x12$'),
    ('id', r'train/masks/2\.png: id 4, but classes\.txt names 0 to 3 \(and 255 is of no class\)$'),
    ('one\nvoid\n', r'classes\.txt: 1 classes in 2 lines, not 2 to 255$'),
    ('one\n\ntwo\n', r'classes\.txt:2: an empty line, in place of a name$'),
    ('one\ntwo\none\n', r"classes\.txt: 'one' stands there twice$"),
  ],
)
def test_mistakes(folder, what, message):
  damage(folder, what)
  with pytest.raises(UsageError, match=message) as error:
    load_source('masks', 'train', str(folder))
  assert '\n' not in str(error.value)


def test_no_folder(tmp_path):
  with pytest.raises(FieldError, match=r"^dir: '' is not a folder with a classes\.txt"):
    load_source('masks', 'train', '')
  (tmp_path / 'classes.txt').write_text('one\ntwo\n')
  with pytest.raises(FieldError, match=r'^dir: .* has neither train/images nor images'):
    load_source('masks', 'train', str(tmp_path))
  (tmp_path / 'images').mkdir()
  with pytest.raises(FieldError, match=r'^dir: .*images holds no images'):
    load_source('masks', 'train', str(tmp_path))


def test_grey_of_few_bits_is_ids(tmp_path):
  """As optimisers of PNG files write masks of few classes."""
  ids, path = np.uint8([[0, 1, 2, 15], [3, 4, 5, 6]]), tmp_path / 'mask.png'

  def chunk(kind, data):
    body = kind + data
    return struct.pack('>I', len(data)) + body + struct.pack('>I', zlib.crc32(body))

  rows = b''.join(b'\0' + bytes(row[::2] << 4 | row[1::2]) for row in ids)
  header = chunk(b'IHDR', struct.pack('>IIBBBBB', 4, 2, 4, 0, 0, 0, 0))
  data = chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
  path.write_bytes(b'\x89PNG\r\n\x1a\n' + header + data)
  np.testing.assert_array_equal(decode_mask(path), ids)


def test_ids_without_void_are_the_classes():
  np.testing.assert_array_equal(masks.label_table(['a', 'b', 'c'])[:4], [0, 1, 2, 255])
