"""ModelNet40 and ShapeNet-Part, in small files of their layout."""

import json
import os
import pickle

import numpy as np
import pytest

from vit_jax.data import load_source
from vit_jax.data.sources import hdf5
from vit_jax.errors import FieldError, UsageError

h5py = pytest.importorskip('h5py')

NAMES = ['airplane', 'bathtub', 'bed']
COUNTS = {'train0': 3, 'train1': 2, 'train10': 2, 'test0': 4}


def write(path, **arrays):
  with h5py.File(path, 'w') as file:
    for name, array in arrays.items():
      file.create_dataset(name, data=array, compression='gzip')
  return arrays


def make_modelnet(root, **changes):
  rng = np.random.default_rng(0)
  (root / 'shape_names.txt').write_text('\n'.join(NAMES) + '\n')
  written = {}
  for name, count in COUNTS.items():
    arrays = {
      'data': np.float32(rng.normal(size=(count, 6, 3))),
      'label': rng.integers(len(NAMES), size=(count, 1), dtype=np.uint8),
    }
    arrays |= {'normal': arrays['data']} | (changes if name == 'test0' else {})
    written[name] = write(root / f'ply_data_{name}.h5', **arrays)
  return written


CATEGORIES = [('Airplane', '02691156', 3), ('Bag', '02773838', 1), ('Cap', '02954340', 2)]


def make_shapenet(root):
  rng = np.random.default_rng(0)
  lines = [f'{name}\t{number}' for name, number, _ in CATEGORIES]
  (root / 'all_object_categories.txt').write_text('\n'.join(lines))
  parts = [[number, part] for _, number, count in CATEGORIES for part in range(count)]
  (root / 'overallid_to_catid_partid.json').write_text(json.dumps(parts))
  first = np.cumsum([0, 3, 1])
  written = {}
  for split in ('train', 'val', 'test'):
    label = rng.integers(3, size=5)
    pid = np.stack([first[i] + rng.integers(CATEGORIES[i][2], size=6) for i in label])
    written[split] = write(
      root / f'ply_data_{split}0.h5',
      data=np.float32(rng.normal(size=(5, 6, 3))),
      label=np.uint8(label[:, None]),
      pid=np.uint8(pid),
    )
  return written


def test_records_of_modelnet40_are_those_of_its_files_in_order(tmp_path):
  written = make_modelnet(tmp_path)
  source = load_source('modelnet40', 'train', str(tmp_path))
  assert (source.class_names, source.num_points, len(source)) == (tuple(NAMES), 6, 7)
  files = [written[name] for name in ('train0', 'train1', 'train10')]
  for name, entry in (('data', 'points'), ('label', 'label')):
    expected = np.concatenate([file[name] for file in files])
    found = np.stack([record[entry] for record in source])
    np.testing.assert_array_equal(found, expected.reshape(found.shape))
  assert source[0].keys() == {'points', 'label'}
  again = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(again[4]['points'], files[1]['data'][1])
  test = load_source('modelnet40', 'test[1:3]', str(tmp_path))
  np.testing.assert_array_equal(test[0]['points'], written['test0']['data'][1])
  assert len(test) == 2


def test_records_of_shapenet_part_have_parts_and_those_of_the_category(tmp_path):
  written = make_shapenet(tmp_path)
  source = load_source('shapenet_part', 'train+val', str(tmp_path))
  assert source.class_names == (
    'Airplane 0', 'Airplane 1', 'Airplane 2', 'Bag 0', 'Cap 0', 'Cap 1',
  )  # fmt: skip
  allowed = np.float32([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1]])
  for i, record in enumerate(source):
    file, row = written[('train', 'val')[i // 5]], i % 5
    np.testing.assert_array_equal(record['points'], file['data'][row])
    np.testing.assert_array_equal(record['parts'], file['pid'][row])
    assert record['parts'].dtype == np.int32
    np.testing.assert_array_equal(record['label'], allowed[file['label'][row, 0]])
    assert record['label'][record['parts']].all()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data': np.zeros((4, 6, 2), np.float32)}, r"'data' is float32 \[4, 6, 2\], which"),
    ({'data': np.zeros((4, 6, 3), int)}, r"'data' is int64 \[4, 6, 3\]"),
    ({'data': np.zeros((0, 6, 3), np.float32)}, r"'data' is float32 \[0, 6, 3\]"),
    ({'data': np.full((4, 6, 3), np.inf, np.float32)}, 'coordinates that are not finite'),
    ({'label': np.zeros((3, 1), np.uint8)}, r"'label' is uint8 \[3\]"),
    ({'label': np.full((4, 1), 3, np.uint8)}, "'label' is 3 to 3, and there are 3"),
    ({'label': np.full((4, 1), -1)}, "'label' is -1 to -1, and there are 3"),
  ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, changes, message):
  make_modelnet(tmp_path, **changes)
  load_source('modelnet40', 'train', str(tmp_path))
  with pytest.raises(UsageError, match=rf'ply_data_test0\.h5: .*{message}') as error:
    load_source('modelnet40', 'test', str(tmp_path))
  assert '\n' not in str(error.value)


def _link(file, folder):
  write(folder / 'other.h5', label=np.zeros(4, np.uint8))
  file['label'] = h5py.ExternalLink(folder / 'other.h5', 'label')


def _external(file, folder):
  file.create_dataset('label', (4,), 'u1', external=[(str(folder / 'bytes'), 0, 4)])


def _virtual(file, folder):
  layout = h5py.VirtualLayout((4,), 'u1')
  layout[:] = h5py.VirtualSource(str(folder / 'other.h5'), 'label', (4,))
  file.create_virtual_dataset('label', layout)


def _large_chunk(file, _):
  file.create_dataset('label', (4,), 'u1', maxshape=(None,), chunks=(2**30,), compression='gzip')


def _texts(file, _):
  file.create_dataset('label', data=['a', 'b', 'c', 'd'])


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (_link, "has no array 'label'"),
    (_external, "has no array 'label'"),
    (_virtual, "has no array 'label'"),
    (_large_chunk, "'label' would take 1,073,741,824 bytes, and has 0 in the file"),
    (_texts, "'label' is object (4,), not rows of numbers"),
    (lambda file, _: file.create_dataset('label', data=3), "'label' is int64 (), not rows of"),
    (lambda file, _: file.create_dataset('label', data=h5py.Empty('u1')), 'not rows of numbers'),
  ],
)
def test_arrays_elsewhere_or_larger_than_their_file_are_not_read(tmp_path, make, message):
  make_modelnet(tmp_path)
  with h5py.File(tmp_path / 'ply_data_test0.h5', 'w') as file:
    file.create_dataset('data', data=np.zeros((4, 6, 3), np.float32))
    make(file, tmp_path)
  with pytest.raises(UsageError) as error:
    load_source('modelnet40', 'test', str(tmp_path))
  assert str(error.value).startswith(str(tmp_path / 'ply_data_test0.h5'))
  assert message in str(error.value)


def test_pipes_and_files_that_change_are_told(tmp_path):
  make_modelnet(tmp_path)
  source = load_source('modelnet40', 'test', str(tmp_path))
  path = tmp_path / 'ply_data_test0.h5'
  again = pickle.loads(pickle.dumps(source))
  hdf5._read_array.cache_clear()
  path.unlink()
  with pytest.raises(UsageError, match=r'test0\.h5: cannot be read as HDF5 \(No such file'):
    again[0]
  make_modelnet(tmp_path)
  os.utime(path, ns=(0, 0))
  with pytest.raises(UsageError, match=r'test0\.h5: it has changed since it was opened'):
    again[0]
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(UsageError, match=r'test0\.h5: cannot be read as HDF5 \(not a regular file'):
    load_source('modelnet40', 'test', str(tmp_path))


def test_folders_that_do_not_fit_are_refused(tmp_path):
  def message(name='modelnet40', split='train'):
    with pytest.raises(UsageError) as error:
      load_source(name, split, str(tmp_path))
    assert '\n' not in str(error.value)
    return str(error.value)

  assert 'shape_names.txt: cannot be read (No such file' in message()
  (tmp_path / 'shape_names.txt').write_text('a b')
  assert 'has no ply_data_train0.h5' in message()
  (tmp_path / 'ply_data_train0.h5').write_text('no HDF5')
  assert 'ply_data_train0.h5: cannot be read as HDF5 (' in message()
  make_modelnet(tmp_path)
  assert "split: 'tets' is not one of train, test, all" in message(split='tets')
  write(tmp_path / 'ply_data_test0.h5', data=np.zeros((4, 6, 3)))
  assert "has no array 'label'" in message(split='test')
  with h5py.File(tmp_path / 'ply_data_test0.h5', 'w') as file:
    file.create_dataset('data', (10**6, 10**6, 3), 'f4', chunks=(1, 1, 3), compression='gzip')
  assert "'data' would take 12,000,000,000,000 bytes, and has 0 in" in message(split='test')
  (tmp_path / 'all_object_categories.txt').write_text('Airplane')
  assert "lines that are not a category's name and number" in message('shapenet_part')
  (tmp_path / 'all_object_categories.txt').write_text('Airplane 1')
  for text in ('{', '3', '[]', '[["2", 0]]', '[["1"]]', '[[[], 0]]', '[["1", 1e999]]', '[' * 10**5):
    (tmp_path / 'overallid_to_catid_partid.json').write_text(text)
    assert f'{tmp_path}/overallid_to_catid_partid.json: ' in message('shapenet_part')
  with pytest.raises(FieldError, match="dir: '' is not a folder; give that of modelnet40_ply"):
    load_source('modelnet40', 'train', '')
