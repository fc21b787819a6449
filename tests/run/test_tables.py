"""Tables of predictions: what is in each format, and that files are whole or not there."""

import csv
import io
import json

import numpy as np
import pytest

from vit_jax.errors import UsageError
from vit_jax.run import tables

NAMES = ('cat', 'dög, big', 'cow')
SINGLE = {
  'index': np.arange(2),
  'path': np.array(['a.png', 'b "c".png']),
  'label': np.array([1, 0]),
  'predicted': np.array([1, 2]),
  'probability': np.float32([0.7, 0.6]),
  'box_x': np.float32([0.1, 0.25]),
  'probabilities': np.float32([[0.1, 0.7, 0.2], [0.3, 0.1, 0.6]]),
}
SEVERAL = {
  'index': np.arange(2),
  'label': np.float32([[1, 0, 1], [0, 0, 0]]),
  'predicted': np.array([[True, False, True], [False, True, False]]),
  'probabilities': np.float32([[0.9, 0.25, 0.5], [0, 1, 0]]),
}


def test_csv():
  rows = list(csv.DictReader(io.StringIO(tables.predictions('.csv', SINGLE, NAMES).decode())))
  assert rows[0] == {
    'index': '0',
    'path': 'a.png',
    'label': 'dög, big',
    'predicted': 'dög, big',
    'probability': '0.7',
    'box_x': '0.1',
    'probability/cat': '0.1',
    'probability/dög, big': '0.7',
    'probability/cow': '0.2',
  }
  assert (rows[1]['path'], rows[1]['label'], rows[1]['predicted']) == ('b "c".png', 'cat', 'cow')


def test_json():
  found = json.loads(tables.predictions('.json', SINGLE, NAMES))
  assert found['classes'] == list(NAMES)
  assert found['predictions'][1] == {
    'index': 1,
    'path': 'b "c".png',
    'label': 'cat',
    'predicted': 'cow',
    'probability': 0.6,
    'box_x': 0.25,
    'probabilities': [0.3, 0.1, 0.6],
  }


def test_npz_has_the_arrays_as_they_are():
  found = np.load(io.BytesIO(tables.predictions('.npz', SINGLE, NAMES)))
  assert found.keys() == {*SINGLE, 'classes'}
  for name, array in {**SINGLE, 'classes': np.array(NAMES)}.items():
    np.testing.assert_array_equal(found[name], array)


def test_several_classes_are_a_list_or_joined():
  found = json.loads(tables.predictions('.json', SEVERAL, NAMES))['predictions']
  assert [row['label'] for row in found] == [['cat', 'cow'], []]
  assert [row['predicted'] for row in found] == [['cat', 'cow'], ['dög, big']]
  rows = list(csv.DictReader(io.StringIO(tables.predictions('.csv', SEVERAL, NAMES).decode())))
  assert [row['label'] for row in rows] == ['cat;cow', '']


def test_rows_that_differ_have_empty_cells():
  text = tables.dicts_to_csv([{'a': 1}, {'a': 2, 'b': 'caf\udce9'}])  # a name in Latin-1
  assert text == b'a,b\n1,\n2,caf\xe9\n'


def test_a_file_is_replaced_once_it_is_whole(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('old')
  with tables.NewFile(str(path), '--csv') as file:
    assert path.read_text() == 'old'
    file.write(b'new')
  with pytest.raises(KeyError), tables.NewFile(str(path), '--csv'):
    raise KeyError
  assert [p.name for p in tmp_path.iterdir()] == ['a.csv']
  assert path.read_text() == 'new'


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'a.csv'
  path.write_text('old')
  with open('/dev/full', 'wb') as full, tables.NewFile(str(path), '--csv') as file:
    file._file.close()
    monkeypatch.setattr(file, '_file', full)
    with pytest.raises(UsageError, match=r'^--csv: .*a\.csv cannot be written \(No space left'):
      file.write(b'new')
  assert [p.name for p in tmp_path.iterdir()] == ['a.csv']
  assert path.read_text() == 'old'


def test_what_cannot_be_written_shows_at_once(tmp_path):
  with pytest.raises(UsageError, match=r'^--csv: .*b\.csv cannot be written \(No such file'):
    tables.NewFile(str(tmp_path / 'a' / 'b.csv'), '--csv')
  with pytest.raises(UsageError, match=r'^--csv: .* is there, and is not a file'):
    tables.NewFile(str(tmp_path), '--csv')
