"""Folders of images with a CSV file of labels."""

import os
import pickle
import re

import numpy as np
import pytest
from image_files import one_line, pixels, save

from vit_jax import host_memory
from vit_jax.data import load_source
from vit_jax.data.sources import csv_labels
from vit_jax.errors import FieldError, UsageError


def write(root, files, **tables):
  """Writes images, each with other pixels, and CSV files by name; returns the folder."""
  for i, file in enumerate(files):
    save(root / file, pixels(4, 5, seed=i))
  for name, text in tables.items():
    data = text if isinstance(text, bytes) else text.encode()
    (root / f'{name}.csv').write_bytes(data)
  return str(root)


def load(root, split='train', **options):
  return load_source('csv', split, root, options)


def labelled(source):
  """File -> names of its classes, having checked that its image is that of the file."""
  found = {}
  for file, record in zip(source.files, source, strict=True):
    label = record['label']
    classes = [label] if isinstance(label, int) else np.flatnonzero(label).tolist()
    found[file] = [source.class_names[c] for c in classes]
  return found


FILES = ['images/a.png', 'images/b.png', 'images/c.png', 'images/d.png']


@pytest.mark.parametrize(
  ('text', 'options'),
  [
    ('file,label\nimages/a.png,cat\nimages/b.png,dog\nimages/c.png,cat\nd.png,ox\n', {}),
    ('id;breed\r\na;cat\r\nb;dog\r\n\r\nc;cat\r\nd;ox\r\n', {}),  # as spreadsheets in Europe
    ('\ufeff,id,species\n0,a,cat\n1,b,"dog"\n2,c, cat \n3,./images/d,ox\n', {}),  # and pandas
    ('age\tid\tlabel\n3\ta\tcat\n4\tb\tdog\n5\tc\tcat\n6\td\tox\n', {}),
    ('id,x,y\na,1,cat\nb,2,dog\nc,3,cat\nd,4,ox\n', {'label_columns': ('y',)}),
    ('x,id,y\na,a,cat\na,b,dog\na,c,cat\na,d,ox\n', {'image_column': 'id', 'label_columns': 'y'}),
    ('id,cat,dog,ox\na,1,0,0\nb,0,1,0\nc,1.0,0.0,0.0\nd,False,False,True\n', {}),
  ],
)
def test_one_class_an_image_in_the_forms_that_there_are(tmp_path, text, options):
  source = load(write(tmp_path, FILES, labels=text), **options)
  assert source.class_names == ('cat', 'dog', 'ox')
  expected = dict(zip(FILES, (['cat'], ['dog'], ['cat'], ['ox']), strict=True))
  assert labelled(source) == expected
  assert source.labels().dtype == np.int32
  assert source.image_shape == (4, 5, 3)
  for file, record in zip(source.files, pickle.loads(pickle.dumps(source)), strict=True):
    np.testing.assert_array_equal(record['image'], pixels(4, 5, seed=FILES.index(file)))


@pytest.mark.parametrize(
  ('text', 'options'),
  [
    ('id,labels\na,cat|dog\nb,\nc,cat\nd,ox | cat\n', {}),
    ('id,labels\na,cat;dog\nb,\nc,cat\nd,ox;cat;ox\n', {}),
    ('id,labels\na,cat dog\nb,\nc,cat\nd,ox  cat\n', {'separator': ' '}),
    ('id,labels\na,"cat,dog"\nb,\nc,cat\nd,"ox, cat"\n', {'separator': ','}),
    ('id,cat,dog,ox\na,1,1,0\nb,0,0,0\nc,1,0,0\nd,1,0,1\n', {}),
  ],
)
def test_several_classes_an_image(tmp_path, text, options):
  source = load(write(tmp_path, FILES, labels=text), **options)
  assert source.class_names == ('cat', 'dog', 'ox')
  expected = dict(zip(FILES, (['cat', 'dog'], [], ['cat'], ['cat', 'ox']), strict=True))
  assert labelled(source) == expected
  labels = source.labels()
  assert (labels.dtype, labels.shape) == (np.float32, (4, 3))
  np.testing.assert_array_equal(labels, [record['label'] for record in source])


def test_names_of_several_words_are_one_class(tmp_path):
  text = 'id,label\na,polar bear\nb,brown bear\nc,"tench, Tinca tinca"\nd,polar bear\n'
  source = load(write(tmp_path, FILES, labels=text))
  assert source.class_names == ('brown bear', 'polar bear', 'tench, Tinca tinca')
  text = 'id,label\na,ice cream\nb,ice\nc,cream\nd,ice\n'
  write(tmp_path, [], labels=text)
  assert load(str(tmp_path), separator='none').num_classes == 3
  with pytest.raises(FieldError, match=r"^options\.separator: 'auto', but words of 'ice cream'"):
    load(str(tmp_path))


def test_numbers_are_sorted_as_numbers(tmp_path):
  text = 'id_code,diagnosis\na,10\nb,2\nc,0\nd,10\n'
  assert load(write(tmp_path, FILES, labels=text)).class_names == ('0', '2', '10')


def test_a_file_for_each_split(tmp_path):
  """Of which those that aren't asked for aren't read; equal names are told by folders."""
  files = [f'{split}/{name}.png' for split in ('train', 'test') for name in 'abc']
  root = write(
    tmp_path,
    files,
    train='id,labels\na,x;y\nb,x\nc,\n',
    test='labels,id\nx,b\ny,c\n',
    valid='no table',
    sample_submission='id,labels\n',
  )
  test = load(root, 'test')
  assert labelled(test) == {'test/b.png': ['x'], 'test/c.png': ['y']}
  assert test.labels().shape == (2, 2)  # as in train, where an image has two
  assert set(load(root, 'train').files) == {'train/a.png', 'train/b.png', 'train/c.png'}
  assert len(load(root, 'train+test')) == 5
  with pytest.raises(UsageError, match=r'valid\.csv: needs a line of the names of columns, and'):
    load(root, 'valid')


def test_a_column_of_splits(tmp_path):
  text = 'id,Split,label\na,train,x\nb,val,y\nc,train,z\nd,val,x\n'
  root = write(tmp_path, FILES, everything=text)
  assert labelled(load(root)) == {'images/a.png': ['x'], 'images/c.png': ['z']}
  assert labelled(load(root, 'test')) == {'images/b.png': ['y'], 'images/d.png': ['x']}
  assert load(root, 'val', split_column='Split').class_names == ('x', 'y', 'z')
  assert len(load(root, 'all')) == 4
  with pytest.raises(UsageError, match=r"'label' has x, y, z, and no train$"):
    load(root, split_column='label')


def test_slices_have_all_classes_whatever_the_order(tmp_path):
  files = [f'{i}.png' for i in range(40)]
  rows = [f'{i},{"cat" if i < 20 else "dog"}\n' for i in range(40)]
  root = write(tmp_path, files, labels='id,label\n' + ''.join(rows))
  parts = [load(root, s) for s in ('train[:50%]', 'train[50%:]')]
  assert sorted(parts[0].files + parts[1].files) == sorted(files)
  assert all((np.bincount(part.labels()) > 4).all() for part in parts)
  with pytest.raises(FieldError, match=r"^split: 'test' is not in .*labels\.csv; without a column"):
    load(root, 'test')


def test_images_that_cannot_be_decoded_are_skipped(tmp_path):
  root = write(tmp_path, FILES, labels='id,label\na,x\nb,y\nc,x\nd,y\n')
  (tmp_path / FILES[1]).write_bytes(b'no image')
  source = load(root)
  assert source.skipped == (FILES[1],)
  assert labelled(source) == {FILES[0]: ['x'], FILES[2]: ['x'], FILES[3]: ['y']}


GOOD = 'id,label\na,x\nb,y\n'


@pytest.mark.parametrize(
  ('text', 'options', 'message'),
  [
    ('id,label\na,x\nnone.png,y\n', {}, r"labels\.csv:3: there is no image 'none\.png' in "),
    ('id,label\nq,x\nb,y\n', {}, r'labels\.csv:2: nothing in this row is an image in .* id, label'),
    ('a.png,x\nb.png,y\n', {}, r'labels\.csv: the first line has no names of columns, but a\.png'),
    ('id,label\na,x\nb\n', {}, r'labels\.csv:3: 1 values in 2 columns'),
    ('id,label\na,x\nb,y\nimages/a,y\n', {}, r':4: images/a\.png is in line 2, too; an image has'),
    ('id,label\na,x\nb,\n', {}, r":3: nothing in 'label', and each image has one class"),
    ('id,label\na,x\nb,x\n', {}, r"labels\.csv: 1 classes in 'label', and not two or more"),
    ('id,id\na,x\nb,x\n', {}, r"labels\.csv: two columns are called 'id'"),
    ('id\na\nb\n', {}, r'labels\.csv: no column of labels; it has id'),
    ('id,u,v\na,0,1\nb,0,2\n', {'label_columns': ('u', 'v')}, r":3: '2' in 'v' is neither 0 nor 1"),
    ('id,label\n', {}, r'labels\.csv: needs a line of the names of columns, and a row for each'),
    ('id,label\na,"x\n', {}, r'labels\.csv: cannot be read as CSV in UTF-8 \('),
    (b'id,label\na,caf\xe9\nb,x\n', {}, r'labels\.csv: cannot be read as CSV in UTF-8 \('),
    ('id,label\na,x;y\nb,x|y\n', {}, r"options\.separator: 'auto', but .* has both ; and \| in"),
    ('id,u,v\na,p,q\nb,r,s\n', {}, r'options\.label_columns: \(\) may be any of u, v in '),
    (
      GOOD,
      {'label_columns': ('lable',)},
      r"options\.label_columns: 'lable' is no column of .* id, label",
    ),
    (
      GOOD,
      {'image_column': 'file'},
      r"options\.image_column: 'file' is no column of .* it has id, label",
    ),
    (
      GOOD,
      {'split_column': 'set'},
      r"options\.split_column: 'set' is no column of .* it has id, label",
    ),
    (GOOD, {'separator': '+'}, r"options\.separator: '\+' is nowhere in 'label'"),
    (GOOD, {'file': 'train.csv'}, r"options\.file: 'train\.csv' is not a file in "),
    (GOOD, {'seperator': ' '}, r"options\.seperator: no such option of 'csv'; did you mean"),
  ],
)
def test_mistakes_name_the_file_and_the_row(tmp_path, text, options, message):
  root = write(tmp_path, FILES, labels=text)
  with pytest.raises(UsageError) as error:
    load(root, **options)
  assert re.search(message, one_line(error))


@pytest.mark.parametrize(
  ('tables', 'message'),
  [
    ({'train': GOOD, 'test': 'id,label\nc,z\n'}, r"test\.csv:2: 'z' is not a class of the train"),
    ({'train': GOOD, 'test': 'id\nc\n'}, r"test\.csv: no column 'label', as train has; it has id"),
    (
      {'train': 'id,u,v\na,1,0\nb,0,1\n', 'test': 'id,u,v\nc,1,1\n'},
      r'test\.csv:2: 2 classes, where each training image has one',
    ),
    ({}, r'^dir: .* has no CSV file of labels'),
    ({'one': GOOD, 'two': GOOD}, r'^dir: .* has one\.csv, two\.csv; options\.file names one'),
  ],
)
def test_mistakes_of_several_files(tmp_path, tables, message):
  root = write(tmp_path, FILES, **tables)
  with pytest.raises(UsageError) as error:
    load(root, 'test')
  assert re.search(message, one_line(error))


def test_a_very_long_value_and_a_pipe_are_refused_at_once(tmp_path):
  root = write(tmp_path, FILES, labels=f'id,label\na,x\nb,{"y" * 200_000}\n')
  with pytest.raises(UsageError, match=r'labels\.csv: cannot be read as CSV in UTF-8 \(Error: fie'):
    load(root)
  (tmp_path / 'labels.csv').unlink()
  os.mkfifo(tmp_path / 'labels.csv')
  with pytest.raises(
    UsageError, match=r'labels\.csv: cannot be read as CSV .*\(not a regular file'
  ):
    load(root)


def test_names_of_many_digits_are_texts(tmp_path):
  long = '9' * 5000
  root = write(tmp_path, FILES, labels=f'id,label\na,10\nb,{long}\nc,2\n')
  assert load(root).class_names == ('10', '2', long)


def test_thirty_thousand_columns_are_read_at_once(tmp_path):
  columns = ','.join(f'c{i}' for i in range(30_000))
  ones = ','.join('1' * 30_000)
  root = write(tmp_path, FILES, labels=f'id,{columns}\na,{ones}\nb,{ones}\n')
  source = load(root)
  assert source.num_classes == 30_000
  assert source.labels().shape == (2, 30_000)


@pytest.mark.parametrize(
  ('bound', 'memory'), [('_MOST_BYTES', None), ('_MOST_MEMORY', None), ('_MOST_MEMORY', 4_000)]
)
def test_tables_beyond_the_bounds_are_refused(tmp_path, monkeypatch, bound, memory):
  root = write(tmp_path, FILES, labels='id,labels\na,x;y\nb,x\n')
  assert len(load(root)) == 2
  monkeypatch.setattr(csv_labels, bound, 3)
  monkeypatch.setattr(host_memory, 'total', lambda: memory)
  with pytest.raises(UsageError, match=r'labels\.csv: .*more than'):
    load(root)


def test_other_mistakes(tmp_path):
  root = write(tmp_path, ['x/a.png', 'y/a.png', 'b.png'], labels=GOOD)
  with pytest.raises(UsageError, match=r":2: 'a' may be [xy]/a\.png or [xy]/a\.png$"):
    load(root)
  with pytest.raises(FieldError, match=r"^dir: '' is not a folder; give that of images and a CSV"):
    load('')
  write(tmp_path / 'split', FILES, train=GOOD, test=GOOD)
  with pytest.raises(FieldError, match=r"^options\.split_column: 'label', but each split has a fi"):
    load(str(tmp_path / 'split'), split_column='label')
