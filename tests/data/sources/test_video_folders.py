"""Folders with a folder of videos for each class."""

import logging
import pickle

import numpy as np
import pytest
from image_files import one_line
from PIL import Image
from video_files import frames, write_video

from vit_jax.data import load_source, make_preprocess
from vit_jax.errors import FieldError


def make_folder(root, splits=('train', 'test'), names=('0.gif', '1'), count=5):
  for s, split in enumerate(splits):
    for c, label in enumerate(('cat', 'dog')):
      for i, name in enumerate(names):
        write_video(root / split / label / name, frames(count, 8, 12, seed=100 * s + 10 * c + i))
  return str(root)


def test_classes_splits_and_frames_on_demand(tmp_path):
  root = make_folder(tmp_path)
  train, test = (load_source('video_folder', split, root) for split in ('train', 'test'))
  assert train.class_names == test.class_names == ('cat', 'dog')
  assert (train.image_shape, train.num_frames) == ((8, 12, 3), 5)
  assert sorted(train.files) == [f'train/{c}/{n}' for c in ('cat', 'dog') for n in ('0.gif', '1')]
  take = make_preprocess((), 0, 'resize', train=False, num_frames=2, frame_stride=2)
  for file, record in zip(test.files, pickle.loads(pickle.dumps(test)), strict=True):
    _, label, name = file.split('/')
    assert record['label'] == ('cat', 'dog').index(label)
    seed = 100 + 10 * record['label'] + int(name[0])
    np.testing.assert_array_equal(take(record)['video'], frames(5, 8, 12, seed=seed)[[0, 2]])
  parts = [load_source('video_folder', s, root).files for s in ('train[:1]', 'train[1:]')]
  assert parts[0] + parts[1] == train.files


def test_videos_that_differ_have_no_common_shape(tmp_path):
  root = make_folder(tmp_path, splits=('.',))
  write_video(tmp_path / 'cat' / 'long.mkv', frames(7, 16, 12))
  source = load_source('video_folder', 'train', root)
  assert (source.image_shape, source.num_frames) == ((None, None, 3), None)


def test_a_damaged_video_is_left_out_with_a_warning(tmp_path, caplog):
  root = make_folder(tmp_path, splits=('.',))
  (tmp_path / 'dog' / 'bad.mp4').write_text('no video')
  with caplog.at_level(logging.WARNING):
    source = load_source('video_folder', 'train', root)
  assert source.skipped == ('dog/bad.mp4',)
  assert len(source) == 4
  assert 'dog/bad.mp4 cannot be decoded and is skipped' in caplog.text
  assert f'1 of 5 videos in {tmp_path} are skipped' in caplog.text


def test_mistakes(tmp_path):
  def message(directory):
    with pytest.raises(FieldError) as error:
      load_source('video_folder', 'train', str(directory))
    return one_line(error)

  assert 'give the folder of videos' in message(tmp_path / 'missing')
  write_video(tmp_path / 'cat' / 'a.gif', frames(2))
  assert 'has 1 folders of videos and needs two or more' in message(tmp_path)
  (tmp_path / 'dog').mkdir()
  assert 'dog holds no videos' in message(tmp_path)
  Image.fromarray(frames(1)[0]).save(tmp_path / 'dog' / '0.png')
  assert 'dog has images in it' in message(tmp_path)
