"""Folders with a folder of points for each class, splits above or below the classes."""

import numpy as np
import pytest
from image_files import one_line

from vit_jax.data import FOLDER_OF, load_source
from vit_jax.errors import FieldError

CLASSES = ('chair', 'lamp')


def write(path, seed, count=5):
  path.parent.mkdir(parents=True, exist_ok=True)
  points = np.float32(np.random.default_rng(seed).normal(size=(count, 3)))
  np.savetxt(path, points, fmt='%.9g')
  return points


def make(root, layout, count=6, **options):
  """Writes files; returns {file: points}, by the split and class that `layout` puts in a path."""
  written = {}
  for s, split in enumerate(('train', 'test')):
    for c, name in enumerate(CLASSES):
      for i in range(count):
        path = root / layout.format(split=split, name=name) / f'{i}.xyz'
        points = write(path, seed=100 * s + 10 * c + i, **options)
        written[split, path.relative_to(root).as_posix()] = points
  return written


@pytest.mark.parametrize('layout', ['{split}/{name}', '{name}/{split}'])
def test_records_are_the_files(tmp_path, layout):
  written = make(tmp_path, layout)
  for split in ('train', 'test'):
    source = load_source(FOLDER_OF['points'], split, str(tmp_path))
    assert (source.class_names, source.num_points, source.image_shape) == (CLASSES, 5, ())
    assert source.channels == 3
    assert set(source.files) == {file for s, file in written if s == split}
    for record, file in zip(source, source.files, strict=True):
      assert record.keys() == {'points', 'label'}
      np.testing.assert_array_equal(record['points'], written[split, file])
      assert CLASSES[record['label']] in file.split('/')
  assert len(load_source('point_folder', 'train[:50%]+test', str(tmp_path))) == 18


def test_a_folder_without_splits_and_clouds_that_differ_in_number(tmp_path, caplog):
  for i, name in enumerate(CLASSES * 2):
    write(tmp_path / name / f'{i}.txt', i, count=4 + i)
  (tmp_path / 'lamp' / 'bad.off').write_text('OFF\n7 7 7\n')
  source = load_source('point_folder', 'train', str(tmp_path))
  assert (len(source), source.num_points) == (4, None)
  assert source.skipped == ('lamp/bad.off',)
  assert 'bad.off cannot be decoded and is skipped: it is damaged' in caplog.text
  with pytest.raises(FieldError, match="split: 'test' is not a folder of"):
    load_source('point_folder', 'test', str(tmp_path))


def test_mistakes(tmp_path):
  with pytest.raises(FieldError, match=r'^dir: .* is not a folder; give the folder of points'):
    load_source('point_folder', 'train', str(tmp_path / 'x'))
  make(tmp_path, '{name}/{split}')
  (tmp_path / 'lamp' / 'test').rename(tmp_path / 'lamp' / 'val')
  with pytest.raises(FieldError, match="test differ from those of train: 'lamp' is missing") as e:
    load_source('point_folder', 'test', str(tmp_path))
  one_line(e)
  for file in (tmp_path / 'chair' / 'train').iterdir():
    file.unlink()
  with pytest.raises(FieldError, match='chair/train holds no points'):
    load_source('point_folder', 'train', str(tmp_path))
